//! What the kernel programs and the agent share: the layout of every map's keys and values.
//!
//! Rules of this crate: `repr(C)`, fixed-width integers and byte arrays only, padding written out as `reserved` fields
//! that are zero, keys without padding at all (maps compare raw bytes), no `bool`, `Option` or Rust enum. A change of
//! layout raises [`ABI_VERSION`], which the agent compares with the pinned maps before it attaches anything.
//!
//! IP addresses are 16 bytes in network order, IPv4 in IPv4-mapped form (RFC 4291 section 2.5.5.2). Ports are in host
//! order, so that a map dump can be read by people.
#![no_std]

/// Version of everything in this file. Raise it with every change of layout or meaning.
pub const ABI_VERSION: u32 = 3;

/// Port of the destination pod on which tunnels arrive.
pub const TUNNEL_PORT: u16 = 15008;

/// Most workers (and so in-pod listeners of one kind per pod) an agent can have.
pub const WORKERS_MAX: usize = 16;

/// Most enrolled pods on one node; four times what Kubernetes allows by default (110), with head-room.
pub const PODS_MAX: u32 = 1024;

macro_rules! shared {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident : $ty:ty,)* } size $size:literal) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(
            feature = "user",
            derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
        )]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        const _: () = assert!(size_of::<$name>() == $size && align_of::<$name>() <= 8);

        #[cfg(feature = "user")]
        // SAFETY: the zerocopy derives above prove that the type has no padding and that any bit pattern is a value.
        #[expect(unsafe_code, reason = "aya asks for this marker to read and write map values")]
        unsafe impl aya::Pod for $name {}
    };
}

/// An IP address, 16 bytes in network order, IPv4-mapped where it is IPv4.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Address {
    /// The bytes, network order.
    pub bytes_be: [u8; 16],
}

#[cfg(feature = "user")]
// SAFETY: the zerocopy derives above prove that the type has no padding and that any bit pattern is a value.
#[expect(unsafe_code, reason = "aya asks for this marker to read and write map values")]
unsafe impl aya::Pod for Address {}

impl Address {
    /// IPv4, from its four bytes in network order.
    #[inline(always)]
    pub const fn v4(b: [u8; 4]) -> Self {
        Self { bytes_be: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3]] }
    }
}

#[cfg(feature = "user")]
impl From<core::net::IpAddr> for Address {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self { bytes_be: v6.octets() },
        }
    }
}

#[cfg(feature = "user")]
impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        core::net::Ipv6Addr::from(address.bytes_be).to_canonical()
    }
}

/// What the programs do with a connection.
pub mod action {
    /// Not ours: leave it alone.
    pub const PASS: u32 = 0;
    /// Both ends are on this node: join the two sockets.
    pub const SPLICE: u32 = 1;
    /// Both ends are on this node: plain TCP, authorized and accounted, no sockmap.
    pub const DIRECT: u32 = 2;
    /// To the agent.
    pub const PROXY: u32 = 3;
    /// Refuse.
    pub const DENY: u32 = 4;
}

/// Bits of [`Config::flags`].
pub mod config {
    /// The fast path may be used (probes passed, not switched off).
    pub const SPLICE: u32 = 1;
    /// Service addresses are resolved for pods outside the mesh too (no kube-proxy here).
    pub const RESOLVE_UNMESHED: u32 = 2;
}

/// Bits of [`Workload::flags`] and [`Local::flags`].
pub mod workload {
    /// On this node.
    pub const LOCAL: u32 = 1;
    /// Part of the mesh.
    pub const ENROLLED: u32 = 2;
    /// May be spliced.
    pub const SPLICE: u32 = 4;
    /// While the agent is away new connections go out plain instead of being refused.
    pub const FAIL_PLAIN: u32 = 8;
    /// No client without a verified identity may reach it, so UDP, which has none, is refused.
    pub const STRICT: u32 = 16;
    /// Made up for the agent's probes: there the agent's own sockets play a pod's.
    pub const PROBE: u32 = 32;
}

/// Bits of [`Frontend::flags`].
pub mod frontend {
    /// At least one endpoint is an enrolled pod of this node: the kernel draws the endpoint.
    pub const HAS_LOCAL: u32 = 1;
    /// Routes are attached: connections are the agent's, and when it is away they follow the pod's failure mode.
    pub const ROUTED: u32 = 2;
}

/// Values of `HELD`: what a socket meets whose control group is a pod's and whose network namespace nobody has announced.
pub mod held {
    /// It is refused, and the agent is told.
    pub const REFUSE: u32 = 1;
    /// It passes, and the agent is told.
    pub const ANNOUNCE: u32 = 2;
}

/// Values of [`Pair::state`]. They only ever go up.
pub mod pair {
    /// The client's SYN is on its way.
    pub const CONNECTING: u32 = 0;
    /// Both ends are in `SOCKETS`; each may redirect while its peer has read everything that went over TCP.
    pub const READY: u32 = 1;
    /// A receiver fell behind: nothing is redirected any more, in either direction.
    pub const DEMOTED: u32 = 2;
}

/// Values of [`Event::kind`].
pub mod event {
    /// A spliced or direct connection is established.
    pub const OPENED: u32 = 1;
    /// It is closed; the byte counts are final.
    pub const CLOSED: u32 = 2;
    /// A connection was refused; `reason` says why.
    pub const DENIED: u32 = 3;
    /// A pair went from READY to DEMOTED.
    pub const DEMOTED: u32 = 4;
    /// A demoted sender's receive queue is empty: its entry in `SOCKETS` (key: `cookie`) can be deleted.
    pub const EVICT: u32 = 5;
    /// A socket was opened in a network namespace below the meshed cgroup that nobody has announced.
    pub const UNKNOWN_NETNS: u32 = 6;
    /// It was never established: refused, timed out or reset.
    pub const FAILED: u32 = 7;
}

/// Values of [`Event::reason`] and indices into `COUNTERS` from [`counter::REASON_BASE`] on.
pub mod reason {
    /// None.
    pub const NONE: u32 = 0;
    /// A policy; [`Verdict::policy`](super::Verdict::policy) says which.
    pub const POLICY: u32 = 1;
    /// The agent is away and the pod's failure mode is closed.
    pub const AGENT_DOWN: u32 = 2;
    /// The service has no endpoint.
    pub const NO_ENDPOINT: u32 = 3;
    /// UDP to a workload that only accepts verified identities.
    pub const STRICT_UDP: u32 = 4;
    /// A network namespace that nobody has announced, in a pod that is held.
    pub const UNKNOWN_NETNS: u32 = 5;
    /// A map is full.
    pub const MAP_FULL: u32 = 6;
    /// The address that was dialled is not one of the pod's.
    pub const UNKNOWN_LOCAL: u32 = 7;
    /// How many there are.
    pub const COUNT: u32 = 8;
    /// Stable labels, by value.
    pub const LABELS: [&str; COUNT as usize] = [
        "none",
        "policy",
        "agent_down",
        "no_endpoint",
        "strict_udp",
        "unknown_netns",
        "map_full",
        "unknown_local",
    ];
}

/// Indices into `COUNTERS`.
pub mod counter {
    /// connect: left alone.
    pub const CONNECT_PASS: u32 = 0;
    /// connect: joined in the kernel.
    pub const CONNECT_SPLICE: u32 = 1;
    /// connect: plain TCP between two pods of the node.
    pub const CONNECT_DIRECT: u32 = 2;
    /// connect: to the agent.
    pub const CONNECT_PROXY: u32 = 3;
    /// connect: refused.
    pub const CONNECT_DENY: u32 = 4;
    /// connect or sendmsg: UDP of an enrolled pod let through.
    pub const UDP_PASS: u32 = 5;
    /// connect or sendmsg: UDP refused.
    pub const UDP_DENY: u32 = 6;
    /// inbound: handed to the agent.
    pub const INBOUND_AGENT: u32 = 7;
    /// inbound: an authorized flow of the same node.
    pub const INBOUND_FLOW: u32 = 8;
    /// inbound: left alone (loopback, own address, excluded port, agent away and failure mode plain).
    pub const INBOUND_PASS: u32 = 9;
    /// inbound: dropped.
    pub const INBOUND_DENY: u32 = 10;
    /// splice: messages redirected.
    pub const SPLICE_REDIRECTED: u32 = 11;
    /// splice: messages left to TCP.
    pub const SPLICE_TCP: u32 = 12;
    /// splice: pairs demoted.
    pub const SPLICE_DEMOTED: u32 = 13;
    /// A socket could not be inserted into `SOCKETS`.
    pub const SOCKETS_REFUSED: u32 = 14;
    /// An event was lost: the ring buffer was full.
    pub const EVENTS_LOST: u32 = 15;
    /// First of the counters by reason of refusal.
    pub const REASON_BASE: u32 = 16;
    /// How many there are.
    pub const COUNT: u32 = REASON_BASE + super::reason::COUNT;
    /// Stable labels of the counters before [`REASON_BASE`], by index.
    pub const LABELS: [&str; REASON_BASE as usize] = [
        "connect_pass",
        "connect_splice",
        "connect_direct",
        "connect_proxy",
        "connect_deny",
        "udp_pass",
        "udp_deny",
        "inbound_agent",
        "inbound_flow",
        "inbound_pass",
        "inbound_deny",
        "splice_redirected",
        "splice_tcp",
        "splice_demoted",
        "sockets_refused",
        "events_lost",
    ];
}

shared! {
    /// Value of `CONFIG` (one element). Written by the agent, read by every program.
    pub struct Config {
        /// [`ABI_VERSION`] of the agent that made the maps.
        pub abi_version: u32,
        /// Bits of [`config`].
        pub flags: u32,
        /// Age of the heartbeat from which the agent counts as away, in nanoseconds.
        pub heartbeat_age_max_ns: u64,
    } size 16
}

shared! {
    /// Value of `HEARTBEAT` (one element). Written by the agent several times a second.
    pub struct Heartbeat {
        /// `CLOCK_MONOTONIC` of the last beat, in nanoseconds; 0: the agent has said goodbye.
        pub beat_ns: u64,
        /// Counts agent starts.
        pub generation: u64,
    } size 16
}

shared! {
    /// Value of `WORKLOADS`, by netns cookie: a pod of this node that is enrolled.
    /// Written by the agent, read by connect, sendmsg.
    pub struct Workload {
        /// The agent's number for the workload; never 0.
        pub id: u32,
        /// Bits of [`workload`].
        pub flags: u32,
        /// How many of `outbound_ports` are set.
        pub workers: u32,
        /// Zero.
        pub reserved: u32,
        /// Its IPv4 address, or zero.
        pub address4: Address,
        /// Its IPv6 address, or zero.
        pub address6: Address,
        /// Ports of the agent's in-pod listeners, by worker.
        pub outbound_ports: [u16; WORKERS_MAX],
    } size 80
}

shared! {
    /// Value of `ADDRESSES`, by [`Address`]: what the mesh knows about a pod IP, on any node.
    /// Written by the agent, read by connect, sendmsg, inbound.
    pub struct Local {
        /// The agent's number for the workload.
        pub id: u32,
        /// Bits of [`workload`].
        pub flags: u32,
        /// First slot in `LISTENERS`, for an enrolled pod of this node.
        pub slot: u32,
        /// How many listeners it has there.
        pub workers: u32,
    } size 16
}

shared! {
    /// Key of `SKIP_PORTS`: a port that is left alone. Written by the agent.
    pub struct SkipKey {
        /// The workload.
        pub workload: u32,
        /// The port.
        pub port: u16,
        /// 0 outbound, 1 inbound.
        pub direction: u16,
    } size 8
}

shared! {
    /// Key of `FRONTENDS`: a service address.
    pub struct FrontendKey {
        /// ClusterIP.
        pub address: Address,
        /// Service port.
        pub port: u16,
        /// IP protocol number.
        pub protocol: u16,
        /// Zero.
        pub reserved: u32,
    } size 24
}

shared! {
    /// Value of `FRONTENDS`. Written by the agent, read by connect.
    pub struct Frontend {
        /// Number of the (service, port, family) triple.
        pub service: u32,
        /// How many endpoints it has in `BACKENDS`.
        pub count: u32,
        /// Bits of [`frontend`].
        pub flags: u32,
        /// Zero.
        pub reserved: u32,
    } size 16
}

shared! {
    /// Key of `BACKENDS`.
    pub struct BackendKey {
        /// [`Frontend::service`].
        pub service: u32,
        /// 0 to [`Frontend::count`] - 1.
        pub index: u32,
    } size 8
}

shared! {
    /// Value of `BACKENDS`: one endpoint. Written by the agent, read by connect.
    pub struct Backend {
        /// Pod IP.
        pub address: Address,
        /// Target port.
        pub port: u16,
        /// Zero.
        pub reserved: u16,
        /// Key into `OPEN`; never 0.
        pub endpoint: u32,
    } size 24
}

shared! {
    /// Key of `VERDICTS`. Port 0 stands for every port without an entry of its own.
    pub struct VerdictKey {
        /// Source workload.
        pub source: u32,
        /// Destination workload.
        pub destination: u32,
        /// Destination port.
        pub port: u16,
        /// Zero.
        pub reserved: u16,
        /// Zero.
        pub reserved2: u32,
    } size 16
}

shared! {
    /// Value of `VERDICTS`. Written by the agent, read by connect.
    pub struct Verdict {
        /// One of [`action`].
        pub action: u32,
        /// The agent's number for the policy that decided, or 0.
        pub policy: u32,
    } size 8
}

shared! {
    /// Key of `DIALS`: one end of a connection, within one network namespace.
    pub struct DialKey {
        /// Netns cookie.
        pub netns: u64,
        /// Its own address.
        pub address: Address,
        /// Its own port.
        pub port: u16,
        /// Zero.
        pub reserved: u16,
        /// Zero.
        pub reserved2: u32,
    } size 32
}

shared! {
    /// Value of `DIALS`: where a socket that was sent to the agent wanted to go. Written by established, taken by the agent.
    pub struct Dial {
        /// Dialled address.
        pub dialled: Address,
        /// Endpoint that connect drew; zero: none.
        pub drawn: Address,
        /// Dialled port.
        pub dialled_port: u16,
        /// Port of the drawn endpoint.
        pub drawn_port: u16,
        /// Zero.
        pub reserved: u32,
    } size 40
}

shared! {
    /// Key of `CLIENTS`: an agent's own socket inside a pod.
    pub struct ClientKey {
        /// Netns cookie of the pod.
        pub netns: u64,
        /// Local port of the agent's socket.
        pub port: u16,
        /// 4 or 6.
        pub family: u16,
        /// Zero.
        pub reserved: u32,
    } size 16
}

shared! {
    /// Value of `CLIENTS`: whom the application shall see. Written by the agent, read by getpeername.
    pub struct Client {
        /// True client.
        pub address: Address,
        /// Its port.
        pub port: u16,
        /// Zero.
        pub reserved: u16,
        /// Zero.
        pub reserved2: u32,
    } size 24
}

shared! {
    /// Key of `FLOWS`: a connection between two pods of this node. Pod IPs are unique on a node, so no namespace is needed.
    pub struct FlowKey {
        /// Client address.
        pub client: Address,
        /// Server address.
        pub server: Address,
        /// Client port.
        pub client_port: u16,
        /// Server port.
        pub server_port: u16,
        /// Zero.
        pub reserved: u32,
    } size 40
}

shared! {
    /// Value of `FLOWS`: connect has authorized this connection. Written before the SYN leaves.
    pub struct Flow {
        /// Cookie of the client's socket: key of `PAIRS`.
        pub pair: u64,
        /// One of [`action`]: SPLICE or DIRECT.
        pub action: u32,
        /// Zero.
        pub reserved: u32,
    } size 16
}

shared! {
    /// Value of `PAIRS`, by the cookie of the client's socket: a connection that lives in the kernel.
    /// Index 0 of the arrays is the client, 1 the server. Written by established and splice, read by the agent.
    pub struct Pair {
        /// Tuple.
        pub tuple: FlowKey,
        /// What the client dialled.
        pub dialled: Address,
        /// Its port.
        pub dialled_port: u16,
        /// Zero.
        pub reserved: u16,
        /// One of [`action`]: SPLICE or DIRECT.
        pub action: u32,
        /// Source workload.
        pub source: u32,
        /// Destination workload.
        pub destination: u32,
        /// One of [`pair`].
        pub state: u32,
        /// Bit 0, 1: the client's, the server's eviction has been asked for.
        pub evictions: u32,
        /// Netns cookies.
        pub netns: [u64; 2],
        /// Socket cookies: keys of `SOCKETS`.
        pub cookies: [u64; 2],
        /// Kernel addresses of the two `tcp_sock`s, for reading their queues only.
        pub sockets: [u64; 2],
        /// Bytes that each side has sent by redirection.
        pub bytes: [u64; 2],
        /// Messages that each side has sent while in `SOCKETS`.
        pub sends: [u64; 2],
        /// How many of the last messages of each side went over TCP, in a row.
        pub tcp_streaks: [u32; 2],
        /// `CLOCK_MONOTONIC` when the client became established, in nanoseconds.
        pub opened_ns: u64,
        /// `CLOCK_MONOTONIC` of the demotion, in nanoseconds; 0: none.
        pub demoted_ns: u64,
    } size 184
}

shared! {
    /// What connect and established remember about a socket (socket storage `SOCKET_STATE`; dies with the socket).
    pub struct SocketState {
        /// Dialled address.
        pub dialled: Address,
        /// Chosen endpoint; zero: none.
        pub chosen: Address,
        /// Dialled port.
        pub dialled_port: u16,
        /// Port of the chosen endpoint.
        pub chosen_port: u16,
        /// One of [`action`].
        pub action: u32,
        /// Source workload.
        pub source: u32,
        /// Destination workload.
        pub destination: u32,
        /// Key into `OPEN`; 0: not counted.
        pub endpoint: u32,
        /// 0 client, 1 server.
        pub side: u32,
        /// 1 once the connection is counted in `OPEN`.
        pub counted: u32,
        /// Zero.
        pub reserved: u32,
        /// Key of `PAIRS`; 0: none.
        pub pair: u64,
        /// Netns cookie.
        pub netns: u64,
    } size 80
}

shared! {
    /// Element of the ring buffer `EVENTS`.
    pub struct Event {
        /// One of [`event`].
        pub kind: u32,
        /// One of [`reason`].
        pub reason: u32,
        /// One of [`action`].
        pub action: u32,
        /// [`Verdict::policy`].
        pub policy: u32,
        /// Source workload.
        pub source: u32,
        /// Destination workload.
        pub destination: u32,
        /// Tuple, as far as it is known.
        pub tuple: FlowKey,
        /// What was dialled.
        pub dialled: Address,
        /// Its port.
        pub dialled_port: u16,
        /// Zero.
        pub reserved: u16,
        /// Smoothed round-trip time of the client's socket, in microseconds.
        pub srtt_us: u32,
        /// Key of `PAIRS`, or for EVICT of `SOCKETS`.
        pub cookie: u64,
        /// Netns cookie of the socket that caused the event.
        pub netns: u64,
        /// Bytes from client to server.
        pub bytes_sent: u64,
        /// Bytes from server to client.
        pub bytes_received: u64,
        /// Messages that the client sent while in `SOCKETS`.
        pub sends: u64,
        /// `CLOCK_MONOTONIC` of the opening, in nanoseconds.
        pub opened_ns: u64,
        /// `CLOCK_MONOTONIC` of the event, in nanoseconds.
        pub at_ns: u64,
        /// [`Pair::state`] at the end.
        pub pair_state: u32,
        /// Retransmitted segments of the client's socket.
        pub retransmits: u32,
    } size 152
}
