//! Whatever happens to the objects, in whatever order: the state that followed is the one compiled from nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::json;

use super::super::super::objects::service::{Port, Target};
use super::super::super::objects::slice::{self, Slice, SliceEndpoint};
use super::super::super::objects::{Protocol, cluster, pod, route, service};
use super::*;
use crate::model::{
    Action, EndpointState, MeshConfig, OriginalDst, PolicyName, RouteKind, TrafficDistribution, WorkloadUid,
};
use crate::registry::{Registry, Writer};
use crate::route::RouteTable;

const NAMESPACES: [&str; 2] = ["shop", "mesh"];

fn key(kind: Kind, namespace: usize, name: &str) -> Key {
    let namespace = if kind.is_namespaced() { NAMESPACES[namespace] } else { "" };
    Key { kind, namespace: namespace.into(), name: name.into() }
}

fn ip(n: u8) -> IpAddr {
    if n >= 6 { format!("fd00::{n}").parse().unwrap() } else { IpAddr::from([10, 0, 0, n]) }
}

fn maybe(text: &'static str) -> impl Strategy<Value = Option<Arc<str>>> {
    any::<bool>().prop_map(move |is| is.then(|| text.into()))
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::sample::select(vec![None, Some("a"), Some("b")])
        .prop_map(|app| app.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    proptest::sample::select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn any_pod() -> impl Strategy<Value = Object> {
    let who =
        (proptest::option::of(0..4u8), labels(), 0..3u8, proptest::sample::select(vec!["default", "payer"]));
    let place = (proptest::collection::btree_set(0..8u8, 0..3), 0..10u8, proptest::option::of(any::<bool>()));
    let state = (any::<bool>(), 0..4u8, 0..5u8, protocol());
    (who, place, state).prop_map(
        |((uid, labels, node, account), (ips, host, mesh), (ready, stop, end, protocol))| {
            Object::Pod(Box::new(pod::Pod {
                uid: uid.map(|uid| format!("u{uid}").into()),
                labels: Arc::new(labels),
                owner: None,
                node: if node == 0 { "".into() } else { format!("n{node}").into() },
                service_account: account.into(),
                addresses: ips.into_iter().map(ip).collect(),
                ports: vec![pod::ContainerPort { name: Some("web".into()), port: 8080, protocol }],
                mesh,
                splice: None,
                forward_client_cert: None,
                skip_outbound_ports: Default::default(),
                skip_inbound_ports: Default::default(),
                probe_ports: [8080].into(),
                manifest_hash: None,
                host_network: host == 0,
                ready,
                terminating: stop == 0,
                finished: end == 0,
            }))
        },
    )
}

fn any_service() -> impl Strategy<Value = Object> {
    let ports = proptest::collection::vec((0..2usize, 80..82u16, protocol(), any::<bool>()), 0..3);
    let vips = proptest::collection::vec(0..4u8, 0..3);
    (vips, labels(), ports, 0..6u8, any::<bool>(), proptest::option::of((any::<bool>(), any::<bool>())))
        .prop_map(|(vips, selector, ports, external, publish_not_ready, families)| {
            Object::Service(service::Service {
                external_name: external == 0,
                vips: vips.into_iter().map(|n| IpAddr::from([10, 96, 0, n])).collect(),
                families: families.map(|(v4, v6)| service::Families { v4, v6 }),
                selector,
                ports: ports
                    .into_iter()
                    .map(|(name, port, protocol, by_name)| Port {
                        name: ["", "web"][name].into(),
                        port,
                        protocol,
                        app_protocol: None,
                        target: if by_name { Target::Name("web".into()) } else { Target::Number(8080) },
                    })
                    .collect(),
                distribution: TrafficDistribution::Any,
                publish_not_ready,
            })
        })
}

fn any_slice() -> impl Strategy<Value = Object> {
    let state = proptest::sample::select(vec![EndpointState::Ready, EndpointState::Draining]);
    let endpoint = (0..8u8, proptest::option::of(0..4u8), maybe("n1"), maybe("z9"), state).prop_map(
        |(address, pod, node, zone, state)| SliceEndpoint {
            address: ip(address),
            pod: pod.map(|pod| format!("p{pod}").into()),
            node,
            zone,
            state,
        },
    );
    let ports = proptest::collection::vec((0..2usize, 8080..8082u16, protocol()), 0..3);
    (proptest::option::of(0..4u8), ports, proptest::collection::vec(endpoint, 0..4)).prop_map(
        |(service, ports, endpoints)| {
            let ports = ports.into_iter();
            Object::EndpointSlice(Slice {
                service: service.map(|n| format!("s{n}").into()),
                ports: ports
                    .map(|(name, port, protocol)| slice::Port {
                        name: ["", "web"][name].into(),
                        port,
                        protocol,
                    })
                    .collect(),
                endpoints,
            })
        },
    )
}

fn any_route() -> impl Strategy<Value = Object> {
    (0..2usize, 0..4u8, 0..4u8, proptest::option::of(80..82u16)).prop_map(|(namespace, parent, backend, port)| {
        let mut parent_ref = json!({
            "group": "", "kind": "Service", "name": format!("s{parent}"), "namespace": NAMESPACES[namespace],
        });
        if let Some(port) = port {
            parent_ref["port"] = port.into();
        }
        let backend = json!({ "name": format!("s{backend}"), "port": 80 });
        let object = json!({ "metadata": {}, "spec": { "parentRefs": [parent_ref], "rules": [{ "backendRefs": [backend] }] } });
        let key = key(Kind::Route(RouteKind::Http), 0, "r");
        Object::Route(Box::new(route::accept(&key, RouteKind::Http, &object).expect("a route")))
    })
}

fn policy(namespace: usize, deny: bool) -> Object {
    Object::AuthorizationPolicy(Box::new(AuthorizationPolicy {
        name: PolicyName { namespace: NAMESPACES[namespace].into(), name: "p".into() },
        cluster_wide: false,
        selectors: Vec::new(),
        action: if deny { Action::Deny } else { Action::Allow },
        rules: Vec::new(),
        unusable: None,
    }))
}

fn config(domain: bool, system: usize) -> Object {
    Object::MeshConfig(MeshConfig {
        trust_domain: if domain { "one.example" } else { "other.example" }.parse().unwrap(),
        system_namespace: NAMESPACES[system].to_owned(),
        ..MeshConfig::default()
    })
}

/// Something that happens to one object: mostly it is there, with some content, sometimes it goes.
fn happening() -> impl Strategy<Value = (Key, u64, Option<Object>)> {
    let namespace = (0..8usize).prop_map(|n| usize::from(n == 0));
    let object = (namespace, 0..4u8).prop_flat_map(|(namespace, n)| {
        let named = move |kind, letter: &str| key(kind, namespace, &format!("{letter}{n}"));
        let switches = proptest::option::of(any::<bool>());
        let of_namespace = switches.prop_map(|mesh| {
            Object::Namespace(cluster::Namespace { mesh, ..cluster::Namespace::default() })
        });
        let of_node = proptest::option::of(0..2u8)
            .prop_map(|zone| Object::Node(cluster::Node { zone: zone.map(|n| format!("z{n}").into()) }));
        let of_account = Just(Object::ServiceAccount);
        prop_oneof![
            8 => any_pod().prop_map(move |object| (named(Kind::Pod, "p"), object)),
            5 => any_service().prop_map(move |object| (named(Kind::Service, "s"), object)),
            5 => any_slice().prop_map(move |object| (named(Kind::EndpointSlice, "e"), object)),
            1 => of_namespace.prop_map(move |object| (key(Kind::Namespace, 0, NAMESPACES[namespace]), object)),
            1 => of_node.prop_map(move |object| (named(Kind::Node, "n"), object)),
            1 => of_account.prop_map(move |object| (key(Kind::ServiceAccount, namespace, "payer"), object)),
            2 => any_route().prop_map(move |object| (named(Kind::Route(RouteKind::Http), "r"), object)),
            1 => any::<bool>().prop_map(move |deny| {
                (key(Kind::AuthorizationPolicy, namespace, "p"), policy(namespace, deny))
            }),
            1 => any::<bool>().prop_map(move |domain| {
                (named(Kind::MeshConfig, "m"), config(domain, namespace))
            }),
        ]
    });
    (object, 0..4u64, 0..4u8)
        .prop_map(|((key, object), rank, gone)| (key, rank, (gone != 0).then_some(object)))
}

/// What follows the compiler, as the rooms above do.
struct Followers {
    compiler: Compiler,
    writer: Writer,
    registry: Registry,
    policies: PolicySet,
    routes: RouteTable,
    attachments: Vec<Attachment>,
    statuses: Vec<RouteStatus>,
    findings: Vec<String>,
}

fn said(findings: &[Finding]) -> Vec<String> {
    let mut lines: Vec<_> = findings.iter().map(|one| format!("{} {:?}", one.key, one.fault)).collect();
    lines.sort();
    lines
}

impl Followers {
    fn follow(&mut self, objects: &mut Objects) {
        let before = self.registry.snapshot();
        let changed = objects.take_changed();
        let step = self.compiler.follow(objects, &changed);
        self.policies = step.policies.unwrap_or_else(|| std::mem::take(&mut self.policies));
        if let Some(routes) = step.routes {
            self.routes = self.routes.succeeded_by(routes.attachments.clone());
            (self.attachments, self.statuses) = (routes.attachments, routes.statuses);
        }
        match step.changed {
            None => self.writer.publish(step.snapshot),
            Some(changed) => self.writer.publish_change(step.snapshot, changed),
        };
        // Who reads findings only when told to must not miss any.
        let findings = said(&self.compiler.findings());
        assert!(step.findings_changed || findings == self.findings, "{findings:?} after {:?}", self.findings);
        self.findings = findings;
        self.is_told_everything(&before);
    }

    /// What a reader of the state before is told to look at is all that differs.
    fn is_told_everything(&self, before: &Snapshot) {
        let now = self.registry.snapshot();
        let Some(changed) = now.changed_since(before.version) else { return };
        assert!(changed.config || before.config == now.config);
        let uids = before.workloads().chain(now.workloads()).map(|one| &one.uid);
        for uid in uids.filter(|uid| before.workload(uid) != now.workload(uid)) {
            assert!(changed.workloads.contains(uid), "{uid} changed, and nobody was told");
        }
        let names = before.services().chain(now.services()).map(|one| &one.name);
        for name in names.filter(|name| before.service(name) != now.service(name)) {
            assert!(changed.services.contains(name), "{name} changed, and nobody was told");
        }
    }
}

/// Everything in a state, in order.
fn told(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = vec![format!("{:?}", snapshot.config)];
    let mut pods: Vec<_> = snapshot.workloads().collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    lines.extend(pods.iter().map(|pod| format!("{pod:?}")));
    let mut services: Vec<_> = snapshot.services().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    lines.extend(services.iter().map(|service| format!("{service:?}")));
    for n in 0..10 {
        lines.push(format!("{n} {:?}", snapshot.workload_by_ip(ip(n)).map(|pod| &pod.name)));
        lines.push(format!(
            "{n} {:?}",
            snapshot.workload(&WorkloadUid(format!("u{n}").into())).map(|p| &p.name)
        ));
        for port in 80..82 {
            let dialled = OriginalDst::new((IpAddr::from([10, 96, 0, n]), port).into());
            lines.push(format!("{dialled} {:?}", snapshot.resolve(dialled).service_port()));
        }
    }
    lines
}

fn policies_of(set: &PolicySet) -> Vec<String> {
    let mut lines: Vec<_> = set.policies().map(|policy| format!("{policy:?}")).collect();
    lines.sort();
    lines.push(format!("{:?}", set.default_inbound()));
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_state_that_followed_every_change_is_the_one_compiled_from_nothing(
        steps in proptest::collection::vec(proptest::collection::vec(happening(), 1..4), 1..24),
    ) {
        let (writer, registry) = crate::registry::new();
        let mut followers = Followers {
            compiler: Compiler::default(),
            writer,
            registry,
            policies: PolicySet::default(),
            routes: RouteTable::default(),
            attachments: Vec::new(),
            statuses: Vec::new(),
            findings: Vec::new(),
        };
        let mut objects = Objects::default();
        for step in steps {
            for (key, rank, object) in step {
                match object {
                    Some(object) => objects.insert(key, rank, Arc::new(object)),
                    None => objects.remove(&key),
                }
            }
            followers.follow(&mut objects);
            let anew = compile(&objects);
            let (plain, plain_findings) = naive::compile(&objects);
            prop_assert_eq!(told(&followers.registry.snapshot()), told(&plain));
            prop_assert_eq!(told(&anew.snapshot), told(&plain));
            let of_routes = |finding: &&Finding| matches!(finding.key.kind, Kind::Route(_));
            let others: Vec<_> = anew.findings.iter().filter(|one| !of_routes(one)).cloned().collect();
            prop_assert_eq!(said(&others), said(&plain_findings));
            prop_assert_eq!(&followers.findings, &said(&anew.findings));
            prop_assert_eq!(policies_of(&followers.policies), policies_of(&anew.policies));
            prop_assert_eq!(format!("{:?}", followers.attachments), format!("{:?}", anew.attachments));
            prop_assert_eq!(format!("{:?}", followers.statuses), format!("{:?}", anew.route_statuses));
        }
    }
}
