//! What a directory of objects means: identity, enrolment, endpoints, conflicts, and policies that fail closed.

use std::net::IpAddr;

use super::super::testing::{World, pod};
use super::*;
use crate::model::{Action, FailureMode, PolicyName, SpiffeId, TrafficDistribution, Workload, WorkloadName};
use crate::policy::{Facts, Refusal};

mod histories;
mod naive;

const ENROLLED: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {weft.dev/mesh: enabled}}\n";

/// Compiles the documents; there must be no problem.
#[track_caller]
fn compiled(documents: &[&str]) -> Compiled {
    let (compiled, problems) = World::new(&[("a.yaml", &documents.join("---\n"))]).load();
    assert_eq!(problems, Vec::<String>::new());
    compiled
}

#[track_caller]
fn problems(documents: &[&str]) -> (Compiled, Vec<String>) {
    World::new(&[("a.yaml", &documents.join("---\n"))]).load()
}

fn workload(compiled: &Compiled, name: &str) -> Arc<Workload> {
    let name = WorkloadName { namespace: "shop".into(), name: name.into() };
    compiled.snapshot.workload_by_name(&name).unwrap_or_else(|| panic!("no workload {name}")).clone()
}

/// By name.
fn services(compiled: &Compiled) -> Vec<Arc<Service>> {
    let mut services: Vec<_> = compiled.snapshot.services().cloned().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

/// Pod `shop/web` with these metadata and spec entries.
fn web(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop{metadata}}}\nspec: {{nodeName: node-1{spec}}}\n\
         status: {{podIP: 10.0.0.1}}\n"
    )
}

#[test]
fn a_pod_becomes_a_workload() {
    let pod = "apiVersion: v1
kind: Pod
metadata:
  name: web-7d9f-abcde
  namespace: shop
  uid: 0b1c
  labels: {app: ignored, pod-template-hash: 7d9f, weft.dev/splice: disabled}
  annotations: {weft.dev/skip-outbound-ports: ' 22, 3306', weft.dev/skip-inbound-ports: '9100'}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-7d9f, uid: x, controller: true}]
spec:
  nodeName: node-1
  serviceAccountName: web
  containers:
  - {name: c, image: i, ports: [{containerPort: 8080, name: http}], resources: {limits: {cpu: 1}}}
status:
  podIPs: [{ip: '::ffff:10.0.0.1'}, {ip: fd00::1}]
  podIP: 10.0.0.1
  phase: Running
  conditions: [{type: Ready, status: 'True'}]
";
    let account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: shop}\n";
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-1, labels: {topology.kubernetes.io/zone: z1}}\n";
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {weft.dev/mesh: enabled}\n  annotations: {weft.dev/agent-down: plain}\n";
    let config = "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {trustDomain: example.org, certificates: {ttl: 90s}, protocolDetection: {timeout: 250ms}, telemetry: {tracing: {sampling: 0.07}}, fastPath: {splice: Disabled}, systemNamespace: mesh}\n";
    let compiled = compiled(&[pod, account, node, namespace, config]);
    let found = workload(&compiled, "web-7d9f-abcde");
    assert_eq!(&*found.uid.0, "0b1c");
    assert_eq!(&*found.owner, "web");
    assert_eq!(found.identity.as_str(), "spiffe://example.org/ns/shop/sa/web");
    assert_eq!(found.addresses, ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!((&*found.node, found.zone.as_deref()), ("node-1", Some("z1")));
    assert!(
        found.enrolled
            && found.splice == Some(false)
            && found.ready
            && !found.terminating
            && !found.host_network
    );
    assert_eq!(Vec::from_iter(found.skip_outbound_ports.clone()), [22, 3306]);
    assert_eq!(Vec::from_iter(found.skip_inbound_ports.clone()), [9100]);
    assert_eq!(found.failure_mode, FailureMode::Plain);
    assert_eq!((found.ports[0].name.as_deref(), found.ports[0].port), (Some("http"), 8080));
    let config = &compiled.snapshot.config;
    assert_eq!((config.certificate_ttl.as_secs(), config.splice), (90, Some(false)));
    assert_eq!(config.system_namespace, "mesh");
    assert_eq!((config.protocol_detection_timeout.as_millis(), config.trace_sampling_permyriad), (250, 7));
}

#[test]
fn a_pod_without_a_uid_or_owner_gets_names_of_its_own() {
    let found = |metadata: &str| workload(&compiled(&[&web(metadata, "")]), "web");
    assert_eq!(&*found("").uid.0, "shop/web");
    assert_eq!(&*found("").owner, "web");
    assert_eq!(&*found(", labels: {app: front}").owner, "front");
    assert_eq!(&*found(", labels: {app.kubernetes.io/name: front}").owner, "front");
    let daemon = ", ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: logs, uid: x}]";
    assert_eq!(&*found(daemon).owner, "logs");
}

#[test]
fn enrolment_follows_pod_then_namespace_and_never_the_host_network() {
    let enrolled = |documents: &[&str]| workload(&compiled(documents), "web").enrolled;
    let label = |value: &str| web(&format!(", labels: {{weft.dev/mesh: {value}}}"), "");
    assert!(!enrolled(&[&web("", "")]));
    assert!(enrolled(&[ENROLLED, &web("", "")]));
    assert!(!enrolled(&[ENROLLED, &label("disabled")]));
    assert!(enrolled(&[&label("enabled")]));
    assert!(!enrolled(&[ENROLLED, &web("", ", hostNetwork: true")]), "no fault: its namespace was meant");
    let asked = web(", labels: {weft.dev/mesh: enabled}", ", hostNetwork: true");
    let (outcome, found) = problems(&[ENROLLED, &asked]);
    assert!(!workload(&outcome, "web").enrolled);
    assert!(found.iter().any(|problem| problem.contains("shares its node's network")), "{found:?}");
}

#[test]
fn the_ports_of_every_kind_of_probe_are_known_by_number_and_by_name() {
    let spec = ", initContainers: [{name: sidecar, restartPolicy: Always, ports: [{name: live, containerPort: 9001}], \
                startupProbe: {tcpSocket: {port: live}}}], \
                containers: [{name: app, ports: [{name: http, containerPort: 8080}], \
                livenessProbe: {httpGet: {port: http, path: /}}, readinessProbe: {grpc: {port: 9090}}}, \
                {name: other, livenessProbe: {httpGet: {port: 7000, host: example.com}}, readinessProbe: {exec: {command: [a]}}, \
                startupProbe: {httpGet: {port: nowhere}}}]";
    let ports = workload(&compiled(&[ENROLLED, &web("", spec)]), "web").probe_ports.clone();
    assert_eq!(ports.into_iter().collect::<Vec<_>>(), [8080, 9001, 9090]);
}

#[test]
fn the_mirror_of_a_static_pod_is_known_by_the_hash_of_its_manifest() {
    let hash = |metadata: &str| workload(&compiled(&[&web(metadata, "")]), "web").manifest_hash.clone();
    let annotations = "annotations: {kubernetes.io/config.mirror: abc, kubernetes.io/config.hash: abc}";
    let by_node = "ownerReferences: [{apiVersion: v1, kind: Node, name: n1, uid: n, controller: true}]";
    assert_eq!(hash(&format!(", {annotations}, {by_node}")).as_deref(), Some("abc"));
    assert_eq!(hash(&format!(", {annotations}")), None, "anybody can write annotations");
    assert_eq!(hash(&format!(", annotations: {{kubernetes.io/config.hash: abc}}, {by_node}")), None);
}

#[test]
fn the_client_is_named_to_pods_that_ask_or_whose_namespace_asks() {
    let forwards = |documents: &[&str]| workload(&compiled(documents), "web").forward_client_cert;
    let asking = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {weft.dev/forward-client-cert: enabled}}\n";
    assert!(!forwards(&[&web("", "")]));
    assert!(forwards(&[asking, &web("", "")]));
    assert!(forwards(&[&web(", labels: {weft.dev/forward-client-cert: enabled}", "")]));
    assert!(!forwards(&[asking, &web(", annotations: {weft.dev/forward-client-cert: disabled}", "")]));
}

#[test]
fn a_pod_without_its_service_account_is_known_but_not_enrolled() {
    let pod = web("", ", serviceAccountName: payer");
    let (outcome, found) = problems(&[ENROLLED, &pod]);
    assert_eq!(
        found,
        [
            "a.yaml:8:46: Pod shop/web: spec.serviceAccountName: there is no ServiceAccount shop/payer, so the pod has no identity and is not enrolled"
        ]
    );
    assert!(!workload(&outcome, "web").enrolled);
    let account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: payer, namespace: shop}\n";
    assert!(workload(&compiled(&[ENROLLED, &pod, account]), "web").enrolled);
    // An account of that name elsewhere does not count; `default` is always there.
    let elsewhere = account.replace("shop", "other");
    assert_eq!(problems(&[ENROLLED, &pod, &elsewhere]).1.len(), 1);
    assert!(workload(&compiled(&[ENROLLED, &web("", ", serviceAccountName: default")]), "web").enrolled);
}

#[test]
fn readiness_follows_conditions_then_phase_then_address() {
    let ready = |status: &str| {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop}}\nstatus: {{{status}}}\n"
        );
        workload(&compiled(&[&pod]), "web").ready
    };
    assert!(ready("podIP: 10.0.0.1"));
    assert!(!ready(""));
    assert!(ready("podIP: 10.0.0.1, phase: Running"));
    assert!(!ready("podIP: 10.0.0.1, phase: Pending"));
    assert!(!ready("podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False'}]"));
    assert!(ready("podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]"));
    assert!(!ready("podIP: 10.0.0.1, conditions: [{type: PodScheduled, status: 'True'}]"));
}

#[test]
fn of_two_pods_with_one_address_the_later_is_left_out() {
    let (compiled, found) = problems(&[&pod("b", "10.0.0.1"), &pod("a", "10.0.0.1"), &pod("c", "10.0.0.3")]);
    assert_eq!(
        found,
        [
            "a.yaml:11:17: Pod shop/a: status.podIP: 10.0.0.1 is the address of Pod shop/b already, so this pod is left out"
        ]
    );
    let owner = compiled.snapshot.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!(&*owner.name.name, "b");
    assert_eq!(compiled.snapshot.workloads().count(), 2);
}

#[test]
fn finished_and_stopping_pods_give_their_address_away() {
    let gone = pod("a", "10.0.0.1").replace("podIP", "phase: Succeeded, podIP");
    let outcome = compiled(&[&gone, &pod("b", "10.0.0.1")]);
    assert_eq!(&*outcome.snapshot.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap().name.name, "b");

    let stopping =
        pod("a", "10.0.0.1").replace("name: a,", "name: a, deletionTimestamp: '2026-01-01T00:00:00Z',");
    let (outcome, found) = problems(&[&stopping, &pod("b", "10.0.0.1")]);
    assert_eq!(&*outcome.snapshot.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap().name.name, "b");
    assert_eq!(found.len(), 1);
}

#[test]
fn two_pods_with_one_uid_are_told_apart() {
    let twin = |name: &str, ip: &str| pod(name, ip).replace("namespace:", "uid: u1, namespace:");
    let (compiled, found) = problems(&[&twin("a", "10.0.0.1"), &twin("b", "10.0.0.2")]);
    assert_eq!(compiled.snapshot.workloads().count(), 1);
    assert_eq!(
        found,
        [
            "a.yaml:9:26: Pod shop/b: metadata.uid: u1 is the UID of Pod shop/a already, so this pod is left out"
        ]
    );
}

/// The endpoints of every port of service `shop/web` as `port: address state pod node zone`.
fn endpoints(compiled: &Compiled) -> Vec<String> {
    let services = services(compiled);
    let service = services.iter().find(|service| &*service.name.name == "web").expect("service web");
    let mut lines = Vec::new();
    for port in &service.ports {
        for endpoint in &port.endpoints {
            let or_dash = |text: &Option<Arc<str>>| text.as_deref().unwrap_or("-").to_owned();
            lines.push(format!(
                "{}: {} {:?} {} {} {}",
                port.port,
                endpoint.address,
                endpoint.state,
                endpoint.workload.as_ref().map_or("-", |uid| &uid.0),
                or_dash(&endpoint.node),
                or_dash(&endpoint.zone),
            ));
        }
    }
    lines
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n")
}

#[test]
fn endpoints_are_computed_from_the_selector() {
    let labelled = |name: &str, ip: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{tier: front}}{more}}}\n\
             spec: {{nodeName: node-1, containers: [{{name: c, image: i, ports: [{{containerPort: 8443, name: https}}]}}]}}\n\
             status: {{podIPs: [{{ip: {ip}}}, {{ip: 'fd00::{name}'}}]}}\n"
        )
    };
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-1, labels: {topology.kubernetes.io/zone: z1}}\n";
    let stopping = labelled("b", "10.0.0.2", ", deletionTimestamp: '2026-01-01T00:00:00Z'");
    let elsewhere = labelled("e", "10.0.0.5", "").replace("shop", "other");
    let outcome = compiled(&[
        node,
        &labelled("a", "10.0.0.1", ""),
        &stopping,
        &elsewhere,
        &pod("d", "10.0.0.4"),
        &service(
            "clusterIP: 10.96.0.1, selector: {tier: front}, ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 443, targetPort: https}, {name: c, port: 9}, {name: d, port: 1, targetPort: nowhere}]",
        ),
    ]);
    assert_eq!(
        endpoints(&outcome),
        [
            "80: 10.0.0.1:8080 Ready shop/a node-1 z1",
            "80: 10.0.0.2:8080 Draining shop/b node-1 z1",
            "443: 10.0.0.1:8443 Ready shop/a node-1 z1",
            "443: 10.0.0.2:8443 Draining shop/b node-1 z1",
            "9: 10.0.0.1:9 Ready shop/a node-1 z1",
            "9: 10.0.0.2:9 Draining shop/b node-1 z1",
        ]
    );
}

#[test]
fn a_dual_stack_service_keeps_families_apart() {
    let both = pod("web", "10.0.0.1").replace("podIP: 10.0.0.1", "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]");
    let outcome = compiled(&[
        &both,
        &service("clusterIPs: [10.96.0.1, 'fd00:96::1'], selector: {app: web}, ports: [{port: 80}]"),
    ]);
    let port = &services(&outcome)[0].ports[0];
    let addresses = |dialled: &str| {
        let endpoints = port.endpoints_for(dialled.parse().unwrap());
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(addresses("10.96.0.1"), ["10.0.0.1:80"]);
    assert_eq!(addresses("::ffff:10.96.0.1"), ["10.0.0.1:80"]);
    assert_eq!(addresses("fd00:96::1"), ["[fd00::1]:80"]);
}

#[test]
fn slices_come_before_selectors() {
    let slice = "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.9], nodeName: node-2, zone: z2}
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: web}, conditions: {ready: true}}
- {addresses: [10.0.0.3], conditions: {ready: false}}
- {addresses: [10.0.0.4], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.5], conditions: {ready: false, serving: false, terminating: true}}
";
    let service = service(
        "clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: other, port: 1}]",
    );
    let outcome = compiled(&[&pod("web", "10.0.0.1"), slice, &service]);
    assert_eq!(
        endpoints(&outcome)[..5],
        [
            "80: 10.0.0.1:8080 Ready shop/web node-1 -",
            "80: 10.0.0.3:8080 NotReady - - -",
            "80: 10.0.0.4:8080 Draining - - -",
            "80: 10.0.0.5:8080 NotReady - - -",
            "80: 10.0.0.9:8080 Ready - node-2 z2",
        ]
    );
    assert_eq!(endpoints(&outcome).len(), 10, "five for each of http and dns, none for other");
    let ports = &services(&outcome)[0].ports;
    assert_eq!(ports.iter().map(|port| port.udp).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn services_keep_what_their_spec_says() {
    let one = |spec: &str| {
        let outcome = compiled(&[&service(spec)]);
        services(&outcome).first().map(|service| (**service).clone())
    };
    let prefer = |text: &str| {
        one(&format!("clusterIP: 10.96.0.1, trafficDistribution: {text}")).unwrap().traffic_distribution
    };
    assert_eq!(prefer("PreferSameNode"), TrafficDistribution::PreferSameNode);
    assert_eq!(prefer("PreferSameZone"), TrafficDistribution::PreferSameZone);
    assert_eq!(prefer("PreferClose"), TrafficDistribution::PreferSameZone);
    assert!(one("clusterIP: None, clusterIPs: [None]").unwrap().vips.is_empty());
    assert!(one("type: ExternalName, externalName: a.example").is_none());
    let port = &one("ports: [{port: 80, appProtocol: kubernetes.io/h2c}]").unwrap().ports[0];
    assert_eq!((port.app_protocol.as_deref(), port.name.as_deref()), (Some("kubernetes.io/h2c"), None));
    assert!(one("ports: [{port: 80, protocol: SCTP}]").unwrap().ports.is_empty());
}

#[test]
fn of_two_services_with_one_cluster_ip_the_first_keeps_it() {
    let first = service("clusterIP: 10.96.0.1, ports: [{port: 80}]");
    let second = first.replace("name: web", "name: also");
    let (outcome, found) = problems(&[&first, &second]);
    assert_eq!(
        found,
        [
            "a.yaml:9:19: Service shop/also: spec.clusterIP: 10.96.0.1 is the ClusterIP of Service shop/web already, so this one is not served"
        ]
    );
    let services = services(&outcome);
    assert_eq!(
        services.iter().map(|s| (&*s.name.name, s.vips.len())).collect::<Vec<_>>(),
        [("also", 0), ("web", 1)]
    );
}

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// How a connection from service account `shop/cart` to pod `shop/web` ends: `allowed` or the refusal's label.
fn judge(compiled: &Compiled) -> &'static str {
    let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let destination = workload(compiled, "web");
    let facts = Facts {
        identity: Some(&identity),
        client: "10.0.0.9".parse().unwrap(),
        destination: &destination,
        port: 80,
        node_probe: false,
        request: None,
    };
    compiled.policies.evaluate(&facts).as_ref().map_or_else(Refusal::label, |_| "allowed")
}

#[test]
fn a_policy_holds_for_its_namespace_and_in_the_system_namespace_for_all() {
    let deny = "targetRefs: [{kind: Pod, selector: {}}], action: DENY, rules: [{}]";
    assert_eq!(judge(&compiled(&[&web("", ""), &policy("shop", deny)])), "denied");
    assert_eq!(judge(&compiled(&[&web("", ""), &policy("other", deny)])), "allowed");
    assert_eq!(judge(&compiled(&[&web("", ""), &policy("weft-system", deny)])), "denied");
}

#[test]
fn every_field_of_a_policy_reaches_the_model() {
    let spec = "targetRefs: [{group: '', kind: Pod, selector: {matchLabels: {app: web}, matchExpressions: [{key: a, operator: Exists}, {key: b, operator: NotIn, values: [x]}]}}], action: AUDIT, enforcementLevel: Network,
  rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: '*'}}, {type: ServiceAccount, serviceAccount: {namespace: n, name: a}}, {type: SPIFFE, spiffe: 'spiffe://td/*'}, {type: CIDR, cidr: '::ffff:10.0.0.0/104'}, {type: CIDR, cidr: 192.0.2.7}, {type: AnyAuthenticated}], networkAttributes: {ports: [80, 443]}}, {sources: []}, {}]";
    let outcome = compiled(&[&policy("shop", spec)]);
    let found = outcome.policies.policies().next().unwrap();
    assert_eq!(found.name, PolicyName { namespace: "shop".into(), name: "p".into() });
    assert_eq!((found.action, found.cluster_wide, &found.unusable), (Action::Audit, false, &None));
    let sources: Vec<String> = found.rules[0].sources.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(
        sources,
        [
            "service account shop/*",
            "service account n/a",
            "spiffe://td/*",
            "10.0.0.0/8",
            "192.0.2.7/32",
            "any authenticated peer"
        ]
    );
    assert_eq!(found.rules[0].ports, Some(vec![80, 443]));
    assert_eq!((&found.rules[1].sources, &found.rules[1].ports), (&Some(vec![]), &None));
    assert_eq!(found.rules[2].sources, None);
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    assert!(found.selectors[0].matches(&labels(&[("app", "web"), ("a", "")])));
    assert!(!found.selectors[0].matches(&labels(&[("app", "web")])));
    assert!(!found.selectors[0].matches(&labels(&[("app", "web"), ("a", ""), ("b", "x")])));
}

#[test]
fn policies_that_cannot_be_enforced_fail_closed_for_the_pods_they_select() {
    let selecting = |app: &str, rest: &str| {
        policy(
            "shop",
            &format!("targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: {app}}}}}}}], {rest}"),
        )
    };
    let web = pod("web", "10.0.0.1");
    let outcome = |policy: &str| {
        let (compiled, problems) = problems(&[&web, policy]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        judge(&compiled)
    };
    let not_supported = [
        "action: ALLOW, rules: [{sources: [{type: JWT, claims: {}}]}]",
        "action: DENY, rules: [{sources: [{type: JWT, issuer: i}]}]",
    ];
    let broken = [
        "action: ALLOW, rules: [{http: [{methods: [GET]}]}]",
        "action: DENY, enforcementLevel: Application, rules: [{http: [{paths: [{type: Exact, value: /a/../b}]}]}]",
        "action: ALLOW, rules: [{sources: [{type: CIDR, cidr: nowhere}]}]",
        "action: DENY, rules: [{surces: []}]",
        "action: Deny",
        "rules: []",
        "action: {}",
    ];
    for rest in not_supported.into_iter().chain(broken) {
        assert_eq!(outcome(&selecting("web", rest)), "unusable_policy", "{rest}");
        assert_eq!(outcome(&selecting("db", rest)), "allowed", "{rest}");
    }
    // One that only audits opens nothing by its absence, and without a selector there is nothing to close.
    assert_eq!(outcome(&selecting("web", "action: AUDIT, rules: [{http: []}]")), "allowed");
    assert_eq!(outcome(&selecting("web", "action: AUDIT, rules: [{surces: []}]")), "allowed");
    assert_eq!(outcome(&policy("shop", "target: [{kind: Pod, selector: {}}], action: DENY")), "allowed");
}

#[test]
fn an_unsupported_policy_closes_even_over_a_last_good_version_and_a_broken_one_does_not() {
    let all = |rest: &str| policy("shop", &format!("targetRefs: [{{kind: Pod, selector: {{}}}}], {rest}"));
    let mut world = World::new(&[("pod.yaml", &pod("web", "10.0.0.1"))]);
    world.write("policy.yaml", &all("action: ALLOW, rules: [{}]"));
    assert_eq!(judge(&world.load().0), "allowed");
    world.write("policy.yaml", &all("action: ALLOW, rules: [{port: 1}]"));
    assert_eq!(judge(&world.load().0), "allowed");
    world.write("policy.yaml", &all("action: ALLOW, rules: [{sources: [{type: JWT, issuer: i}]}]"));
    assert_eq!(judge(&world.load().0), "unusable_policy");
    world.write("policy.yaml", &all("action: ALLOW, rules: [{}]"));
    let (outcome, problems) = world.load();
    assert_eq!((judge(&outcome), problems.len()), ("allowed", 0));
}

#[test]
fn a_stand_in_follows_the_selector_of_its_broken_policy() {
    let text = |app: &str| {
        policy(
            "shop",
            &format!("targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: {app}}}}}}}], action: no"),
        )
    };
    let mut world = World::new(&[("pod.yaml", &pod("web", "10.0.0.1")), ("policy.yaml", &text("web"))]);
    assert_eq!(judge(&world.load().0), "unusable_policy");
    world.write("policy.yaml", &text("db"));
    assert_eq!(judge(&world.load().0), "allowed");
}

#[test]
fn settings_that_cannot_be_used_admit_nobody_by_default() {
    let config = |name: &str, spec: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        )
    };
    let web = pod("web", "10.0.0.1");
    let (outcome, found) = problems(&[&web, &config("default", "trustDomain: A")]);
    assert_eq!((judge(&outcome), found.len()), ("default_deny", 1));
    // Two of them: the first is in force.
    let (outcome, found) =
        problems(&[&web, &config("b", "defaultInbound: Deny"), &config("a", "defaultInbound: Permissive")]);
    assert_eq!(judge(&outcome), "default_deny");
    assert_eq!(
        found,
        ["a.yaml:12: MeshConfig a: there can be one MeshConfig only; MeshConfig b is in force"]
    );
}
