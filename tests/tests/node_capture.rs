//! Capture: programs see the addresses they would see without a mesh, every connection of an enrolled pod is caught, and
//! nothing a pod can do gets it out or makes the agent talk to itself.

use std::net::SocketAddr;

use mesh_tests::lab::{canonical, mapped};
use mesh_tests::wire::{Greeting, Serve};
use mesh_tests::{Lab, World, eventually};

/// Servers of one app on both nodes, a client on node-1, and a pod outside the mesh.
fn world() -> World {
    World::new()
        .meshed("shop")
        .unmeshed("outside")
        .pod("shop/web", "node-1")
        .pod_like("shop/near", "node-1", "server", "")
        .pod_like("shop/far", "node-2", "server", "")
        .pod("outside/plain", "node-2")
        .service("shop/near", "near-only", 80, 8080, "")
        .service(
            "shop/server",
            "server",
            80,
            8080,
            "clusterIPs: [10.96.7.1, \"fd00:96::7:1\"]\n  clusterIP: 10.96.7.1",
        )
}

/// What both ends must see of a call to `dialled`.
#[track_caller]
fn check_names(lab: &Lab, client: &str, dialled: SocketAddr, greeting: &Greeting) {
    let own = &lab.pod(client).ips;
    let seen = greeting.seen_by_client.expect("the client fills it in");
    assert_eq!(seen.peer, Some(dialled), "getpeername answers what was dialled");
    assert!(own.contains(&canonical(seen.local).ip()), "getsockname is the pod's: {seen:?}");
    assert_eq!(canonical(greeting.client), canonical(seen.local), "accept shows the true client");
    let server = &lab.pod(&format!("shop/{}", greeting.pod)).ips;
    assert!(
        server.contains(&canonical(greeting.local).ip()),
        "the server's own address is its pod's: {greeting:?}"
    );
    assert_eq!(greeting.local.port(), 8080);
}

#[test]
fn both_ends_see_the_addresses_they_would_see_without_a_mesh() {
    let lab = Lab::up(&world());
    let (near, far) = (lab.probe("shop/near"), lab.probe("shop/far"));
    let (_near, _far) = (near.serve(8080, Serve::Greet), far.serve(8080, Serve::Greet));
    let web = lab.probe("shop/web");
    for (server, path) in [("shop/near", ["direct", "splice"]), ("shop/far", ["tunnel", "tunnel"])] {
        for dialled in [lab.v4(server, 8080), lab.v6(server, 8080), lab.mapped(server, 8080)] {
            let greeting = web.call(dialled).unwrap_or_else(|refusal| panic!("{dialled}: {refusal}"));
            check_names(&lab, "shop/web", dialled, &greeting);
            let client = canonical(greeting.client).to_string();
            let record = lab.record("node-1", &client, |record| record["source"]["address"] == *client);
            assert!(path.contains(&record["path"].as_str().unwrap()), "{record}");
            assert_eq!(record["destination"]["dialled"], canonical(dialled).to_string(), "{record}");
            assert_eq!(record["source"]["pod"], "web", "{record}");
            assert_eq!(record["ending"], "closed", "{record}");
        }
    }
    for vip in lab.vips("shop/server") {
        let vip = SocketAddr::new(*vip, 80);
        for dialled in [vip, mapped(vip)] {
            for _ in 0..8 {
                let greeting = web.call(dialled).unwrap_or_else(|refusal| panic!("{dialled}: {refusal}"));
                check_names(&lab, "shop/web", dialled, &greeting);
            }
        }
    }
    lab.down();
}

/// Ports on which something listens in a pod's network namespace.
fn listening_ports(lab: &Lab, pod: &str) -> Vec<u16> {
    let tables = lab.in_pod(pod, || {
        ["tcp", "tcp6"].map(|table| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).expect("/proc is mounted")
        })
    });
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        // 0A is TCP_LISTEN (include/net/tcp_states.h).
        (state == "0A").then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok())?
    };
    tables.iter().flat_map(|table| table.lines().filter_map(port)).collect()
}

#[test]
fn dialling_the_agent_itself_is_refused_and_harmless() {
    let lab = Lab::up(&world());
    let far = lab.probe("shop/far");
    let server = far.serve(8080, Serve::Greet);
    let web = lab.probe("shop/web");
    let agents_own = listening_ports(&lab, "shop/web");
    assert!(agents_own.len() >= 2, "the agent listens in the pod, outbound and inbound: {agents_own:?}");
    let before = lab.access_records("node-1").len();
    let mut dialled = 0;
    for port in &agents_own {
        let loopback = SocketAddr::from(([127, 0, 0, 1], *port));
        for address in [lab.v4("shop/web", *port), lab.v6("shop/web", *port), loopback] {
            dialled += 1;
            web.call(address).expect_err("the agent must not serve itself");
        }
    }
    for own in [lab.v4("shop/web", 15008), SocketAddr::from(([127, 0, 0, 1], 15008))] {
        assert_eq!(web.call(own).unwrap_err().0, "connect: ECONNREFUSED", "nothing listens there");
    }
    // The tunnel port of another pod is the agents' business.
    web.call(lab.v4("shop/far", 15008)).expect_err("in plain, through the agent");
    let to_far = lab.v4("shop/far", 15008).to_string();
    let record =
        lab.record("node-1", "the far tunnel port", |record| record["destination"]["dialled"] == *to_far);
    assert_eq!(record["ending"], "loop", "{record}");
    web.call(lab.v4("shop/near", 15008)).expect_err("in plain, on the same node");
    // One dial, at most one record: nothing went round and round.
    let records = lab.access_records("node-1").split_off(before);
    assert!(records.len() <= dialled + 4, "{} records for {dialled} dials", records.len());
    for record in &records {
        let ending = record["ending"].as_str().unwrap();
        assert!(["loop", "unknown_destination", "connect_refused"].contains(&ending), "{record}");
    }
    assert!(server.served().is_empty());
    // What a pod says to itself is its own business, and all goes on.
    let own = lab.probe("shop/web");
    let _own = own.serve(9000, Serve::Greet);
    for address in
        [lab.v4("shop/web", 9000), lab.v6("shop/web", 9000), SocketAddr::from(([127, 0, 0, 1], 9000))]
    {
        assert_eq!(web.call(address).expect("a pod reaches itself").pod, "web");
    }
    web.call(lab.v4("shop/far", 8080)).expect("the agent goes on");
}

#[test]
fn plain_bytes_on_the_tunnel_port_are_refused_with_their_own_reason() {
    let lab = Lab::up(&world());
    let far = lab.probe("shop/far");
    let (server, own_tunnel_port) = (far.serve(8080, Serve::Greet), far.serve(15008, Serve::Greet));
    let plain = lab.probe("outside/plain");
    let tunnel = plain.connect(lab.v4("shop/far", 15008)).expect("the agent accepts");
    tunnel.send("GET / HTTP/1.1\r\n\r\n").expect("the first bytes leave");
    tunnel.receive().expect_err("and are not answered");
    let record = lab.record("node-2", "plain text on 15008", |record| record["ending"] == "tls_failed");
    assert_eq!(record["reason"], "plaintext_on_tunnel_port", "{record}");
    assert_eq!(record["source"].get("identity"), None, "{record}");
    let labels = [("role", "server"), ("result", "plaintext_on_tunnel_port")];
    lab.metric_reaches("node-2", "weft_tunnel_handshakes_total", &labels, 1.0);
    assert!(server.served().is_empty());
    assert!(own_tunnel_port.served().is_empty(), "a pod's own listener on 15008 gets nothing from outside");
}

#[test]
fn root_in_a_pod_stays_in_the_mesh_under_its_own_name() {
    let strict = policy("shop", &["{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}"]);
    let world = world().pod("shop/guest", "node-1").file("policy.yaml", &strict);
    let lab = Lab::up(&world);
    let far = lab.probe("shop/far");
    let server = far.serve(8080, Serve::Greet);
    let target = lab.v4("shop/far", 8080);
    let (web, guest) = (lab.probe("shop/web"), lab.probe("shop/guest"));
    web.call(target).expect("the policy admits web");
    guest.call(target).expect_err("and not guest");
    let taken = server.served().len();

    // Everything that CAP_NET_ADMIN in the pod's network namespace can turn.
    let web_ip = lab.v4("shop/web", 0).ip().to_string();
    let far_ip = target.ip().to_string();
    for words in [
        vec!["ip", "address", "add", &*format!("{web_ip}/32"), "dev", "lo"],
        vec!["ip", "address", "add", "10.99.0.1/32", "dev", "lo"],
        vec!["ip", "rule", "add", "to", &far_ip, "lookup", "main", "priority", "10"],
        vec!["ip", "neigh", "flush", "all"],
        vec!["ip", "route", "flush", "cache"],
    ] {
        lab.exec_ok("shop/guest", &words);
    }
    let own_tunnel_port = guest.serve(15008, Serve::Greet);
    let refused = lab.access_records("node-2").len();
    guest.call(target).expect_err("with new routes");
    let record = eventually("the refusal's record", || lab.access_records("node-2").get(refused).cloned());
    assert_eq!(record["ending"], "policy_denied", "{record}");
    assert_eq!(record["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/guest", "{record}");
    for from in [&*web_ip, "10.99.0.1"] {
        let from = SocketAddr::new(from.parse().unwrap(), 0);
        let told = lab.access_records("node-1").len();
        let answer = guest.connect_from(from, target).and_then(|conn| conn.receive());
        assert_eq!(answer.expect_err("from an address that is not its own").0, "ECONNRESET");
        let client = format!("{}:", from.ip());
        let record = eventually("its record", || {
            let since = lab.access_records("node-1").split_off(told);
            since
                .into_iter()
                .find(|record| record["source"]["address"].as_str().unwrap().starts_with(&client))
        });
        assert_eq!(record["ending"], "loop", "{record}");
        assert_eq!(
            record["destination"]["pod"], "guest",
            "it did not get further than its own pod: {record}"
        );
    }
    assert_eq!(server.served().len(), taken, "no byte of guest reached the server");
    // Its own listener on the tunnel port does not get other pods' tunnels.
    let _guest_server = guest.serve(8080, Serve::Greet);
    far.call(lab.v4("shop/guest", 8080)).expect("a tunnel into the tampered pod still ends at the agent");
    assert!(own_tunnel_port.served().is_empty());
    web.call(target).expect("the neighbour is not hurt");
}

/// An ALLOW for the servers with these rules.
fn policy(namespace: &str, rules: &[&str]) -> String {
    mesh_tests::world::policy(&format!("{namespace}/servers"), "server", "ALLOW", rules)
}

#[test]
fn a_network_namespace_that_nobody_announced_is_held_where_the_namespace_is_closed() {
    let world = world().meshed_plain_when_down("open").pod("open/loose", "node-1");
    let lab = Lab::up(&world);
    let target = lab.v4("shop/far", 8080);
    let held = lab.probe("shop/web");
    held.unshare();
    assert_eq!(held.connect(target).unwrap_err().0, "ECONNREFUSED");
    lab.metric_reaches("node-1", "weft_kernel_events_total", &[("kind", "unknown_netns")], 1.0);
    lab.metric_reaches("node-1", "weft_kernel_verdicts_total", &[("reason", "unknown_netns")], 1.0);
    let loose = lab.probe("open/loose");
    loose.unshare();
    assert_eq!(
        loose.connect(target).unwrap_err().0,
        "ENETUNREACH",
        "let pass, and the empty namespace has no route"
    );
}

#[test]
fn excluded_ports_are_left_alone_and_the_others_are_not() {
    let world = World::new()
        .meshed("shop")
        .pod_like("shop/web", "node-1", "web", "annotations: {weft.dev/skip-outbound-ports: \"8081\"}")
        .pod_like("shop/far", "node-2", "far", "annotations: {weft.dev/skip-inbound-ports: \"9100\"}")
        .pod_like("shop/near", "node-1", "near", "annotations: {weft.dev/skip-inbound-ports: \"9100\"}");
    let lab = Lab::up(&world);
    let (far, near, web) = (lab.probe("shop/far"), lab.probe("shop/near"), lab.probe("shop/web"));
    let _servers: Vec<_> = [8080, 8081, 9100]
        .into_iter()
        .flat_map(|port| [far.serve(port, Serve::Greet), near.serve(port, Serve::Greet)])
        .collect();
    let call = |pod: &str, port| {
        let dialled = lab.v4(pod, port);
        let greeting = web.call(dialled).unwrap_or_else(|refusal| panic!("{dialled}: {refusal}"));
        check_client(&lab, &greeting);
        greeting.client.to_string()
    };
    fn check_client(lab: &Lab, greeting: &Greeting) {
        let client = canonical(greeting.client).ip();
        assert!(lab.pod("shop/web").ips.contains(&client), "{greeting:?}");
    }
    let plain_out = call("shop/far", 8081);
    let plain_in = call("shop/far", 9100);
    call("shop/near", 8081);
    call("shop/near", 9100);
    let meshed = call("shop/far", 8080);
    let strip = |address: &str| canonical(address.parse().unwrap()).to_string();
    let about = |client: &str| {
        let client = strip(client);
        move |record: &serde_json::Value| record["source"]["address"] == *client
    };
    assert_eq!(lab.record("node-2", "8080", about(&meshed))["path"], "tunnel");
    let record = lab.record("node-2", "8081, which the client excluded", about(&plain_out));
    assert_eq!(record["path"], "plain", "{record}");
    assert!(!lab.access_records("node-1").iter().any(about(&plain_out)), "its agent never saw it");
    assert!(!lab.access_records("node-2").iter().any(about(&plain_in)), "nor did the server's agent");
}

#[test]
fn udp_passes_and_is_counted_but_not_to_those_who_ask_for_identities() {
    let lab = Lab::up(&world().file("policy.yaml", ""));
    let udp = |pod: &str| {
        let probe = lab.probe(pod);
        probe.serve_datagrams(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], 5353)));
        probe
    };
    let _servers = [udp("shop/near"), udp("shop/far"), udp("outside/plain")];
    let (web, plain) = (lab.probe("shop/web"), lab.probe("outside/plain"));
    let meshed = || {
        ["shop/near", "shop/far"]
            .map(|pod| [lab.v4(pod, 5353), lab.v6(pod, 5353), lab.mapped(pod, 5353)])
            .concat()
    };
    for to in meshed() {
        for connect in [true, false] {
            assert_eq!(web.datagram(to, connect).as_deref(), Ok("datagram"), "{to}");
        }
    }
    lab.metric_reaches("node-1", "weft_kernel_verdicts_total", &[("verdict", "udp_pass")], 12.0);
    assert_eq!(lab.metrics("node-1").sum("weft_kernel_verdicts_total", &[("verdict", "udp_deny")]), 0.0);

    lab.apply("policy.yaml", &policy("shop", &["{sources: [{type: AnyAuthenticated}]}"]));
    eventually("UDP to the strict server is refused", || {
        (web.datagram(lab.v4("shop/far", 5353), false).is_err_and(|refusal| refusal.0 == "EPERM"))
            .then_some(())
    });
    for to in meshed() {
        for connect in [true, false] {
            assert_eq!(web.datagram(to, connect).unwrap_err().0, "EPERM", "{to}");
        }
    }
    lab.metric_reaches("node-1", "weft_kernel_verdicts_total", &[("verdict", "udp_deny")], 12.0);
    lab.metric_reaches("node-1", "weft_kernel_verdicts_total", &[("reason", "strict_udp")], 12.0);
    assert_eq!(
        web.datagram(lab.v4("outside/plain", 5353), false).as_deref(),
        Ok("datagram"),
        "outside the mesh"
    );
    assert_eq!(plain.datagram(lab.v4("outside/plain", 5353), false).as_deref(), Ok("datagram"));
}

#[test]
fn destinations_outside_the_mesh_are_untouched_and_empty_services_refused() {
    let world = world().service("shop/empty", "nobody", 80, 8080, "");
    let lab = Lab::up(&world);
    let web = lab.probe("shop/web");
    // Somebody on the node's own network: no pod, no service.
    let listener = lab.in_node("node-2", || std::net::TcpListener::bind("0.0.0.0:7777").unwrap());
    let outside = SocketAddr::new(lab.node("node-2").ips[0], 7777);
    let conn = web.connect(outside).expect("the outside is reached");
    let (mut accepted, client) = listener.accept().unwrap();
    assert_eq!(client, conn.names.local, "from the pod itself");
    assert_eq!(conn.names.peer, Some(outside));
    std::io::Write::write_all(&mut accepted, b"plain").unwrap();
    assert_eq!(conn.receive().as_deref(), Ok("plain"));
    // A pod outside the mesh is dialled through the agent, unencrypted.
    let plain = lab.probe("outside/plain");
    let _server = plain.serve(8080, Serve::Greet);
    let greeting = web.call(lab.v4("outside/plain", 8080)).expect("a pod outside the mesh is reached");
    assert!(lab.pod("shop/web").ips.contains(&canonical(greeting.client).ip()), "{greeting:?}");

    for (client, source) in [("shop/web", "node-1"), ("outside/plain", "node-2")] {
        let probe = lab.probe(client);
        let dialled = lab.vip("shop/empty", 80);
        assert_eq!(probe.call(dialled).unwrap_err().0, "connect: ECONNREFUSED", "{client}");
        lab.metric_reaches(source, "weft_kernel_verdicts_total", &[("reason", "no_endpoint")], 1.0);
        let record = lab.record(source, "the empty service", |record| record["ending"] == "no_endpoint");
        assert_eq!(record["destination"]["service"], "shop/empty", "{record}");
        assert_eq!(record["destination"]["dialled"], dialled.to_string(), "{record}");
        assert_eq!(record["reason"], "no_endpoint", "{record}");
    }
    let labels = [("destination_service", "empty"), ("reason", "no_endpoint")];
    lab.metric_reaches("node-1", "weft_connections_denied_total", &labels, 1.0);
}
