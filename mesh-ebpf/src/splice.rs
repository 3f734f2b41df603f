//! Station 12 on the short way: `send(2)` of a spliced socket (`sk_msg`).
//!
//! Moves the payload straight into the other socket's receive queue, or leaves it to TCP. A socket has two receive
//! queues; the redirected one is drained first. So redirected bytes must never be sent while bytes that went over TCP
//! before them are still unread, wherever those are: in flight, out of order, or waiting in the peer's queue. One
//! comparison says it: a side redirects only while the peer has *read* everything that this side ever gave to TCP, that
//! is, while own `write_seq` equals the peer's `copied_seq`. The sender holds its socket lock, so `write_seq` stands
//! still, and `copied_seq` cannot pass it. This covers data in the SYN, a sender that waited inside `tcp_sendmsg` while
//! the handshake finished, and a first message that left before the pair was made.
//!
//! Redirected bytes know no window. So before each message the *peer's* receive queue is read; when it would exceed the
//! peer's receive buffer the pair is demoted, and TCP's window takes over.
//!
//! Minimum kernel: 5.15 to load; the agent enables the fast path only where its boot-time probes pass (about 6.13, when
//! redirected bytes began to be charged to the receiver). Helpers used: `bpf_sk_storage_get`, `bpf_skc_to_tcp_sock`,
//! `bpf_probe_read_kernel`, `bpf_msg_redirect_hash`. `bpf_sk_release`, and with it a look-up in a sockhash, is closed to
//! this kind of program (verifier: "program of this type cannot use helper bpf_sk_release#86"); hence the kernel
//! address of the peer in `PAIRS`, which is only ever read through the fault-checking helper.
//! On any failure: pass to TCP, never drop.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, sk_action::SK_PASS, sk_msg_md},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_msg_redirect_hash, bpf_sk_storage_get},
    },
    macros::sk_msg,
    programs::SkMsgContext,
};
use core::ffi::c_void;
use mesh_common::{Pair, SocketState, counter, event, pair};

use crate::{
    ctx,
    maps::{PAIRS, SOCKET_STATE, SOCKETS, count, emit},
};

/// How long after a demotion a sender's entry may be deleted: by then no redirection into it is still under way.
const EVICTION_GRACE_NS: u64 = 20_000_000;

/// Messages in a row that one side may send over TCP before the pair is demoted so that the side can leave the sockmap:
/// a stream whose reader is always a little behind gains nothing here.
const TCP_STREAK_MAX: u32 = 64;

#[sk_msg]
pub fn splice(ctx: SkMsgContext) -> u32 {
    if !redirect(ctx.msg) {
        count(counter::SPLICE_TCP);
    }
    SK_PASS
}

/// True when the message is on its way to the peer's receive queue.
#[inline(always)]
fn redirect(msg: *mut sk_msg_md) -> bool {
    // SAFETY: a field of the context.
    let socket: *mut c_void = unsafe { (*msg).__bindgen_anon_3.sk }.cast();
    if socket.is_null() {
        return false;
    }
    // SAFETY: the map is ours, the socket is the context's.
    let state = unsafe {
        bpf_sk_storage_get((&raw const SOCKET_STATE).cast_mut().cast(), socket, core::ptr::null_mut(), 0)
    };
    // SAFETY: non-null means the storage of the sending socket, which sendmsg has locked.
    let Some(state) = (unsafe { state.cast::<SocketState>().as_ref() }) else { return false };
    let Some(entry) = PAIRS.get_ptr_mut(state.pair) else { return false };
    // SAFETY: checked by the map; each side writes its own elements.
    let entry = unsafe { &mut *entry };
    let side = (state.side & 1) as usize;
    entry.sends[side] += 1;
    let own = entry.sockets[side];
    if entry.state == pair::DEMOTED {
        // The reader too: a side that never sends would otherwise stay in the sockmap for good.
        ask_for_eviction(entry, side);
        ask_for_eviction(entry, side ^ 1);
        return false;
    }
    let peer = entry.sockets[side ^ 1];
    if entry.state != pair::READY || ctx::write_seq(own) != ctx::copied_seq(peer) {
        entry.tcp_streaks[side] = entry.tcp_streaks[side].saturating_add(1);
        if entry.tcp_streaks[side] > TCP_STREAK_MAX {
            demote(entry, state.pair);
        }
        return false;
    }
    // SAFETY: a field of the context.
    let length = unsafe { (*msg).size };
    if ctx::receive_queue_len(peer).saturating_add(length) > ctx::receive_buffer_len(peer) {
        demote(entry, state.pair);
        return false;
    }
    let mut key = entry.cookies[side ^ 1];
    // SAFETY: the context is valid, the key is on the stack.
    let result = unsafe {
        bpf_msg_redirect_hash(
            msg,
            (&raw const SOCKETS).cast_mut().cast(),
            (&raw mut key).cast::<c_void>(),
            BPF_F_INGRESS as u64,
        )
    };
    if result != SK_PASS as i64 {
        // The peer is closing (half-closed sockets are not redirected to) or gone: TCP carries the message, or tells the sender
        // what became of the peer. No demotion: nobody fell behind, and habit must not take it for bulk.
        entry.tcp_streaks[side] = entry.tcp_streaks[side].saturating_add(1);
        return false;
    }
    entry.tcp_streaks[side] = 0;
    entry.bytes[side] += length as u64;
    count(counter::SPLICE_REDIRECTED);
    true
}

#[inline(always)]
fn demote(entry: &mut Pair, id: u64) {
    entry.state = pair::DEMOTED;
    // SAFETY: no arguments.
    entry.demoted_ns = unsafe { bpf_ktime_get_ns() };
    count(counter::SPLICE_DEMOTED);
    emit(event::DEMOTED, |e| {
        e.source = entry.source;
        e.destination = entry.destination;
        e.tuple = entry.tuple;
        e.dialled = entry.dialled;
        e.dialled_port = entry.dialled_port;
        e.cookie = id;
    });
}

/// A socket in a sockmap sends at half of TCP's bulk rate even when nothing is redirected. Once nothing of its own can
/// be queued by redirection any more, the agent may take it out.
#[inline(always)]
fn ask_for_eviction(entry: &mut Pair, side: usize) {
    let bit = 1u32 << side;
    let own = entry.sockets[side & 1];
    if entry.evictions & bit != 0 {
        return;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.wrapping_sub(entry.demoted_ns) < EVICTION_GRACE_NS || ctx::receive_queue_len(own) != 0 {
        return;
    }
    entry.evictions |= bit;
    let cookie = entry.cookies[side & 1];
    emit(event::EVICT, |e| e.cookie = cookie);
}
