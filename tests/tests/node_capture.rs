//! Capture: programs see the addresses they would see without a mesh, every connection of an enrolled pod is caught, and
//! nothing a pod can do gets it out or makes the agent talk to itself.

use std::net::SocketAddr;

use mesh_tests::lab::{canonical, mapped};
use mesh_tests::wire::{Greeting, Serve};
use mesh_tests::{Lab, World};

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
