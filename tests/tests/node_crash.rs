//! Crashes: what a dead agent takes with it and what goes on, and what a new one finds.

use std::process::Command;
use std::time::Duration;

use mesh_tests::wire::Serve;
use mesh_tests::{Lab, World, eventually, wait};
use serde_json::Value;

/// A dead agent is noticed after this (`HEARTBEAT_AGE_MAX` of the agent), and what a busy machine adds.
const NOTICED: Duration = Duration::from_millis(1000);
const BUSY: Duration = Duration::from_millis(500);

fn world() -> World {
    World::new()
        .meshed("shop")
        .meshed_plain_when_down("open")
        .pod("shop/web", "node-1")
        .pod("shop/near", "node-1")
        .pod("shop/far", "node-2")
        .pod("open/loose", "node-1")
        .pod("open/server", "node-2")
}

/// The pinned maps of a node and their numbers, as bpftool sees them.
fn pinned_maps(lab: &Lab, node: &str) -> Vec<(String, u64)> {
    let pins = &lab.agent(node).pin_dir;
    let mut maps: Vec<(String, u64)> = walk(pins)
        .into_iter()
        .filter_map(|path| {
            let shown = bpftool(&["map", "show", "pinned", &path])?;
            Some((path, shown["id"].as_u64()?))
        })
        .collect();
    maps.sort();
    maps
}

/// Every pin of a node.
fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// Names of the programs attached to the cgroup of a node's pods.
fn attached(lab: &Lab, node: &str) -> Vec<String> {
    let pods = &lab.node(node).pods_cgroup;
    let shown = bpftool(&["cgroup", "show", &pods.to_string_lossy()]).expect("bpftool is installed");
    let mut names: Vec<String> = shown
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    names.sort();
    names
}

fn bpftool(words: &[&str]) -> Option<Value> {
    let output = Command::new("bpftool").arg("-j").args(words).output().expect("bpftool is installed");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("bpftool -j prints JSON"))
}

#[test]
fn a_killed_agent_takes_only_its_tunnels_and_a_new_one_finds_the_pins() {
    let mut lab = Lab::up(&world());
    let (near, far, server) = (lab.probe("shop/near"), lab.probe("shop/far"), lab.probe("open/server"));
    let _served = [&near, &far, &server].map(|probe| probe.serve(8080, Serve::Greet));
    let (web, loose) = (lab.probe("shop/web"), lab.probe("open/loose"));
    let open = |to| {
        let conn = web.connect(to).expect("all is well");
        assert!(conn.receive().expect("all is well").contains("\"pod\""));
        conn
    };
    let (local, tunnelled) = (open(lab.v4("shop/near", 8080)), open(lab.v4("shop/far", 8080)));
    loose.call(lab.v4("open/server", 8080)).expect("all is well");
    let before = (pinned_maps(&lab, "node-1"), walk(&lab.agent("node-1").pin_dir), attached(&lab, "node-1"));
    assert!(before.0.len() > 5, "maps are pinned: {:?}", before.0);
    assert!(!before.2.is_empty(), "programs are attached to the pods' cgroup");

    lab.kill_agent("node-1");
    let killed = wait::now();
    // What the kernel carries goes on, at once and later.
    assert_eq!(local.exchange("through the kernel").as_deref(), Ok("through the kernel"));
    let ending = tunnelled.receive().expect_err("a tunnel ends with its agent").0;
    assert!(["ECONNRESET", "eof"].contains(&&*ending), "{ending}");
    // New ones follow the namespace: `open` goes out plain once the agent counts as away, `shop` stays refused.
    wait::within(NOTICED + BUSY, "the plain namespace is let out", || {
        loose.call(lab.v4("open/server", 8080)).ok()
    });
    assert!(killed.elapsed() < NOTICED + BUSY, "it took {:?}", killed.elapsed());
    let record = lab.record("node-2", "a plain connection of loose", |record| {
        record["source"]["pod"] == "loose" && record["path"] == "plain"
    });
    assert_eq!(record["source"].get("identity"), None, "{record}");
    let refusal = web.call(lab.v4("shop/far", 8080)).expect_err("the closed namespace stays closed").0;
    assert_eq!(refusal, "connect: ECONNREFUSED");
    // Same-node pairs that policy has judged need no agent.
    web.call(lab.v4("shop/near", 8080)).expect("the kernel's verdict stands");
    assert_eq!(local.exchange("still").as_deref(), Ok("still"));

    lab.restart_agent("node-1");
    assert_eq!(pinned_maps(&lab, "node-1"), before.0, "the same maps, by number");
    assert_eq!(walk(&lab.agent("node-1").pin_dir), before.1, "the same pins, no second set");
    assert_eq!(attached(&lab, "node-1"), before.2, "no program is attached twice");
    assert_eq!(local.exchange("under the new agent").as_deref(), Ok("under the new agent"));
    web.call(lab.v4("shop/far", 8080)).expect("tunnels work again");
    web.call(lab.v4("shop/near", 8080)).expect("so does the node itself");
    loose.call(lab.v4("open/server", 8080)).expect("and the other namespace");
    let record = lab.record("node-1", "a tunnel of loose", |record| {
        record["source"]["pod"] == "loose" && record["path"] == "tunnel"
    });
    assert_eq!(record["ending"], "closed", "encrypted again: {record}");
    // The connection that outlived an agent is told by the next.
    let sent = local.names.local.to_string();
    drop(local);
    let record = lab.record("node-1", "the survivor's end", |record| {
        record["source"]["address"] == *sent && record["ending"] == "closed"
    });
    let exchanged = "through the kernel".len() + "still".len() + "under the new agent".len();
    assert_eq!(record["bytes_sent"], exchanged, "{record}");
    lab.down();
}

#[test]
fn calls_under_way_while_an_agent_dies_fail_quickly_or_not_at_all() {
    let mut lab = Lab::up(&world());
    let (near, far) = (lab.probe("shop/near"), lab.probe("shop/far"));
    let _served = [&near, &far].map(|probe| probe.serve(8080, Serve::Greet));
    let web = lab.probe("shop/web");
    let local = web.load(&[lab.v4("shop/near", 8080)], 2000);
    let tunnelled = lab.probe("shop/web");
    let remote = tunnelled.load(&[lab.v4("shop/far", 8080)], 2000);
    eventually("traffic flows", || (local.seen().good > 20 && remote.seen().good > 20).then_some(()));
    lab.kill_agent("node-1");
    eventually("tunnelled calls fail", || (remote.seen().bad > 20).then_some(()));
    lab.restart_agent("node-1");
    let failed = remote.seen().bad;
    let good = remote.seen().good;
    eventually("and go through again", || (remote.seen().good > good + 20).then_some(()));
    let (local, remote) = (local.stop(), remote.stop());
    assert!(
        remote.faults.iter().all(|fault| !fault.contains("timeout")),
        "nothing hangs: {:?}",
        remote.faults
    );
    assert!(remote.bad <= failed + 2, "no failure after the restart: {} then {}", failed, remote.bad);
    assert_eq!((local.bad, &local.faults), (0, &Vec::new()), "the kernel's own connections never fail");
}

#[test]
fn nothing_is_left_when_everything_was_killed() {
    let lab = Lab::up(&world());
    let web = lab.probe("shop/web");
    let far = lab.probe("shop/far");
    let _server = far.serve(8080, Serve::Greet);
    web.call(lab.v4("shop/far", 8080)).expect("all is well");
    for node in ["node-1", "node-2"] {
        lab.kill_agent(node);
    }
    lab.kill(lab.control());
    let programs = attached(&lab, "node-1");
    assert!(!programs.is_empty(), "the programs outlive the agents");
    // `down` looks for namespaces, cgroups, pins and processes, and fails on any.
    lab.down();
}
