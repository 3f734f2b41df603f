//! The system calls that no safe crate offers. One operation per block.
#![expect(unsafe_code, reason = "the one home of unsafe code in user space")]

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zerocopy::{FromBytes, IntoBytes};

/// `bpf(2)` commands (include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_NOEXIST: u64 = 1;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
/// `BPF_CGROUP_SETSOCKOPT` (enum bpf_attach_type).
const BPF_CGROUP_SETSOCKOPT: u32 = 22;

/// The part of `union bpf_attr` that map element commands use.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that `BPF_LINK_UPDATE` uses.
#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The part of `union bpf_attr` that `BPF_LINK_CREATE` uses for a control group.
#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that `BPF_OBJ_PIN` and `BPF_OBJ_GET` use.
#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` uses.
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    /// Zero.
    reserved: u32,
}

/// More programs than anybody hangs on one hook; the kernel allows 64 in one group.
const ATTACHED_MAX: usize = 256;

/// Numbers of the programs that are attached to a hook of a control group.
pub(super) fn attached_programs(cgroup: BorrowedFd<'_>, hook: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; ATTACHED_MAX];
    let mut attr = QueryAttr {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: hook,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        reserved: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` uses.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The part of `struct bpf_link_info` that a link to a control group fills.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    cgroup: u64,
    attach_type: u32,
    reserved2: u32,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live, initialised object of the size passed; the kernel reads and writes within the key and
    // value buffers named in it, which the callers below own and size from the map's own types.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Pins an object.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd().cast_unsigned();
    bpf(BPF_OBJ_PIN, &mut ObjectAttr { pathname: path.as_ptr() as u64, fd, flags: 0 }).map(drop)
}

/// Attaches a `cgroup/setsockopt` program by a link.
pub(super) fn link_cgroup_setsockopt(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let link = bpf(
        BPF_LINK_CREATE,
        &mut LinkCreateAttr {
            prog_fd: program.as_raw_fd().cast_unsigned(),
            target_fd: cgroup.as_raw_fd().cast_unsigned(),
            attach_type: BPF_CGROUP_SETSOCKOPT,
            flags: 0,
        },
    )?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// The number of the control group that a link is attached to; 0 when that group is gone.
pub(super) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).expect("small");
    let fd = link.as_raw_fd().cast_unsigned();
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut InfoAttr { fd, length, info: std::ptr::from_mut(&mut info) as u64 })?;
    Ok(info.cgroup)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &mut ObjectAttr { pathname: path.as_ptr() as u64, fd: 0, flags: 0 })?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn element<K, V>(map: BorrowedFd<'_>, key: *const K, value: *const V, flags: u64) -> ElementAttr {
    ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: key as u64,
        value: value as u64,
        flags,
    }
}

fn read<K: IntoBytes, V: FromBytes>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::zeroed();
    match bpf(command, &mut element(map, key, value.as_mut_ptr(), 0)) {
        // SAFETY: zeroed above, and the kernel fills size_of::<V>() bytes of a type for which any bytes are a value.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads an element. The map's key and value sizes must be those of `K` and `V` (checked when a table is opened).
pub(super) fn map_get<K: IntoBytes, V: FromBytes>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    read(BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Reads and removes an element in one step (kernel 5.14 for hash maps).
pub(super) fn map_take<K: IntoBytes, V: FromBytes>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// Writes an element.
pub(super) fn map_put<K: IntoBytes, V: IntoBytes>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    bpf(BPF_MAP_UPDATE_ELEM, &mut element(map, key, value, 0)).map(drop)
}

/// Writes an element that is not there yet; `EEXIST` when it is.
pub(super) fn map_add<K: IntoBytes, V: IntoBytes>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    bpf(BPF_MAP_UPDATE_ELEM, &mut element(map, key, value, BPF_NOEXIST)).map(drop)
}

/// Removes an element; false when it was not there.
pub(super) fn map_remove<K: IntoBytes>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    match bpf(BPF_MAP_DELETE_ELEM, &mut element::<K, u8>(map, key, std::ptr::null(), 0)) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after `key`, or the first.
pub(super) fn map_next_key<K: IntoBytes + FromBytes>(
    map: BorrowedFd<'_>,
    key: Option<&K>,
) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::zeroed();
    let key = key.map_or(std::ptr::null(), std::ptr::from_ref);
    match bpf(BPF_MAP_GET_NEXT_KEY, &mut element(map, key, next.as_mut_ptr(), 0)) {
        // SAFETY: as in `read`.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts another program behind a link, atomically: the hook is never without one and never has two.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(
        BPF_LINK_UPDATE,
        &mut LinkUpdateAttr {
            link_fd: link.as_raw_fd().cast_unsigned(),
            new_prog_fd: program.as_raw_fd().cast_unsigned(),
            flags: 0,
            old_prog_fd: 0,
        },
    )
    .map(drop)
}

/// `getsockopt` for an integer option that socket2 does not know.
pub(super) fn socket_option<T: FromBytes>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: value and length are live, and length is the size of value.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above; any bytes are a value.
    Ok(unsafe { value.assume_init() })
}

/// `setsockopt` for an integer option that socket2 does not know.
pub(super) fn set_socket_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("options are small");
    // SAFETY: value is live and length is its size.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `splice(2)` between a socket and a pipe, for the probe of that name.
pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> io::Result<usize> {
    // SAFETY: both descriptors are live; null offsets are allowed for sockets and pipes.
    let moved = unsafe {
        libc::splice(
            from.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            std::ptr::null_mut(),
            length,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    usize::try_from(moved).map_err(|_negative| io::Error::last_os_error())
}

/// `FIONREAD`.
pub(super) fn readable_len(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut length: libc::c_int = 0;
    // SAFETY: the argument of FIONREAD is a pointer to int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(length).map_err(|_negative| io::Error::other("FIONREAD answered a negative length"))
}

/// Registers a ring buffer with the runtime's poller.
pub(super) fn watch(
    ring: aya::maps::RingBuf<aya::maps::MapData>,
) -> io::Result<tokio::io::unix::AsyncFd<aya::maps::RingBuf<aya::maps::MapData>>> {
    // SAFETY: the ring owns one map descriptor for its whole life and answers `as_fd` with it each time.
    unsafe { tokio::io::unix::AsyncFd::register(ring) }.map_err(|error| error.into_parts().1)
}

/// Gives an interface (or an alias such as `lo:1`) of the caller's network namespace an IPv4 address and brings it up
/// (netdevice(7)).
pub(super) fn add_address(socket: BorrowedFd<'_>, name: &str, ip: std::net::Ipv4Addr) -> io::Result<()> {
    let mut address = request(name);
    let ip = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("small"),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: `sockaddr_in` and `sockaddr` have the same size and both are plain bytes.
    address.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(ip) };
    configure(socket, libc::SIOCSIFADDR, &address)?;
    let mut flags = request(name);
    flags.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("small");
    configure(socket, libc::SIOCSIFFLAGS, &flags)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn configure(socket: BorrowedFd<'_>, command: libc::Ioctl, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: both commands take a pointer to an `ifreq`, which they only read.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), command, std::ptr::from_ref(request)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a `MSG_ZEROCOPY` notification waits in the error queue; takes it.
pub(super) fn has_zerocopy_completion(socket: BorrowedFd<'_>) -> bool {
    let mut control = [0_u8; 128];
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut message = unsafe { std::mem::zeroed::<libc::msghdr>() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.len();
    // SAFETY: the header names one live control buffer and its length, and nothing else.
    let result = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    result >= 0
}

/// Gives free heap memory back to the system.
///
/// glibc keeps what was freed below the top of its heap. Loading leaves about 19 MB there on kernel 6.18, nearly all of it the
/// running kernel's BTF while it is parsed. Other C libraries give memory back by themselves.
pub(super) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, is safe to call from any thread (malloc_trim(3)), and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
