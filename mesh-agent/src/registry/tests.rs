//! What a dialled address resolves to, how a state is replaced, and that a state which follows from another is the one
//! that would have been made from nothing.

use std::net::SocketAddr;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::model::{SpiffeId, TrafficDistribution};

fn pod(name: &str, node: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: WorkloadUid(format!("uid-{name}").into()),
        name: WorkloadName { namespace: "shop".into(), name: name.into() },
        owner: name.into(),
        node: node.into(),
        zone: None,
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        service_account: "default".into(),
        identity: SpiffeId::of_service_account(&"td".parse().unwrap(), "shop", "default"),
        labels: Default::default(),
        ports: Vec::new(),
        enrolled: true,
        splice: None,
        forward_client_cert: false,
        skip_outbound_ports: Default::default(),
        skip_inbound_ports: Default::default(),
        probe_ports: Default::default(),
        manifest_hash: None,
        failure_mode: Default::default(),
        host_network: false,
        ready: true,
        terminating: false,
    }
}

fn service(name: &str, vips: &[&str], ports: &[(u16, bool)]) -> Service {
    Service {
        name: ServiceName { namespace: "shop".into(), name: name.into() },
        vips: vips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: ports
            .iter()
            .map(|(port, udp)| ServicePort {
                name: None,
                port: *port,
                udp: *udp,
                app_protocol: None,
                endpoints: Vec::new(),
            })
            .collect(),
        traffic_distribution: TrafficDistribution::Any,
    }
}

/// A mesh of two pods, one pod of the host network and two services, and what `dialled` stands for in it.
#[track_caller]
fn check(dialled: &str, expected: &str) {
    let mut host = pod("host", "node-1", &["192.0.2.1"]);
    host.host_network = true;
    let snapshot = Snapshot::new(
        MeshConfig::default(),
        vec![pod("a", "node-1", &["10.0.0.1", "fd00::1"]), pod("b", "node-2", &["10.0.0.2"]), host],
        vec![
            service("web", &["10.96.0.1", "fd00:96::1"], &[(80, false), (443, false), (53, true)]),
            service("api", &["10.96.0.2"], &[(80, false)]),
        ],
    );
    let found = match snapshot.resolve(OriginalDst::new(dialled.parse::<SocketAddr>().unwrap())) {
        destination @ Destination::Service(..) => {
            let port = destination.service_port().unwrap().port;
            let Destination::Service(service, _) = destination else { unreachable!() };
            format!("{} {port}", service.name)
        }
        Destination::Workload(workload) => workload.name.to_string(),
        Destination::External => "external".to_owned(),
    };
    assert_eq!(found, expected, "{dialled}");
}

#[test]
fn a_dialled_address_is_a_service_port_a_pod_or_unknown() {
    check("10.96.0.1:80", "shop/web 80");
    check("10.96.0.1:443", "shop/web 443");
    check("[::ffff:10.96.0.1]:443", "shop/web 443");
    check("[fd00:96::1]:80", "shop/web 80");
    check("10.96.0.2:80", "shop/api 80");
    // UDP ports and ports that the service does not have are none of the mesh's business.
    check("10.96.0.1:53", "external");
    check("10.96.0.1:81", "external");
    check("10.0.0.1:9999", "shop/a");
    check("[::ffff:10.0.0.2]:1", "shop/b");
    check("[fd00::1]:1", "shop/a");
    // The address of a host-network pod is the node's.
    check("192.0.2.1:80", "external");
    check("198.51.100.1:80", "external");
}

#[test]
fn workloads_are_found_by_uid_name_and_node() {
    let snapshot = Snapshot::new(
        MeshConfig::default(),
        vec![pod("a", "node-1", &[]), pod("b", "node-2", &[]), pod("c", "node-1", &[])],
        Vec::new(),
    );
    let mut on: Vec<_> = snapshot.workloads_on("node-1").map(|pod| pod.name.to_string()).collect();
    on.sort();
    assert_eq!(on, ["shop/a", "shop/c"]);
    assert_eq!(snapshot.workload(&WorkloadUid("uid-b".into())).unwrap().name.to_string(), "shop/b");
    assert!(snapshot.workload(&WorkloadUid("b".into())).is_none());
    let named = |name: &str| WorkloadName { namespace: "shop".into(), name: name.into() };
    assert!(
        snapshot.workload_by_name(&named("c")).is_some() && snapshot.workload_by_name(&named("d")).is_none()
    );
    assert_eq!(snapshot.workloads().count(), 3);
}

#[test]
fn a_contested_address_finds_nobody() {
    let snapshot = Snapshot::new(
        MeshConfig::default(),
        vec![
            pod("a", "n", &["10.0.0.1", "10.0.0.2"]),
            pod("b", "n", &["10.0.0.1"]),
            pod("c", "n", &["10.0.0.1"]),
        ],
        Vec::new(),
    );
    assert!(snapshot.workload_by_ip("10.0.0.1".parse().unwrap()).is_none());
    assert!(snapshot.workload_by_ip("10.0.0.2".parse().unwrap()).is_some());
    assert_eq!(snapshot.workloads().count(), 3);
}

#[test]
fn services_are_found_by_name() {
    let services = vec![service("web", &[], &[]), service("api", &[], &[]), service("db", &[], &[])];
    let snapshot = Snapshot::new(MeshConfig::default(), Vec::new(), services);
    let mut names: Vec<_> = snapshot.services().map(|service| &*service.name.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["api", "db", "web"]);
    let named = |name: &str| ServiceName { namespace: "shop".into(), name: name.into() };
    assert_eq!(snapshot.service(&named("db")).unwrap().name, named("db"));
    assert!(snapshot.service(&named("dx")).is_none());
}

#[test]
fn a_published_state_is_new_for_readers_and_old_for_those_who_hold_the_last() {
    let (writer, registry) = new();
    let changes = registry.changes();
    let before = registry.snapshot();
    assert_eq!(before.version, 0);
    let version =
        writer.publish(Snapshot::new(MeshConfig::default(), vec![pod("a", "n", &["10.0.0.1"])], Vec::new()));
    assert_eq!((version, registry.snapshot().version, *changes.borrow()), (1, 1, 1));
    assert!(changes.has_changed().unwrap());
    assert_eq!((before.workloads().count(), registry.snapshot().workloads().count()), (0, 1));
    assert_eq!(writer.publish(Snapshot::default()), 2);
}

#[test]
fn a_reader_learns_what_changed_since_its_version_or_that_anything_may_have() {
    let (writer, registry) = new();
    let one = |name: &str| Changed {
        workloads: [WorkloadUid(format!("uid-{name}").into())].into(),
        ..Changed::default()
    };
    let snapshot = Snapshot::new(MeshConfig::default(), vec![pod("a", "n", &[])], Vec::new());
    let first = writer.publish(snapshot.clone());
    assert_eq!(registry.snapshot().changed_since(0), None);
    assert_eq!(registry.snapshot().changed_since(first), Some(Changed::default()));
    writer.publish_change(snapshot.clone(), one("a"));
    writer.publish_change(snapshot.clone(), one("b"));
    let since = |version| registry.snapshot().changed_since(version).map(|changed| changed.workloads.len());
    assert_eq!((since(first), since(first + 1), since(first + 2)), (Some(2), Some(1), Some(0)));
    assert_eq!((since(0), since(first + 3)), (None, None));
    for _ in 0..100 {
        writer.publish_change(snapshot.clone(), one("c"));
    }
    assert_eq!((since(first), since(first + 90)), (None, Some(1)));
    // A state that is replaced as a whole tells nothing.
    let last = writer.publish(snapshot);
    assert_eq!(since(last - 1), None);
}

/// Everything that can be asked of a snapshot, about these pods, services and addresses.
fn told(snapshot: &Snapshot) -> String {
    let mut lines = BTreeSet::new();
    for workload in snapshot.workloads() {
        lines.insert(format!("{} {:?}", workload.uid, snapshot.workload(&workload.uid) == Some(workload)));
    }
    for service in snapshot.services() {
        lines.insert(format!("{} {:?}", service.name, snapshot.service(&service.name) == Some(service)));
    }
    for n in 0..6u8 {
        let ip = IpAddr::from([10, 0, 0, n]);
        lines.insert(format!("{ip} {:?}", snapshot.workload_by_ip(ip).map(|pod| &pod.uid)));
        let name = WorkloadName { namespace: "shop".into(), name: format!("p{n}").into() };
        lines.insert(format!("{name} {:?}", snapshot.workload_by_name(&name)));
        let mut there: Vec<_> = snapshot.workloads_on(&format!("n{n}")).map(|pod| &pod.uid).collect();
        there.sort();
        lines.insert(format!("n{n} {there:?}"));
        for port in 0..3u16 {
            let dialled = OriginalDst::new(SocketAddr::new(IpAddr::from([10, 96, 0, n]), port));
            lines.insert(format!("{dialled} {:?}", snapshot.resolve(dialled)));
        }
    }
    Vec::from_iter(lines).join("\n")
}

fn any_pod() -> impl Strategy<Value = Workload> {
    let addresses = proptest::collection::btree_set(0..6u8, 0..3);
    (0..6u8, 0..3u8, addresses, any::<bool>()).prop_map(|(name, node, ips, host_network)| {
        let node = if node == 0 { String::new() } else { format!("n{node}") };
        let mut pod = pod(&format!("p{name}"), &node, &[]);
        pod.addresses = ips.into_iter().map(|n| IpAddr::from([10, 0, 0, n])).collect();
        pod.host_network = host_network;
        pod
    })
}

/// Each service has addresses of its own.
fn any_service() -> impl Strategy<Value = Service> {
    let ports = proptest::collection::vec((0..3u16, any::<bool>()), 0..3);
    (0..6u8, any::<bool>(), ports).prop_map(|(n, headless, ports)| {
        let mut service = service(&format!("s{n}"), &[], &ports);
        service.vips = if headless { Vec::new() } else { vec![IpAddr::from([10, 96, 0, n])] };
        service
    })
}

proptest! {
    #[test]
    fn a_state_that_followed_from_others_is_the_one_made_from_nothing(
        steps in proptest::collection::vec(
            (proptest::collection::vec((any_pod(), any::<bool>()), 0..3),
             proptest::collection::vec((any_service(), any::<bool>()), 0..3)),
            1..12,
        ),
    ) {
        let mut snapshot = Snapshot::default();
        let (mut pods, mut services) = (BTreeMap::new(), BTreeMap::new());
        for (new_pods, new_services) in steps {
            let before = (snapshot.clone(), told(&snapshot));
            let new_pods: BTreeMap<_, _> =
                new_pods.into_iter().map(|(pod, stays)| (pod.uid.clone(), stays.then_some(pod))).collect();
            let new_services: BTreeMap<_, _> = new_services
                .into_iter()
                .map(|(service, stays)| (service.name.clone(), stays.then_some(service)))
                .collect();
            pods.extend(new_pods.clone());
            services.extend(new_services.clone());
            let arcs = |(uid, new): (_, Option<Workload>)| (uid, new.map(Arc::new));
            snapshot.change_workloads(new_pods.into_iter().map(arcs).collect());
            let arcs = |(name, new): (_, Option<Service>)| (name, new.map(Arc::new));
            snapshot.change_services(new_services.into_iter().map(arcs).collect());
            let all_pods = pods.values().flatten().cloned().collect();
            let all_services = services.values().flatten().cloned().collect();
            let anew = Snapshot::new(MeshConfig::default(), all_pods, all_services);
            prop_assert_eq!(told(&snapshot), told(&anew));
            // Whoever holds the state before sees no change.
            prop_assert_eq!(told(&before.0), before.1);
        }
    }
}

#[test]
fn a_change_is_about_a_node_when_its_pods_are_in_it_or_were() {
    let (writer, registry) = new();
    let uid = |pod: &str| WorkloadUid(format!("uid-{pod}").into());
    let publish = |pods: Vec<Workload>, changed: &str| {
        let changed = Changed { workloads: [uid(changed)].into(), ..Changed::default() };
        writer.publish_change(Snapshot::new(MeshConfig::default(), pods, Vec::new()), changed)
    };
    let (near, far) = (pod("near", "here", &[]), pod("far", "there", &[]));
    let asks = |seen, known: &str| registry.snapshot().changed_on("here", seen, |one| *one == uid(known));
    let first = publish(vec![near.clone(), far.clone()], "near");
    assert!(asks(first - 1, "nobody"), "a pod of this node");
    let second = publish(vec![near.clone(), far], "far");
    assert!(!asks(first, "near"), "another node's");
    let third = publish(vec![near], "far");
    assert!(!asks(second, "near"), "another node's, and gone");
    assert!(asks(second, "far"), "gone, and caught here until now");
    writer.publish_change(Snapshot::default(), Changed { config: true, ..Changed::default() });
    assert!(asks(third, "nobody"), "settings are about every node");
}
