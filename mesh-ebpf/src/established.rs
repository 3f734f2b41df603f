//! Stations 2 and 13: what happens to a socket between SYN and close (`sock_ops`).
//!
//! At `TCP_CONNECT_CB`, before the SYN leaves, the client's port is known: the record for the agent (`DIALS`) or the
//! authorization for `inbound` (`FLOWS`) is written. When both ends are established they are paired by cookie and put
//! into `SOCKETS`, before either can have sent a byte that matters (see [`crate::splice`]). At close the counts go out.
//! Minimum kernel: 5.15. Helpers used: `bpf_sk_storage_get`, `bpf_get_socket_cookie`, `bpf_skc_to_tcp_sock`,
//! `bpf_sock_hash_update`, `bpf_sock_ops_cb_flags_set`, `bpf_probe_read_kernel`.
//! On any failure: the connection stays plain TCP; where the agent's record is missing the agent refuses.

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
    },
    helpers::{
        bpf_get_socket_cookie, bpf_ktime_get_ns,
        generated::{bpf_sk_storage_get, bpf_sock_hash_update, bpf_sock_ops_cb_flags_set},
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use core::ffi::c_void;
use mesh_common::{
    Address, Dial, DialKey, Event, Flow, FlowKey, Pair, SocketState, action, counter, event, pair, reason,
};

use crate::{
    ctx::{self, sock_ops},
    maps::{DIALS, FLOWS, OPEN, PAIRS, SOCKET_STATE, SOCKETS, count, emit},
};

/// States of a socket (include/net/tcp_states.h); from the last three before CLOSE our own FIN was acknowledged.
const TCP_SYN_SENT: u32 = 2;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;
const TCP_CLOSE: u32 = 7;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

#[sock_ops]
pub fn established(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ops),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => client_established(ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => server_established(ops),
        BPF_SOCK_OPS_STATE_CB if sock_ops::argument1(ops) == TCP_CLOSE => {
            closed(ops, sock_ops::argument0(ops));
        }
        _ => {}
    }
    1
}

/// The socket's storage, if connect or [`server_established`] left any.
#[inline(always)]
fn state(socket: *mut c_void) -> Option<&'static mut SocketState> {
    storage(socket, 0)
}

#[inline(always)]
fn storage(socket: *mut c_void, flags: u64) -> Option<&'static mut SocketState> {
    // SAFETY: the map is ours, the socket is the context's and non-null (callers check).
    let pointer = unsafe {
        bpf_sk_storage_get((&raw const SOCKET_STATE).cast_mut().cast(), socket, core::ptr::null_mut(), flags)
    };
    // SAFETY: non-null means the storage of a socket that the kernel holds while the program runs.
    unsafe { pointer.cast::<SocketState>().as_mut() }
}

#[inline(always)]
fn cookie(ops: *mut bpf_sock_ops) -> u64 {
    // SAFETY: the context is valid.
    unsafe { bpf_get_socket_cookie(ops.cast()) }
}

#[inline(always)]
fn connecting(ops: *mut bpf_sock_ops) {
    let socket = sock_ops::socket(ops);
    if socket.is_null() {
        return;
    }
    let Some(state) = state(socket) else { return };
    // SAFETY: the context is valid.
    unsafe { bpf_sock_ops_cb_flags_set(ops, BPF_SOCK_OPS_STATE_CB_FLAG as i32) };
    count_open(state);
    let (address, port) = sock_ops::local(ops);
    match state.action {
        action::PROXY => record_dial(state, address, port),
        action::SPLICE | action::DIRECT => authorize(ops, socket, state, address, port),
        _ => {}
    }
}

#[inline(always)]
fn record_dial(state: &SocketState, address: Address, port: u16) {
    let key = DialKey { netns: state.netns, address, port, reserved: 0, reserved2: 0 };
    let dial = Dial {
        dialled: state.dialled,
        drawn: state.chosen,
        dialled_port: state.dialled_port,
        drawn_port: state.chosen_port,
        reserved: 0,
    };
    if DIALS.insert(key, dial, 0).is_err() {
        // The agent finds no record and refuses.
        count(counter::REASON_BASE + reason::MAP_FULL);
    }
}

#[inline(always)]
fn authorize(
    ops: *mut bpf_sock_ops,
    socket: *mut c_void,
    state: &mut SocketState,
    address: Address,
    port: u16,
) {
    let id = cookie(ops);
    // SAFETY: the socket is the context's and non-null.
    let kernel_address = unsafe { ctx::tcp_socket(socket) };
    if kernel_address == 0 {
        // Never for TCP; the verifier wants to see it ("pointer arithmetic on ptr_or_null_ prohibited").
        return;
    }
    state.pair = id;
    let tuple = FlowKey {
        client: address,
        server: state.chosen,
        client_port: port,
        server_port: state.chosen_port,
        reserved: 0,
    };
    let pair = Pair {
        tuple,
        dialled: state.dialled,
        dialled_port: state.dialled_port,
        action: state.action,
        source: state.source,
        destination: state.destination,
        netns: [state.netns, 0],
        cookies: [id, 0],
        sockets: [kernel_address, 0],
        ..Pair::default()
    };
    if PAIRS.insert(id, pair, 0).is_err()
        || FLOWS.insert(tuple, Flow { pair: id, action: state.action, reserved: 0 }, 0).is_err()
    {
        // `inbound` finds no authorization and hands the connection to the agent.
        count(counter::REASON_BASE + reason::MAP_FULL);
    }
}

#[inline(always)]
fn client_established(ops: *mut bpf_sock_ops) {
    let socket = sock_ops::socket(ops);
    if socket.is_null() {
        return;
    }
    let Some(state) = state(socket) else { return };
    if state.pair == 0 {
        return;
    }
    let Some(entry) = PAIRS.get_ptr_mut(state.pair) else { return };
    // SAFETY: checked by the map; fields are written by one side each.
    let entry = unsafe { &mut *entry };
    // SAFETY: no arguments.
    entry.opened_ns = unsafe { bpf_ktime_get_ns() };
    if state.action == action::SPLICE && !ctx::has_zerocopy(entry.sockets[0]) {
        insert(ops, state.pair);
    }
    emit(event::OPENED, |e| describe(e, entry, state.pair));
}

#[inline(always)]
fn server_established(ops: *mut bpf_sock_ops) {
    let socket = sock_ops::socket(ops);
    if socket.is_null() {
        return;
    }
    let (server, server_port) = sock_ops::local(ops);
    let (client, client_port) = sock_ops::remote(ops);
    let key = FlowKey { client, server, client_port, server_port, reserved: 0 };
    // SAFETY: sixteen bytes, written before the SYN left.
    let Some(flow) = (unsafe { FLOWS.get(key) }) else { return };
    if flow.action != action::SPLICE {
        return;
    }
    let id = flow.pair;
    let Some(entry) = PAIRS.get_ptr_mut(id) else { return };
    // SAFETY: checked by the map.
    let entry = unsafe { &mut *entry };
    let Some(state) = storage(socket, BPF_SK_STORAGE_GET_F_CREATE as u64) else { return };
    // SAFETY: the socket is the context's and non-null.
    let kernel_address = unsafe { ctx::tcp_socket(socket) };
    if kernel_address == 0 {
        // Never for TCP; the verifier wants to see it ("pointer arithmetic on ptr_or_null_ prohibited").
        return;
    }
    let own = cookie(ops);
    state.pair = id;
    state.side = 1;
    state.action = action::SPLICE;
    entry.cookies[1] = own;
    entry.sockets[1] = kernel_address;
    // A client that was already heard over TCP may have demoted the pair; that stands.
    if !ctx::has_zerocopy(kernel_address) && insert(ops, own) && entry.state == pair::CONNECTING {
        entry.state = pair::READY;
    }
}

/// Puts the socket into `SOCKETS`. Another project's sockmap may refuse it; then the pair stays on TCP.
#[inline(always)]
fn insert(ops: *mut bpf_sock_ops, key: u64) -> bool {
    let mut key = key;
    // SAFETY: the context is valid, the key is on the stack.
    let result = unsafe {
        bpf_sock_hash_update(
            ops,
            (&raw const SOCKETS).cast_mut().cast(),
            (&raw mut key).cast::<c_void>(),
            NO_EXIST,
        )
    };
    if result != 0 {
        count(counter::SOCKETS_REFUSED);
    }
    result == 0
}

#[inline(always)]
fn closed(ops: *mut bpf_sock_ops, from: u32) {
    let never_established = from == TCP_SYN_SENT;
    let socket = sock_ops::socket(ops);
    if socket.is_null() {
        return;
    }
    let Some(state) = state(socket) else { return };
    if state.side != 0 {
        return;
    }
    count_close(state);
    if state.action == action::PROXY && never_established {
        let (address, port) = sock_ops::local(ops);
        let _ = DIALS.remove(DialKey { netns: state.netns, address, port, reserved: 0, reserved2: 0 });
    }
    if state.pair == 0 {
        return;
    }
    let Some(entry) = PAIRS.get_ptr_mut(state.pair) else { return };
    // SAFETY: checked by the map.
    let entry = unsafe { &*entry };
    let (acked, received) = sock_ops::bytes(ops);
    // SYN and FIN take a sequence number each, and the kernel counts them among the acknowledged bytes.
    let fin = u64::from(matches!(from, TCP_FIN_WAIT2 | TCP_LAST_ACK | TCP_CLOSING));
    let acked = acked.saturating_sub(1 + fin);
    let received = received.saturating_sub(u64::from(ctx::has_received_fin(entry.sockets[0])));
    emit(if never_established { event::FAILED } else { event::CLOSED }, |e| {
        describe(e, entry, state.pair);
        e.bytes_sent = entry.bytes[0] + acked;
        e.bytes_received = entry.bytes[1] + received;
        e.srtt_us = sock_ops::srtt_us(ops);
        e.retransmits = sock_ops::retransmits(ops);
    });
    let _ = FLOWS.remove(entry.tuple);
    let _ = PAIRS.remove(state.pair);
}

/// What every event about a pair says.
#[inline(always)]
fn describe(event: &mut Event, pair: &Pair, id: u64) {
    event.action = pair.action;
    event.source = pair.source;
    event.destination = pair.destination;
    event.tuple = pair.tuple;
    event.dialled = pair.dialled;
    event.dialled_port = pair.dialled_port;
    event.cookie = id;
    event.netns = pair.netns[0];
    event.sends = pair.sends[0];
    event.opened_ns = pair.opened_ns;
    event.pair_state = pair.state;
}

#[inline(always)]
fn count_open(state: &mut SocketState) {
    if state.endpoint == 0 || state.counted != 0 {
        return;
    }
    if let Some(open) = OPEN.get_ptr_mut(state.endpoint) {
        // SAFETY: aligned eight bytes of a map value.
        unsafe { ctx::atomic_add(open, 1) };
        state.counted = 1;
    }
}

#[inline(always)]
fn count_close(state: &mut SocketState) {
    if state.counted == 0 {
        return;
    }
    state.counted = 0;
    if let Some(open) = OPEN.get_ptr_mut(state.endpoint) {
        // SAFETY: aligned eight bytes of a map value.
        unsafe { ctx::atomic_add(open, u64::MAX) };
    }
}
