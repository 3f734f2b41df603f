//! Every raw read: contexts, kernel structures at offsets that the agent took from the running kernel's BTF.

use aya_ebpf::{
    EbpfContext,
    bindings::{bpf_sk_lookup, bpf_sock_addr, bpf_sock_ops},
    helpers::{bpf_get_netns_cookie, bpf_probe_read_kernel, generated::bpf_skc_to_tcp_sock},
};
use core::ffi::c_void;
use mesh_common::Address;

/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
/// `IPPROTO_TCP`.
pub const IPPROTO_TCP: u32 = 6;
/// `IPPROTO_UDP`.
pub const IPPROTO_UDP: u32 = 17;

/// Set by the agent before loading; 0 means that the running kernel's BTF lacks the field, and the fast path stays off.
#[unsafe(no_mangle)]
static OFFSET_WRITE_SEQ: u32 = 0;
/// Offset of `copied_seq` in `struct tcp_sock`.
#[unsafe(no_mangle)]
static OFFSET_COPIED_SEQ: u32 = 0;
/// Offset of `sk_backlog.rmem_alloc` in `struct sock`.
#[unsafe(no_mangle)]
static OFFSET_RMEM_ALLOC: u32 = 0;
/// Offset of `sk_rcvbuf` in `struct sock`.
#[unsafe(no_mangle)]
static OFFSET_RCVBUF: u32 = 0;

/// Offset of `sk_flags` in `struct sock`.
#[unsafe(no_mangle)]
static OFFSET_SK_FLAGS: u32 = 0;
/// `1 << SOCK_ZEROCOPY` (enum sock_flags).
#[unsafe(no_mangle)]
static ZEROCOPY_FLAG: u32 = 0;
/// Offset of `sk` in `struct socket`.
#[unsafe(no_mangle)]
static OFFSET_SOCKET_SK: u32 = 0;
/// Offset of the system call's number in `struct pt_regs`.
#[unsafe(no_mangle)]
static OFFSET_SYSCALL: u32 = 0;
/// Number of splice(2) on this architecture.
#[unsafe(no_mangle)]
static SYSCALL_SPLICE: u32 = 0;

#[inline(always)]
fn constant(of: &u32) -> usize {
    // SAFETY: a reference is readable; volatile keeps the compiler from folding the value that the loader overwrites.
    unsafe { core::ptr::read_volatile(of) as usize }
}

#[inline(always)]
fn read_u32(base: u64, offset: usize) -> u32 {
    // SAFETY: the helper checks the address and reports a fault instead of taking it.
    unsafe { bpf_probe_read_kernel((base as usize + offset) as *const u32) }.unwrap_or(0)
}

/// `tcp_sock.write_seq` of a socket given by its kernel address: sequence number of the next byte that TCP will queue.
#[inline(always)]
pub fn write_seq(socket: u64) -> u32 {
    read_u32(socket, constant(&OFFSET_WRITE_SEQ))
}

/// `tcp_sock.copied_seq`: sequence number of the next byte that the application will read from TCP.
#[inline(always)]
pub fn copied_seq(socket: u64) -> u32 {
    read_u32(socket, constant(&OFFSET_COPIED_SEQ))
}

/// Bytes charged to the socket's receive queue, redirected ones included (from kernel 6.13 on, which a probe checks).
#[inline(always)]
pub fn receive_queue_len(socket: u64) -> u32 {
    read_u32(socket, constant(&OFFSET_RMEM_ALLOC))
}

/// `sk_rcvbuf`.
#[inline(always)]
pub fn receive_buffer_len(socket: u64) -> u32 {
    read_u32(socket, constant(&OFFSET_RCVBUF))
}

/// Whether the application has set `SO_ZEROCOPY`.
#[inline(always)]
pub fn has_zerocopy(socket: u64) -> bool {
    let offset = constant(&OFFSET_SK_FLAGS);
    offset != 0 && read_u32(socket, offset) & constant(&ZEROCOPY_FLAG) as u32 != 0
}

/// Whether the peer's FIN has arrived (`SOCK_DONE`, which `tcp_fin` sets; second of `enum sock_flags` ever since there is one).
#[inline(always)]
pub fn has_received_fin(socket: u64) -> bool {
    const SOCK_DONE: u32 = 1 << 1;
    let offset = constant(&OFFSET_SK_FLAGS);
    offset != 0 && read_u32(socket, offset) & SOCK_DONE != 0
}

/// Whether the running task is inside splice(2), from its saved registers.
#[inline(always)]
pub fn is_splice_call(registers: u64) -> bool {
    let offset = constant(&OFFSET_SYSCALL);
    offset != 0 && read_u32(registers, offset) == constant(&SYSCALL_SPLICE) as u32
}

/// `socket.sk`.
///
/// # Safety
/// `socket` must be a socket that the kernel holds.
#[inline(always)]
pub unsafe fn sock_of(socket: *mut c_void) -> *mut c_void {
    let field = (socket as usize + constant(&OFFSET_SOCKET_SK)) as *const *mut c_void;
    // SAFETY: a pointer-sized field of a live object; the verifier checks offset and type against the kernel's BTF.
    unsafe { field.read() }
}

/// Kernel address of the full TCP socket behind a context's `sk`, or 0.
///
/// # Safety
/// `sk` must come from the context and be non-null.
#[inline(always)]
pub unsafe fn tcp_socket(sk: *mut c_void) -> u64 {
    // SAFETY: the caller passes a socket of the context.
    unsafe { bpf_skc_to_tcp_sock(sk) as u64 }
}

/// Netns cookie of the context's socket.
#[inline(always)]
pub fn netns_cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the context is valid for the duration of the program.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Adds to a map value that several CPUs change.
///
/// # Safety
/// `value` must point to eight aligned bytes of a map value.
#[inline(always)]
pub unsafe fn atomic_add(value: *mut u64, by: u64) {
    // The target lists no atomics for `core::sync::atomic`; the instruction has been there since 3.18.
    // SAFETY: as the caller promises.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) by) };
}

/// Loads a context field at a constant offset. As an instruction of its own: left to the compiler, two loads in two
/// branches become one load at a computed offset, which the verifier refuses ("dereference of modified ctx ptr").
macro_rules! load {
    ($ctx:expr, $structure:ty, $field:ident $(+ $more:literal)?) => { load!($ctx, $structure, $field $(+ $more)?, "u32", u32) };
    ($ctx:expr, $structure:ty, $field:ident $(+ $more:literal)?, $size:literal, $as:ty) => {{
        let value: u64;
        // SAFETY: reads a field of the context, which is valid while the program runs.
        unsafe {
            core::arch::asm!(
                concat!("{0} = *(", $size, " *)({1} + {2})"),
                out(reg) value, in(reg) $ctx,
                const core::mem::offset_of!($structure, $field) $(+ $more)?,
                options(nostack, readonly)
            );
        }
        value as $as
    }};
}

/// Stores a context field at a constant offset.
macro_rules! store {
    ($ctx:expr, $structure:ty, $field:ident $(+ $more:literal)?, $value:expr) => {
        // SAFETY: writes a field that this kind of program may write.
        unsafe {
            core::arch::asm!(
                "*(u32 *)({0} + {1}) = {2}",
                in(reg) $ctx,
                const core::mem::offset_of!($structure, $field) $(+ $more)?,
                in(reg) u64::from($value),
                options(nostack)
            );
        }
    };
}

/// An address from four words in network order. Whole words: byte by byte it would be sixteen stores.
#[inline(always)]
pub fn address_from_words(words: [u32; 4]) -> Address {
    // SAFETY: same size, any bit pattern is an address.
    unsafe { core::mem::transmute::<[u32; 4], Address>(words) }
}

/// Four words in network order.
#[inline(always)]
pub fn words(address: &Address) -> [u32; 4] {
    // SAFETY: same size, any bit pattern is four words.
    unsafe { core::mem::transmute::<Address, [u32; 4]>(*address) }
}

/// IPv4 from one word in network order.
#[inline(always)]
fn v4(word: u32) -> Address {
    address_from_words([0, 0, MAPPED, word])
}

/// Equality by words.
#[inline(always)]
pub fn same(a: &Address, b: &Address) -> bool {
    words(a) == words(b)
}

const MAPPED: u32 = 0xffff_u32.to_be();

/// True for IPv4-mapped.
#[inline(always)]
pub fn is_v4(address: &Address) -> bool {
    let w = words(address);
    w[0] == 0 && w[1] == 0 && w[2] == MAPPED
}

/// 127.0.0.0/8, ::1, and the mapped form.
#[inline(always)]
pub fn is_loopback(address: &Address) -> bool {
    let w = words(address);
    w[0] == 0
        && w[1] == 0
        && ((w[2] == MAPPED && w[3].to_ne_bytes()[0] == 127) || (w[2] == 0 && w[3] == 1_u32.to_be()))
}

/// `bpf_sock_addr`: the address that the application gave, or will be shown.
pub mod sock_addr {
    use super::*;

    /// True in the IPv6 flavour of a hook.
    #[inline(always)]
    pub fn address(ctx: *mut bpf_sock_addr, v6: bool) -> Address {
        if v6 {
            let words = [
                load!(ctx, bpf_sock_addr, user_ip6 + 0),
                load!(ctx, bpf_sock_addr, user_ip6 + 4),
                load!(ctx, bpf_sock_addr, user_ip6 + 8),
                load!(ctx, bpf_sock_addr, user_ip6 + 12),
            ];
            address_from_words(words)
        } else {
            v4(load!(ctx, bpf_sock_addr, user_ip4))
        }
    }

    /// Host order.
    #[inline(always)]
    pub fn port(ctx: *mut bpf_sock_addr) -> u16 {
        u16::from_be(load!(ctx, bpf_sock_addr, user_port) as u16)
    }

    /// IP protocol.
    #[inline(always)]
    pub fn protocol(ctx: *mut bpf_sock_addr) -> u32 {
        load!(ctx, bpf_sock_addr, protocol)
    }

    /// Replaces the address. The caller makes sure that an IPv4 hook gets an IPv4 address.
    #[inline(always)]
    pub fn set(ctx: *mut bpf_sock_addr, v6: bool, address: &Address, port: u16) {
        let w = words(address);
        if v6 {
            store!(ctx, bpf_sock_addr, user_ip6 + 0, w[0]);
            store!(ctx, bpf_sock_addr, user_ip6 + 4, w[1]);
            store!(ctx, bpf_sock_addr, user_ip6 + 8, w[2]);
            store!(ctx, bpf_sock_addr, user_ip6 + 12, w[3]);
        } else {
            store!(ctx, bpf_sock_addr, user_ip4, w[3]);
        }
        store!(ctx, bpf_sock_addr, user_port, u32::from(port.to_be()));
    }
}

/// `bpf_sock_ops`.
pub mod sock_ops {
    use super::*;

    /// The socket, when it is a full one.
    #[inline(always)]
    pub fn socket(ops: *mut bpf_sock_ops) -> *mut c_void {
        if load!(ops, bpf_sock_ops, is_fullsock) == 0 {
            return core::ptr::null_mut();
        }
        load!(ops, bpf_sock_ops, __bindgen_anon_2, "u64", u64) as *mut c_void
    }

    /// Own address and port.
    #[inline(always)]
    pub fn local(ops: *mut bpf_sock_ops) -> (Address, u16) {
        let address = if load!(ops, bpf_sock_ops, family) == AF_INET6 {
            let words = [
                load!(ops, bpf_sock_ops, local_ip6 + 0),
                load!(ops, bpf_sock_ops, local_ip6 + 4),
                load!(ops, bpf_sock_ops, local_ip6 + 8),
                load!(ops, bpf_sock_ops, local_ip6 + 12),
            ];
            address_from_words(words)
        } else {
            v4(load!(ops, bpf_sock_ops, local_ip4))
        };
        (address, load!(ops, bpf_sock_ops, local_port) as u16)
    }

    /// The peer's address and port.
    #[inline(always)]
    pub fn remote(ops: *mut bpf_sock_ops) -> (Address, u16) {
        let address = if load!(ops, bpf_sock_ops, family) == AF_INET6 {
            let words = [
                load!(ops, bpf_sock_ops, remote_ip6 + 0),
                load!(ops, bpf_sock_ops, remote_ip6 + 4),
                load!(ops, bpf_sock_ops, remote_ip6 + 8),
                load!(ops, bpf_sock_ops, remote_ip6 + 12),
            ];
            address_from_words(words)
        } else {
            v4(load!(ops, bpf_sock_ops, remote_ip4))
        };
        (address, u32::from_be(load!(ops, bpf_sock_ops, remote_port)) as u16)
    }

    /// Callback argument.
    #[inline(always)]
    pub fn argument0(ops: *mut bpf_sock_ops) -> u32 {
        load!(ops, bpf_sock_ops, __bindgen_anon_1)
    }

    /// Callback argument.
    #[inline(always)]
    pub fn argument1(ops: *mut bpf_sock_ops) -> u32 {
        load!(ops, bpf_sock_ops, __bindgen_anon_1 + 4)
    }

    /// Bytes that the peer has acknowledged, bytes received.
    #[inline(always)]
    pub fn bytes(ops: *mut bpf_sock_ops) -> (u64, u64) {
        (
            load!(ops, bpf_sock_ops, bytes_acked, "u64", u64),
            load!(ops, bpf_sock_ops, bytes_received, "u64", u64),
        )
    }

    /// Smoothed round-trip time in microseconds.
    #[inline(always)]
    pub fn srtt_us(ops: *mut bpf_sock_ops) -> u32 {
        // The kernel keeps eighths (tcp_sock.srtt_us << 3).
        load!(ops, bpf_sock_ops, srtt_us) >> 3
    }

    /// Retransmitted segments.
    #[inline(always)]
    pub fn retransmits(ops: *mut bpf_sock_ops) -> u32 {
        load!(ops, bpf_sock_ops, total_retrans)
    }
}

/// `bpf_sk_lookup`.
pub mod sk_lookup {
    use super::*;

    /// IP protocol.
    #[inline(always)]
    pub fn protocol(ctx: *mut bpf_sk_lookup) -> u32 {
        load!(ctx, bpf_sk_lookup, protocol)
    }

    /// Where the packet goes.
    #[inline(always)]
    pub fn local(ctx: *mut bpf_sk_lookup) -> (Address, u16) {
        let address = if load!(ctx, bpf_sk_lookup, family) == AF_INET6 {
            let words = [
                load!(ctx, bpf_sk_lookup, local_ip6 + 0),
                load!(ctx, bpf_sk_lookup, local_ip6 + 4),
                load!(ctx, bpf_sk_lookup, local_ip6 + 8),
                load!(ctx, bpf_sk_lookup, local_ip6 + 12),
            ];
            address_from_words(words)
        } else {
            v4(load!(ctx, bpf_sk_lookup, local_ip4))
        };
        (address, load!(ctx, bpf_sk_lookup, local_port) as u16)
    }

    /// Where it comes from.
    #[inline(always)]
    pub fn remote(ctx: *mut bpf_sk_lookup) -> (Address, u16) {
        let address = if load!(ctx, bpf_sk_lookup, family) == AF_INET6 {
            let words = [
                load!(ctx, bpf_sk_lookup, remote_ip6 + 0),
                load!(ctx, bpf_sk_lookup, remote_ip6 + 4),
                load!(ctx, bpf_sk_lookup, remote_ip6 + 8),
                load!(ctx, bpf_sk_lookup, remote_ip6 + 12),
            ];
            address_from_words(words)
        } else {
            v4(load!(ctx, bpf_sk_lookup, remote_ip4))
        };
        (address, u16::from_be(load!(ctx, bpf_sk_lookup, remote_port, "u16", u16)))
    }
}
