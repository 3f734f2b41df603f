//! Closing a connection from outside: `SOCK_DESTROY` through sock_diag in the socket's own network namespace
//! (include/uapi/linux/{sock_diag,inet_diag}.h; kernel 4.9, `CONFIG_INET_DIAG_DESTROY`).
//!
//! Used when policy turns against a connection whose bytes never pass the agent. The owner sees ECONNABORTED, the peer
//! a reset.

use std::io;
use std::net::SocketAddr;

use socket2::Socket;
use zerocopy::IntoBytes;

use super::diag::{self, NLMSG_ERROR, Request};
use super::{Error, Netns};

const SOCK_DESTROY: u16 = 21;

/// Closes the TCP socket with this cookie, local and remote address in the namespace. False when it is not there.
///
/// The cookie is what keeps listeners alive: where no connection has these addresses the kernel's lookup goes on to
/// listeners, and through the pod's own `sk_lookup` program to the agent's (`inet_diag_find_one_icsk`).
///
/// # Errors
/// The namespace cannot be entered or the kernel refuses for another reason than absence.
pub fn destroy_tcp(netns: &Netns, cookie: u64, local: SocketAddr, remote: SocketAddr) -> Result<bool, Error> {
    let fail = |source| Error::Call { call: "SOCK_DESTROY", source };
    let socket = netns.enter(diag::socket)?.map_err(fail)?;
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
    let request = Request::new(SOCK_DESTROY, true, family, cookie, local, remote);
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
