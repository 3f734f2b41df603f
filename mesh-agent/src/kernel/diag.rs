//! Asking the kernel about one TCP socket: sock_diag (include/uapi/linux/{sock_diag,inet_diag}.h).
//!
//! Whose socket it is, for a connection whose other end the agent holds. The answer is of the moment: a socket may be closed
//! before the question is asked, and then its owner is nobody's any more.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use zerocopy::{Immutable, IntoBytes};

use super::Error;

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
pub(super) const NLMSG_ERROR: u16 = 2;
const IPPROTO_TCP: u8 = 6;
/// `INET_DIAG_CGROUP_ID` (kernel 5.9).
const CGROUP_ID: u16 = 21;
/// `INET_DIAG_NOCOOKIE`: any socket with these addresses.
const NO_COOKIE: u64 = u64::MAX;
/// The kernel answers before `send` returns; this only keeps a worker from hanging should it not.
const PATIENCE: Duration = Duration::from_secs(1);

/// `struct nlmsghdr` followed by `struct inet_diag_req_v2`.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
pub(super) struct Request {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    pid: u32,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    source_port_be: [u8; 2],
    destination_port_be: [u8; 2],
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

const _: () = assert!(size_of::<Request>() == 72);

impl Request {
    /// About the TCP socket of a family with these addresses, seen from its own side.
    pub(super) fn new(
        kind: u16,
        acknowledge: bool,
        family: u8,
        cookie: u64,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Self {
        // Two halves, the lower one first (`sock_diag_save_cookie`).
        let [low, high] =
            [cookie & u64::from(u32::MAX), cookie >> 32].map(|half| u32::try_from(half).expect("32 bits"));
        Self {
            length: u32::try_from(size_of::<Self>()).expect("small"),
            kind,
            flags: if acknowledge { NLM_F_REQUEST | NLM_F_ACK } else { NLM_F_REQUEST },
            sequence: 1,
            pid: 0,
            family,
            protocol: IPPROTO_TCP,
            extensions: 0,
            pad: 0,
            states: !0,
            source_port_be: local.port().to_be_bytes(),
            destination_port_be: remote.port().to_be_bytes(),
            source: address(family, local.ip()),
            destination: address(family, remote.ip()),
            interface: 0,
            cookie: [low, high],
        }
    }
}

/// A netlink socket in the calling thread's network namespace.
pub(super) fn socket() -> io::Result<Socket> {
    Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)))
}

/// Whose socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A process has it open.
    Process {
        /// User that made it, as this process's user namespace numbers users.
        uid: u32,
        /// Control group (version 2) in which it was made.
        cgroup: u64,
    },
    /// Its process has closed it; the kernel still has an end of the connection.
    Nobody,
}

/// The owner of the TCP socket with these addresses in the calling thread's network namespace. `None`: there is none.
///
/// # Errors
/// The kernel refuses to answer.
pub fn owner(local: SocketAddr, remote: SocketAddr) -> Result<Option<Owner>, Error> {
    let fail = |source| Error::Call { call: "SOCK_DIAG_BY_FAMILY", source };
    let socket = socket().map_err(fail)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    // A dual-stack program holds an IPv4 connection in an IPv6 socket, which is found under its mapped address.
    for family in [libc::AF_INET, libc::AF_INET6] {
        if family == libc::AF_INET && local.is_ipv6() {
            continue;
        }
        let family = u8::try_from(family).expect("small");
        let request = Request::new(SOCK_DIAG_BY_FAMILY, false, family, NO_COOKIE, local, remote);
        socket.send(request.as_bytes()).map_err(fail)?;
        let mut answer = [0; 1024];
        // `Read` for `&Socket` takes an initialised buffer.
        let length = io::Read::read(&mut &socket, &mut answer).map_err(fail)?;
        match parse(&answer[..length], &request) {
            Ok(Some(owner)) => return Ok(Some(owner)),
            Ok(None) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(None)
}

/// Reads `struct inet_diag_msg` and the attributes behind it.
///
/// Where no connection has these addresses the kernel's lookup goes on to listeners, so the addresses are compared. A socket
/// whose process is gone has no inode, and one in TIME_WAIT has no group either: their user reads 0, which means nothing.
fn parse(answer: &[u8], asked: &Request) -> io::Result<Option<Owner>> {
    let short = || io::Error::other("a short answer from sock_diag");
    let u16_at = |at: usize| answer.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let u32_at = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    match u16_at(4).ok_or_else(short)? {
        NLMSG_ERROR => {
            let code = u32_at(16).ok_or_else(short)?.cast_signed();
            return if code == -libc::ENOENT { Ok(None) } else { Err(io::Error::from_raw_os_error(-code)) };
        }
        SOCK_DIAG_BY_FAMILY => {}
        _ => return Err(io::Error::other("unexpected answer from sock_diag")),
    }
    let same = |at: usize, wanted: &[u8]| answer.get(at..at + wanted.len()) == Some(wanted);
    let address_len = if i32::from(asked.family) == libc::AF_INET { 4 } else { 16 };
    let is_it = same(20, &asked.source_port_be)
        && same(22, &asked.destination_port_be)
        && same(24, &asked.source[..address_len])
        && same(40, &asked.destination[..address_len]);
    if !is_it {
        return Ok(None);
    }
    let (uid, inode) = (u32_at(80).ok_or_else(short)?, u32_at(84).ok_or_else(short)?);
    let mut at = 88;
    let mut cgroup = None;
    while let (Some(length), Some(kind)) = (u16_at(at), u16_at(at + 2)) {
        if kind == CGROUP_ID {
            cgroup = answer.get(at + 4..at + 12).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
        }
        if length < 4 {
            break;
        }
        at += usize::from(length).next_multiple_of(4);
    }
    Ok(Some(match cgroup {
        Some(cgroup) if inode != 0 => Owner::Process { uid, cgroup },
        _ => Owner::Nobody,
    }))
}

fn address(family: u8, ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) if i32::from(family) == libc::AF_INET => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V4(ip) => bytes = ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::kernel::cgroup;

    /// One connection of this very process, in both families.
    fn pairs() -> Vec<(TcpStream, TcpStream)> {
        let pair = |address: &str| {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        vec![pair("127.0.0.1:0"), pair("[::1]:0")]
    }

    #[test]
    fn an_open_socket_tells_its_user_and_control_group() {
        let unified =
            cgroup::Mounts::of_self().unwrap().unified.expect("this machine has the unified hierarchy");
        let own = cgroup::id(&cgroup::own(&unified).unwrap()).unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        for (client, _server) in pairs() {
            let owner = owner(client.local_addr().unwrap(), client.peer_addr().unwrap()).unwrap();
            assert_eq!(owner, Some(Owner::Process { uid, cgroup: own }));
        }
    }

    #[test]
    fn a_closed_socket_is_nobodys_and_never_roots() {
        for (client, server) in pairs() {
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            drop(client);
            assert_eq!(owner(local, remote).unwrap(), Some(Owner::Nobody), "half closed");
            drop(server);
            assert_eq!(owner(local, remote).unwrap(), Some(Owner::Nobody), "in TIME_WAIT");
        }
    }

    #[test]
    fn a_listener_is_no_answer_for_a_connection_that_is_not_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stranger = "127.0.0.1:1".parse().unwrap();
        assert_eq!(owner(listener.local_addr().unwrap(), stranger).unwrap(), None);
    }
}
