//! Station 1: `connect(2)` of a pod. Decides what becomes of the connection and rewrites the address to match.
//!
//! Minimum kernel: 5.18 (`bpf_set_retval`).
//! Helpers used: `bpf_get_netns_cookie`, `bpf_sk_storage_get`, `bpf_get_prandom_u32`, `bpf_set_retval`,
//! `bpf_get_smp_processor_id`, `bpf_get_current_cgroup_id`, `bpf_get_current_ancestor_cgroup_id`, ring buffer.
//! On any failure: an enrolled pod's connection is refused (its record could not be kept, so the agent could not know
//! where it wanted to go); a socket that is not ours is left alone.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_prandom_u32, bpf_get_smp_processor_id,
        generated::bpf_set_retval,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use mesh_common::{
    Address, Backend, BackendKey, Config, Frontend, FrontendKey, Local, SkipKey, Verdict, VerdictKey,
    WORKERS_MAX, Workload, action, config, counter, event, held, reason, workload,
};

use crate::{
    ctx::{self, sock_addr},
    datagram,
    maps::{
        ADDRESSES, AGENTS, BACKENDS, FRONTENDS, HELD, OPEN, SKIP_PORTS, SOCKET_STATE, VERDICTS, WORKLOADS,
        agent_is_alive, count, emit,
    },
};

/// How deep below the root a pod's control group may be; kubelet's stand at three or four.
const DEPTH_MAX: i32 = 8;
/// Let the call go on.
pub const ALLOW: i32 = 1;
/// Refuse it: EPERM, unless `bpf_set_retval` says otherwise.
pub const REFUSE: i32 = 0;
/// The errno of a refusal: what a closed port would answer.
const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let verdict = connect::<false>(&ctx);
    debug!(&ctx, "connect4 in netns {}: {}", ctx::netns_cookie(&ctx), verdict);
    verdict
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let verdict = connect::<true>(&ctx);
    debug!(&ctx, "connect6 in netns {}: {}", ctx::netns_cookie(&ctx), verdict);
    verdict
}

/// Everything the steps below need to know about one call.
pub struct Call {
    pub ctx: *mut bpf_sock_addr,
    pub netns: u64,
    pub dialled: Address,
    pub port: u16,
    pub config: Config,
}

/// What becomes of a connection.
struct Plan {
    /// One of [`action`].
    action: u32,
    destination: u32,
    /// Key into `OPEN`, when an endpoint was drawn.
    endpoint: u32,
    reason: u32,
    policy: u32,
    /// Where it goes: the drawn endpoint, else what was dialled.
    address: Address,
    port: u16,
}

/// The family of the hook is a type, not a value: as a value the compiler may keep it on the stack, and then the verifier
/// sees an IPv6 hook that could write IPv4 fields ("invalid bpf_context access off=4 size=4").
#[inline(always)]
fn connect<const V6: bool>(ctx: &SockAddrContext) -> i32 {
    let raw = ctx.sock_addr;
    let call = Call {
        ctx: raw,
        netns: ctx::netns_cookie(ctx),
        dialled: sock_addr::address(raw, V6),
        port: sock_addr::port(raw),
        config: crate::maps::config(),
    };
    if ctx::is_loopback(&call.dialled) {
        return pass();
    }
    // SAFETY: the map's values are replaced as a whole by the agent; a torn read can only mix two valid states.
    let Some(source) = (unsafe { WORKLOADS.get(call.netns) }) else {
        return unknown_source::<V6>(ctx, &call);
    };
    if source.flags & workload::PROBE == 0 && is_agent() {
        return pass();
    }
    match sock_addr::protocol(raw) {
        ctx::IPPROTO_TCP => {}
        ctx::IPPROTO_UDP => return datagram::decide(&call.dialled),
        _ => return pass(),
    }
    if is_skipped(source.id, call.port, 0) {
        return pass();
    }
    match plan(&call, source) {
        None => pass(),
        Some(plan) => carry_out::<V6>(ctx, &call, source, &plan),
    }
}

/// Decides. `None`: the destination is outside the mesh.
#[inline(always)]
fn plan(call: &Call, source: &Workload) -> Option<Plan> {
    let mut plan = Plan {
        action: action::PROXY,
        destination: 0,
        endpoint: 0,
        reason: reason::NONE,
        policy: 0,
        address: call.dialled,
        port: call.port,
    };
    let is_service = match draw(call, &mut plan) {
        Draw::NotAService => false,
        Draw::Endpoint => true,
        Draw::AgentDraws => return Some(plan),
        Draw::Empty => {
            plan.action = action::DENY;
            plan.reason = reason::NO_ENDPOINT;
            return Some(plan);
        }
    };
    if ctx::same(&plan.address, &source.address4) || ctx::same(&plan.address, &source.address6) {
        // To itself: never leaves the pod.
        plan.action = action::PASS;
        plan.destination = source.id;
        return Some(plan);
    }
    // SAFETY: the agent replaces values as a whole.
    let Some(target) = (unsafe { ADDRESSES.get(plan.address) }) else {
        return if is_service { Some(plan) } else { None };
    };
    plan.destination = target.id;
    if target.flags & workload::LOCAL != 0 && target.flags & workload::ENROLLED != 0 {
        let verdict = verdict(source, target, plan.port, &call.config);
        plan.action = verdict.action;
        plan.policy = verdict.policy;
        if verdict.action == action::DENY {
            plan.reason = reason::POLICY;
        }
    }
    Some(plan)
}

/// Does what was decided, taking into account whether the agent is there.
#[inline(always)]
fn carry_out<const V6: bool>(ctx: &SockAddrContext, call: &Call, source: &Workload, plan: &Plan) -> i32 {
    let mut action = plan.action;
    let mut reason = plan.reason;
    if action == action::PROXY && !agent_is_alive(&call.config) {
        if source.flags & workload::FAIL_PLAIN != 0 {
            action = action::PASS;
        } else {
            action = action::DENY;
            reason = reason::AGENT_DOWN;
        }
    }
    if action != action::DENY && !remember(ctx, call, plan, action, source.id) {
        action = action::DENY;
        reason = reason::MAP_FULL;
    }
    match action {
        action::DENY => return refuse(call, source.id, plan.destination, reason, plan.policy),
        action::PROXY => {
            // SAFETY: no arguments.
            let cpu = unsafe { bpf_get_smp_processor_id() };
            let worker = (cpu % source.workers.max(1)) as usize & (WORKERS_MAX - 1);
            let own = if V6 && !ctx::is_v4(&call.dialled) { &source.address6 } else { &source.address4 };
            sock_addr::set(call.ctx, V6, own, source.outbound_ports[worker]);
            count(counter::CONNECT_PROXY);
        }
        _ => {
            if plan.endpoint != 0 {
                sock_addr::set(call.ctx, V6, &plan.address, plan.port);
            }
            // PASS, SPLICE and DIRECT are counted under their own numbers.
            count(action);
        }
    }
    ALLOW
}

#[inline(always)]
fn pass() -> i32 {
    count(counter::CONNECT_PASS);
    ALLOW
}

/// True when the pod asked for this port to be left alone.
#[inline(always)]
pub fn is_skipped(workload: u32, port: u16, direction: u16) -> bool {
    SKIP_PORTS.get_ptr(SkipKey { workload, port, direction }).is_some()
}

/// The verdict for a pair of pods on this node, with the fast path switched off where one of them opted out.
#[inline(always)]
fn verdict(source: &Workload, target: &Local, port: u16, config: &Config) -> Verdict {
    let key =
        |port| VerdictKey { source: source.id, destination: target.id, port, reserved: 0, reserved2: 0 };
    // SAFETY: eight bytes that the agent replaces as a whole.
    let found = unsafe { VERDICTS.get(key(port)).or_else(|| VERDICTS.get(key(0))) };
    let mut verdict = found.copied().unwrap_or(Verdict { action: action::PROXY, policy: 0 });
    let both = source.flags & target.flags & workload::SPLICE;
    if verdict.action == action::SPLICE && (both == 0 || config.flags & config::SPLICE == 0) {
        verdict.action = action::DIRECT;
    }
    verdict
}

/// Result of looking a service up.
enum Draw {
    NotAService,
    Empty,
    /// Routes, or no endpoint of this node: the agent balances.
    AgentDraws,
    /// It is in the plan.
    Endpoint,
}

#[inline(always)]
fn draw(call: &Call, plan: &mut Plan) -> Draw {
    // SAFETY: sixteen bytes that the agent replaces as a whole.
    let Some(frontend) = (unsafe { FRONTENDS.get(frontend_key(call)) }) else { return Draw::NotAService };
    if frontend.count == 0 {
        return Draw::Empty;
    }
    let is_routed = frontend.flags & mesh_common::frontend::ROUTED != 0;
    let has_local = frontend.flags & mesh_common::frontend::HAS_LOCAL != 0;
    if is_routed || !has_local && agent_is_alive(&call.config) {
        return Draw::AgentDraws;
    }
    let Some(backend) = two_choices(frontend) else { return Draw::Empty };
    plan.address = backend.address;
    plan.port = backend.port;
    plan.endpoint = backend.endpoint;
    Draw::Endpoint
}

#[inline(always)]
fn frontend_key(call: &Call) -> FrontendKey {
    FrontendKey { address: call.dialled, port: call.port, protocol: ctx::IPPROTO_TCP as u16, reserved: 0 }
}

/// Power of two choices on open connections.
#[inline(always)]
fn two_choices(frontend: &Frontend) -> Option<&'static Backend> {
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let first = backend(frontend, (random & 0xffff) % frontend.count.max(1))?;
    let second = backend(frontend, (random >> 16) % frontend.count.max(1))?;
    if open(first.endpoint) <= open(second.endpoint) { Some(first) } else { Some(second) }
}

#[inline(always)]
fn backend(frontend: &Frontend, index: u32) -> Option<&'static Backend> {
    // SAFETY: the agent replaces values as a whole.
    unsafe { BACKENDS.get(BackendKey { service: frontend.service, index }) }
}

#[inline(always)]
fn open(endpoint: u32) -> u64 {
    // SAFETY: eight bytes.
    unsafe { OPEN.get(endpoint) }.copied().unwrap_or(0)
}

/// Notes what was dialled and decided under the socket itself.
#[inline(always)]
fn remember(ctx: &SockAddrContext, call: &Call, plan: &Plan, action: u32, source: u32) -> bool {
    // SAFETY: the pointer is used only when non-null, and belongs to this socket, which connect(2) has locked.
    let state = unsafe { SOCKET_STATE.get_or_insert_ptr_mut(ctx, None) };
    // SAFETY: null is told apart.
    let Some(state) = (unsafe { state.as_mut() }) else { return false };
    // Field by field: a socket may connect again after a failure, and the stack has no room for a copy.
    state.dialled = call.dialled;
    state.dialled_port = call.port;
    let chosen = plan.endpoint != 0 || action != action::PROXY;
    state.chosen = if chosen { plan.address } else { Address::default() };
    state.chosen_port = if chosen { plan.port } else { 0 };
    state.action = action;
    state.source = source;
    state.destination = plan.destination;
    state.endpoint = plan.endpoint;
    state.side = 0;
    state.pair = 0;
    state.netns = call.netns;
    true
}

/// Refuses with the errno of a closed port, counts why, tells the agent.
#[inline(always)]
pub fn refuse(call: &Call, source: u32, destination: u32, reason: u32, policy: u32) -> i32 {
    count(counter::CONNECT_DENY);
    count(counter::REASON_BASE + reason);
    emit(event::DENIED, |e| {
        e.reason = reason;
        e.policy = policy;
        e.source = source;
        e.destination = destination;
        e.dialled = call.dialled;
        e.dialled_port = call.port;
        e.netns = call.netns;
    });
    // SAFETY: sets the value that the call returns.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

/// Whether the running task is an agent, which may itself be a pod below the group that the programs are attached to. What it
/// dials from inside a pod is the mesh's own leg and must not come back to it.
#[inline(always)]
pub fn is_agent() -> bool {
    // SAFETY: no arguments.
    AGENTS.get_ptr(unsafe { bpf_get_current_cgroup_id() }).is_some()
}

/// The held control group that the running task is in, and what to do, at whatever depth: runtimes put a pod's containers into groups of
/// their own below the pod's.
#[inline(always)]
fn held_ancestor() -> Option<(u64, u32)> {
    for level in 1..=DEPTH_MAX {
        // SAFETY: takes a number; answers 0 below the task's own group.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            return None;
        }
        // SAFETY: four bytes.
        if let Some(what) = unsafe { HELD.get(cgroup) } {
            return Some((cgroup, *what));
        }
    }
    None
}

/// A socket of a network namespace that the agent has not announced.
#[inline(always)]
fn unknown_source<const V6: bool>(ctx: &SockAddrContext, call: &Call) -> i32 {
    let held = held_ancestor();
    if let Some((cgroup, _)) = held {
        emit(event::UNKNOWN_NETNS, |e| {
            e.reason = reason::UNKNOWN_NETNS;
            e.netns = call.netns;
            e.cookie = cgroup;
            e.dialled = call.dialled;
            e.dialled_port = call.port;
        });
    }
    if held.is_some_and(|(_, what)| what == held::REFUSE) {
        count(counter::CONNECT_DENY);
        count(counter::REASON_BASE + reason::UNKNOWN_NETNS);
        // SAFETY: sets the value that the call returns.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return REFUSE;
    }
    if call.config.flags & config::RESOLVE_UNMESHED == 0 || sock_addr::protocol(call.ctx) != ctx::IPPROTO_TCP
    {
        return pass();
    }
    // SAFETY: sixteen bytes that the agent replaces as a whole.
    let Some(frontend) = (unsafe { FRONTENDS.get(frontend_key(call)) }) else { return pass() };
    if frontend.count == 0 {
        return refuse(call, 0, 0, reason::NO_ENDPOINT, 0);
    }
    let Some(backend) = two_choices(frontend) else { return pass() };
    let plan = Plan {
        action: action::PASS,
        destination: 0,
        endpoint: backend.endpoint,
        reason: reason::NONE,
        policy: 0,
        address: backend.address,
        port: backend.port,
    };
    if remember(ctx, call, &plan, action::PASS, 0) {
        sock_addr::set(call.ctx, V6, &backend.address, backend.port);
    }
    pass()
}
