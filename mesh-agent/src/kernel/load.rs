//! Loading, pinning, attaching; and taking over what an earlier agent left pinned.
//!
//! Maps are pinned by name in the node's directory, links below `links/`. A later agent finds the same maps, loads its
//! programs and puts them behind the old links in one atomic step each, so a hook is never empty and never double.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf, SockMap};
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, CgroupSockopt, Lsm, Program, SkLookup, SkMsg, SockOps,
};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use mesh_common::{ABI_VERSION, Config, Heartbeat, config, counter};

use super::offsets::Offsets;
use super::{Error, Maps, Netns, Settings, sys};

/// A link to a control group always allows others beside it; the flag for that is refused (kernel/bpf/cgroup.c,
/// `cgroup_bpf_link_attach`).
const MODE: CgroupAttachMode = CgroupAttachMode::Single;
/// The cgroup programs.
const SOCK_ADDR: [&str; 6] = ["connect4", "connect6", "sendmsg4", "sendmsg6", "getpeername4", "getpeername6"];
/// Every map, by the name under which it is pinned.
const MAPS: [&str; 20] = [
    "CONFIG",
    "HEARTBEAT",
    "WORKLOADS",
    "HELD",
    "AGENTS",
    "ADDRESSES",
    "SKIP_PORTS",
    "FRONTENDS",
    "BACKENDS",
    "OPEN",
    "VERDICTS",
    "DIALS",
    "CLIENTS",
    "FLOWS",
    "PAIRS",
    "SOCKETS",
    "LISTENERS",
    "SOCKET_STATE",
    "EVENTS",
    "COUNTERS",
];

/// The programs in the kernel, with everything that is needed to feed them.
pub struct Kernel {
    ebpf: Ebpf,
    maps: std::sync::Arc<Maps>,
    listeners: SockMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
    links: PathBuf,
    offsets: Offsets,
    heartbeat_age_max_ns: u64,
    generation: u64,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("links", &self.links)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the object and opens or makes the pinned maps. Attaches nothing yet.
    ///
    /// # Errors
    /// See [`Error`]; nothing is attached and nothing that was attached is changed when it fails.
    pub fn load(settings: &Settings) -> Result<Self, Error> {
        let object = fs::read(&settings.object)
            .map_err(|source| Error::Object { path: settings.object.clone(), source })?;
        let links = make_pin_dir(&settings.pin_dir)?;
        let offsets = Offsets::of_running_kernel().unwrap_or_else(|error| {
            tracing::warn!(%error, "no kernel type information: the fast path stays off");
            Offsets::default()
        });
        let syscall_splice = u32::try_from(libc::SYS_splice).expect("system call numbers are small");
        // What is switched off here the verifier removes from the programs.
        let log_level = if log_is_wanted() { aya_log::Level::Debug as u8 } else { 0 };
        let mut loader = EbpfLoader::new();
        for name in MAPS {
            loader.map_pin_path(name, settings.pin_dir.join(name));
        }
        loader
            .override_global(aya_log::LEVEL, &log_level, true)
            .override_global("OFFSET_WRITE_SEQ", &offsets.write_seq, true)
            .override_global("OFFSET_COPIED_SEQ", &offsets.copied_seq, true)
            .override_global("OFFSET_RMEM_ALLOC", &offsets.rmem_alloc, true)
            .override_global("OFFSET_RCVBUF", &offsets.rcvbuf, true)
            .override_global("OFFSET_SK_FLAGS", &offsets.sk_flags, true)
            .override_global("ZEROCOPY_FLAG", &offsets.zerocopy_flag, true)
            .override_global("OFFSET_SOCKET_SK", &offsets.socket_sk, true)
            .override_global("OFFSET_SYSCALL", &offsets.syscall, true)
            .override_global("SYSCALL_SPLICE", &syscall_splice, true);
        let mut ebpf = loader.load(&object)?;
        let listeners = match ebpf.take_map("LISTENERS") {
            Some(map @ Map::SockMap(_)) => SockMap::try_from(map)
                .map_err(|_error| Error::Missing { kind: "sockmap", name: "LISTENERS" })?,
            _ => return Err(Error::Missing { kind: "map", name: "LISTENERS" }),
        };
        let counters = ebpf
            .take_map("COUNTERS")
            .and_then(|map| PerCpuArray::try_from(map).ok())
            .ok_or(Error::Missing { kind: "map", name: "COUNTERS" })?;
        // Before anything is attached: maps that mean something else must not meet these programs.
        check_version(&ebpf, &settings.pin_dir)?;
        // The sk_msg program is attached to the map itself, so the map must stay in `ebpf` until then.
        let mut kernel = Self {
            maps: std::sync::Arc::new(load_programs(&mut ebpf)?),
            ebpf,
            listeners,
            counters,
            links,
            offsets,
            heartbeat_age_max_ns: u64::try_from(settings.heartbeat_age_max.as_nanos()).unwrap_or(u64::MAX),
            generation: 0,
        };
        kernel.generation = kernel.maps.heartbeat.get(&0)?.unwrap_or_default().generation + 1;
        Ok(kernel)
    }

    /// Attaches the cgroup programs, or puts them behind the links of an earlier agent. Links that are elsewhere (another
    /// control group, or one that is gone) are given up for new ones.
    ///
    /// # Errors
    /// The control group cannot be opened, or the kernel refuses.
    pub fn attach(&mut self, cgroup: &Path) -> Result<(), Error> {
        let id = super::cgroup::id(cgroup).map_err(|source| Error::Open {
            what: "control group",
            path: cgroup.to_owned(),
            source,
        })?;
        for name in SOCK_ADDR.into_iter().chain(["refuse_zerocopy", "established"]) {
            let pin = self.links.join(name);
            let at =
                pin.exists().then(|| sys::open_pin(&pin).and_then(|link| sys::link_cgroup(link.as_fd())));
            if at.is_some_and(|at| !matches!(at, Ok(at) if at == id)) {
                remove_pin(&pin)?;
            }
        }
        let cgroup_file = File::open(cgroup).map_err(|source| Error::Open {
            what: "control group",
            path: cgroup.to_owned(),
            source,
        })?;
        for name in SOCK_ADDR {
            let pin = self.links.join(name);
            let program = sock_addr(&mut self.ebpf, name)?;
            if replace(&pin, name, program.fd())? {
                continue;
            }
            let id =
                program.attach(&cgroup_file, MODE).map_err(fail(name, "attaching to the control group"))?;
            let link = program.take_link(id).map_err(fail(name, "taking the link"))?;
            pin_link(FdLink::try_from(link), &pin, name)?;
        }
        self.attach_sockopt(&cgroup_file)?;
        let name = "established";
        let pin = self.links.join(name);
        let program: &mut SockOps = program(&mut self.ebpf, name)?;
        if !replace(&pin, name, program.fd())? {
            let id =
                program.attach(&cgroup_file, MODE).map_err(fail(name, "attaching to the control group"))?;
            let link = program.take_link(id).map_err(fail(name, "taking the link"))?;
            pin_link(FdLink::try_from(link), &pin, name)?;
        }
        Ok(())
    }

    fn attach_sockopt(&mut self, cgroup: &File) -> Result<(), Error> {
        let name = "refuse_zerocopy";
        let pin = self.links.join(name);
        let program: &mut CgroupSockopt = program(&mut self.ebpf, name)?;
        if replace(&pin, name, program.fd())? {
            return Ok(());
        }
        let program = program.fd().map_err(fail(name, "opening"))?;
        // aya's link of this kind cannot be pinned (no conversion to `FdLink` in 0.14).
        sys::link_cgroup_setsockopt(cgroup.as_fd(), program.as_fd())
            .and_then(|link| sys::pin(link.as_fd(), &pin))
            .map_err(|source| Error::Call { call: "attaching refuse_zerocopy to the control group", source })
    }

    /// Attaches the program that refuses `splice(2)` on spliced sockets. It sees every read of a socket on the machine, so
    /// it is attached only where it is needed.
    ///
    /// # Errors
    /// The kernel has no BPF LSM, or refuses.
    pub fn attach_splice_guard(&mut self) -> Result<(), Error> {
        let name = "refuse_splice";
        let pin = self.links.join(name);
        let btf = aya::Btf::from_sys_fs().map_err(|error| Error::Btf(error.to_string()))?;
        let program: &mut Lsm = program(&mut self.ebpf, name)?;
        program.load("file_permission", &btf).map_err(fail(name, "loading"))?;
        if replace(&pin, name, program.fd())? {
            return Ok(());
        }
        let id = program.attach().map_err(fail(name, "attaching"))?;
        let link = program.take_link(id).map_err(fail(name, "taking the link"))?;
        pin_link::<aya::programs::links::LinkError>(Ok(link.into()), &pin, name)
    }

    /// Attaches what the fast path needs to a control group for as long as the answer lives. For the probes. Where the
    /// programs are attached to a group above already, they are not attached twice.
    ///
    /// # Errors
    /// The control group cannot be opened, or the kernel refuses.
    pub fn attach_for_probes(&mut self, cgroup: &Path) -> Result<Option<ProbeLinks>, Error> {
        if self.is_attached_above(cgroup) {
            return Ok(None);
        }
        let file = File::open(cgroup).map_err(|source| Error::Open {
            what: "control group",
            path: cgroup.to_owned(),
            source,
        })?;
        let connect = sock_addr(&mut self.ebpf, "connect4")?;
        let id = connect.attach(&file, MODE).map_err(fail("connect4", "attaching for the probes"))?;
        let connect = connect.take_link(id).map_err(fail("connect4", "taking the link"))?;
        let established: &mut SockOps = program(&mut self.ebpf, "established")?;
        let id = established.attach(&file, MODE).map_err(fail("established", "attaching for the probes"))?;
        let established = established.take_link(id).map_err(fail("established", "taking the link"))?;
        let sockopt: &mut CgroupSockopt = program(&mut self.ebpf, "refuse_zerocopy")?;
        let id = sockopt.attach(&file, MODE).map_err(fail("refuse_zerocopy", "attaching for the probes"))?;
        let sockopt = sockopt.take_link(id).map_err(fail("refuse_zerocopy", "taking the link"))?;
        Ok(Some(ProbeLinks { _connect: connect, _established: established, _sockopt: sockopt }))
    }

    fn is_attached_above(&self, cgroup: &Path) -> bool {
        let pin = self.links.join("established");
        let Ok(at) = sys::open_pin(&pin).and_then(|link| sys::link_cgroup(link.as_fd())) else {
            return false;
        };
        cgroup.ancestors().any(|group| super::cgroup::id(group).is_ok_and(|id| id == at))
    }

    /// Attaches `inbound` to a pod's network namespace, or takes over an earlier agent's link there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_inbound(&mut self, netns: &Netns) -> Result<(), Error> {
        let name = "inbound";
        let pin = self.inbound_pin(netns.cookie());
        let program: &mut SkLookup = program(&mut self.ebpf, name)?;
        match replace(&pin, name, program.fd()) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // The namespace behind the old link is gone: the pin is a leftover.
            Err(_gone) => remove_pin(&pin)?,
        }
        let id = program.attach(netns).map_err(fail(name, "attaching to the network namespace"))?;
        let link = program.take_link(id).map_err(fail(name, "taking the link"))?;
        pin_link::<aya::programs::links::LinkError>(Ok(link.into()), &pin, name)
    }

    /// Lets a pod's network namespace go.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn detach_inbound(&mut self, netns_cookie: u64) -> Result<(), Error> {
        remove_pin(&self.inbound_pin(netns_cookie))
    }

    /// Netns cookies of the pods that an earlier agent attached to.
    pub fn attached_inbound(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.links) else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix("inbound_")?.parse().ok())
            .collect()
    }

    fn inbound_pin(&self, cookie: u64) -> PathBuf {
        self.links.join(format!("inbound_{cookie}"))
    }

    /// Puts an in-pod listener into the slot from which `inbound` takes it.
    ///
    /// # Errors
    /// The slot is out of range or the socket is not a listener.
    pub fn set_listener(&mut self, slot: u32, listener: &impl AsRawFd) -> Result<(), Error> {
        self.listeners.set(slot, listener, 0).map_err(|error| Error::Map {
            map: "LISTENERS",
            operation: "write",
            source: io::Error::other(error),
        })
    }

    /// Writes the programs' settings.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn configure(&self, splice: bool, resolve_unmeshed: bool) -> Result<(), Error> {
        let mut flags = 0;
        if splice && self.offsets.are_complete() {
            flags |= config::SPLICE;
        }
        if resolve_unmeshed {
            flags |= config::RESOLVE_UNMESHED;
        }
        let value =
            Config { abi_version: ABI_VERSION, flags, heartbeat_age_max_ns: self.heartbeat_age_max_ns };
        self.maps.config.put(&0, &value)
    }

    /// Switches the fast path on, and leaves the other settings as they are: an agent that makes way may still serve by
    /// them. [`Kernel::configure`] writes the real ones afterwards.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn configure_for_probes(&self) -> Result<(), Error> {
        let before = self.maps.config.get(&0)?.unwrap_or_default();
        self.configure(true, before.flags & config::RESOLVE_UNMESHED != 0)
    }

    /// The tables.
    pub fn maps(&self) -> &std::sync::Arc<Maps> {
        &self.maps
    }

    /// How often an agent has started on these maps, this one included.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where the kernel keeps what the fast path reads.
    pub fn offsets(&self) -> Offsets {
        self.offsets
    }

    /// The ring buffer of events. Once.
    ///
    /// # Errors
    /// It has been taken already.
    pub fn take_events(&mut self) -> Result<RingBuf<MapData>, Error> {
        self.ebpf
            .take_map("EVENTS")
            .and_then(|map| RingBuf::try_from(map).ok())
            .ok_or(Error::Missing { kind: "map", name: "EVENTS" })
    }

    /// What the programs log (aya-log), when the log filter lets `mesh_ebpf=debug` through. Once.
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        let wanted = log_is_wanted();
        wanted.then(|| EbpfLogger::init_with_logger(&mut self.ebpf, ToTracing).ok()).flatten().map(ProgramLog)
    }

    /// The counters, summed over the CPUs, by index (see `mesh_common::counter`).
    pub fn counters(&self) -> Vec<u64> {
        (0..counter::COUNT)
            .map(|index| self.counters.get(&index, 0).map_or(0, |values| values.iter().sum()))
            .collect()
    }

    /// Says goodbye to the programs: from now on new connections follow the pods' failure mode.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn stop_heartbeat(&self) -> Result<(), Error> {
        self.maps.heartbeat.put(&0, &Heartbeat { beat_ns: 0, generation: self.generation })
    }
}

fn log_is_wanted() -> bool {
    tracing::enabled!(target: "mesh_ebpf", tracing::Level::DEBUG)
}

/// Log records of the kernel programs on their way to the process log, under the target `mesh_ebpf`.
pub struct ProgramLog(EbpfLogger<ToTracing>);

impl ProgramLog {
    /// Passes on what is there.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProgramLog")
    }
}

#[derive(Debug)]
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "mesh_ebpf", "{}", record.args());
    }
    fn flush(&self) {}
}

/// Attachments that end when this is dropped.
#[derive(Debug)]
pub struct ProbeLinks {
    _connect: aya::programs::cgroup_sock_addr::CgroupSockAddrLink,
    _established: aya::programs::sock_ops::SockOpsLink,
    _sockopt: aya::programs::cgroup_sockopt::CgroupSockoptLink,
}

/// Gives the programs a sign of life.
///
/// # Errors
/// The map cannot be written.
pub fn beat(maps: &Maps, generation: u64) -> Result<(), Error> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_err(|errno| Error::Call { call: "clock_gettime", source: errno.into() })?;
    let beat_ns = now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned();
    maps.heartbeat.put(&0, &Heartbeat { beat_ns, generation })
}

/// Removes every pin of a node, and with it every program and map. Pods go on unmeshed.
///
/// # Errors
/// A file cannot be removed. That nothing is there is no error.
pub fn uninstall(pin_dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(pin_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Open { what: "pin directory", path: pin_dir.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Makes the directories of pins where they are missing; answers where links are pinned.
pub(super) fn make_pin_dir(pin_dir: &Path) -> Result<PathBuf, Error> {
    let links = pin_dir.join("links");
    fs::create_dir_all(&links).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::NotBpffs(pin_dir.to_owned()),
        _ => Error::Open { what: "pin directory", path: links.clone(), source },
    })?;
    check_bpffs(pin_dir)?;
    Ok(links)
}

fn check_bpffs(path: &Path) -> Result<(), Error> {
    let kind = nix::sys::statfs::statfs(path)
        .map_err(|errno| Error::Call { call: "statfs", source: errno.into() })?
        .filesystem_type();
    if kind == nix::sys::statfs::BPF_FS_MAGIC { Ok(()) } else { Err(Error::NotBpffs(path.to_owned())) }
}

/// Compares the layout version of the pinned maps with ours.
fn check_version(ebpf: &Ebpf, pin_dir: &Path) -> Result<(), Error> {
    let missing = || Error::Missing { kind: "map", name: "CONFIG" };
    let config: Array<_, Config> =
        ebpf.map("CONFIG").and_then(|map| Array::try_from(map).ok()).ok_or_else(missing)?;
    let found = config.get(&0, 0).map_err(|error| Error::Load(Box::new(error.into())))?.abi_version;
    if found != 0 && found != ABI_VERSION {
        return Err(Error::AbiVersion { pin_dir: pin_dir.to_owned(), found, wanted: ABI_VERSION });
    }
    Ok(())
}

fn load_programs(ebpf: &mut Ebpf) -> Result<Maps, Error> {
    for name in SOCK_ADDR {
        sock_addr(ebpf, name)?.load().map_err(fail(name, "loading"))?;
    }
    program::<SockOps>(ebpf, "established")?.load().map_err(fail("established", "loading"))?;
    program::<CgroupSockopt>(ebpf, "refuse_zerocopy")?.load().map_err(fail("refuse_zerocopy", "loading"))?;
    program::<SkLookup>(ebpf, "inbound")?.load().map_err(fail("inbound", "loading"))?;
    program::<SkMsg>(ebpf, "splice")?.load().map_err(fail("splice", "loading"))?;
    let sockets = match ebpf.map("SOCKETS") {
        Some(map @ Map::SockHash(_)) => aya::maps::SockHash::<_, u64>::try_from(map)
            .map_err(|_error| Error::Missing { kind: "sockhash", name: "SOCKETS" })?,
        _ => return Err(Error::Missing { kind: "map", name: "SOCKETS" }),
    };
    let target = sockets.fd().try_clone().map_err(|source| Error::Call { call: "dup", source })?;
    let splice: &mut SkMsg = program(ebpf, "splice")?;
    let id = splice.attach(&target).map_err(fail("splice", "attaching to SOCKETS"))?;
    // This kind of attachment has no link that could be pinned; it lives as long as the map. Dropping the handle would
    // detach it, and spliced connections must outlive the agent.
    std::mem::forget(splice.take_link(id).map_err(fail("splice", "taking the link"))?);
    Maps::open(ebpf)
}

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, Error>
where
    &'a mut T: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing { kind: "program", name })
}

fn sock_addr<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, Error> {
    program(ebpf, name)
}

fn fail(program: &'static str, step: &'static str) -> impl FnOnce(aya::programs::ProgramError) -> Error {
    move |source| Error::Program { program, step, source: Box::new(source) }
}

/// True when an earlier link was there and now runs our program.
fn replace(
    pin: &Path,
    name: &'static str,
    program: Result<&aya::programs::ProgramFd, aya::programs::ProgramError>,
) -> Result<bool, Error> {
    if !pin.exists() {
        return Ok(false);
    }
    let link = sys::open_pin(pin).map_err(|source| Error::Call { call: "bpf(BPF_OBJ_GET)", source })?;
    let program = program.map_err(fail(name, "opening"))?;
    sys::link_update(link.as_fd(), program.as_fd())
        .map_err(|source| Error::Call { call: "bpf(BPF_LINK_UPDATE)", source })?;
    Ok(true)
}

fn pin_link<E: Into<aya::programs::links::LinkError>>(
    link: Result<FdLink, E>,
    pin: &Path,
    name: &'static str,
) -> Result<(), Error> {
    let link = link.map_err(|error| link_error(name, error.into()))?;
    link.pin(pin).map_err(|error| Error::Call { call: "pinning a link", source: io::Error::other(error) })?;
    Ok(())
}

fn link_error(program: &'static str, error: aya::programs::links::LinkError) -> Error {
    Error::Call { call: program, source: io::Error::other(error) }
}

fn remove_pin(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Open { what: "pinned link", path: pin.to_owned(), source })
        }
        _ => Ok(()),
    }
}
