//! What a dialled address resolves to, and how a state is replaced.

use std::net::SocketAddr;

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
fn services_are_sorted_and_found_by_name() {
    let services = vec![service("web", &[], &[]), service("api", &[], &[]), service("db", &[], &[])];
    let snapshot = Snapshot::new(MeshConfig::default(), Vec::new(), services);
    let names: Vec<_> = snapshot.services().iter().map(|service| &*service.name.name).collect();
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
