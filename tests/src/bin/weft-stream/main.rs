//! Traffic that finds its own faults: a server, a client and a splicing relay for the tests of the data paths.
//!
//! Both ends know every byte of a stream before it arrives (see [`pattern`]), so that a byte lost, doubled, changed or out
//! of place is found at its offset. They use sockets as ordinary programs do, in as many ways as ordinary programs do, and
//! know nothing of the mesh. Each end prints one line of JSON per connection.
//!
//! ```text
//! weft-stream serve WHERE...            WHERE is PORT, FIRST-LAST, 4:PORT (IPv4 only), defer:PORT (TCP_DEFER_ACCEPT)
//! weft-stream call ADDRESS:PORT KEY=VALUE...
//! weft-stream relay PORT ADDRESS:PORT   forwards with splice(2) through a pipe, as Go's io.Copy does
//! ```
//!
//! Reading order: [`order`] (what a client may ask for), [`pattern`], [`report`], [`dial`] (ways to connect), [`patient`] (ways to wait), [`writer`] and
//! [`reader`] (ways to use a socket), [`scene`] (what the two ends of a connection do, by mode), [`churn`], [`relay`].

pub mod order;
pub mod pattern;
pub mod report;

pub mod dial;
pub mod options;
pub mod patient;
pub mod reader;
pub mod writer;

pub mod scene;

pub mod churn;
pub mod relay;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::socket::setsockopt;
use socket2::{Domain, Protocol, Socket, Type};

use order::{HEADER_BYTES, Mode, Order};
use report::Report;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[String]) -> Result<ExitCode> {
    let (command, words) = words.split_first().context("serve, call or relay?")?;
    match command.as_str() {
        "serve" => serve(words),
        "call" => call(words),
        "relay" => {
            let [port, target] = words else { bail!("relay PORT ADDRESS:PORT") };
            relay::run(listen(port)?.0, target.parse()?)
        }
        other => bail!("there is no command {other}"),
    }
}

/// One call; exit code 1 when anything was not as it should be.
fn call(words: &[String]) -> Result<ExitCode> {
    let (target, words) = words.split_first().context("call ADDRESS:PORT KEY=VALUE...")?;
    let target: SocketAddr = target.parse().context("the target is not ADDRESS:PORT")?;
    let order = Order::parse(words)?;
    let report =
        if order.mode == Mode::Churn { churn::client(target, &order) } else { scene::client(target, &order) };
    report.print();
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn serve(words: &[String]) -> Result<ExitCode> {
    let mut listeners = Vec::new();
    for word in words {
        let (prefix, ports) = word.split_once(':').map_or(("", word.as_str()), |(a, b)| (a, b));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        for port in first.parse::<u16>()?..=last.parse::<u16>()? {
            let place = if prefix.is_empty() { port.to_string() } else { format!("{prefix}:{port}") };
            listeners.push(listen(&place)?.0);
        }
    }
    let accepting: Vec<_> =
        listeners.into_iter().map(|listener| thread::spawn(move || accept(&listener))).collect();
    for thread in accepting {
        let _ = thread.join();
    }
    bail!("no listener is left")
}

/// Opens a listener: `PORT` on IPv6 and IPv4 alike, `4:PORT` on IPv4, `defer:PORT` with `TCP_DEFER_ACCEPT`.
fn listen(place: &str) -> Result<(TcpListener, u16)> {
    let (kind, port) = place.split_once(':').unwrap_or(("", place));
    let port: u16 = port.parse().with_context(|| format!("{place} is no port"))?;
    let (domain, address) = match kind {
        "4" => (Domain::IPV4, SocketAddr::from(([0, 0, 0, 0], port))),
        _ => (Domain::IPV6, SocketAddr::from(([0u16; 8], port))),
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    if kind == "defer" {
        setsockopt(&socket, options::DeferAccept, &5).context("TCP_DEFER_ACCEPT is refused")?;
    }
    socket.bind(&address.into()).with_context(|| format!("cannot listen on {address}"))?;
    socket.listen(4096)?;
    Ok((socket.into(), port))
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => drop(thread::Builder::new().stack_size(256 << 10).spawn(move || host(stream))),
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

/// Serves one connection as its first bytes say.
fn host(mut stream: TcpStream) {
    let mut header = [0; HEADER_BYTES];
    let order = stream.read_exact(&mut header).map_err(anyhow::Error::from).and_then(|()| {
        let text = str::from_utf8(&header).context("the header is no text")?;
        Order::parse(text.split_whitespace())
    });
    match order {
        Ok(order) if order.mode == Mode::Churn => churn::server(stream, &order),
        Ok(order) => scene::server(stream, &order).print(),
        Err(error) => {
            let mut report = Report::new("?", "server");
            report.error = Some(format!("header: {error:#}"));
            report.print();
        }
    }
}
