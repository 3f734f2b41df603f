//! Services and their endpoints, from selectors and from slices.

use super::*;
use crate::model::TrafficDistribution;

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
