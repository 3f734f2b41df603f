//! A program in a pod, driven from a test. Its process ends with the [`Probe`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::wire::{Greeting, LoadSeen, Names, Order, Serve, Served};

/// How long one socket operation may take, in milliseconds.
const OPERATION_MS: u64 = 3000;

/// An error of a socket operation, by name: `ECONNREFUSED`, `EPERM`, `timeout`, `eof`; of a call with its stage:
/// `connect: EPERM`, `receive: ECONNRESET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// What an operation gives.
pub type Outcome<T> = Result<T, Refusal>;

/// A program in a pod.
#[derive(Debug)]
pub struct Probe {
    pod: String,
    child: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
    next: Cell<u32>,
}

/// A TCP connection of a probe. Dropping it closes it.
#[derive(Debug)]
pub struct Conn<'a> {
    probe: &'a Probe,
    number: u32,
    /// What the socket said about itself when it was made.
    pub names: Names,
}

/// A listener of a probe.
#[derive(Debug)]
pub struct Listener<'a> {
    probe: &'a Probe,
    number: u32,
    /// Where it listens.
    pub local: SocketAddr,
}

/// A server in the background of a probe. It lives as long as the probe.
#[derive(Debug)]
pub struct Server<'a> {
    probe: &'a Probe,
    number: u32,
    /// Where it listens.
    pub local: SocketAddr,
}

/// Calls in the background of a probe.
#[derive(Debug)]
pub struct Load<'a> {
    probe: &'a Probe,
    number: u32,
}

impl Probe {
    /// Drives a probe's process, which must have both pipes.
    pub(crate) fn new(pod: &str, mut child: Child) -> Self {
        let input = child.stdin.take().expect("standard input is a pipe");
        let output = child.stdout.take().expect("standard output is a pipe");
        let pipes = RefCell::new((input, BufReader::new(output)));
        Self { pod: pod.to_owned(), child, pipes, next: Cell::new(1) }
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order and waits for the answer.
    ///
    /// # Panics
    /// When the probe's process has ended: no test wants that.
    #[track_caller]
    pub fn order<T: DeserializeOwned>(&self, order: &Order) -> Outcome<T> {
        self.start(order);
        self.finish()
    }

    /// Gives an order without waiting; [`Probe::finish`] must follow before the next one.
    #[track_caller]
    pub fn start(&self, order: &Order) {
        let line = serde_json::to_string(order).expect("orders are plain data");
        let sent = writeln!(self.pipes.borrow_mut().0, "{line}");
        sent.unwrap_or_else(|error| panic!("the probe in {} is gone: {error}", self.pod));
    }

    /// Waits for the answer to an order that was started.
    #[track_caller]
    pub fn finish<T: DeserializeOwned>(&self) -> Outcome<T> {
        let mut line = String::new();
        let read = self.pipes.borrow_mut().1.read_line(&mut line);
        assert!(read.is_ok_and(|n| n > 0), "the probe in {} ended instead of answering", self.pod);
        let answer: Value = serde_json::from_str(&line).expect("answers are JSON");
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(Refusal(error.to_owned())),
            None => Ok(serde_json::from_value(answer["ok"].clone()).expect("the answer fits the order")),
        }
    }

    fn number(&self) -> u32 {
        self.next.replace(self.next.get() + 1)
    }

    /// Connects by TCP.
    #[track_caller]
    pub fn connect(&self, to: impl Into<SocketAddr>) -> Outcome<Conn<'_>> {
        self.connect_within(to, OPERATION_MS)
    }

    /// [`Probe::connect`] with a patience of its own, in milliseconds.
    #[track_caller]
    pub fn connect_within(&self, to: impl Into<SocketAddr>, timeout_ms: u64) -> Outcome<Conn<'_>> {
        let number = self.number();
        let names = self.order(&Order::Connect { socket: number, to: to.into(), from: None, timeout_ms })?;
        Ok(Conn { probe: self, number, names })
    }

    /// Connects by TCP from an address of the caller's choice.
    #[track_caller]
    pub fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> Outcome<Conn<'_>> {
        let number = self.number();
        let order = Order::Connect { socket: number, to, from: Some(from), timeout_ms: OPERATION_MS };
        Ok(Conn { probe: self, number, names: self.order(&order)? })
    }

    /// Leaves for a network namespace of its own, with nothing in it.
    #[track_caller]
    pub fn unshare(&self) {
        let left: Outcome<()> = self.order(&Order::Unshare);
        left.expect("root may make a network namespace");
    }

    /// Listens.
    #[track_caller]
    pub fn listen(&self, at: SocketAddr) -> Outcome<Listener<'_>> {
        let number = self.number();
        let names: Names = self.order(&Order::Listen { socket: number, at })?;
        Ok(Listener { probe: self, number, local: names.local })
    }

    /// Serves in the background on a port of every address, IPv4 and IPv6.
    #[track_caller]
    pub fn serve(&self, port: u16, mode: Serve) -> Server<'_> {
        let at = SocketAddr::from((IpAddr::from([0u16; 8]), port));
        self.serve_at(at, mode).expect("the port is free")
    }

    /// Serves in the background.
    #[track_caller]
    pub fn serve_at(&self, at: SocketAddr, mode: Serve) -> Outcome<Server<'_>> {
        let number = self.number();
        let local = self.order(&Order::Serve { server: number, at, mode })?;
        Ok(Server { probe: self, number, local })
    }

    /// Connects to a [`Serve::Greet`] server, exchanges a line, and closes.
    #[track_caller]
    pub fn call(&self, to: impl Into<SocketAddr>) -> Outcome<Greeting> {
        self.order(&Order::Call { to: to.into(), timeout_ms: OPERATION_MS })
    }

    /// Calls in the background, in turn to each address, with a pause between calls.
    #[track_caller]
    pub fn load(&self, to: &[SocketAddr], pause_us: u64) -> Load<'_> {
        let number = self.number();
        let started: Outcome<()> = self.order(&Order::Load { load: number, to: to.to_vec(), pause_us });
        started.expect("a load starts");
        Load { probe: self, number }
    }

    /// Sends a datagram and waits for an answer.
    #[track_caller]
    pub fn datagram(&self, to: impl Into<SocketAddr>, connect: bool) -> Outcome<String> {
        let text = "datagram".to_owned();
        self.order(&Order::Datagram { to: to.into(), connect, text, timeout_ms: 1000 })
    }

    /// Sends datagrams back, in the background.
    #[track_caller]
    pub fn serve_datagrams(&self, at: SocketAddr) {
        let bound: Outcome<SocketAddr> = self.order(&Order::ServeDatagrams { at });
        bound.expect("the port is free");
    }
}

impl Conn<'_> {
    /// Sends a text.
    #[track_caller]
    pub fn send(&self, text: &str) -> Outcome<()> {
        self.probe.order(&Order::Send { socket: self.number, text: text.to_owned() })
    }

    /// Receives once.
    #[track_caller]
    pub fn receive(&self) -> Outcome<String> {
        self.receive_within(OPERATION_MS)
    }

    /// [`Conn::receive`] with a patience of its own, in milliseconds.
    #[track_caller]
    pub fn receive_within(&self, timeout_ms: u64) -> Outcome<String> {
        self.probe.order(&Order::Receive { socket: self.number, timeout_ms })
    }

    /// Receives until the end.
    #[track_caller]
    pub fn receive_all(&self) -> Outcome<String> {
        self.probe.order(&Order::ReceiveAll { socket: self.number, timeout_ms: OPERATION_MS })
    }

    /// Sends a text and receives as much again.
    #[track_caller]
    pub fn exchange(&self, text: &str) -> Outcome<String> {
        self.send(text)?;
        let mut got = String::new();
        while got.len() < text.len() {
            got.push_str(&self.receive()?);
        }
        Ok(got)
    }

    /// Sends so many bytes of the seed's pattern, then finishes this direction.
    #[track_caller]
    pub fn send_pattern(&self, seed: u64, bytes: u64) -> Outcome<u64> {
        self.probe.order(&Order::SendPattern { socket: self.number, seed, bytes })
    }

    /// Receives until the end, comparing with the seed's pattern; gives the number of bytes.
    #[track_caller]
    pub fn receive_pattern(&self, seed: u64) -> Outcome<u64> {
        self.probe.order(&Order::ReceivePattern { socket: self.number, seed, timeout_ms: OPERATION_MS })
    }

    /// getsockname and getpeername, now.
    #[track_caller]
    pub fn names_now(&self) -> Outcome<Names> {
        self.probe.order(&Order::Names { socket: self.number })
    }

    /// Finishes sending.
    #[track_caller]
    pub fn finish_sending(&self) -> Outcome<()> {
        self.probe.order(&Order::Finish { socket: self.number })
    }

    /// Closes with RST.
    #[track_caller]
    pub fn reset(self) -> Outcome<()> {
        self.probe.order(&Order::Reset { socket: self.number })
    }
}

impl Drop for Conn<'_> {
    fn drop(&mut self) {
        close(self.probe, self.number);
    }
}

impl<'a> Listener<'a> {
    /// Accepts one connection; `names.peer` is what accept(2) returned.
    #[track_caller]
    pub fn accept(&self) -> Outcome<Conn<'a>> {
        self.accept_within(OPERATION_MS)
    }

    /// [`Listener::accept`] with a patience of its own, in milliseconds.
    #[track_caller]
    pub fn accept_within(&self, timeout_ms: u64) -> Outcome<Conn<'a>> {
        let number = self.probe.number();
        let order = Order::Accept { listener: self.number, socket: number, timeout_ms };
        let names = self.probe.order(&order)?;
        Ok(Conn { probe: self.probe, number, names })
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        close(self.probe, self.number);
    }
}

fn close(probe: &Probe, socket: u32) {
    // While unwinding the probe may be in the middle of an answer; after `lab down` it is gone, and its sockets with it.
    if std::thread::panicking() {
        return;
    }
    let line = serde_json::to_string(&Order::Close { socket }).expect("orders are plain data");
    let mut pipes = probe.pipes.borrow_mut();
    if writeln!(pipes.0, "{line}").is_ok() {
        let _ = pipes.1.read_line(&mut String::new());
    }
}

impl Server<'_> {
    /// The connections it took, in order.
    #[track_caller]
    pub fn served(&self) -> Vec<Served> {
        self.probe.order(&Order::Served { server: self.number }).expect("the server is there")
    }

    /// Stops listening; its connections live on.
    #[track_caller]
    pub fn stop(&self) {
        let stopped: Outcome<()> = self.probe.order(&Order::StopServing { server: self.number });
        stopped.expect("the server is there");
    }
}

impl Load<'_> {
    /// How it goes.
    #[track_caller]
    pub fn seen(&self) -> LoadSeen {
        self.probe.order(&Order::LoadSeen { load: self.number }).expect("the load is there")
    }

    /// Stops it, and says how it went.
    #[track_caller]
    pub fn stop(self) -> LoadSeen {
        self.probe.order(&Order::LoadStop { load: self.number }).expect("the load is there")
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
