//! Sockets that a process in a pod made, in the test's own hands: the process connects or listens where the mesh catches
//! it, and passes the descriptor on (SCM_RIGHTS, unix(7)). So a test reads and writes a pod's connection itself, with
//! resets, half-closed streams and all.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Lab, Running, program};
use crate::wait::PATIENCE;

/// How long a read or write of a socket that was handed over waits.
const PATIENCE_OF_SOCKETS: Duration = Duration::from_secs(10);

/// Longest word of the other side.
const WORD_BYTES: usize = 512;

/// What the process is asked for, as a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Want {
    Dial(SocketAddr),
    Listen(SocketAddr),
}

/// A process in a pod that makes sockets for the test.
#[derive(Debug)]
pub struct Hand {
    pod: String,
    talk: Mutex<UnixStream>,
    _running: Running,
}

impl Hand {
    /// Starts it.
    #[track_caller]
    pub fn start(lab: &Lab, pod: &str) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets can be made");
        let program = program("weft-http");
        let mut command = lab.command(pod, &[&program.to_string_lossy(), "hand"]);
        let running = command.stdin(OwnedFd::from(theirs)).spawn().expect("`lab exec` starts");
        ours.set_read_timeout(Some(4 * PATIENCE)).expect("a socket has timeouts");
        Self { pod: pod.to_owned(), talk: Mutex::new(ours), _running: Running(running) }
    }

    /// Connects from the pod.
    ///
    /// # Errors
    /// The pod's connect(2) failed; the error has its number.
    pub fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::from(self.ask(&Want::Dial(to))?);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE_OF_SOCKETS))?;
        stream.set_write_timeout(Some(PATIENCE_OF_SOCKETS))?;
        Ok(stream)
    }

    /// Listens in the pod on a port of every address.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.ask(&Want::Listen(SocketAddr::from(([0u16; 8], port)))).map(TcpListener::from)
    }

    fn ask(&self, want: &Want) -> io::Result<OwnedFd> {
        let mut talk = self.talk.lock();
        let mut line = serde_json::to_vec(want)?;
        line.push(b'\n');
        talk.write_all(&line)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut word = [0u8; WORD_BYTES];
        let got = recvmsg(&*talk, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        assert!(got.bytes > 0, "the hand in {} is gone", self.pod);
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let number = std::str::from_utf8(&word[..got.bytes]).ok().and_then(|word| word.trim().parse().ok());
        match (fd, number) {
            (Some(fd), Some(0)) => Ok(fd),
            (_, Some(number)) => Err(io::Error::from_raw_os_error(number)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The process's side: answers each order on standard input with an error number, 0 together with a descriptor.
///
/// # Errors
/// Standard input is no socket, or somebody writes nonsense.
pub fn serve() -> io::Result<()> {
    let talk = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    for line in BufReader::new(talk.try_clone()?).lines() {
        let made = match serde_json::from_str(&line?)? {
            Want::Dial(to) => TcpStream::connect_timeout(&to, PATIENCE).map(OwnedFd::from),
            Want::Listen(at) => listen(at).map(OwnedFd::from),
        };
        let (number, fd) = match made {
            Ok(fd) => (0, Some(fd)),
            Err(error) => (error.raw_os_error().unwrap_or(libc::ETIMEDOUT), None),
        };
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let word = format!("{number}\n");
        sendmsg(&talk, &[IoSlice::new(word.as_bytes())], &mut control, SendFlags::empty())?;
    }
    Ok(())
}

/// Listens for IPv4 and IPv6.
///
/// # Errors
/// The port is taken.
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}
