//! What passes a node's uplink: is the benches' payload seen there in the clear?

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde::Serialize;

use super::interrupt;
use super::report::Report;
use super::traffic::{Ends, Path, Sample, Traffic, measure};
use crate::app::bench::MARKER;
use crate::shell::say;

/// The node's link to the other nodes.
const UPLINK: &str = "uplink";

/// Room for one frame: without a real network card, segments of up to 64 KiB pass whole.
const FRAME_BYTES_MAX: usize = 70_000;

/// Receive buffer of the capture, in bytes.
const CAPTURE_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// How often a variant may fail before it is ready.
const TRIES: usize = 20;

/// How long a run takes that only looks whether there is traffic, in seconds.
const SHORT_S: f64 = 0.05;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Seen {
    /// Frames.
    frames: u64,
    /// Frames with [`MARKER`] in them.
    in_the_clear: u64,
}

/// Waits until a variant works, then looks whether its payload crosses the wire in the clear. Without a mesh it must, or
/// the look itself is worth nothing.
pub fn check(report: &mut Report, path: &Path<'_>, traffic: &Traffic, ends: Ends, label: &str) -> Result<()> {
    wait_until_it_works(path, traffic, ends, label)?;
    let node = &path.stage.lab.nodes[0];
    let (sample, seen) = watch(&node.netns, || measure(path, traffic, ends, SHORT_S))?;
    let (frames, clear) = (seen.frames, seen.in_the_clear);
    report.notes.push(format!(
        "wire, {label}: {} round trips, {frames} frames on node-1's uplink, {clear} with payload in the clear; connections: {}",
        sample.client.count_all, connections(&sample)
    ));
    let wrong = match path.proxies.is_empty() {
        true => clear == 0,
        false => clear > 0 || frames < sample.client.count_all.min(20),
    };
    if wrong {
        report.wrong.push(format!("wire, {label}: {clear} of {frames} frames in the clear"));
    }
    Ok(())
}

/// Tries short runs until one is clean.
pub fn wait_until_it_works(path: &Path<'_>, traffic: &Traffic, ends: Ends, label: &str) -> Result<()> {
    for _ in 0..TRIES {
        let sample = measure(path, traffic, ends, SHORT_S)?;
        if sample.is_clean() {
            return Ok(());
        }
        say(format!("{label}: not yet: {}", sample.client.errors.join("; ")));
        interrupt::sleep(Duration::from_millis(200))?;
    }
    bail!("{label}: no traffic gets through")
}

/// The connections of a run as text.
pub fn connections(sample: &Sample) -> String {
    let words: Vec<String> = sample.paths.iter().map(|(path, count)| format!("{path} {count}")).collect();
    if words.is_empty() { "none counted".to_owned() } else { words.join(", ") }
}

/// Watches the uplink of a node while something happens.
fn watch<T>(netns: &std::path::Path, during: impl FnOnce() -> Result<T>) -> Result<(T, Seen)> {
    let namespace = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
    let (stop, ready) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let capturing = scope.spawn(|| {
            let seen = setns(&namespace, CloneFlags::CLONE_NEWNET)
                .context("cannot enter the node")
                .and_then(|()| capture(&stop, &ready));
            // Should it have failed early, nobody waits for it.
            ready.store(true, Ordering::Release);
            seen
        });
        while !ready.load(Ordering::Acquire) {
            thread::yield_now();
        }
        let happened = during();
        stop.store(true, Ordering::Release);
        let seen = capturing.join().map_err(|_panic| anyhow!("the capture panicked"))??;
        Ok((happened?, seen))
    })
}

fn capture(stop: &AtomicBool, ready: &AtomicBool) -> Result<Seen> {
    let uplink = nix::net::if_::if_nametoindex(UPLINK).context("the node has no uplink")?;
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("cannot open a packet socket")?;
    setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
    setsockopt(&raw, sockopt::RcvBufForce, &CAPTURE_BUFFER_BYTES)?;
    ready.store(true, Ordering::Release);
    let mut seen = Seen::default();
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        let (length, from) = {
            let mut parts = [IoSliceMut::new(&mut frame)];
            match recvmsg::<LinkAddr>(raw.as_raw_fd(), &mut parts, None, MsgFlags::empty()) {
                Ok(message) => (message.bytes, message.address.map(|address| address.ifindex())),
                Err(Errno::EAGAIN) if stop.load(Ordering::Acquire) => return Ok(seen),
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error).context("cannot read from the packet socket"),
            }
        };
        if from.is_some_and(|index| index as u64 == u64::from(uplink)) {
            seen.frames += 1;
            seen.in_the_clear += u64::from(contains(&frame[..length], MARKER));
        }
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
