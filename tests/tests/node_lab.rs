//! The lab itself: commands in pods are left as they are, labs do not meet, and one that ends or fails leaves nothing.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use mesh_tests::lab::Options;
use mesh_tests::wire::Serve;
use mesh_tests::{Lab, World};

fn world() -> World {
    World::new()
        .meshed("shop")
        .unmeshed("outside")
        .pod("shop/web", "node-1")
        .pod("shop/far", "node-2")
        .pod("outside/plain", "node-1")
        .service("shop/far", "far", 80, 8080, "")
}

#[test]
fn a_command_in_a_pod_keeps_its_exit_code_input_and_output() {
    let lab = Lab::up_with(&world(), &Options::default().arg("--no-mesh"));
    assert_eq!(lab.exec("shop/web", &["sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(lab.exec("shop/web", &["/nowhere"]).status.code(), Some(127));
    assert_eq!(lab.exec("shop/nobody", &["true"]).status.code(), Some(125));
    let output = lab.exec("shop/web", &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut cat = lab.spawn("shop/web", &["cat"]);
    let mut input = cat.0.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let mut back = Vec::new();
    std::io::Read::read_to_end(cat.0.stdout.as_mut().unwrap(), &mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert!(back == bytes, "all bytes, unchanged");
    let own = lab.v4("shop/web", 0).ip().to_string();
    assert!(lab.exec_ok("shop/web", &["ip", "-4", "address"]).contains(&own), "in the pod's network");
    let cgroup = lab.exec_ok("shop/web", &["cat", "/proc/self/cgroup"]);
    assert!(cgroup.contains(lab.name()) && cgroup.contains("web"), "in the pod's cgroup: {cgroup}");
}

#[test]
fn service_names_resolve_in_pods_as_cluster_dns_has_them() {
    let lab = Lab::up_with(&world(), &Options::default().arg("--no-mesh"));
    let vip = lab.vip("shop/far", 80).ip().to_string();
    for name in ["far", "far.shop", "far.shop.svc", "far.shop.svc.cluster.local"] {
        let found = lab.exec_ok("shop/web", &["getent", "ahosts", name]);
        assert!(found.contains(&vip), "{name}: {found}");
    }
    assert!(lab.exec_ok("outside/plain", &["getent", "ahosts", "far.shop"]).contains(&vip));
    assert!(
        !lab.exec("outside/plain", &["getent", "ahosts", "far"]).status.success(),
        "another namespace's short name"
    );
}

#[test]
fn two_labs_of_one_world_do_not_meet() {
    let (one, two) = (Lab::up(&world()), Lab::up(&world()));
    let (far_one, far_two) = (one.probe("shop/far"), two.probe("shop/far"));
    let (served_one, served_two) = (far_one.serve(8080, Serve::Greet), far_two.serve(8080, Serve::Greet));
    one.probe("shop/web").call(one.vip("shop/far", 80)).expect("the first lab's own server answers");
    assert_eq!((served_one.served().len(), served_two.served().len()), (1, 0));
    one.down();
    two.probe("shop/web").call(two.vip("shop/far", 80)).expect("the second lab goes on");
    two.down();
}

#[test]
fn a_lab_whose_test_panics_is_gone_with_it() {
    let lab = Lab::up(&world());
    let places: Vec<PathBuf> = [lab.dir().to_owned(), lab.pod("shop/web").netns.clone()]
        .into_iter()
        .chain([lab.node("node-1").cgroup.clone(), lab.agent("node-1").pin_dir.clone()])
        .collect();
    assert!(places.iter().all(|place| place.exists()));
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("on purpose");
    }));
    panicked.expect_err("it panicked");
    let left: Vec<_> = places.iter().filter(|place| place.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_lab_that_cannot_come_up_leaves_nothing_and_says_why() {
    // `try_up` looks for leftovers by itself.
    let said = Lab::try_up(&world().object("kind: [\n"), &Options::default()).expect_err("malformed");
    assert!(said.contains("world.yaml"), "{said}");
    let broken = Options::default().agent_arg("--no-such-flag");
    let said = Lab::try_up(&world(), &broken).expect_err("the agents cannot start");
    assert!(said.contains("--no-such-flag"), "the agent's own words: {said}");
}
