//! How a test and its probe talk: one JSON object a line, each order answered before the next is read.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a probe is told to do. Sockets have numbers that the test gives them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant's own line says what its fields are for")]
pub enum Order {
    /// Connect by TCP; answers [`Names`]. An IPv4-mapped address makes an IPv6 socket, as Java and Go do.
    Connect { socket: u32, to: SocketAddr, from: Option<SocketAddr>, timeout_ms: u64 },
    /// Listen; answers [`Names`]. `[::]` takes IPv4 as well.
    Listen { socket: u32, at: SocketAddr },
    /// Accept from a listener; answers [`Names`] with the peer that accept(2) returned.
    Accept { listener: u32, socket: u32, timeout_ms: u64 },
    /// getsockname(2) and getpeername(2); answers [`Names`].
    Names { socket: u32 },
    /// Send a text.
    Send { socket: u32, text: String },
    /// Receive once; answers a text. Error `eof` at the end.
    Receive { socket: u32, timeout_ms: u64 },
    /// Receive until the end; answers a text.
    ReceiveAll { socket: u32, timeout_ms: u64 },
    /// Send a seeded pattern of so many bytes, then finish this direction; answers how many were sent.
    SendPattern { socket: u32, seed: u64, bytes: u64 },
    /// Receive until the end and compare with the pattern; answers how many came.
    ReceivePattern { socket: u32, seed: u64, timeout_ms: u64 },
    /// Finish sending.
    Finish { socket: u32 },
    /// Close.
    Close { socket: u32 },
    /// Close with RST.
    Reset { socket: u32 },
    /// Serve in the background; answers the bound address.
    Serve { server: u32, at: SocketAddr, mode: Serve },
    /// Stop a server's listening; its connections live on.
    StopServing { server: u32 },
    /// What a server has seen: a list of [`Served`].
    Served { server: u32 },
    /// Connect, read the greeting of a [`Serve::Greet`] server, send a text and read it back; answers [`Greeting`].
    Call { to: SocketAddr, timeout_ms: u64 },
    /// Call in the background again and again, in turn to each address, with a pause between calls.
    Load { load: u32, to: Vec<SocketAddr>, pause_us: u64 },
    /// How it goes; answers [`LoadSeen`].
    LoadSeen { load: u32 },
    /// Stop it; answers [`LoadSeen`].
    LoadStop { load: u32 },
    /// Send a datagram; wait for an answer, answers its text.
    Datagram { to: SocketAddr, connect: bool, text: String, timeout_ms: u64 },
    /// Send every datagram back, in the background; answers the bound address.
    ServeDatagrams { at: SocketAddr },
    /// Leave for a network namespace of the probe's own, with nothing in it.
    Unshare,
}

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serve {
    /// Send a [`Greeting`] as one line, then send back what comes.
    Greet,
    /// Send back what comes.
    Echo,
    /// Read until the end, then answer with the number of bytes.
    Sink,
    /// Take connections and read nothing.
    Ignore,
}

/// What a socket answers about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Its own address.
    pub local: SocketAddr,
    /// The other end's; absent on listeners.
    pub peer: Option<SocketAddr>,
}

/// The first line of a [`Serve::Greet`] server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The server's pod.
    pub pod: String,
    /// The client that accept(2) returned.
    pub client: SocketAddr,
    /// getsockname(2) of the accepted socket.
    pub local: SocketAddr,
    /// The client's own view; filled in by the client.
    #[serde(default)]
    pub seen_by_client: Option<Names>,
}

/// One connection that a server took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The client that accept(2) returned.
    pub client: SocketAddr,
    /// getsockname(2) of the accepted socket.
    pub local: SocketAddr,
    /// Payload received so far, in bytes.
    pub received_bytes: u64,
    /// `open`, `eof`, or the name of an error.
    pub state: String,
}

/// What became of background calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSeen {
    /// Calls that went well.
    pub good: u64,
    /// Calls that did not.
    pub bad: u64,
    /// The first of those, as `stage: error`.
    pub faults: Vec<String>,
    /// Who answered how often.
    pub pods: BTreeMap<String, u64>,
}

/// The pattern of bytes of a seed.
pub fn pattern(seed: u64) -> impl FnMut(&mut [u8]) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut word = [0u8; 8];
    let mut used = word.len();
    move |buffer| {
        for byte in buffer {
            if used == word.len() {
                word = random.u64(..).to_le_bytes();
                used = 0;
            }
            *byte = word[used];
            used += 1;
        }
    }
}
