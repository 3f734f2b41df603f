//! Station 9: a connection arrives in a pod's network namespace. Everything goes to the agent's in-pod listener, except
//! what connect has authorized on this very node, what the pod says to itself, and what the pod excluded.
//!
//! Attached once per enrolled pod's network namespace; several programs may be there, the last selection wins.
//! Minimum kernel: 5.15 (`sk_lookup` from 5.9). Helpers used: map lookup in `LISTENERS`, `bpf_sk_assign`, `bpf_sk_release`.
//! On any failure: drop (the client sees a refused connection), or let through where the pod's failure mode is plain.

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    helpers::bpf_get_smp_processor_id,
    macros::sk_lookup,
    programs::SkLookupContext,
};
use mesh_common::{FlowKey, Local, WORKERS_MAX, counter, reason, workload};

use crate::{
    connect::is_skipped,
    ctx::{self, sk_lookup},
    maps::{ADDRESSES, FLOWS, LISTENERS, count},
};

#[sk_lookup]
pub fn inbound(ctx: SkLookupContext) -> u32 {
    if sk_lookup::protocol(ctx.lookup) != ctx::IPPROTO_TCP {
        return SK_PASS;
    }
    let (server, server_port) = sk_lookup::local(ctx.lookup);
    let (client, client_port) = sk_lookup::remote(ctx.lookup);
    // Not by interface: a connection of the pod to its own IP carries the veth's index, not that of lo.
    if ctx::is_loopback(&client) || ctx::same(&client, &server) {
        return pass();
    }
    // SAFETY: sixteen bytes that the agent replaces as a whole.
    let Some(target) = (unsafe { ADDRESSES.get(server) }) else {
        count(counter::REASON_BASE + reason::UNKNOWN_LOCAL);
        return drop();
    };
    if is_skipped(target.id, server_port, 1) {
        return pass();
    }
    let flow = FlowKey { client, server, client_port, server_port, reserved: 0 };
    if FLOWS.get_ptr(flow).is_some() {
        count(counter::INBOUND_FLOW);
        return SK_PASS;
    }
    to_agent(&ctx, target)
}

#[inline(always)]
fn pass() -> u32 {
    count(counter::INBOUND_PASS);
    SK_PASS
}

#[inline(always)]
fn drop() -> u32 {
    count(counter::INBOUND_DENY);
    SK_DROP
}

#[inline(always)]
fn to_agent(ctx: &SkLookupContext, target: &Local) -> u32 {
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let worker = (cpu % target.workers.max(1)) & (WORKERS_MAX as u32 - 1);
    // The kernel empties a slot when its listener closes, so a dead agent is noticed here without a heartbeat.
    if LISTENERS.redirect_sk_lookup(ctx, target.slot + worker, 0).is_ok() {
        count(counter::INBOUND_AGENT);
        return SK_PASS;
    }
    if target.flags & workload::FAIL_PLAIN != 0 {
        return pass();
    }
    count(counter::REASON_BASE + reason::AGENT_DOWN);
    drop()
}
