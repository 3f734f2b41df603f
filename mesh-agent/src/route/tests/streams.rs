//! TLS and TCP routes.

use std::sync::Arc;

use super::fixtures::*;
use crate::model::{Route, RouteKind};
use crate::route::{TcpRouter, TlsRouter};

fn route(kind: RouteKind, name: &str, backends: &[&str]) -> Route {
    route_of(kind, name, backends.iter().map(|backend| rule(vec![every()], backend)).collect())
}

#[test]
fn a_server_name_finds_its_route() {
    let tls = |name: &str, hosts: &[&str]| Arc::new(route(RouteKind::Tls, name, &[name]).hosts(hosts));
    let routes = [
        tls("exact", &["a.example"]),
        tls("wild", &["*.example"]),
        tls("wilder", &["*.b.example"]),
        tls("second", &["A.example".to_lowercase().as_str(), "other.test"]),
    ];
    let named = TlsRouter::new(&routes);
    let found = |router: &TlsRouter, sni| router.find(sni).map(|found| found.route.name.to_string());
    let table = [
        (Some("a.example"), Some("exact")),
        (Some("A.Example"), Some("exact")),
        (Some("x.example"), Some("wild")),
        (Some("x.b.example"), Some("wilder")),
        (Some("b.example"), Some("wild")),
        (Some("other.test"), Some("second")),
        (Some("example"), None),
        (None, None),
    ];
    for (sni, expected) in table {
        assert_eq!(found(&named, sni).as_deref(), expected, "{sni:?}");
    }
    let with_default = TlsRouter::new(&[routes[0].clone(), tls("default", &[])]);
    assert_eq!(found(&with_default, None).as_deref(), Some("default"));
    assert_eq!(found(&with_default, Some("z.test")).as_deref(), Some("default"));
    assert_eq!(found(&with_default, Some("a.example")).as_deref(), Some("exact"));
}

#[test]
fn a_route_without_rules_leaves_its_name_to_wider_ones() {
    let empty = Arc::new(route(RouteKind::Tls, "empty", &[]).hosts(&["a.example"]));
    let wide = Arc::new(route(RouteKind::Tls, "wide", &["x"]).hosts(&["*.example"]));
    let found = TlsRouter::new(&[empty, wide]).find(Some("a.example")).cloned();
    assert_eq!(found.expect("the wide one").route.name.as_ref(), "wide");
}

#[test]
fn the_first_rule_of_the_oldest_route_takes_every_connection() {
    let tcp =
        |name: &str, rank, backends: &[&str]| Arc::new(route(RouteKind::Tcp, name, backends).rank(rank));
    let routes =
        [tcp("a", 3, &["new"]), tcp("c", 2, &["old", "never"]), tcp("d", 2, &["z"]), tcp("b", 1, &[])];
    let router = TcpRouter::new(&routes);
    let found = router.find().expect("a rule");
    assert_eq!((found.route.name.as_ref(), found.rule.index), ("c", 0));
    assert!(TcpRouter::new(&routes[3..]).find().is_none());
}
