//! What passes a node's uplink: is the benches' payload seen there in the clear?

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde::Serialize;

use crate::app::bench::MARKER;

/// The node's link to the other nodes.
const UPLINK: &str = "uplink";

/// Room for one frame: without a real network card, segments of up to 64 KiB pass whole.
const FRAME_BYTES_MAX: usize = 70_000;

/// Receive buffer of the capture, in bytes.
const CAPTURE_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seen {
    /// Frames.
    pub frames: u64,
    /// Frames with [`MARKER`] in them.
    pub in_the_clear: u64,
}

/// Watches the uplink of a node while something happens.
pub fn watch<T>(netns: &Path, during: impl FnOnce() -> Result<T>) -> Result<(T, Seen)> {
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
