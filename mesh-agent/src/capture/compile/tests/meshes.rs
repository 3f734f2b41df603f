//! Any pod, any service, and policies and routes about them.

use super::*;
use crate::model::{
    Action, AuthorizationPolicy, DefaultInbound, Endpoint, EndpointState, FailureMode, PolicyName, Route,
    RouteKind, RouteName, Rule, ServicePort, Source, SpiffeId, TrafficDistribution, WorkloadName,
};
use crate::route::Attachment;

pub(super) fn any_pod(n: u8) -> impl Strategy<Value = Workload> {
    let own = (proptest::collection::btree_set(0..2u8, 0..3), 0..3u8, 0..5u8, 0..2u8);
    let says = (
        proptest::option::of(any::<bool>()),
        any::<bool>(),
        0..6u8,
        proptest::collection::btree_set(20..23u16, 0..2),
    );
    (own, says).prop_map(move |((ips, node, enrolled, zone), (splice, plain, forward, skip))| Workload {
        uid: uid(n),
        name: WorkloadName { namespace: "shop".into(), name: format!("p{n}").into() },
        owner: format!("o{}", n % 2).into(),
        node: if node == 0 { "n2".into() } else { NODE.into() },
        zone: Some(format!("z{zone}").into()).filter(|_| n == 0),
        addresses: ips
            .into_iter()
            .map(|v| if v == 0 { IpAddr::from([10, 0, 0, n]) } else { format!("fd00::{n}").parse().unwrap() })
            .collect(),
        service_account: format!("a{n}").into(),
        identity: SpiffeId::of_service_account(&"td".parse().unwrap(), "shop", &format!("a{n}")),
        labels: Default::default(),
        ports: Vec::new(),
        enrolled: enrolled != 0,
        splice,
        forward_client_cert: forward == 0,
        skip_outbound_ports: skip.clone(),
        skip_inbound_ports: skip,
        probe_ports: Default::default(),
        manifest_hash: None,
        failure_mode: if plain { FailureMode::Plain } else { FailureMode::Closed },
        host_network: false,
        ready: true,
        terminating: false,
    })
}

pub(super) fn any_service(n: u8) -> impl Strategy<Value = Service> {
    let state = proptest::sample::select(vec![
        EndpointState::Ready,
        EndpointState::Ready,
        EndpointState::Draining,
        EndpointState::NotReady,
    ]);
    let endpoint =
        (0..6u8, any::<bool>(), 0..3u8, state, any::<bool>()).prop_map(|(pod, v6, node, state, known)| {
            Endpoint {
                address: if v6 {
                    format!("[fd00::{pod}]:8080").parse().unwrap()
                } else {
                    format!("10.0.0.{pod}:8080").parse().unwrap()
                },
                workload: known.then(|| uid(pod)),
                node: Some(format!("n{node}").into()),
                zone: Some(format!("z{node}").into()),
                state,
            }
        });
    let port = (80..83u16, 0..5u8, proptest::collection::vec(endpoint, 0..5)).prop_map(
        |(port, udp, mut endpoints)| {
            endpoints.sort_by_key(|one| one.address);
            endpoints.dedup_by_key(|one| one.address);
            ServicePort { name: None, port, udp: udp == 0, app_protocol: None, endpoints }
        },
    );
    let distribution = proptest::sample::select(vec![
        TrafficDistribution::Any,
        TrafficDistribution::PreferSameNode,
        TrafficDistribution::PreferSameZone,
    ]);
    (0..3u8, proptest::collection::vec(port, 0..3), distribution).prop_map(
        move |(vips, mut ports, distribution)| {
            ports.sort_by_key(|port| port.port);
            ports.dedup_by_key(|port| port.port);
            Service {
                name: service_name(n),
                vips: (0..vips)
                    .map(|v| {
                        if v == 0 {
                            IpAddr::from([10, 96, 0, n])
                        } else {
                            format!("fd96::{n}").parse().unwrap()
                        }
                    })
                    .collect(),
                ports,
                traffic_distribution: distribution,
            }
        },
    )
}

pub(super) fn policy(deny: bool, port: Option<u16>, account: u8) -> Arc<PolicySet> {
    let account_name = format!("a{account}");
    let policy = AuthorizationPolicy {
        name: PolicyName { namespace: "shop".into(), name: format!("p{account}").into() },
        cluster_wide: false,
        selectors: Vec::new(),
        action: if deny { Action::Deny } else { Action::Allow },
        rules: vec![Rule {
            sources: Some(vec![Source::ServiceAccount { namespace: "shop".into(), name: account_name }]),
            ports: port.map(|port| vec![port]),
            http: None,
        }],
        unusable: None,
    };
    Arc::new(PolicySet::new(vec![Arc::new(policy)], DefaultInbound::Authenticated, "td".parse().unwrap()))
}

pub(super) fn routes(service: u8, port: u16) -> Arc<RouteTable> {
    let name = RouteName { kind: RouteKind::Tcp, namespace: "shop".into(), name: "r".into() };
    let route = Arc::new(Route { name, rank: 0, hostnames: Vec::new(), rules: Vec::new() });
    Arc::new(RouteTable::new(vec![Attachment {
        service: service_name(service),
        port,
        consumer: None,
        routes: vec![route],
    }]))
}
