//! Ways to connect. All of them have sent the order's header when they return.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::order::{Connecting, Order};
use crate::patient::prepare;

/// Connects and sends the header. An IPv4-mapped target is dialled with an IPv6 socket.
pub fn dial(target: SocketAddr, order: &Order) -> io::Result<TcpStream> {
    let header = order.header().map_err(io::Error::other)?;
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    match order.connect {
        Connecting::Plain => socket.connect(&target.into())?,
        Connecting::Early => {
            socket.set_nonblocking(true)?;
            match socket.connect(&target.into()) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
                other => other?,
            }
            socket.set_nonblocking(false)?;
        }
        Connecting::FastOpen => {
            setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&target.into())?;
        }
    }
    socket.set_tcp_nodelay(true)?;
    let mut stream = TcpStream::from(socket);
    // The header goes out on a blocking socket: a send(2) that came too early waits for the connection.
    stream.write_all(&header)?;
    prepare(&stream, order)?;
    Ok(stream)
}
