//! Servers for pods: one epoll loop per CPU, all of them accepting from the same listener.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, listen};

/// Token of the listener; connections have their place in the table.
const LISTENER: u64 = u64::MAX;

/// Connections waiting to be accepted. The standard library's 128 overflows in a burst of short connections.
const BACKLOG: i32 = 4096;

/// One read, in bytes; one buffer of this size per thread.
const READ_BYTES: usize = 64 * 1024;

/// How much may wait for a slow reader before its connection is no longer read, in bytes.
const PENDING_BYTES_MAX: usize = 256 * 1024;

/// Longest accepted request head, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What a server does with what it reads.
#[derive(Clone)]
pub enum Service {
    /// Sends it back.
    Echo,
    /// Counts it, and answers with the count at the end.
    Sink,
    /// Answers requests.
    Http {
        /// The pod's name.
        pod: String,
        /// The pod's namespace.
        namespace: String,
        /// The answer, when it is always the same.
        body: Option<String>,
    },
}

impl Service {
    /// An HTTP server that knows its pod from the environment.
    pub fn http(body: Option<String>) -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        Self::Http { pod: variable("POD_NAME"), namespace: variable("POD_NAMESPACE"), body }
    }
}

/// Serves until the process is ended.
pub fn run(port: u16, service: Service) -> Result<ExitCode> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("cannot listen on port {port} (IPv6, and IPv4 with it)"))?;
    listener.set_nonblocking(true)?;
    listen(&listener, Backlog::new(BACKLOG)?).context("cannot lengthen the backlog")?;
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let loops: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| Loop::new(&listener, &service)?.run())).collect();
        for one in loops {
            match one.join() {
                Ok(result) => result?,
                Err(_panic) => bail!("a server thread panicked"),
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// One thread's loop.
struct Loop<'a> {
    epoll: Epoll,
    listener: &'a TcpListener,
    service: &'a Service,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    /// Received and not yet understood: the beginning of a request.
    received: Vec<u8>,
    /// Still to be sent, from `sent` on.
    pending: Vec<u8>,
    sent: usize,
    count: u64,
    /// Body bytes of the current request that are still to be skipped.
    skip: usize,
    /// The client has finished sending.
    finished: bool,
    /// Close when everything is sent.
    last: bool,
    watched: EpollFlags,
}

impl<'a> Loop<'a> {
    fn new(listener: &'a TcpListener, service: &'a Service) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, LISTENER))?;
        let buffer = vec![0; READ_BYTES];
        Ok(Self { epoll, listener, service, connections: Vec::new(), free: Vec::new(), buffer })
    }

    fn run(mut self) -> Result<()> {
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                count => count?,
            };
            for event in &events[..count] {
                if event.data() == LISTENER {
                    self.accept()?;
                } else {
                    self.serve(usize::try_from(event.data())?);
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        // A few at a time, so that the other loops get their share of a burst.
        for _ in 0..16 {
            let (stream, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // A connection that was reset before it was accepted, or no file left: the server goes on.
                Err(_) => return Ok(()),
            };
            stream.set_nonblocking(true)?;
            // Fails when the peer has reset meanwhile, which the first read tells anyway.
            let _ = stream.set_nodelay(true);
            let place = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let watched = EpollFlags::EPOLLIN;
            self.epoll.add(&stream, EpollEvent::new(watched, place as u64))?;
            self.connections[place] = Some(Connection::new(stream, peer, watched));
        }
        Ok(())
    }

    fn serve(&mut self, place: usize) {
        let Some(connection) = self.connections.get_mut(place).and_then(Option::as_mut) else { return };
        let goes_on = connection.step(&mut self.buffer, self.service).unwrap_or(false);
        if goes_on && connection.watch(&self.epoll, place).is_ok() {
            return;
        }
        // Closing the socket takes it out of epoll.
        self.connections[place] = None;
        self.free.push(place);
    }
}

impl Connection {
    fn new(stream: TcpStream, peer: SocketAddr, watched: EpollFlags) -> Self {
        Self {
            stream,
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            received: Vec::new(),
            pending: Vec::new(),
            sent: 0,
            count: 0,
            skip: 0,
            finished: false,
            last: false,
            watched,
        }
    }

    /// Reads and writes what can be without waiting; says whether the connection goes on.
    fn step(&mut self, buffer: &mut [u8], service: &Service) -> std::io::Result<bool> {
        self.flush()?;
        if !self.finished && !self.last && self.pending.len() - self.sent < PENDING_BYTES_MAX {
            match self.stream.read(buffer) {
                Ok(0) => self.finish(service),
                Ok(count) => self.take(&buffer[..count], service)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.flush()?;
        let all_sent = self.pending.is_empty();
        if all_sent && self.last {
            self.stream.shutdown(Shutdown::Write)?;
        }
        Ok(!(all_sent && (self.finished || self.last)))
    }

    fn finish(&mut self, service: &Service) {
        self.finished = true;
        if matches!(service, Service::Sink) {
            self.pending.extend(format!("{}\n", self.count).bytes());
        }
    }

    fn take(&mut self, bytes: &[u8], service: &Service) -> std::io::Result<()> {
        match service {
            Service::Echo => self.send(bytes),
            Service::Sink => {
                self.count += bytes.len() as u64;
                Ok(())
            }
            Service::Http { pod, namespace, body } => {
                self.received.extend_from_slice(bytes);
                self.requests(pod, namespace, body.as_deref());
                Ok(())
            }
        }
    }

    /// Sends at once what the socket takes, without a copy; the rest waits.
    fn send(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        if self.pending.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while self.sent < self.pending.len() {
            match self.stream.write(&self.pending[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.pending.clear();
        self.sent = 0;
        Ok(())
    }

    fn watch(&mut self, epoll: &Epoll, place: usize) -> Result<()> {
        let mut wanted = EpollFlags::empty();
        if !self.pending.is_empty() {
            wanted |= EpollFlags::EPOLLOUT;
        }
        if !self.finished && !self.last && self.pending.len() - self.sent < PENDING_BYTES_MAX {
            wanted |= EpollFlags::EPOLLIN;
        }
        if wanted != self.watched {
            epoll.modify(self.stream.as_fd(), &mut EpollEvent::new(wanted, place as u64))?;
            self.watched = wanted;
        }
        Ok(())
    }

    /// Answers every complete request that was received.
    fn requests(&mut self, pod: &str, namespace: &str, body: Option<&str>) {
        loop {
            let skipped = self.skip.min(self.received.len());
            self.received.drain(..skipped);
            self.skip -= skipped;
            if self.last || self.received.is_empty() {
                return;
            }
            let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") else {
                if self.received.len() > HEAD_BYTES_MAX {
                    self.refuse("431 Request Header Fields Too Large");
                }
                return;
            };
            let head: Vec<u8> = self.received.drain(..end + 4).collect();
            match Request::parse(&String::from_utf8_lossy(&head)) {
                Some(request) => self.answer(&request, pod, namespace, body),
                None => self.refuse("400 Bad Request"),
            }
        }
    }

    fn answer(&mut self, request: &Request<'_>, pod: &str, namespace: &str, body: Option<&str>) {
        self.skip = request.body_length;
        self.last |= request.close;
        let (kind, body) = match body {
            Some(body) => ("text/plain", body.to_owned()),
            None => {
                let seen = serde_json::json!({
                    "pod": pod, "namespace": namespace, "client": self.peer.to_string(),
                    "method": request.method, "path": request.path, "host": request.host,
                });
                ("application/json", format!("{seen}\n"))
            }
        };
        let connection = if request.close { "close" } else { "keep-alive" };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
        );
        self.pending.extend(head.bytes());
        if request.method != "HEAD" {
            self.pending.extend(body.bytes());
        }
    }

    fn refuse(&mut self, status: &str) {
        self.pending
            .extend(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").bytes());
        self.last = true;
    }
}

/// What of a request matters here.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    host: &'a str,
    body_length: usize,
    close: bool,
}

impl<'a> Request<'a> {
    /// Parses a head; `None` for what this server does not serve, chunked bodies among it.
    fn parse(head: &'a str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, path, version) = (words.next()?, words.next()?, words.next()?);
        if !version.starts_with("HTTP/1.") {
            return None;
        }
        let mut request = Self { method, path, host: "", body_length: 0, close: version == "HTTP/1.0" };
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "host" => request.host = value,
                "content-length" => request.body_length = value.parse().ok()?,
                "transfer-encoding" => return None,
                "connection" if value.eq_ignore_ascii_case("close") => request.close = true,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => request.close = false,
                _ => {}
            }
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_stay_open_as_the_version_and_the_header_say() {
        let close = |head: &str| Request::parse(head).map(|request| request.close);
        assert_eq!(close("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(false));
        assert_eq!(close("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n"), Some(true));
        assert_eq!(close("GET / HTTP/1.0\r\n\r\n"), Some(true));
        assert_eq!(close("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"), Some(false));
    }

    #[test]
    fn what_is_not_served_is_refused() {
        assert_eq!(Request::parse("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), None);
        assert_eq!(Request::parse("GET / HTTP/2\r\n\r\n"), None);
        assert_eq!(Request::parse("nonsense\r\n\r\n"), None);
    }
}
