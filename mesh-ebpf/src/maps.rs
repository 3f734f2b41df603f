//! Every map, pinned by name; the layouts are in `mesh-common`.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage, SockHash, SockMap},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use mesh_common::{
    Address, Backend, BackendKey, Client, ClientKey, Config, Dial, DialKey, Event, Flow, FlowKey, Frontend,
    FrontendKey, Heartbeat, Local, PODS_MAX, Pair, SkipKey, SocketState, Verdict, VerdictKey, WORKERS_MAX,
    Workload, counter, event,
};

/// `BPF_RB_NO_WAKEUP` and `BPF_RB_FORCE_WAKEUP`.
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
/// Not preallocated: memory follows use.
const BPF_F_NO_PREALLOC: usize = 1;

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub static HEARTBEAT: Array<Heartbeat, 1> = Array::new();
#[btf_map]
pub static WORKLOADS: HashMap<u64, Workload, { PODS_MAX as usize }> = HashMap::new();
/// What to do with sockets of unknown network namespaces, by control group id of a pod (see `mesh_common::held`).
#[btf_map]
pub static HELD: HashMap<u64, u32, { PODS_MAX as usize }> = HashMap::new();
/// Control group ids of this node's agents: their sockets inside pods are the mesh's own.
#[btf_map]
pub static AGENTS: HashMap<u64, u32, 1024, BPF_F_NO_PREALLOC> = HashMap::new();
// Sizes of what follows the mesh: 50,000 pods and 10,000 services of two ports, all in both families, with room for half as
// much again. Empty, each entry costs its bucket of 16 bytes; used, about 100 bytes more.
#[btf_map]
pub static ADDRESSES: HashMap<Address, Local, 262144, BPF_F_NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static SKIP_PORTS: HashMap<SkipKey, u32, 16384, BPF_F_NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, 131072, BPF_F_NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static BACKENDS: HashMap<BackendKey, Backend, 524288, BPF_F_NO_PREALLOC> = HashMap::new();
/// Open connections by endpoint number, for the draw in connect.
#[btf_map]
pub static OPEN: HashMap<u32, u64, 524288, BPF_F_NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static VERDICTS: HashMap<VerdictKey, Verdict, 262144, BPF_F_NO_PREALLOC> = HashMap::new();
/// Never an LRU: a lost record would strand a caught connection. Full means refused.
#[btf_map]
pub static DIALS: HashMap<DialKey, Dial, 65536, BPF_F_NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static CLIENTS: HashMap<ClientKey, Client, 262144, BPF_F_NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, Flow, 65536> = LruHashMap::new();
#[btf_map]
pub static PAIRS: HashMap<u64, Pair, 65536, BPF_F_NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static SOCKETS: SockHash<u64, 131072> = SockHash::new();
#[btf_map]
pub static LISTENERS: SockMap<{ PODS_MAX as usize * WORKERS_MAX }> = SockMap::new();
#[btf_map]
pub static SOCKET_STATE: SkStorage<SocketState> = SkStorage::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { 1 << 20 }> = RingBuf::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { counter::COUNT as usize }> = PerCpuArray::new();

/// Adds one. The slot belongs to this CPU; a program of another kind may interrupt, and then one count can be lost.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(slot) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the pointer comes from the map and is checked.
        unsafe { *slot += 1 };
    }
}

/// Settings as the agent last wrote them.
#[inline(always)]
pub fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// Whether the agent has given a sign of life recently.
#[inline(always)]
pub fn agent_is_alive(config: &Config) -> bool {
    let Some(heartbeat) = HEARTBEAT.get(0) else { return false };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    heartbeat.beat_ns != 0 && now.wrapping_sub(heartbeat.beat_ns) < config.heartbeat_age_max_ns
}

/// Sends an event to the agent; a full ring is counted. The event is filled in place: the stack has 512 bytes.
#[inline(always)]
pub fn emit(kind: u32, fill: impl FnOnce(&mut Event)) {
    let Some(mut entry) = EVENTS.reserve(0) else { return count(counter::EVENTS_LOST) };
    let event = entry.as_mut_ptr();
    // SAFETY: the reservation is as large as an event, and all zeroes is an event.
    let event = unsafe {
        core::ptr::write_bytes(event, 0, 1);
        &mut *event
    };
    fill(event);
    event.kind = kind;
    // SAFETY: no arguments.
    event.at_ns = unsafe { bpf_ktime_get_ns() };
    // Waking a sleeping reader costs an inter-processor interrupt; openings and closings are read in batches.
    let wake_now = matches!(kind, event::EVICT | event::DEMOTED | event::UNKNOWN_NETNS);
    entry.submit(if wake_now { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
}
