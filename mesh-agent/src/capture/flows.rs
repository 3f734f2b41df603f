//! Connections that never pass the agent: told about, evicted from the sockmap, and closed when policy turns on them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_common::{Event, Pair, action, event, pair, reason};

use super::compile::{decider, owner};
use super::habit::{Habits, PortKey, Seen};
use super::numbers::Numbers;
use crate::kernel::{Maps, Netns, destroy, probes};
use crate::lifecycle::clock;
use crate::model::{ClientAddr, Ending, EndpointAddr, OriginalDst, Path, ServiceName, SpiffeId, Workload};
use crate::policy::{Facts, Policies};
use crate::registry::{Destination, Registry};
use crate::telemetry::{
    AccessRecord, ConnectionLabels, ConnectionMetrics, DestinationRecord, Reporter, SourceRecord, Telemetry,
};

/// How long a closing event of a connection that policy closed may take.
const REVOKED_KEPT: Duration = Duration::from_secs(60);

/// What is needed to speak about kernel-side connections.
#[derive(Debug)]
pub struct Flows {
    maps: Arc<Maps>,
    registry: Registry,
    policies: Policies,
    telemetry: Telemetry,
    /// Cookies of pairs that policy closed, with the policy and when; their closing event follows.
    revoked: HashMap<u64, (Arc<str>, Instant)>,
}

struct Ends {
    source: Option<Arc<Workload>>,
    destination: Option<Arc<Workload>>,
    service: Option<ServiceName>,
}

impl Flows {
    /// Puts together.
    pub fn new(maps: Arc<Maps>, registry: Registry, policies: Policies, telemetry: Telemetry) -> Self {
        Self { maps, registry, policies, telemetry, revoked: HashMap::new() }
    }

    /// Takes in one event. True when a port's habit changed, so that verdicts must be compiled anew.
    pub fn take(&mut self, event: &Event, numbers: &Numbers, habits: &mut Habits) -> bool {
        if probes::is_of_probe(event) {
            return false;
        }
        self.telemetry.kernel_event(kind_label(event.kind));
        match event.kind {
            event::OPENED => self.opened(event),
            event::CLOSED | event::FAILED => return self.closed(event, habits),
            event::DENIED => self.denied(event, numbers),
            event::EVICT => self.evict(event.cookie),
            event::UNKNOWN_NETNS => tracing::warn!(
                netns_cookie = event.netns,
                dialled = %address(event.dialled, event.dialled_port),
                "refused a connection from a network namespace that nobody has announced"
            ),
            _ => {}
        }
        false
    }

    fn evict(&self, cookie: u64) {
        if let Err(error) = self.maps.sockets.remove(&cookie) {
            tracing::warn!(%error, "cannot take a demoted socket out of the sockmap");
        }
    }

    fn opened(&self, event: &Event) {
        let ends = self.ends(event);
        for reporter in [Reporter::Source, Reporter::Destination] {
            self.metrics(event, &ends, reporter).opened();
        }
        if let (Some(source), Some(destination)) = (&ends.source, &ends.destination) {
            let facts = Facts {
                identity: Some(&source.identity),
                client: event_client(event).ip(),
                destination,
                port: event.tuple.server_port,
                node_probe: false,
                request: None,
            };
            if let Ok(permit) = self.policies.current().evaluate(&facts) {
                for policy in permit.audits() {
                    tracing::info!(%policy, source = %source.name, destination = %destination.name, "audit");
                }
            }
        }
    }

    fn closed(&mut self, event: &Event, habits: &mut Habits) -> bool {
        let ends = self.ends(event);
        let now_ns = event.at_ns;
        let duration = match event.opened_ns {
            0 => Duration::ZERO,
            opened => Duration::from_nanos(now_ns.saturating_sub(opened)),
        };
        let revoked = self.revoked.remove(&event.cookie).map(|(policy, _)| policy);
        let failed = event.kind == event::FAILED;
        let ending = match (&revoked, failed) {
            (Some(_), _) => Ending::PolicyRevoked,
            (None, true) => Ending::ConnectRefused,
            (None, false) => Ending::Closed,
        };
        if !failed {
            for reporter in [Reporter::Source, Reporter::Destination] {
                let metrics = self.metrics(event, &ends, reporter);
                metrics.closed(ending, event.bytes_sent, event.bytes_received, duration);
            }
        }
        self.record(event, &ends, ending, revoked, duration);
        let Some(destination) = ends.destination.filter(|_| event.action == action::SPLICE && !failed) else {
            return false;
        };
        let seen = Seen {
            sends: event.sends,
            bytes: event.bytes_sent + event.bytes_received,
            demoted: event.pair_state == pair::DEMOTED,
        };
        habits.note(PortKey { owner: owner(&destination), port: event.tuple.server_port }, seen, clock::now())
    }

    fn denied(&self, event: &Event, numbers: &Numbers) {
        let snapshot = self.registry.snapshot();
        let by_number = |number: u32| {
            let uid = numbers.name(number)?;
            snapshot.workload(&crate::model::WorkloadUid(uid.into())).cloned()
        };
        let dialled = OriginalDst::new(address(event.dialled, event.dialled_port));
        let service = match snapshot.resolve(dialled) {
            Destination::Service(service, _) => Some(service.name.clone()),
            Destination::Workload(_) | Destination::External => None,
        };
        let ends =
            Ends { source: by_number(event.source), destination: by_number(event.destination), service };
        let reason: Arc<str> = match event.reason {
            reason::POLICY => numbers.name(event.policy).unwrap_or("policy").into(),
            other => usize::try_from(other)
                .ok()
                .and_then(|index| reason::LABELS.get(index))
                .copied()
                .unwrap_or("unknown")
                .into(),
        };
        self.metrics(event, &ends, Reporter::Source).denied(&reason);
        let ending = match event.reason {
            reason::POLICY => Ending::PolicyDenied,
            reason::NO_ENDPOINT => Ending::NoEndpoint,
            reason::AGENT_DOWN => Ending::Shutdown,
            _ => Ending::Exhausted,
        };
        tracing::info!(
            source = ends.source.as_ref().map(|w| w.name.to_string()),
            destination = ends.destination.as_ref().map(|w| w.name.to_string()),
            %dialled,
            reason = &*reason,
            "connection refused"
        );
        self.record(event, &ends, ending, Some(reason), Duration::ZERO);
    }

    /// The two pods by address: numbers of an earlier agent's entries mean nothing here, addresses do.
    fn ends(&self, event: &Event) -> Ends {
        let snapshot = self.registry.snapshot();
        let service = match snapshot.resolve(OriginalDst::new(address(event.dialled, event.dialled_port))) {
            Destination::Service(service, _) => Some(service.name.clone()),
            Destination::Workload(_) | Destination::External => None,
        };
        Ends {
            source: snapshot.workload_by_ip(event.tuple.client.into()).cloned(),
            destination: snapshot.workload_by_ip(event.tuple.server.into()).cloned(),
            service,
        }
    }

    fn metrics(&self, event: &Event, ends: &Ends, reporter: Reporter) -> Arc<ConnectionMetrics> {
        self.telemetry.connection_metrics(&ConnectionLabels::new(
            reporter,
            path(event.action),
            ends.source.as_deref(),
            ends.destination.as_deref(),
            ends.service.as_ref(),
        ))
    }

    fn record(
        &self,
        event: &Event,
        ends: &Ends,
        ending: Ending,
        reason: Option<Arc<str>>,
        duration: Duration,
    ) {
        if !self.telemetry.records_connections() {
            return;
        }
        let identity = |workload: &Option<Arc<Workload>>| -> Option<SpiffeId> {
            workload.as_ref().map(|workload| workload.identity.clone())
        };
        let endpoint = address(event.tuple.server, event.tuple.server_port);
        self.telemetry.record(AccessRecord {
            time: clock::wall().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            duration,
            reporter: Reporter::Source,
            path: path(event.action),
            source: SourceRecord::new(ends.source.as_deref(), event_client(event), identity(&ends.source)),
            destination: DestinationRecord::new(
                ends.destination.as_deref(),
                ends.service.as_ref(),
                Some(OriginalDst::new(address(event.dialled, event.dialled_port))),
                (endpoint.port() != 0).then(|| EndpointAddr::new(endpoint)),
                identity(&ends.destination),
            ),
            bytes_sent: event.bytes_sent,
            bytes_received: event.bytes_received,
            ending,
            reason,
            tls: None,
        });
    }

    /// Judges every open kernel-side connection again and closes those that policy now refuses. `netns` tells the
    /// namespace behind a cookie.
    pub fn judge_again(&mut self, netns: &HashMap<u64, Netns>) {
        let snapshot = self.registry.snapshot();
        let policies = self.policies.current();
        let Ok(cookies) = self.maps.pairs.keys() else { return };
        let now = clock::now();
        // The closing event may still be in the ring after the pair is gone.
        self.revoked.retain(|_, (_, since)| now.saturating_duration_since(*since) < REVOKED_KEPT);
        for cookie in cookies {
            let Ok(Some(pair)) = self.maps.pairs.get(&cookie) else { continue };
            let verdict = match (
                snapshot.workload_by_ip(pair.tuple.client.into()),
                snapshot.workload_by_ip(pair.tuple.server.into()),
            ) {
                (Some(source), Some(destination)) => policies
                    .evaluate(&Facts {
                        identity: Some(&source.identity),
                        client: pair.tuple.client.into(),
                        destination,
                        port: pair.tuple.server_port,
                        node_probe: false,
                        request: None,
                    })
                    .map_err(|refusal| decider(&refusal)),
                // A pod that the mesh no longer knows: its connections end with it.
                _ => continue,
            };
            let Err(policy) = verdict else { continue };
            tracing::info!(%policy, client = %address(pair.tuple.client, pair.tuple.client_port),
                server = %address(pair.tuple.server, pair.tuple.server_port), "closing a connection that policy turned against");
            self.revoked.insert(cookie, (policy.into(), now));
            close(&pair, netns);
        }
    }
}

/// Closes both ends. The client's goes with a reset, which closes a server whose socket is not known (it is known when
/// the two are spliced); the namespace of the server is not, so all are looked into.
fn close(pair: &Pair, netns: &HashMap<u64, Netns>) {
    let client = address(pair.tuple.client, pair.tuple.client_port);
    let server = address(pair.tuple.server, pair.tuple.server_port);
    let [client_cookie, server_cookie] = pair.cookies;
    let tell = |result: Result<bool, crate::kernel::Error>| {
        if let Err(error) = result {
            tracing::warn!(%error, %client, %server, "cannot close a socket");
        }
    };
    if let Some(netns) = netns.get(&pair.netns[0]) {
        tell(destroy::destroy_tcp(netns, client_cookie, client, server));
    }
    if server_cookie != 0 {
        netns.values().for_each(|netns| tell(destroy::destroy_tcp(netns, server_cookie, server, client)));
    }
}

fn address(address: mesh_common::Address, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn event_client(event: &Event) -> ClientAddr {
    ClientAddr::new(address(event.tuple.client, event.tuple.client_port))
}

fn path(action: u32) -> Path {
    match action {
        action::SPLICE => Path::Splice,
        action::DIRECT => Path::Direct,
        _ => Path::Plain,
    }
}

fn kind_label(kind: u32) -> &'static str {
    match kind {
        event::OPENED => "opened",
        event::CLOSED => "closed",
        event::DENIED => "denied",
        event::DEMOTED => "demoted",
        event::EVICT => "evict",
        event::UNKNOWN_NETNS => "unknown_netns",
        event::FAILED => "failed",
        _ => "unknown",
    }
}
