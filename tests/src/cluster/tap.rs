//! Packets between two pods on all links of a node: an AF_PACKET socket (packet(7)) made in its network namespace.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

use super::Cluster;

/// How often the listener looks whether it shall end.
const STEP_MS: u16 = 50;

/// No packet is longer: links carry 1500 bytes, but segments may be joined to 64 KiB.
const PACKET_LEN_MAX: usize = 65_536;

/// A running listener.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Seen>,
}

/// What it saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How many packets between the two pods had the word in them.
    pub with_word: usize,
    /// TCP ports of packets with payload between the two pods, of either end.
    pub ports: BTreeSet<u16>,
}

impl Tap {
    /// Starts to listen on a node for a word, and for ports between two pods.
    #[track_caller]
    pub fn start(cluster: &Cluster, node: &str, word: &str, pods: [IpAddr; 2]) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let opened = cluster
            .in_node(node, || socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll));
        let socket = opened.expect("root may listen to packets");
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, word) = (Arc::clone(&stop), word.as_bytes().to_vec());
        Self { stop, thread: thread::spawn(move || listen(&socket, &word, pods, &ended)) }
    }

    /// Ends, and gives what was seen.
    ///
    /// # Panics
    /// When listening failed.
    #[track_caller]
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("packets can be read")
    }
}

fn listen(socket: &OwnedFd, word: &[u8], pods: [IpAddr; 2], ended: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut packet = vec![0; PACKET_LEN_MAX];
    loop {
        match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => seen.note(&packet[..length], word, pods),
            Err(Errno::EAGAIN) if ended.load(Ordering::Relaxed) => return seen,
            Err(Errno::EAGAIN) => {
                let mut waiting = [PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLIN)];
                poll(&mut waiting, PollTimeout::from(STEP_MS)).expect("a socket can be waited for");
            }
            Err(error) => panic!("cannot read packets: {error}"),
        }
    }
}

impl Seen {
    fn note(&mut self, frame: &[u8], word: &[u8], pods: [IpAddr; 2]) {
        let Some(packet) = between(frame, pods) else { return };
        if packet.windows(word.len()).any(|window| window == word) {
            self.with_word += 1;
        }
        self.ports.extend(tcp_ports(packet).into_iter().flatten());
    }
}

/// The IPv4 packet of an Ethernet frame, where it goes from one of these addresses to the other. What else passes on a node
/// is not the mesh's: the kubelet and the runtime, for one, hand a test's own orders to its probe over the loopback.
fn between(frame: &[u8], ends: [IpAddr; 2]) -> Option<&[u8]> {
    const ETHERNET_LEN: usize = 14;
    let packet = frame.get(ETHERNET_LEN..).filter(|_| frame[12..ETHERNET_LEN] == [8, 0])?;
    let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let (from, to) = (address(12)?, address(16)?);
    (from != to && ends.contains(&from) && ends.contains(&to)).then_some(packet)
}

/// The ports of a TCP packet that carries payload.
fn tcp_ports(packet: &[u8]) -> Option<[u16; 2]> {
    let is_tcp = *packet.get(9)? == 6;
    let ip_len = usize::from(packet[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let tcp = packet.get(ip_len..)?;
    let tcp_len = usize::from(*tcp.get(12)? >> 4) * 4;
    // A joined packet may have no length of its own (0).
    let has_payload = total == 0 || total > ip_len + tcp_len;
    (is_tcp && has_payload)
        .then(|| [u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]])])
}
