//! Load balancing of connections: a service spreads over its endpoints, keeps to its node where it is asked to, drains
//! what is leaving, and tries another endpoint while no byte was sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_tests::wire::Serve;
use mesh_tests::{Lab, Probe, World, eventually};

fn world(service: &str) -> World {
    World::new()
        .meshed("shop")
        .pod("shop/web", "node-1")
        .pod_like("shop/near", "node-1", "server", "")
        .pod_like("shop/far-1", "node-2", "server", "")
        .pod_like("shop/far-2", "node-2", "server", "")
        .service("shop/server", "server", 80, 8080, service)
}

/// Who answers so many calls.
#[track_caller]
fn answers(client: &Probe, to: SocketAddr, calls: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..calls {
        let greeting = client.call(to).unwrap_or_else(|refusal| panic!("{to}: {refusal}"));
        *answers.entry(greeting.pod).or_default() += 1;
    }
    answers
}

#[test]
fn connections_spread_over_all_endpoints_of_both_nodes() {
    let lab = Lab::up(&world(""));
    let pods = ["shop/near", "shop/far-1", "shop/far-2"];
    let servers = pods.map(|pod| lab.probe(pod));
    let _served = servers.each_ref().map(|server| server.serve(8080, Serve::Greet));
    let web = lab.probe("shop/web");
    let seen = answers(&web, lab.vip("shop/server", 80), 150);
    // A fair share is 50; with random draws each stays above 25 but once in a million runs.
    assert!(seen.len() == 3 && seen.values().all(|count| *count >= 25), "{seen:?}");

    // Connections that stay open count: of 12 long ones no endpoint has more than two above its share.
    let vip = lab.vip("shop/server", 80);
    let held: Vec<_> = (0..12).map(|_| web.connect(vip).expect("the service answers")).collect();
    let mut open = BTreeMap::new();
    for conn in &held {
        let line = conn.receive().expect("each is greeted");
        let pod = line.split('"').skip_while(|word| *word != "pod").nth(2).unwrap().to_owned();
        *open.entry(pod).or_insert(0) += 1;
    }
    assert!(open.len() == 3 && open.values().all(|count| *count <= 6), "{open:?}");
}

#[test]
fn a_service_that_prefers_its_node_stays_there_while_it_is_ready() {
    let lab = Lab::up(&world("trafficDistribution: PreferSameNode"));
    let pods = ["shop/near", "shop/far-1", "shop/far-2"];
    let servers = pods.map(|pod| lab.probe(pod));
    let _served = servers.each_ref().map(|server| server.serve(8080, Serve::Greet));
    let web = lab.probe("shop/web");
    let vip = lab.vip("shop/server", 80);
    assert_eq!(answers(&web, vip, 20), BTreeMap::from([("near".to_owned(), 20)]));
    lab.set_ready("shop/near", false);
    eventually("calls leave the node", || (web.call(vip).ok()?.pod != "near").then_some(()));
    let seen = answers(&web, vip, 30);
    assert!(seen.len() == 2 && !seen.contains_key("near"), "{seen:?}");
    lab.set_ready("shop/near", true);
    eventually("and come back", || (web.call(vip).ok()?.pod == "near").then_some(()));
    assert_eq!(answers(&web, vip, 20), BTreeMap::from([("near".to_owned(), 20)]));
}

#[test]
fn an_endpoint_that_leaves_keeps_what_is_open_and_gets_nothing_new() {
    let lab = Lab::up(&world(""));
    let pods = ["shop/near", "shop/far-1", "shop/far-2"];
    let servers = pods.map(|pod| lab.probe(pod));
    let _served = servers.each_ref().map(|server| server.serve(8080, Serve::Greet));
    let web = lab.probe("shop/web");
    let vip = lab.vip("shop/server", 80);
    for leaving in ["near", "far-1"] {
        let held = eventually("a connection to the endpoint that will leave", || {
            let conn = web.connect(vip).ok()?;
            conn.receive().ok()?.contains(&format!("\"pod\":\"{leaving}\"")).then_some(conn)
        });
        lab.set_ready(&format!("shop/{leaving}"), false);
        eventually("ten calls in a row go elsewhere", || {
            (0..10).all(|_| web.call(vip).is_ok_and(|greeting| greeting.pod != leaving)).then_some(())
        });
        let seen = answers(&web, vip, 30);
        assert!(!seen.contains_key(leaving), "{seen:?}");
        assert_eq!(held.exchange("still here").as_deref(), Ok("still here"), "{leaving} keeps what was open");
        lab.set_ready(&format!("shop/{leaving}"), true);
        eventually("it is used again", || (web.call(vip).ok()?.pod == leaving).then_some(()));
    }
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_while_no_byte_was_sent() {
    let world = World::new()
        .meshed("shop")
        .pod("shop/web", "node-1")
        .pod_like("shop/far-1", "node-2", "server", "")
        .pod_like("shop/far-2", "node-2", "server", "")
        .service("shop/server", "server", 80, 8080, "");
    let lab = Lab::up(&world);
    let (far, web) = (lab.probe("shop/far-2"), lab.probe("shop/web"));
    let vip = lab.vip("shop/server", 80);
    // Nobody listens in far-1.
    let server = far.serve(8080, Serve::Greet);
    assert_eq!(answers(&web, vip, 20), BTreeMap::from([("far-2".to_owned(), 20)]));
    let refused = lab.v4("shop/far-1", 8080).to_string();
    let tried =
        lab.access_records("node-2").iter().filter(|record| record["ending"] == "connect_refused").count();
    assert!(tried > 0, "far-1 was tried");
    lab.record("node-2", "a try at far-1", |record| record["destination"]["endpoint"] == *refused);
    // Where everybody refuses, so does the service.
    server.stop();
    let refusal = web.call(vip).expect_err("nobody is left").0;
    assert!(refusal.contains("ECONNRE"), "{refusal}");
    let record = lab.record("node-1", "the refusal", |record| record["ending"] == "connect_refused");
    assert_eq!(record["destination"]["service"], "shop/server", "{record}");
    // An application that fails after the first byte is not hidden behind another.
    let restarted = lab.probe("shop/far-1");
    let listener = restarted.listen("[::]:8080".parse().unwrap()).unwrap();
    let conn = web.connect(vip).unwrap();
    conn.send("once").unwrap();
    let accepted = listener.accept().expect("far-1 is the only one now");
    assert_eq!(accepted.receive().as_deref(), Ok("once"));
    accepted.reset().unwrap();
    assert_eq!(conn.receive().unwrap_err().0, "ECONNRESET");
    assert!(listener.accept_within(300).is_err(), "nothing is sent twice");
}
