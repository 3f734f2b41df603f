//! Traffic between pods that finds its own faults: `weft-stream` (see `src/bin/weft-stream/main.rs`) as server and client,
//! and the accounts of both ends of a connection side by side.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use crate::lab::{self, Lab, Running};
use crate::wait::{eventually, within};

/// What one end of a connection saw; the fields are explained where `weft-stream` makes them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Account {
    /// The order's.
    pub id: String,
    /// `client` or `server`.
    pub side: String,
    /// This end's address.
    pub local: Option<SocketAddr>,
    /// The other end's address.
    pub peer: Option<SocketAddr>,
    /// Bytes that the kernel took.
    pub written: u64,
    /// Bytes that came.
    pub read: u64,
    /// Offset of the first wrong byte.
    pub mismatch: Option<u64>,
    /// What went wrong.
    pub error: Option<String>,
    /// What an abrupt ending looked like.
    pub saw: Option<String>,
    /// Bytes that went before a sleeping reader blocked the writer.
    pub blocked_at: Option<u64>,
    /// Zero-copy sends whose completion came, where SO_ZEROCOPY was granted.
    pub completions: Option<u64>,
    /// Connections that went well.
    pub connections: u32,
    /// From connected to closed.
    pub seconds: f64,
}

/// Both ends of a connection.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// What was asked for.
    pub order: String,
    /// The client's account.
    pub client: Account,
    /// The server's; empty for many short connections.
    pub server: Account,
}

/// A server, or a relay, in a pod.
#[derive(Debug)]
pub struct Server {
    lines: Arc<Mutex<Vec<Value>>>,
    _running: Running,
}

impl Exchange {
    /// Both ends found every byte right, and no call failed.
    ///
    /// # Panics
    /// When not so.
    #[track_caller]
    pub fn assert_good(&self) -> &Self {
        for end in [&self.client, &self.server] {
            assert!(end.mismatch.is_none() && end.error.is_none(), "{}: {end:?}", self.order);
        }
        assert_eq!(self.client.written, self.server.read, "{}: client to server, in bytes", self.order);
        assert_eq!(self.server.written, self.client.read, "{}: server to client, in bytes", self.order);
        self
    }

    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        self.client.written + self.client.read
    }
}

impl Server {
    /// Serves in a pod, on places as `weft-stream serve` takes them, and waits until the last one listens.
    #[track_caller]
    pub fn start(lab: &Lab, pod: &str, places: &[&str]) -> Self {
        let mut words = vec!["serve"];
        words.extend(places);
        let server = Self::run(lab, pod, &words);
        let last = places.last().expect("a server listens somewhere");
        let port = last.rsplit([':', '-']).next().and_then(|port| port.parse().ok()).expect("a port");
        server.await_listener(lab, pod, port)
    }

    /// Relays from a port of a pod to a target with splice(2).
    #[track_caller]
    pub fn relay(lab: &Lab, pod: &str, port: u16, target: SocketAddr) -> Self {
        let words = ["relay", &port.to_string(), &target.to_string()];
        Self::run(lab, pod, &words).await_listener(lab, pod, port)
    }

    fn run(lab: &Lab, pod: &str, words: &[&str]) -> Self {
        let program = program();
        let mut all = vec![program.to_str().expect("the path is text")];
        all.extend(words);
        let mut running = lab.spawn(pod, &all);
        let output = running.0.stdout.take().expect("output is piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                heard.lock().push(serde_json::from_str(&line).expect("an account is JSON"));
            }
        });
        Self { lines, _running: running }
    }

    fn await_listener(self, lab: &Lab, pod: &str, port: u16) -> Self {
        let mark = format!(":{port:04X} ");
        eventually("the server listens", || {
            let tables = lab.in_pod(pod, || {
                let read = |file| std::fs::read_to_string(file).unwrap_or_default();
                read("/proc/thread-self/net/tcp") + &read("/proc/thread-self/net/tcp6")
            });
            // The local address is the second column, the state the fourth: 0A is LISTEN.
            let listens = |line: &str| {
                line.contains(" 0A ")
                    && line
                        .split_whitespace()
                        .nth(1)
                        .is_some_and(|local| format!("{local} ").ends_with(&mark))
            };
            tables.lines().any(listens).then_some(())
        });
        self
    }

    /// Everything that it has said.
    pub fn accounts(&self) -> Vec<Value> {
        self.lines.lock().clone()
    }

    /// The account of the connection with this id.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn account(&self, id: &str) -> Account {
        let found = within(Duration::from_secs(30), &format!("the server's account of {id}"), || {
            self.lines.lock().iter().find(|line| line["id"] == id).cloned()
        });
        serde_json::from_value(found).expect("the server prints accounts")
    }
}

/// Calls from a pod, and gives what both ends saw. `order` is words as `weft-stream call` takes them.
#[track_caller]
pub fn call(lab: &Lab, pod: &str, target: SocketAddr, server: &Server, order: &str) -> Exchange {
    let mut exchange = call_alone(lab, pod, target, order);
    if exchange.client.error.as_deref().is_none_or(|error| !error.starts_with("connect")) {
        exchange.server = server.account(&exchange.client.id);
    }
    exchange
}

/// [`call`] for orders of which the server gives no account.
#[track_caller]
pub fn call_alone(lab: &Lab, pod: &str, target: SocketAddr, order: &str) -> Exchange {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (id, seed) = (format!("id=c{number}"), format!("seed={}", number + 11));
    let (program, address) = (program(), target.to_string());
    let mut words = vec![program.to_str().expect("the path is text"), "call", &address, &id, &seed];
    words.extend(order.split_whitespace());
    let output = lab.command(pod, &words).stdin(Stdio::null()).output().expect("`lab exec` starts");
    let client = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{target} {order}: {error}: {}", String::from_utf8_lossy(&output.stderr))
    });
    Exchange { order: format!("{target} {order}"), client, server: Account::default() }
}

/// `weft-stream` stands two directories above the running test, which is in `deps`.
fn program() -> PathBuf {
    lab::program("weft-stream")
}
