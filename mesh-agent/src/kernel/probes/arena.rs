//! The throw-away place in which probes run, and pairs of sockets joined by the real programs.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::{Address, Local, Pair, Verdict, VerdictKey, Workload, action, pair, workload};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::super::load::ProbeLinks;
use super::super::{Error, Kernel, Maps, cgroup, sys};

/// Numbers that no workload has: those of a real agent start at 1 in a range of 2^20 per generation.
pub(super) const CLIENT: u32 = u32::MAX - 1;
const SERVER: u32 = u32::MAX;
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// `SO_NETNS_COOKIE` and `SO_COOKIE`.
const SO_NETNS_COOKIE: libc::c_int = 71;
const SO_COOKIE: libc::c_int = 57;
/// Nothing a probe waits for takes longer on a healthy kernel.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The place.
#[derive(Debug)]
pub(super) struct Arena {
    maps: Arc<Maps>,
    netns: u64,
    _links: Option<ProbeLinks>,
}

/// Two connected sockets. Index 0 of a pair's counters is the client.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    cookie: u64,
    maps: Arc<Maps>,
}

impl Arena {
    /// Moves the calling thread into a namespace of its own and makes the programs know two workloads there.
    pub(super) fn set_up(kernel: &mut Kernel) -> Result<Self, Error> {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::Call { call: "unshare(CLONE_NEWNET)", source: errno.into() })?;
        let fail = |call| move |source| Error::Call { call, source };
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).map_err(fail("socket"))?;
        for (name, ip) in [("lo", Ipv4Addr::LOCALHOST), ("lo:1", CLIENT_IP), ("lo:2", SERVER_IP)] {
            sys::add_address(socket.as_fd(), name, ip).map_err(fail("setting an address on lo"))?;
        }
        let netns = sys::socket_option(socket.as_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE)
            .map_err(fail("getsockopt(SO_NETNS_COOKIE)"))?;
        let maps = kernel.maps().clone();
        let own = own_cgroup()?;
        let arena = Self { maps, netns, _links: kernel.attach_for_probes(&own)? };
        arena.introduce()?;
        kernel.configure_for_probes()?;
        Ok(arena)
    }

    fn introduce(&self) -> Result<(), Error> {
        let flags = workload::LOCAL | workload::ENROLLED | workload::SPLICE | workload::PROBE;
        let client =
            Workload { id: CLIENT, flags, address4: Address::v4(CLIENT_IP.octets()), ..Workload::default() };
        self.maps.workloads.put(&self.netns, &client)?;
        let server = Local { id: SERVER, flags, slot: 0, workers: 0 };
        self.maps.addresses.put(&Address::v4(SERVER_IP.octets()), &server)?;
        self.maps.verdicts.put(&verdict_key(), &Verdict { action: action::SPLICE, policy: 0 })
    }

    /// A fresh pair, joined.
    pub(super) fn pair(&self) -> Result<Joined, String> {
        let joined = self.connect(|_| Ok(()))?;
        match joined.record()?.state {
            pair::READY => Ok(joined),
            state => Err(format!("the two sockets were not joined (state {state})")),
        }
    }

    /// A fresh pair whose client was made different before it connected, so that it must not be joined.
    pub(super) fn unpaired(&self, prepare: impl Fn(&Socket) -> io::Result<()>) -> Result<Joined, String> {
        let joined = self.connect(prepare)?;
        let key = joined.cookie;
        match self.maps.sockets.remove(&key) {
            Ok(false) => Ok(joined),
            Ok(true) => Err("a socket that must stay out is in the sockmap".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn connect(&self, prepare: impl Fn(&Socket) -> io::Result<()>) -> Result<Joined, String> {
        let say = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let listener = TcpListener::bind((SERVER_IP, 0)).map_err(say("listen"))?;
        let address = listener.local_addr().map_err(say("listen"))?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).map_err(say("socket"))?;
        socket.bind(&SockAddr::from(SocketAddr::from((CLIENT_IP, 0)))).map_err(say("bind"))?;
        prepare(&socket).map_err(say("prepare"))?;
        socket.connect(&SockAddr::from(address)).map_err(say("connect"))?;
        let cookie =
            sys::socket_option(socket.as_fd(), libc::SOL_SOCKET, SO_COOKIE).map_err(say("SO_COOKIE"))?;
        let client = TcpStream::from(socket);
        let (server, _) = listener.accept().map_err(say("accept"))?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).map_err(say("timeout"))?;
            stream.set_nodelay(true).map_err(say("TCP_NODELAY"))?;
        }
        Ok(Joined { client, server, cookie, maps: self.maps.clone() })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let results = [
            self.maps.workloads.remove(&self.netns),
            self.maps.addresses.remove(&Address::v4(SERVER_IP.octets())),
            self.maps.verdicts.remove(&verdict_key()),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "cannot clean up after the probes");
        }
    }
}

impl Joined {
    /// What the programs know about the pair.
    pub(super) fn record(&self) -> Result<Pair, String> {
        match self.maps.pairs.get(&self.cookie) {
            Ok(Some(pair)) => Ok(pair),
            Ok(None) => Err("the programs have no record of the connection".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes the client out of the sockmap, as the agent does after a demotion.
    pub(super) fn evict_client(&self) -> Result<(), String> {
        self.maps.sockets.remove(&self.cookie).map(drop).map_err(|error| error.to_string())
    }
}

fn verdict_key() -> VerdictKey {
    VerdictKey { source: CLIENT, destination: SERVER, port: 0, reserved: 0, reserved2: 0 }
}

/// The control group (v2) that this process is in.
fn own_cgroup() -> Result<PathBuf, Error> {
    let mounts = cgroup::Mounts::of_self().map_err(|source| Error::Open {
        what: "process information",
        path: "/proc/self/mountinfo".into(),
        source,
    })?;
    let own = mounts.unified.as_deref().and_then(cgroup::own);
    own.ok_or_else(|| Error::Btf("no control group v2 is mounted that this process is in".to_owned()))
}
