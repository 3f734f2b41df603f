//! A program in a pod that does with sockets what a test orders and says what it saw: orders and answers are lines of JSON
//! on standard input and output (`mesh_tests::wire`). It uses sockets as any program would and knows nothing of the mesh.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mesh_tests::wire::{Greeting, LoadSeen, Names, Order, Serve, Served, pattern};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

/// How many faults of a load are told in full.
const FAULTS_KEPT: usize = 20;

/// How long a background call may take before it counts as failed.
const LOAD_CALL_MS: u64 = 3000;

/// Everything the probe has open.
#[derive(Default)]
struct Held {
    streams: HashMap<u32, TcpStream>,
    listeners: HashMap<u32, TcpListener>,
    servers: HashMap<u32, Server>,
    loads: HashMap<u32, Load>,
}

struct Server {
    served: Arc<Mutex<Vec<Served>>>,
    stop: Arc<AtomicBool>,
}

struct Load {
    seen: Arc<Mutex<LoadSeen>>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

fn main() -> io::Result<()> {
    let mut held = Held::default();
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let answer = match held.obey(order) {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": name(&error) }),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// The name of an error: `ECONNREFUSED`, `eof`, `timeout`.
fn name(error: &io::Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock, None) => "timeout".to_owned(),
        (_, Some(libc::EAGAIN)) => "timeout".to_owned(),
        (io::ErrorKind::UnexpectedEof, None) => "eof".to_owned(),
        (_, Some(number)) => format!("{:?}", Errno::from_raw(number)),
        _ => error.to_string(),
    }
}

impl Held {
    fn obey(&mut self, order: Order) -> io::Result<Value> {
        match order {
            Order::Connect { socket, to, from, timeout_ms } => {
                let stream = connect(to, from, timeout_ms)?;
                let names = names(&stream);
                self.streams.insert(socket, stream);
                names
            }
            Order::Listen { socket, at } => {
                let listener = listen(at)?;
                let local = listener.local_addr()?;
                self.listeners.insert(socket, listener);
                Ok(json!(Names { local, peer: None }))
            }
            Order::Accept { listener, socket, timeout_ms } => {
                let (stream, peer) = accept(self.listener(listener)?, timeout_ms)?;
                let local = stream.local_addr()?;
                self.streams.insert(socket, stream);
                Ok(json!(Names { local, peer: Some(peer) }))
            }
            Order::Names { socket } => names(self.stream(socket)?),
            Order::Send { socket, text } => {
                self.stream(socket)?.write_all(text.as_bytes()).map(|()| Value::Null)
            }
            Order::Receive { socket, timeout_ms } => {
                let mut stream = self.stream(socket)?;
                patience(stream, timeout_ms)?;
                let mut buffer = vec![0; 64 * 1024];
                match stream.read(&mut buffer)? {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    n => Ok(json!(String::from_utf8_lossy(&buffer[..n]))),
                }
            }
            Order::ReceiveAll { socket, timeout_ms } => {
                let mut stream = self.stream(socket)?;
                patience(stream, timeout_ms)?;
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes)?;
                Ok(json!(String::from_utf8_lossy(&bytes)))
            }
            Order::SendPattern { socket, seed, bytes } => send_pattern(self.stream(socket)?, seed, bytes),
            Order::ReceivePattern { socket, seed, timeout_ms } => {
                let stream = self.stream(socket)?;
                patience(stream, timeout_ms)?;
                receive_pattern(stream, seed)
            }
            Order::Finish { socket } => self.stream(socket)?.shutdown(Shutdown::Write).map(|()| Value::Null),
            Order::Close { socket } => {
                self.streams.remove(&socket);
                self.listeners.remove(&socket);
                Ok(Value::Null)
            }
            Order::Reset { socket } => {
                let stream = self.streams.remove(&socket).ok_or(io::ErrorKind::NotFound)?;
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                Ok(Value::Null)
            }
            Order::Serve { server, at, mode } => {
                let listener = listen(at)?;
                let local = listener.local_addr()?;
                self.servers.insert(server, serve(listener, mode)?);
                Ok(json!(local))
            }
            Order::StopServing { server } => {
                self.server(server)?.stop.store(true, Ordering::Relaxed);
                // The accepting thread looks at the flag at least this often.
                thread::sleep(Duration::from_millis(60));
                Ok(Value::Null)
            }
            Order::Served { server } => Ok(json!(*self.server(server)?.served.lock())),
            Order::Call { to, timeout_ms } => match call(to, timeout_ms) {
                Ok(greeting) => Ok(json!(greeting)),
                Err((stage, error)) => Err(io::Error::other(format!("{stage}: {}", name(&error)))),
            },
            Order::Load { load, to, pause_us } => {
                self.loads.insert(load, Load::start(to, Duration::from_micros(pause_us)));
                Ok(Value::Null)
            }
            Order::LoadSeen { load } => {
                let load = self.loads.get(&load).ok_or(io::ErrorKind::NotFound)?;
                Ok(json!(*load.seen.lock()))
            }
            Order::LoadStop { load } => {
                let load = self.loads.remove(&load).ok_or(io::ErrorKind::NotFound)?;
                load.stop.store(true, Ordering::Relaxed);
                let _ = load.thread.join();
                Ok(json!(*load.seen.lock()))
            }
            Order::Datagram { to, connect, text, timeout_ms } => datagram(to, connect, &text, timeout_ms),
            Order::ServeDatagrams { at } => serve_datagrams(at),
            Order::Unshare => {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Ok(Value::Null)
            }
        }
    }

    fn stream(&self, socket: u32) -> io::Result<&TcpStream> {
        self.streams.get(&socket).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn listener(&self, socket: u32) -> io::Result<&TcpListener> {
        self.listeners.get(&socket).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn server(&self, server: u32) -> io::Result<&Server> {
        self.servers.get(&server).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn connect(to: SocketAddr, from: Option<SocketAddr>, timeout_ms: u64) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    socket.connect_timeout(&to.into(), Duration::from_millis(timeout_ms))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&at.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, timeout_ms: u64) -> io::Result<(TcpStream, SocketAddr)> {
    socket2::SockRef::from(listener).set_read_timeout(Some(Duration::from_millis(timeout_ms.max(1))))?;
    let (stream, peer) = listener.accept()?;
    // An accepted socket inherits the listener's patience.
    stream.set_read_timeout(None)?;
    stream.set_nodelay(true)?;
    Ok((stream, peer))
}

fn names(stream: &TcpStream) -> io::Result<Value> {
    Ok(json!(Names { local: stream.local_addr()?, peer: Some(stream.peer_addr()?) }))
}

fn patience(stream: &TcpStream, timeout_ms: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(timeout_ms.max(1))))
}

fn send_pattern(mut stream: &TcpStream, seed: u64, bytes: u64) -> io::Result<Value> {
    let mut fill = pattern(seed);
    let mut buffer = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        fill(&mut buffer[..part]);
        stream.write_all(&buffer[..part])?;
        left -= part as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(json!(bytes))
}

fn receive_pattern(mut stream: &TcpStream, seed: u64) -> io::Result<Value> {
    let mut expect = pattern(seed);
    let (mut buffer, mut wanted) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut total = 0u64;
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(json!(total));
        }
        expect(&mut wanted[..n]);
        if buffer[..n] != wanted[..n] {
            return Err(io::Error::other(format!("the bytes differ after {total}")));
        }
        total += n as u64;
    }
}

fn serve(listener: TcpListener, mode: Serve) -> io::Result<Server> {
    let served = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let server = Server { served: served.clone(), stop: stop.clone() };
    socket2::SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(50)))?;
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let Ok((stream, client)) = listener.accept() else { continue };
            let Ok(local) = stream.local_addr() else { continue };
            let index = {
                let mut served = served.lock();
                served.push(Served { client, local, received_bytes: 0, state: "open".to_owned() });
                served.len() - 1
            };
            let served = served.clone();
            thread::spawn(move || {
                let end =
                    serve_one(&stream, mode, client, local, |n| served.lock()[index].received_bytes += n);
                served.lock()[index].state = end.map_or_else(|error| name(&error), |()| "eof".to_owned());
            });
        }
    });
    Ok(server)
}

fn serve_one(
    mut stream: &TcpStream,
    mode: Serve,
    client: SocketAddr,
    local: SocketAddr,
    mut received: impl FnMut(u64),
) -> io::Result<()> {
    // An accepted socket inherits the listener's patience.
    stream.set_read_timeout(None)?;
    stream.set_nodelay(true)?;
    if mode == Serve::Greet {
        let pod = std::env::var("POD_NAME").unwrap_or_default();
        let greeting = Greeting { pod, client, local, seen_by_client: None };
        stream.write_all(format!("{}\n", json!(greeting)).as_bytes())?;
    }
    if mode == Serve::Ignore {
        loop {
            thread::park();
        }
    }
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0u64;
    loop {
        let n = stream.read(&mut buffer)?;
        total += n as u64;
        received(n as u64);
        match (n, mode) {
            (0, Serve::Sink) => return stream.write_all(total.to_string().as_bytes()),
            (0, _) => return Ok(()),
            (_, Serve::Sink) => {}
            (n, _) => stream.write_all(&buffer[..n])?,
        }
    }
}

/// One call; on failure the stage that failed comes with the error.
fn call(to: SocketAddr, timeout_ms: u64) -> Result<Greeting, (&'static str, io::Error)> {
    let mut stream = connect(to, None, timeout_ms).map_err(|error| ("connect", error))?;
    let receiving = |error| ("receive", error);
    patience(&stream, timeout_ms).map_err(receiving)?;
    let seen = Names {
        local: stream.local_addr().map_err(receiving)?,
        // A connection that was refused already has no peer any more; receiving tells the reason.
        peer: stream.peer_addr().ok(),
    };
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().map_err(receiving)?);
    if reader.read_line(&mut line).map_err(receiving)? == 0 {
        return Err(("receive", io::ErrorKind::UnexpectedEof.into()));
    }
    let mut greeting: Greeting = serde_json::from_str(&line)
        .map_err(|error| receiving(io::Error::other(format!("not a greeting: {line:?}: {error}"))))?;
    stream.write_all(b"ping\n").map_err(|error| ("send", error))?;
    line.clear();
    reader.read_line(&mut line).map_err(|error| ("echo", error))?;
    if line != "ping\n" {
        return Err(("echo", io::ErrorKind::UnexpectedEof.into()));
    }
    greeting.seen_by_client = Some(seen);
    Ok(greeting)
}

impl Load {
    fn start(to: Vec<SocketAddr>, pause: Duration) -> Self {
        let seen = Arc::new(Mutex::new(LoadSeen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (thread_seen, thread_stop) = (seen.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for to in to.iter().cycle() {
                if thread_stop.load(Ordering::Relaxed) {
                    return;
                }
                let called = call(*to, LOAD_CALL_MS);
                let mut seen = thread_seen.lock();
                match called {
                    Ok(greeting) => {
                        seen.good += 1;
                        *seen.pods.entry(greeting.pod).or_default() += 1;
                    }
                    Err((stage, error)) => {
                        seen.bad += 1;
                        if seen.faults.len() < FAULTS_KEPT {
                            seen.faults.push(format!("{to} {stage}: {}", name(&error)));
                        }
                    }
                }
                drop(seen);
                thread::sleep(pause);
            }
        });
        Self { seen, stop, thread }
    }
}

fn datagram(to: SocketAddr, connect: bool, text: &str, timeout_ms: u64) -> io::Result<Value> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_millis(timeout_ms.max(1))))?;
    if connect {
        socket.connect(to)?;
        socket.send(text.as_bytes())?;
    } else {
        socket.send_to(text.as_bytes(), to)?;
    }
    let mut buffer = [0; 2048];
    let n = socket.recv(&mut buffer)?;
    Ok(json!(String::from_utf8_lossy(&buffer[..n])))
}

fn serve_datagrams(at: SocketAddr) -> io::Result<Value> {
    let socket = UdpSocket::bind(at)?;
    let local = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    Ok(json!(local))
}
