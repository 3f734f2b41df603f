//! Which names resolve in a pod: one hosts file per namespace, as cluster DNS would answer there.

use std::fmt::Write;
use std::net::IpAddr;

use super::world::plan::{Plan, PlannedPod, PlannedService};

/// The hosts file of a namespace.
///
/// A pod's bare name resolves in its own namespace, unless a service has that name: the service is what others mean.
pub fn hosts(namespace: &str, plan: &Plan) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for service in &plan.services {
        let names = service_names(service, namespace);
        for ip in addresses(service, plan) {
            let _ = writeln!(text, "{ip} {names}");
        }
    }
    let here = |pod: &&PlannedPod| pod.namespace == namespace;
    for pod in plan.pods.iter().filter(here) {
        if plan.services.iter().any(|service| service.namespace == namespace && service.name == pod.name) {
            continue;
        }
        for ip in &pod.ips {
            let _ = writeln!(text, "{ip} {}", pod.name);
        }
    }
    text
}

/// The resolver's settings of a namespace. There is no DNS server: names outside the hosts file fail at once.
pub fn resolv_conf(namespace: &str) -> String {
    format!(
        "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n"
    )
}

fn service_names(service: &PlannedService, namespace: &str) -> String {
    let (name, own) = (&service.name, &service.namespace);
    let long = format!("{name}.{own}.svc.cluster.local {name}.{own}.svc {name}.{own}");
    if own == namespace { format!("{name} {long}") } else { long }
}

/// A service's own addresses, or those of its pods when it has none.
fn addresses(service: &PlannedService, plan: &Plan) -> Vec<IpAddr> {
    if !service.cluster_ips.is_empty() || service.selector.is_empty() {
        return service.cluster_ips.clone();
    }
    let behind = |pod: &&PlannedPod| {
        pod.namespace == service.namespace
            && service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v))
    };
    plan.pods.iter().filter(behind).flat_map(|pod| pod.ips.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::world::{parse, plan};

    const WORLD: &str = "
{apiVersion: v1, kind: Service, metadata: {name: orders, namespace: shop}, spec: {clusterIP: 10.96.0.9, selector: {app: orders}}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: None, selector: {app: db}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {nodeName: node-2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, spec: {nodeName: node-1}}
";

    fn lines_with(namespace: &str, word: &str) -> Vec<String> {
        let files = [parse("w.yaml", WORLD).unwrap()];
        let plan = plan::plan(&files, None, &plan::Given::default(), &mut || Ok("u".to_owned())).unwrap();
        let lines = hosts(namespace, &plan);
        let has = |line: &&str| line.split(' ').skip(1).any(|name| name == word);
        lines.lines().filter(has).map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn every_form_of_a_service_name_resolves_in_both_families() {
        for name in ["orders", "orders.shop", "orders.shop.svc", "orders.shop.svc.cluster.local"] {
            assert_eq!(lines_with("shop", name), ["10.96.0.9", "fd00:96::100"], "{name}");
        }
    }

    #[test]
    fn the_bare_name_is_for_the_own_namespace_only() {
        assert!(lines_with("outside", "orders").is_empty());
        assert_eq!(lines_with("outside", "orders.shop").len(), 2);
        assert!(lines_with("outside", "web").is_empty());
    }

    #[test]
    fn a_headless_service_is_its_pods() {
        assert_eq!(lines_with("shop", "db"), ["10.244.2.2", "fd00:10:244:2::2"]);
    }

    #[test]
    fn a_pod_resolves_by_its_name() {
        assert_eq!(lines_with("shop", "web"), ["10.244.1.2", "fd00:10:244:1::2"]);
    }
}
