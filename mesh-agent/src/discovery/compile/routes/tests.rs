//! Which routes hold where, and what is said of those that do not: one case for each condition and reason.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::super::{Compiled, Compiler};
use crate::discovery::Source as _;
use crate::discovery::status;
use crate::discovery::testing::World;
use crate::model::{BackendTarget, Filter, RouteKind, ServiceName};
use crate::route::{PortRoutes, RequestHead, RouteTable};

/// Services `shop/web` (80, 8080, and 53 for UDP), `shop/v1`, `shop/v2` and `shop/headless`.
const SERVICES: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: alt, port: 8080}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: a, port: 8080}, {name: https, port: 443}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {clusterIP: 10.96.0.3, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: example.org, ports: [{port: 80}]}
";

const WEB: &str = "{group: '', kind: Service, name: web, namespace: shop}";
const TO_V1: &str = "{backendRefs: [{name: v1, namespace: shop, port: 8080}]}";
const BAD: &str = "{filters: [{type: ExtensionRef, extensionRef: {group: g, kind: k, name: n}}]}";

/// A route; its document begins on line 1 of its file.
fn route(kind: &str, name: &str, parents: &str, rules: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    let hostnames = if kind == "TLSRoute" { "  hostnames: [example.org]\n" } else { "" };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}, generation: 3}}\n\
         spec:\n  parentRefs: [{parents}]\n{hostnames}  rules: [{rules}]\n"
    )
}

fn http(name: &str, parents: &str, rules: &str) -> String {
    route("HTTPRoute", name, parents, rules)
}

/// Each route in a file of its own, in order.
fn load(routes: &[String]) -> (Compiled, Vec<String>) {
    let names: Vec<String> = (0..routes.len()).map(|number| format!("r{number}.yaml")).collect();
    let mut files = vec![("services.yaml", SERVICES)];
    files.extend(names.iter().map(String::as_str).zip(routes.iter().map(String::as_str)));
    World::new(&files).load()
}

/// `name: type=status/reason ...` for each parent of each route.
fn said(compiled: &Compiled) -> Vec<String> {
    let mut lines = Vec::new();
    for status in &compiled.route_statuses {
        for parent in &status.parents {
            let conditions = parent.conditions.iter().map(|condition| {
                assert_eq!(condition.observed_generation, Some(3));
                format!("{:?}={}/{:?}", condition.kind, condition.status, condition.reason)
            });
            let conditions = conditions.collect::<Vec<_>>().join(" ");
            lines.push(format!("{} {:?} {:?}: {conditions}", status.name, parent.layer, parent.ports));
        }
    }
    lines
}

/// The only status line, and the problems.
#[track_caller]
fn only(routes: &[String]) -> (String, Vec<String>) {
    let (compiled, problems) = load(routes);
    let lines = said(&compiled);
    assert_eq!(lines.len(), 1, "{lines:?}");
    (lines[0].clone(), problems)
}

fn web() -> ServiceName {
    ServiceName { namespace: "shop".into(), name: "web".into() }
}

/// The route that a GET of `/` takes from a client of the namespace.
fn taken(compiled: &Compiled, port: u16, client: &str) -> Option<String> {
    let table = RouteTable::new(compiled.attachments.clone());
    let headers = HeaderMap::new();
    let head = RequestHead { host: None, method: &Method::GET, path: "/", query: None, headers: &headers };
    match &**table.for_client(&web(), port, client)? {
        PortRoutes::Requests(router) => router.find(&head).map(|matched| matched.route.to_string()),
        other => Some(format!("{other:?}")),
    }
}

#[test]
fn a_route_without_a_port_has_every_tcp_port_of_its_service() {
    let (compiled, problems) = load(&[http("shop/a", WEB, TO_V1)]);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        said(&compiled),
        ["a Producer [80, 8080]: Accepted=true/Accepted ResolvedRefs=true/ResolvedRefs"]
    );
    assert_eq!(taken(&compiled, 80, "anywhere").as_deref(), Some("HTTPRoute/shop/a"));
    assert_eq!(taken(&compiled, 8080, "shop").as_deref(), Some("HTTPRoute/shop/a"));
    assert_eq!(taken(&compiled, 53, "shop"), None);
}

#[test]
fn a_route_with_a_port_or_a_port_name_has_that_port_alone() {
    for (extra, port) in
        [("port: 8080", 8080), ("sectionName: http", 80), ("sectionName: alt, port: 8080", 8080)]
    {
        let parent = WEB.replace('}', &format!(", {extra}}}"));
        let (compiled, problems) = load(&[http("shop/a", &parent, TO_V1)]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(compiled.route_statuses[0].parents[0].ports, [port], "{extra}");
        assert!(taken(&compiled, port, "shop").is_some());
        assert!(taken(&compiled, if port == 80 { 8080 } else { 80 }, "shop").is_none());
    }
}

#[test]
fn routes_of_the_client_namespace_replace_those_of_the_service() {
    let (compiled, problems) = load(&[
        http("shop/producer", WEB, TO_V1),
        http("team/consumer", &WEB.replace('}', ", port: 80}"), TO_V1),
    ]);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        said(&compiled),
        [
            "producer Producer [80, 8080]: Accepted=true/Accepted ResolvedRefs=true/ResolvedRefs",
            "consumer Consumer [80]: Accepted=true/Accepted ResolvedRefs=true/ResolvedRefs",
        ]
    );
    assert_eq!(taken(&compiled, 80, "team").as_deref(), Some("HTTPRoute/team/consumer"));
    assert_eq!(taken(&compiled, 80, "shop").as_deref(), Some("HTTPRoute/shop/producer"));
    // It has no word on the other port.
    assert_eq!(taken(&compiled, 8080, "team").as_deref(), Some("HTTPRoute/shop/producer"));
}

#[test]
fn a_backend_without_a_namespace_is_of_the_route_s_own() {
    let rule = "{backendRefs: [{name: v1, port: 8080}]}";
    let (line, problems) = only(&[http("team/a", WEB, rule)]);
    assert_eq!(line, "a Consumer [80, 8080]: Accepted=true/Accepted ResolvedRefs=false/BackendNotFound");
    assert_eq!(
        problems,
        ["r0.yaml:6:26: HTTPRoute team/a: spec.rules[0].backendRefs[0]: there is no Service team/v1"]
    );
}

#[test]
fn one_kind_has_a_port_and_the_others_are_told_which() {
    let grpc = route("GRPCRoute", "shop/calls", &WEB.replace('}', ", port: 80}"), TO_V1);
    let tls = route("TLSRoute", "shop/sni", &WEB.replace('}', ", port: 8080}"), TO_V1);
    let tcp = route("TCPRoute", "shop/bytes", &WEB.replace('}', ", port: 8080}"), TO_V1);
    let (compiled, problems) = load(&[tcp.clone(), tls.clone(), http("shop/web", WEB, TO_V1), grpc]);
    assert_eq!(
        said(&compiled),
        [
            "calls Producer [80]: Accepted=true/Accepted ResolvedRefs=true/ResolvedRefs",
            "web Producer [8080]: Accepted=true/Accepted ResolvedRefs=true/ResolvedRefs",
            "sni Producer []: Accepted=false/Conflicted ResolvedRefs=true/ResolvedRefs",
            "bytes Producer []: Accepted=false/Conflicted ResolvedRefs=true/ResolvedRefs",
        ]
    );
    assert_eq!(
        problems,
        [
            "r0.yaml:5:16: TCPRoute shop/bytes: spec.parentRefs[0]: port 8080 has HTTPRoutes, which come first (shop/web)",
            "r1.yaml:5:16: TLSRoute shop/sni: spec.parentRefs[0]: port 8080 has HTTPRoutes, which come first (shop/web)",
        ]
    );
    let accepted = &compiled.route_statuses[1].parents[0].conditions[0].message;
    assert_eq!(accepted, "in force on port 8080; port 80 has GRPCRoutes, which come first (shop/calls)");
    // Without HTTPRoutes, TLS comes before TCP; layers have nothing to do with each other.
    let elsewhere = tcp.replace("namespace: shop, generation", "namespace: team, generation");
    let (compiled, _) = load(&[tcp, tls, elsewhere]);
    assert_eq!(taken(&compiled, 8080, "shop").as_deref(), Some("Tls"));
    assert_eq!(taken(&compiled, 8080, "team").as_deref(), Some("Tcp"));
}

#[test]
fn a_parent_that_is_not_there_is_no_matching_parent() {
    let web = |extra: &str| WEB.replace('}', &format!(", {extra}}}"));
    let cases = [
        (WEB.replace("web", "gone"), "there is no Service shop/gone"),
        (WEB.replace("web", "alias"), "Service shop/alias is an ExternalName, which the mesh leaves alone"),
        (
            WEB.replace("web", "headless"),
            "Service shop/headless has no ClusterIP, so nobody dials it as a service",
        ),
        (web("port: 81"), "Service shop/web has no such TCP port"),
        (web("port: 53"), "Service shop/web has no such TCP port"),
        (web("sectionName: admin"), "Service shop/web has no such TCP port"),
        (web("sectionName: http, port: 8080"), "Service shop/web has no such TCP port"),
        (
            WEB.replace("name: web", "name: v1, port: 443"),
            "port 443 of Service shop/v1 says by its appProtocol or name that it carries something else than a HTTPRoute is for",
        ),
    ];
    for (parent, message) in cases {
        let (line, problems) = only(&[http("shop/a", &parent, TO_V1)]);
        assert_eq!(
            line, "a Producer []: Accepted=false/NoMatchingParent ResolvedRefs=true/ResolvedRefs",
            "{parent}"
        );
        assert_eq!(problems, [format!("r0.yaml:5:16: HTTPRoute shop/a: spec.parentRefs[0]: {message}")]);
    }
}

#[test]
fn a_route_of_no_use_to_a_port_that_says_so_leaves_it_alone() {
    let (compiled, _) = load(&[http("shop/a", &WEB.replace("web", "v1"), TO_V1)]);
    assert_eq!(compiled.route_statuses[0].parents[0].ports, [8080]);
}

#[test]
fn parents_of_other_kinds_are_somebody_else_s() {
    let (compiled, problems) = load(&[http("shop/a", "{name: gateway}, {kind: Service, name: web}", TO_V1)]);
    assert!(compiled.route_statuses[0].parents.is_empty() && compiled.attachments.is_empty());
    assert_eq!(
        problems,
        [
            "r0.yaml:5:33: HTTPRoute shop/a: spec.parentRefs[1]: a Service is of the core group: write group: \"\", or this parent is nobody's"
        ]
    );
}

#[test]
fn a_bad_rule_is_dropped_and_its_siblings_live() {
    let (compiled, problems) = load(&[http("shop/a", WEB, &format!("{BAD}, {TO_V1}"))]);
    assert_eq!(
        said(&compiled),
        [
            "a Producer [80, 8080]: Accepted=true/Accepted ResolvedRefs=true/ResolvedRefs PartiallyInvalid=true/UnsupportedValue"
        ]
    );
    let status = &compiled.route_statuses[0];
    assert_eq!((status.rules, status.refused_rules.len(), status.refused_rules[0].rule), (1, 1, 0));
    assert_eq!(
        status.parents[0].conditions[2].message,
        "Dropped Rule 0: spec.rules[0].filters[0].type: ExtensionRef is not supported"
    );
    assert_eq!(
        problems,
        ["r0.yaml:6:29: HTTPRoute shop/a: spec.rules[0].filters[0].type: ExtensionRef is not supported"]
    );
    assert!(taken(&compiled, 80, "shop").is_some());
}

#[test]
fn a_route_whose_rules_are_all_bad_is_not_accepted_and_has_no_port() {
    let (compiled, problems) = load(&[http("shop/a", WEB, &format!("{BAD}, {BAD}"))]);
    assert_eq!(
        said(&compiled),
        ["a Producer []: Accepted=false/UnsupportedValue ResolvedRefs=true/ResolvedRefs"]
    );
    assert_eq!(problems.len(), 2);
    assert_eq!(taken(&compiled, 80, "shop"), None);

    let both = "{filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}, {type: RequestRedirect, requestRedirect: {hostname: a.b}}]}";
    let (line, _) = only(&[http("shop/a", WEB, both)]);
    assert_eq!(line, "a Producer []: Accepted=false/IncompatibleFilters ResolvedRefs=true/ResolvedRefs");
    // A route of another kind that can be carried out has the port then.
    let tcp = route("TCPRoute", "shop/bytes", WEB, TO_V1);
    let (compiled, _) = load(&[http("shop/a", WEB, BAD), tcp]);
    assert_eq!(taken(&compiled, 80, "shop").as_deref(), Some("Tcp"));
}

#[test]
fn every_broken_reference_has_its_reason() {
    let cases = [
        ("{name: gone, port: 80}", "BackendNotFound", "there is no Service shop/gone"),
        ("{name: v1, port: 9}", "BackendNotFound", "Service shop/v1 has no port 9"),
        (
            "{name: alias, port: 80}",
            "BackendNotFound",
            "Service shop/alias is an ExternalName, which the mesh leaves alone",
        ),
        (
            "{group: example.org, kind: Bucket, name: b}",
            "InvalidKind",
            "Bucket.example.org is not a kind of backend here: use a Service",
        ),
        ("{name: v1, port: 53}", "UnsupportedProtocol", "port 53 of Service shop/v1 is a UDP port"),
        (
            "{name: v1, port: 443}",
            "UnsupportedProtocol",
            "port 443 of Service shop/v1 speaks TLS by itself, which requests cannot be sent through",
        ),
    ];
    for (backend, reason, message) in cases {
        let rule = format!("{{backendRefs: [{{name: v1, port: 8080}}, {backend}]}}");
        let (compiled, problems) = load(&[http("shop/a", WEB, &rule)]);
        assert_eq!(
            said(&compiled),
            [format!("a Producer [80, 8080]: Accepted=true/Accepted ResolvedRefs=false/{reason}")]
        );
        assert_eq!(
            problems,
            [format!("r0.yaml:6:50: HTTPRoute shop/a: spec.rules[0].backendRefs[1]: {message}")]
        );
        let backends = &compiled.attachments[0].routes[0].rules[0].backends;
        assert!(matches!(backends[0].target, BackendTarget::Service { .. }));
        assert_eq!(backends[1].target, BackendTarget::Invalid { reason: message.into() });
    }
}

#[test]
fn a_backend_that_is_not_there_is_told_even_where_nothing_goes_to_it() {
    let rule = "{backendRefs: [{name: v1, port: 8080}, {name: v3, port: 8080, weight: 0}]}";
    let (line, _) = only(&[http("shop/a", WEB, rule)]);
    assert_eq!(line, "a Producer [80, 8080]: Accepted=true/Accepted ResolvedRefs=false/BackendNotFound");
}

#[test]
fn a_mirror_that_leads_nowhere_is_found_on_rules_and_backends() {
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}";
    let rule =
        format!("{{filters: [{mirror}], backendRefs: [{{name: v1, port: 8080, filters: [{mirror}]}}]}}");
    let (compiled, problems) = load(&[http("shop/a", WEB, &rule)]);
    let fields: Vec<_> = problems.iter().map(|text| text.split(": ").nth(2).unwrap()).collect();
    assert_eq!(
        fields,
        [
            "spec.rules[0].filters[0].requestMirror.backendRef",
            "spec.rules[0].backendRefs[0].filters[0].requestMirror.backendRef"
        ]
    );
    let rule = &compiled.attachments[0].routes[0].rules[0];
    for filter in rule.filters.iter().chain(&rule.backends[0].filters) {
        let Filter::Mirror(mirror) = filter else { panic!("{filter:?}") };
        assert!(matches!(mirror.backend, BackendTarget::Invalid { .. }));
    }
}

#[test]
fn age_is_by_time_of_creation_and_else_by_place() {
    let dated = |name: &str, time: &str| {
        let created = format!("generation: 3, creationTimestamp: '{time}'");
        http(name, WEB, TO_V1).replace("generation: 3", &created)
    };
    let oldest = |routes: &[String]| taken(&load(routes).0, 80, "shop").unwrap();
    let (new, old) = (dated("shop/new", "2026-01-02T00:00:00Z"), dated("shop/old", "2026-01-01T00:00:00Z"));
    assert_eq!(oldest(&[new.clone(), old]), "HTTPRoute/shop/old");
    assert_eq!(oldest(&[http("shop/b", WEB, TO_V1), http("shop/a", WEB, TO_V1)]), "HTTPRoute/shop/b");
    // One without a time is younger than any that has one.
    assert_eq!(oldest(&[http("shop/a", WEB, TO_V1), new]), "HTTPRoute/shop/new");
}

#[test]
fn two_parents_of_one_route_with_one_port_attach_it_once() {
    let both = format!("{WEB}, {}", WEB.replace('}', ", port: 80}"));
    let (compiled, _) = load(&[http("shop/a", &both, TO_V1)]);
    let routes: Vec<_> = compiled.attachments.iter().map(|one| (one.port, one.routes.len())).collect();
    assert_eq!(routes, [(80, 1), (8080, 1)]);
    assert_eq!(compiled.route_statuses[0].parents.len(), 2);
}

#[test]
fn routes_that_did_not_change_stay_the_same_objects() {
    let mut world = World::new(&[("services.yaml", SERVICES), ("b.yaml", &http("shop/b", WEB, TO_V1))]);
    let mut compiler = Compiler::default();
    let mut load = |world: &mut World| {
        world.source().refresh(true).unwrap();
        let changed = world.source().take_changed();
        let step = compiler.follow(world.source().objects(), &changed);
        step.routes.expect("routes").attachments[0].routes.clone()
    };
    let first = load(&mut world);
    world.write("c.yaml", &http("shop/c", WEB, TO_V1));
    let second = load(&mut world);
    assert!(second.iter().any(|route| std::sync::Arc::ptr_eq(route, &first[0])));
    // Its backend goes: the object is the same, what it means is not.
    world.write("services.yaml", &SERVICES.replace("name: v1", "name: v9"));
    let third = load(&mut world);
    assert!(third.iter().all(|route| !std::sync::Arc::ptr_eq(route, &first[0])));
}

#[test]
fn a_condition_keeps_its_date_until_its_status_changes() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let mut world = World::new(&[("services.yaml", SERVICES), ("a.yaml", &http("shop/a", WEB, TO_V1))]);
    let mut first = world.load().0.route_statuses;
    status::date(&mut first, &[], at(1));
    world.write("services.yaml", &SERVICES.replace("name: v1", "name: v9"));
    let mut second = world.load().0.route_statuses;
    status::date(&mut second, &first, at(2));
    let times = |statuses: &[status::RouteStatus]| -> Vec<_> {
        let conditions = statuses[0].parents[0].conditions.iter();
        conditions.map(|condition| condition.last_transition_time.unwrap()).collect()
    };
    assert_eq!((times(&first), times(&second)), (vec![at(1), at(1)], vec![at(1), at(2)]));
}

#[test]
fn a_status_reads_as_gateway_api_writes_it() {
    let (compiled, _) = load(&[http("team/a", &WEB.replace('}', ", port: 80}"), TO_V1)]);
    let mut statuses = compiled.route_statuses;
    status::date(&mut statuses, &[], SystemTime::UNIX_EPOCH);
    let found: Value = json!(statuses);
    assert_eq!(
        found,
        json!([{
            "kind": "HTTPRoute", "namespace": "team", "name": "a", "generation": 3, "hostnames": [],
            "rules": 1, "refusedRules": [],
            "parents": [{
                "parentRef": {"group": "", "kind": "Service", "namespace": "shop", "name": "web", "port": 80},
                "controllerName": "weft.dev/mesh", "layer": "consumer", "ports": [80],
                "conditions": [
                    {"type": "Accepted", "status": "True", "reason": "Accepted",
                     "message": "in force on port 80", "observedGeneration": 3,
                     "lastTransitionTime": "1970-01-01T00:00:00Z"},
                    {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs",
                     "message": "every backend exists", "observedGeneration": 3,
                     "lastTransitionTime": "1970-01-01T00:00:00Z"}
                ]
            }]
        }])
    );
    assert_eq!(statuses[0].kind, RouteKind::Http);
}
