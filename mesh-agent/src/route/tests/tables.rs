//! From service, port and client to routes, and how tables follow each other. Replays `MeshPorts`, `MeshConsumerRoute` and
//! what the router decides of `MeshFrontendHostname`; the rest of those is about capture.

use std::sync::Arc;

use super::fixtures::*;
use crate::model::{Route, RouteKind, ServiceName};
use crate::route::{Attachment, PortRoutes, RouteTable, new};

fn service(name: &str) -> ServiceName {
    ServiceName { namespace: "mesh".into(), name: name.into() }
}

fn attach(name: &str, port: u16, consumer: Option<&str>, routes: &[&Arc<Route>]) -> Attachment {
    let routes = routes.iter().map(|route| Arc::clone(route)).collect();
    Attachment { service: service(name), port, consumer: consumer.map(Into::into), routes }
}

fn simple(name: &str, backend: &str) -> Arc<Route> {
    Arc::new(http(name, vec![rule(vec![every()], backend)]))
}

/// The route that a request to a service port takes; `None`: none is attached.
fn taken(table: &RouteTable, name: &str, port: u16, client: &str, sent: &Sent) -> Option<String> {
    match &**table.for_client(&service(name), port, client)? {
        PortRoutes::Requests(router) => router.find(&sent.head()).map(|found| found.route.to_string()),
        PortRoutes::Tls(_) | PortRoutes::Tcp(_) => panic!("not a router for requests"),
    }
}

#[test]
fn a_route_holds_for_the_ports_it_is_attached_to() {
    let (one, both) = (simple("one-port", "x"), simple("both", "x"));
    let table = RouteTable::new(vec![
        attach("echo-v1", 80, None, &[&one]),
        attach("echo-v2", 80, None, &[&both]),
        attach("echo-v2", 8080, None, &[&both]),
        attach("nothing", 80, None, &[]),
    ]);
    let get = Sent::new("GET /", &[]);
    assert_eq!(taken(&table, "echo-v1", 80, "c", &get).as_deref(), Some("HTTPRoute/default/one-port"));
    assert_eq!(taken(&table, "echo-v1", 8080, "c", &get), None);
    assert_eq!(taken(&table, "echo-v2", 80, "c", &get).as_deref(), Some("HTTPRoute/default/both"));
    assert_eq!(taken(&table, "echo-v2", 8080, "c", &get).as_deref(), Some("HTTPRoute/default/both"));
    assert!(table.is_attached(&service("echo-v1"), 80) && !table.is_attached(&service("echo-v1"), 8080));
    assert!(!table.is_attached(&service("nothing"), 80) && !table.is_attached(&service("other"), 80));
}

#[test]
fn the_service_that_is_dialled_decides_and_not_the_host() {
    let table = RouteTable::new(vec![attach("echo-v2", 80, None, &[&simple("of-v2", "x")])]);
    let get = |host| Sent::new("GET /", &[]).to(Some(host));
    assert!(taken(&table, "echo-v2", 80, "c", &get("echo-v1")).is_some());
    assert!(taken(&table, "echo-v1", 80, "c", &get("echo-v2")).is_none());
}

#[test]
fn consumer_routes_replace_producer_routes_for_their_namespace() {
    let producer = simple("producer", "x");
    let consumer = Arc::new(http("far/consumer", vec![rule(vec![prefix("/only")], "x")]));
    let table = RouteTable::new(vec![
        attach("echo", 80, None, &[&producer]),
        attach("echo", 80, Some("far"), &[&consumer]),
        attach("lonely", 80, Some("far"), &[&consumer]),
    ]);
    let (get, only) = (Sent::new("GET /", &[]), Sent::new("GET /only", &[]));
    assert_eq!(taken(&table, "echo", 80, "near", &get).as_deref(), Some("HTTPRoute/default/producer"));
    assert_eq!(taken(&table, "echo", 80, "far", &only).as_deref(), Some("HTTPRoute/far/consumer"));
    // Never merged: what the consumer's routes do not match is not found.
    assert!(table.for_client(&service("echo"), 80, "far").is_some());
    assert_eq!(taken(&table, "echo", 80, "far", &get), None);
    assert!(table.for_client(&service("lonely"), 80, "near").is_none());
    assert!(table.is_attached(&service("lonely"), 80));
}

#[test]
fn one_kind_holds_a_port() {
    let all = [RouteKind::Tcp, RouteKind::Tls, RouteKind::Http, RouteKind::Grpc]
        .map(|kind| Arc::new(route_of(kind, "x", vec![rule(vec![every()], "x")])));
    for (upto, expected) in [(1, "Tcp"), (2, "Tls"), (3, "Requests"), (4, "Requests")] {
        let routes: Vec<_> = all[..upto].iter().collect();
        let table = RouteTable::new(vec![attach("echo", 80, None, &routes)]);
        let held = table.for_client(&service("echo"), 80, "c").expect("routes");
        assert_eq!(format!("{held:?}"), expected);
        let attached: Vec<_> = table.attached().collect();
        assert_eq!(attached.len(), 1);
        assert_eq!(attached[0].routes.len(), 1);
        assert_eq!(attached[0].routes[0].name.kind, all[upto - 1].name.kind);
    }
}

#[test]
fn attachments_to_one_port_count_as_one() {
    let (a, b) = (simple("a", "x"), Arc::new(http("b", vec![rule(vec![exact("/b")], "x")])));
    let parts = [attach("echo", 80, None, &[&a]), attach("echo", 80, None, &[&b, &a])];
    let table = RouteTable::new(parts.to_vec());
    assert_eq!(table.attached().next().expect("one").routes.len(), 2);
    let found = taken(&table, "echo", 80, "c", &Sent::new("GET /b", &[]));
    assert_eq!(found.as_deref(), Some("HTTPRoute/default/b"));
}

#[test]
fn what_did_not_change_is_not_compiled_again() {
    let (same, old, new) = (simple("same", "x"), simple("old", "x"), simple("new", "x"));
    let at =
        |table: &RouteTable, name: &str| table.for_client(&service(name), 80, "c").expect("routes").clone();
    let first = RouteTable::new(vec![
        attach("one", 80, None, &[&same]),
        attach("two", 80, None, &[&old, &same]),
        attach("three", 80, None, &[&same]),
    ]);
    assert!(Arc::ptr_eq(&at(&first, "one"), &at(&first, "three")));
    let second = first.succeeded_by(vec![
        attach("one", 80, None, &[&same]),
        attach("two", 80, None, &[&same, &new]),
        attach("four", 80, None, &[&same, &old]),
    ]);
    assert!(Arc::ptr_eq(&at(&first, "one"), &at(&second, "one")));
    assert!(!Arc::ptr_eq(&at(&first, "two"), &at(&second, "two")));
    assert!(Arc::ptr_eq(&at(&first, "two"), &at(&second, "four")));
    assert!(!second.is_attached(&service("three"), 80));
}

#[test]
fn a_published_table_is_seen_whole_and_announced() {
    let (writer, routes) = new();
    let mut changes = routes.changes();
    assert!(!routes.current().is_attached(&service("echo"), 80));
    let before = routes.current();
    let table = RouteTable::new(vec![attach("echo", 80, None, &[&simple("a", "x")])]);
    assert_eq!(writer.publish(table), 1);
    assert!(changes.has_changed().expect("the writer lives"));
    assert_eq!(*changes.borrow_and_update(), 1);
    assert!(routes.current().is_attached(&service("echo"), 80));
    assert!(!before.is_attached(&service("echo"), 80));
}
