//! Sees the packets of a node's link, as tcpdump would: an AF_PACKET socket (packet(7)) that was made in the node's network
//! namespace and stays in it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};

/// The largest packet: 64 KiB with offloads, and its Ethernet header.
const PACKET_BYTES_MAX: usize = 64 * 1024 + 64;

/// The link is taken to be silent after this long without a packet.
const SILENCE: Duration = Duration::from_millis(100);

/// A running capture; the kernel keeps packets until they are taken.
pub struct Capture {
    socket: OwnedFd,
    link: usize,
}

impl Capture {
    /// Starts in a network namespace, on one of its links.
    pub fn start(netns: &Path, link: &str) -> Result<Self> {
        let namespace = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
        // A thread enters the namespace and ends: this program stays where it is, and the socket where it was made.
        let open = || -> Result<Self> {
            setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the node")?;
            let link = usize::try_from(if_nametoindex(link)?)?;
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            Ok(Self { socket, link })
        };
        let opened = thread::scope(|scope| scope.spawn(open).join());
        opened.map_err(|_panic| anyhow!("the capture panicked"))?.context("cannot capture packets")
    }

    /// The packets since the start, or since they were last taken, up to a moment of silence.
    pub fn take(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut packets = Vec::new();
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let mut was_silent = false;
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((count, from)) => {
                    was_silent = false;
                    if from.is_some_and(|from| from.ifindex() == self.link) {
                        packets.push(buffer[..count].to_vec());
                    }
                }
                Err(Errno::EAGAIN) if was_silent => return Ok(packets),
                Err(Errno::EAGAIN) => {
                    was_silent = true;
                    thread::sleep(SILENCE);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("the capture broke off"),
            }
        }
    }
}

/// A TCP segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Source and destination port.
    pub ports: [u16; 2],
    /// What TCP carries.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// The segment in an Ethernet frame; `None` for everything else. IPv6 extension headers are not expected on this link.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        let (protocol, head, total) = match frame.get(12..14)? {
            [0x08, 0x00] => {
                let head = usize::from(packet.first()? & 0x0f) * 4;
                (*packet.get(9)?, head, usize::from(number(packet, 2)?))
            }
            [0x86, 0xdd] => (*packet.get(6)?, 40, 40 + usize::from(number(packet, 4)?)),
            _ => return None,
        };
        if protocol != 6 {
            return None;
        }
        // Ethernet pads short frames; a length of zero is how very large ones are given with offloads.
        let end = if total > head { total.min(packet.len()) } else { packet.len() };
        let tcp = packet.get(head..end)?;
        let data = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self { ports: [number(tcp, 0)?, number(tcp, 2)?], payload: tcp.get(data..)? })
    }

    /// Whether it goes to or comes from a port.
    pub fn has_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }
}

/// Whether bytes contain others.
pub fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet frame with an IPv4 or IPv6 packet that carries `tcp`, with padding after it.
    fn frame(v6: bool, tcp: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        let length = u16::try_from(tcp.len()).unwrap();
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0; 32]);
        } else {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, 6]);
            frame.extend([0; 10]);
        }
        frame.extend(tcp);
        frame.extend([0xee; 6]);
        frame
    }

    #[test]
    fn payload_and_ports_are_found_in_both_families_without_the_padding() {
        let mut tcp =
            vec![0x3a, 0xa0, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1];
        tcp.extend(b"hello");
        for v6 in [false, true] {
            let frame = frame(v6, &tcp);
            let segment = Segment::parse(&frame).unwrap();
            assert_eq!(segment, Segment { ports: [15008, 8080], payload: b"hello" });
            assert!(segment.has_port(15008) && !segment.has_port(80));
        }
    }

    #[test]
    fn other_protocols_and_cut_frames_are_no_segments() {
        let mut udp = frame(false, &[0; 20]);
        udp[14 + 9] = 17;
        assert_eq!(Segment::parse(&udp), None);
        let whole = frame(true, &[0; 20]);
        assert_eq!(Segment::parse(&whole[..60]), None);
        assert_eq!(Segment::parse(&[]), None);
    }

    #[test]
    fn a_marker_is_found_wherever_it_stands() {
        assert!(contains(b"GET /marker HTTP/1.1", b"marker"));
        assert!(!contains(b"mark", b"marker"));
    }
}
