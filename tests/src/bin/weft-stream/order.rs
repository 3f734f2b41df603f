//! What the client wants to happen on a connection, as words; the server gets the same words in a header.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Every connection begins with the order, padded with spaces to this length.
pub const HEADER_BYTES: usize = 256;

/// What the two ends do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Both write and read at once, each finishes its direction when it has written all.
    Duplex,
    /// The server sleeps before it reads; the client reports how much it could write before it was blocked.
    Slow,
    /// The client finishes its direction; only then the server sends.
    HalfClient,
    /// The server finishes its direction; only then the client sends.
    HalfServer,
    /// After the bytes are read the client resets.
    ResetClient,
    /// After the bytes are read the server resets.
    ResetServer,
    /// The client closes with half of the bytes unread.
    UnreadClient,
    /// The server closes with half of the bytes unread.
    UnreadServer,
    /// The server never reads, and closes after a while.
    NeverRead,
    /// Messages of random length and their echo, in turn.
    PingPong,
    /// Messages in turn; the receiver asks FIONREAD until it tells the message's length, and reads just that.
    Pending,
    /// Many short connections.
    Churn,
}

/// A way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// read(2).
    Plain,
    /// readv(2) into three buffers.
    Vectored,
    /// MSG_PEEK first, which must show what the read then gives.
    Peek,
    /// recvmsg(2) with MSG_WAITALL, which must give all that was asked.
    WaitAll,
    /// Edge-triggered epoll: read until EAGAIN, wait for the next edge.
    Edge,
    /// poll(2), then FIONREAD, which must tell what a read that does not wait then gives.
    Pending,
}

/// A way to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// write(2).
    Plain,
    /// writev(2) from three buffers.
    Vectored,
    /// sendfile(2).
    File,
    /// MSG_ZEROCOPY where SO_ZEROCOPY is granted; each completion is awaited.
    ZeroCopy,
}

/// A way to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// connect(2).
    Plain,
    /// A connect(2) that does not wait, and at once a send(2) that does.
    Early,
    /// TCP_FASTOPEN_CONNECT: connect(2) returns at once, the first send(2) connects.
    FastOpen,
}

/// All that can be asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Found again in both reports.
    pub id: String,
    /// What happens.
    pub mode: Mode,
    /// Decides bytes, sizes and pauses.
    pub seed: u64,
    /// Bytes from client to server.
    pub up: u64,
    /// Bytes from server to client.
    pub down: u64,
    /// Longest single write, in bytes.
    pub chunk_max: usize,
    /// Longest pause; one write in eight is followed by one.
    pub pause_max: Duration,
    /// How long the server does not read (slow, never-read).
    pub hold: Duration,
    /// Exchanges (ping-pong, pending) or connections (churn).
    pub count: u32,
    /// Connections at once (churn).
    pub at_once: u32,
    /// How both ends read.
    pub read: Reading,
    /// How both ends write.
    pub write: Writing,
    /// How the client connects.
    pub connect: Connecting,
    /// Sockets are blocking; otherwise they are not, and poll(2) waits.
    pub block: bool,
    /// A read or write that takes longer is an error.
    pub patience: Duration,
    words: String,
}

impl Order {
    /// Reads `KEY=VALUE` words.
    pub fn parse<W: AsRef<str>>(words: impl IntoIterator<Item = W>) -> Result<Self> {
        let mut order = Self {
            id: "-".to_owned(),
            mode: Mode::Duplex,
            seed: 1,
            up: 0,
            down: 0,
            chunk_max: 256 << 10,
            pause_max: Duration::ZERO,
            hold: Duration::ZERO,
            count: 1,
            at_once: 1,
            read: Reading::Plain,
            write: Writing::Plain,
            connect: Connecting::Plain,
            block: false,
            patience: Duration::from_secs(20),
            words: String::new(),
        };
        let mut all = Vec::new();
        for word in words {
            let word = word.as_ref();
            let (key, value) = word.split_once('=').with_context(|| format!("{word} is not KEY=VALUE"))?;
            order.set(key, value).with_context(|| format!("{word} cannot be understood"))?;
            all.push(word.to_owned());
        }
        order.words = all.join(" ");
        Ok(order)
    }

    /// The order as the server reads it.
    pub fn header(&self) -> Result<[u8; HEADER_BYTES]> {
        let mut header = [b' '; HEADER_BYTES];
        let words = self.words.as_bytes();
        header.get_mut(..words.len()).context("the order is too long")?.copy_from_slice(words);
        Ok(header)
    }

    /// Seed of the bytes from the client.
    pub fn up_seed(&self) -> u64 {
        self.seed.wrapping_mul(2)
    }

    /// Seed of the bytes from the server.
    pub fn down_seed(&self) -> u64 {
        self.seed.wrapping_mul(2) | 1
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "id" => value.clone_into(&mut self.id),
            "mode" => self.mode = mode(value)?,
            "seed" => self.seed = value.parse()?,
            "up" => self.up = bytes(value)?,
            "down" => self.down = bytes(value)?,
            "chunk" => self.chunk_max = usize::try_from(bytes(value)?)?.max(1),
            "pause_us" => self.pause_max = Duration::from_micros(value.parse()?),
            "hold_ms" => self.hold = Duration::from_millis(value.parse()?),
            "count" => self.count = value.parse()?,
            "at_once" => self.at_once = value.parse()?,
            "read" => self.read = reading(value)?,
            "write" => self.write = writing(value)?,
            "connect" => self.connect = connecting(value)?,
            "block" => self.block = value.parse()?,
            "patience_s" => self.patience = Duration::from_secs(value.parse()?),
            _ => bail!("there is no key {key}"),
        }
        Ok(())
    }
}

/// `12`, `12K`, `12M`, `12G`.
fn bytes(text: &str) -> Result<u64> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    Ok(number.parse::<u64>()? << shift)
}

fn mode(word: &str) -> Result<Mode> {
    Ok(match word {
        "duplex" => Mode::Duplex,
        "slow" => Mode::Slow,
        "half-client" => Mode::HalfClient,
        "half-server" => Mode::HalfServer,
        "reset-client" => Mode::ResetClient,
        "reset-server" => Mode::ResetServer,
        "unread-client" => Mode::UnreadClient,
        "unread-server" => Mode::UnreadServer,
        "never-read" => Mode::NeverRead,
        "ping-pong" => Mode::PingPong,
        "pending" => Mode::Pending,
        "churn" => Mode::Churn,
        _ => bail!("there is no mode {word}"),
    })
}

fn reading(word: &str) -> Result<Reading> {
    Ok(match word {
        "plain" => Reading::Plain,
        "vectored" => Reading::Vectored,
        "peek" => Reading::Peek,
        "wait-all" => Reading::WaitAll,
        "edge" => Reading::Edge,
        "pending" => Reading::Pending,
        _ => bail!("there is no way to read called {word}"),
    })
}

fn writing(word: &str) -> Result<Writing> {
    Ok(match word {
        "plain" => Writing::Plain,
        "vectored" => Writing::Vectored,
        "file" => Writing::File,
        "zero-copy" => Writing::ZeroCopy,
        _ => bail!("there is no way to write called {word}"),
    })
}

fn connecting(word: &str) -> Result<Connecting> {
    Ok(match word {
        "plain" => Connecting::Plain,
        "early" => Connecting::Early,
        "fast-open" => Connecting::FastOpen,
        _ => bail!("there is no way to connect called {word}"),
    })
}
