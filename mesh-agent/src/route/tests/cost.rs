//! A search looks at the alternatives for its own path and host, however many others there are. Counted, not timed.

use super::fixtures::*;
use crate::model::{RequestMatch, Route};
use crate::route::ask::Ask;

/// How many alternatives are looked at for a request, and which backend it gets.
fn looked_at(routes: Vec<Route>, sent: &Sent) -> usize {
    let router = router(routes);
    let ask = Ask::new(sent.head());
    router.answer(&ask).expect("a rule");
    ask.looked_at.get()
}

/// The same request costs the same beside `others` and without them.
#[track_caller]
fn unmoved_by(others: impl Iterator<Item = RequestMatch>, own: &[RequestMatch], line: &str) {
    let sent = Sent::new(line, &[]);
    let mut rules: Vec<_> = own.iter().map(|one| rule(vec![one.clone()], "own")).collect();
    let alone = looked_at(vec![http("alone", rules.clone())], &sent);
    rules.extend(others.map(|other| rule(vec![other], "other")));
    assert!(rules.len() > 1000);
    assert_eq!(looked_at(vec![http("crowded", rules)], &sent), alone, "{line}");
    assert!(alone <= own.len());
}

#[test]
fn rules_on_other_paths_cost_nothing() {
    let own = [exact("/shop/cart").header("x", "1"), prefix("/shop/cart"), prefix("/shop"), every()];
    let line = "GET /shop/cart";
    unmoved_by((0..1000).map(|n| exact(&format!("/shop/cart/{n}"))), &own, line);
    unmoved_by((0..1000).map(|n| prefix(&format!("/shop/{n}"))), &own, line);
    unmoved_by((0..1000).map(|n| prefix(&format!("/shop/cart/{n}/below"))), &own, line);
    unmoved_by((0..1000).map(|n| regex(&format!("/shop/{n}/[a-z]+"))), &own, line);
}

#[test]
fn a_thousand_expressions_are_asked_at_once() {
    let own = [regex("/items/[0-9]+"), every()];
    unmoved_by((0..1000).map(|n| regex(&format!("/other/{n}/[0-9]+"))), &own, "GET /items/7");
}

#[test]
fn other_calls_cost_nothing() {
    let own = [call("=shop.Cart", "=Add"), call("=shop.Cart", ""), call("", "")];
    let line = "POST /shop.Cart/Add";
    unmoved_by((0..1000).map(|n| call("=shop.Cart", &format!("=Add{n}"))), &own, line);
    unmoved_by((0..1000).map(|n| call(&format!("=shop.Cart{n}"), "")), &own, line);
    unmoved_by((0..1000).map(|n| call(&format!("~shop.Other{n}.*"), "=Add")), &own, line);
}

#[test]
fn routes_for_other_hosts_cost_nothing() {
    let own = || http("own", vec![rule(vec![every()], "own")]).hosts(&["own.example"]);
    let sent = Sent::new("GET /", &[]).to(Some("own.example"));
    let others = (0..1000).map(|n| {
        let hosts = [format!("{n}.example"), format!("*.{n}.example")];
        http(&format!("other-{n}"), vec![rule(vec![every()], "other")])
            .hosts(&hosts.each_ref().map(String::as_str))
    });
    let crowded: Vec<_> = others.chain([own()]).collect();
    assert_eq!(looked_at(vec![own()], &sent), 1);
    assert_eq!(looked_at(crowded, &sent), 1);
}

#[test]
fn alternatives_on_one_path_are_looked_at_in_order() {
    let rules = (0..100).map(|n| rule(vec![exact("/a").header("n", &n.to_string())], "x")).collect();
    let route = http("same", rules);
    let third = Sent::new("GET /a", &[("n", "2")]);
    assert_eq!(looked_at(vec![route], &third), 3);
}
