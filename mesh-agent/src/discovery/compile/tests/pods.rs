//! Pods: what they become, whether they are enrolled, and which of two that cannot both be stays.

use std::net::IpAddr;

use super::*;
use crate::model::FailureMode;

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
