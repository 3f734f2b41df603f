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
/// Offset of `sk_backlog.rmem_alloc` in `struct sock`.
#[unsafe(no_mangle)]
static OFFSET_RMEM_ALLOC: u32 = 0;
/// Offset of `sk_rcvbuf` in `struct sock`.
#[unsafe(no_mangle)]
static OFFSET_RCVBUF: u32 = 0;

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

macro_rules! load {
    ($place:expr) => {
        // SAFETY: a field of the context. Volatile: the verifier refuses merged or narrowed loads of context fields
        // ("invalid bpf_context access off=.. size=8").
        unsafe { core::ptr::read_volatile(&raw const $place) }
    };
}
macro_rules! store {
    ($place:expr, $value:expr) => {
        // SAFETY: a writable field of the context; volatile for the same reason.
        unsafe { core::ptr::write_volatile(&raw mut $place, $value) }
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
                load!((*ctx).user_ip6[0]),
                load!((*ctx).user_ip6[1]),
                load!((*ctx).user_ip6[2]),
                load!((*ctx).user_ip6[3]),
            ];
            address_from_words(words)
        } else {
            v4(load!((*ctx).user_ip4))
        }
    }

    /// Host order.
    #[inline(always)]
    pub fn port(ctx: *mut bpf_sock_addr) -> u16 {
        u16::from_be(load!((*ctx).user_port) as u16)
    }

    /// IP protocol.
    #[inline(always)]
    pub fn protocol(ctx: *mut bpf_sock_addr) -> u32 {
        load!((*ctx).protocol)
    }

    /// Replaces the address. The caller makes sure that an IPv4 hook gets an IPv4 address.
    #[inline(always)]
    pub fn set(ctx: *mut bpf_sock_addr, v6: bool, address: &Address, port: u16) {
        let w = words(address);
        if v6 {
            store!((*ctx).user_ip6[0], w[0]);
            store!((*ctx).user_ip6[1], w[1]);
            store!((*ctx).user_ip6[2], w[2]);
            store!((*ctx).user_ip6[3], w[3]);
        } else {
            store!((*ctx).user_ip4, w[3]);
        }
        store!((*ctx).user_port, port.to_be() as u32);
    }
}

/// `bpf_sock_ops`.
pub mod sock_ops {
    use super::*;

    /// The socket, when it is a full one.
    #[inline(always)]
    pub fn socket(ops: *mut bpf_sock_ops) -> *mut c_void {
        if load!((*ops).is_fullsock) == 0 {
            return core::ptr::null_mut();
        }
        load!((*ops).__bindgen_anon_2.sk).cast()
    }

    /// Own address and port.
    #[inline(always)]
    pub fn local(ops: *mut bpf_sock_ops) -> (Address, u16) {
        let address = if load!((*ops).family) == AF_INET6 {
            let words = [
                load!((*ops).local_ip6[0]),
                load!((*ops).local_ip6[1]),
                load!((*ops).local_ip6[2]),
                load!((*ops).local_ip6[3]),
            ];
            address_from_words(words)
        } else {
            v4(load!((*ops).local_ip4))
        };
        (address, load!((*ops).local_port) as u16)
    }

    /// The peer's address and port.
    #[inline(always)]
    pub fn remote(ops: *mut bpf_sock_ops) -> (Address, u16) {
        let address = if load!((*ops).family) == AF_INET6 {
            let words = [
                load!((*ops).remote_ip6[0]),
                load!((*ops).remote_ip6[1]),
                load!((*ops).remote_ip6[2]),
                load!((*ops).remote_ip6[3]),
            ];
            address_from_words(words)
        } else {
            v4(load!((*ops).remote_ip4))
        };
        (address, u32::from_be(load!((*ops).remote_port)) as u16)
    }

    /// Callback argument.
    #[inline(always)]
    pub fn argument0(ops: *mut bpf_sock_ops) -> u32 {
        load!((*ops).__bindgen_anon_1.args[0])
    }

    /// Callback argument.
    #[inline(always)]
    pub fn argument1(ops: *mut bpf_sock_ops) -> u32 {
        load!((*ops).__bindgen_anon_1.args[1])
    }

    /// Bytes that the peer has acknowledged, bytes received.
    #[inline(always)]
    pub fn bytes(ops: *mut bpf_sock_ops) -> (u64, u64) {
        (load!((*ops).bytes_acked), load!((*ops).bytes_received))
    }

    /// Smoothed round-trip time in microseconds.
    #[inline(always)]
    pub fn srtt_us(ops: *mut bpf_sock_ops) -> u32 {
        // The kernel keeps eighths (tcp_sock.srtt_us << 3).
        load!((*ops).srtt_us) >> 3
    }

    /// Retransmitted segments.
    #[inline(always)]
    pub fn retransmits(ops: *mut bpf_sock_ops) -> u32 {
        load!((*ops).total_retrans)
    }
}

/// `bpf_sk_lookup`.
pub mod sk_lookup {
    use super::*;

    /// IP protocol.
    #[inline(always)]
    pub fn protocol(ctx: *mut bpf_sk_lookup) -> u32 {
        load!((*ctx).protocol)
    }

    /// Where the packet goes.
    #[inline(always)]
    pub fn local(ctx: *mut bpf_sk_lookup) -> (Address, u16) {
        let address = if load!((*ctx).family) == AF_INET6 {
            let words = [
                load!((*ctx).local_ip6[0]),
                load!((*ctx).local_ip6[1]),
                load!((*ctx).local_ip6[2]),
                load!((*ctx).local_ip6[3]),
            ];
            address_from_words(words)
        } else {
            v4(load!((*ctx).local_ip4))
        };
        (address, load!((*ctx).local_port) as u16)
    }

    /// Where it comes from.
    #[inline(always)]
    pub fn remote(ctx: *mut bpf_sk_lookup) -> (Address, u16) {
        let address = if load!((*ctx).family) == AF_INET6 {
            let words = [
                load!((*ctx).remote_ip6[0]),
                load!((*ctx).remote_ip6[1]),
                load!((*ctx).remote_ip6[2]),
                load!((*ctx).remote_ip6[3]),
            ];
            address_from_words(words)
        } else {
            v4(load!((*ctx).remote_ip4))
        };
        (address, u16::from_be(load!((*ctx).remote_port)))
    }
}
