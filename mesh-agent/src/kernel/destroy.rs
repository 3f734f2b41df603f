//! Closing a connection from outside: `SOCK_DESTROY` through sock_diag in the socket's own network namespace
//! (include/uapi/linux/{sock_diag,inet_diag}.h; kernel 4.9, `CONFIG_INET_DIAG_DESTROY`).
//!
//! Used when policy turns against a connection whose bytes never pass the agent. The owner sees ECONNABORTED, the peer
//! a reset.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use zerocopy::{Immutable, IntoBytes};

use super::{Error, Netns};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IPPROTO_TCP: u8 = 6;

/// `struct nlmsghdr` followed by `struct inet_diag_req_v2`.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Request {
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

/// Closes the TCP socket with this cookie, local and remote address in the namespace. False when it is not there.
///
/// The cookie is what keeps listeners alive: where no connection has these addresses the kernel's lookup goes on to
/// listeners, and through the pod's own `sk_lookup` program to the agent's (`inet_diag_find_one_icsk`).
///
/// # Errors
/// The namespace cannot be entered or the kernel refuses for another reason than absence.
pub fn destroy_tcp(netns: &Netns, cookie: u64, local: SocketAddr, remote: SocketAddr) -> Result<bool, Error> {
    let fail = |source| Error::Call { call: "SOCK_DESTROY", source };
    let socket = netns
        .enter(|| {
            Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)))
        })?
        .map_err(fail)?;
    // A dual-stack application holds an IPv4 connection in an IPv6 socket, which is found under its mapped address.
    for family in [libc::AF_INET, libc::AF_INET6] {
        if family == libc::AF_INET && local.is_ipv6() {
            continue;
        }
        match send(&socket, u8::try_from(family).expect("small"), cookie, local, remote) {
            Ok(()) => return Ok(true),
            // ESTALE: something else has these addresses.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(false)
}

fn send(socket: &Socket, family: u8, cookie: u64, local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    // Two halves, the lower one first (`sock_diag_save_cookie`).
    let [low, high] =
        [cookie & u64::from(u32::MAX), cookie >> 32].map(|half| u32::try_from(half).expect("32 bits"));
    let request = Request {
        length: u32::try_from(size_of::<Request>()).expect("small"),
        kind: SOCK_DESTROY,
        flags: NLM_F_REQUEST | NLM_F_ACK,
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
    };
    socket.send(request.as_bytes())?;
    let mut answer = [0; 256];
    socket.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    // `Read` for `&Socket` takes an initialised buffer.
    let length = io::Read::read(&mut &*socket, &mut answer)?;
    let answer = &answer[..length];
    let field = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, field(16)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::other("unexpected answer from sock_diag")),
    }
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
