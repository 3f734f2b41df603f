//! Pods that are found by their control groups, as kubelet and the container runtime make them: no file tells the agent.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_tests::lab::Options;
use mesh_tests::wait::within;
use mesh_tests::wire::Serve;
use mesh_tests::{Lab, World, eventually};
use serde_json::{Value, json};

/// The UID of the pod that is made by hand, another one in each lab: agents look for its group in the whole tree, where that of a
/// lab beside it is too.
fn uid(lab: &Lab) -> String {
    let mut hasher = DefaultHasher::new();
    lab.name().hash(&mut hasher);
    format!("0b6a3c5e-9f1d-4a52-8f0e-{:012x}", hasher.finish() >> 16)
}

fn world() -> World {
    World::new()
        .meshed("shop")
        .meshed_plain_when_down("open")
        .pod("shop/web", "node-1")
        .pod("shop/near", "node-1")
        .pod("shop/far", "node-2")
        .pod("open/loose", "node-1")
}

fn groups() -> Options {
    Options::default().arg("--enrolment").arg("groups")
}

/// A pod of node-1 that a kubelet of the test's own makes: a network namespace on the node's bridge, and a control group.
struct ByHand<'a> {
    lab: &'a Lab,
    name: String,
    ip: String,
    group: PathBuf,
}

impl<'a> ByHand<'a> {
    fn new(lab: &'a Lab, host: u8) -> Self {
        let mine = lab.v4("shop/web", 0).ip().to_string();
        let net = mine.rsplit_once('.').expect("four parts").0;
        let group = lab.node("node-1").pods_cgroup.join(format!("burstable/pod{}", uid(lab)));
        let made =
            Self { lab, name: format!("{}-late{host}", lab.name()), ip: format!("{net}.{host}"), group };
        let name = made.name.as_str();
        let node = lab.node("node-1").netns.file_name().expect("it has a name").to_str().expect("ASCII");
        ip(&["netns", "add", name]);
        let port = format!("late{host}");
        ip(&["-n", node, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", name]);
        ip(&["-n", node, "link", "set", &port, "master", "pods", "up"]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        ip(&["-n", name, "link", "set", "eth0", "up"]);
        ip(&["-n", name, "addr", "add", &format!("{}/24", made.ip), "dev", "eth0"]);
        ip(&["-n", name, "route", "add", "default", "via", &format!("{net}.1")]);
        made
    }

    fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Tells the API of the pod, with its address or before it has one.
    fn tell(&self, namespace: &str, account: &str, ip: Option<&str>) {
        let status =
            ip.map(|ip| format!("status: {{podIP: {ip}, podIPs: [{{ip: {ip}}}]}}\n")).unwrap_or_default();
        let uid = uid(self.lab);
        self.lab.apply(
            "late.yaml",
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: late, namespace: {namespace}, uid: {uid}}}\n\
                 spec: {{nodeName: node-1, serviceAccountName: {account}}}\n{status}"
            ),
        );
    }
}

impl Drop for ByHand<'_> {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(words: &[&str]) {
    let done = Command::new("ip").args(words).output().expect("ip (iproute2) is installed");
    assert!(done.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn problems(lab: &Lab) -> Vec<String> {
    let page = lab.view("node-1", "/node-problems");
    page.as_array().expect("a list").iter().map(|one| one.as_str().expect("text").to_owned()).collect()
}

/// The record of a connection from an address of node-1, as node-2 tells it.
fn record_from(lab: &Lab, ip: &str, path: &str) -> Value {
    lab.record("node-2", &format!("a {path} connection of {ip}"), |record| {
        let from = record["source"]["address"].as_str().unwrap_or_default();
        from.starts_with(&format!("{ip}:")) && record["path"] == path
    })
}

#[test]
fn pods_are_found_by_their_control_groups_in_both_drivers_layouts() {
    for layout in ["groups", "groups-systemd"] {
        let lab = Lab::up_with(&world(), &Options::default().arg("--enrolment").arg(layout));
        let (near, far, web) = (lab.probe("shop/near"), lab.probe("shop/far"), lab.probe("shop/web"));
        let _served = [near.serve(8080, Serve::Greet), far.serve(8080, Serve::Greet)];
        web.call(lab.v4("shop/near", 8080)).expect("in the kernel");
        web.call(lab.v4("shop/far", 8080)).expect("through a tunnel");
        let record = lab.record("node-2", "web's tunnel", |record| record["path"] == "tunnel");
        assert_eq!(
            record["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/web",
            "{layout}: {record}"
        );
        assert!(problems(&lab).is_empty(), "{layout}: {:?}", problems(&lab));
        // The agent stands among the pods, as that of a DaemonSet does, and its own connections do not come back to it.
        let agent = fs::read_to_string(format!("/proc/{}/cgroup", lab.agent("node-1").pid)).expect("it runs");
        let pods = &lab.node("node-1").pods_cgroup;
        let own = agent.lines().find_map(|line| line.strip_prefix("0::/")).expect("the unified hierarchy");
        assert!(
            pods.ancestors().any(|root| root.join(own).starts_with(pods)),
            "{own} is below {}",
            pods.display()
        );
    }
}

#[test]
fn a_pod_joins_and_leaves_by_its_namespaces_label_without_a_restart() {
    let namespace =
        |label: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: yard{label}}}\n");
    let enrolled = namespace(", labels: {weft.dev/mesh: enabled}");
    let lab = Lab::up_with(&world().file("yard.yaml", &namespace("")).pod("yard/hand", "node-1"), &groups());
    let (far, hand) = (lab.probe("shop/far"), lab.probe("yard/hand"));
    let _served = far.serve(8080, Serve::Greet);
    let target = lab.v4("shop/far", 8080);
    let path = |expected: &str| {
        eventually(&format!("connections of hand are {expected}"), || {
            let before = lab.access_records("node-2").len();
            hand.call(target).expect("it is served either way");
            let records = lab.access_records("node-2").split_off(before);
            records.iter().any(|record| record["path"] == expected).then_some(())
        });
    };
    path("plain");
    let kept = hand.connect(target).expect("made while outside");
    kept.receive().expect("greeted");
    lab.apply("yard.yaml", &enrolled);
    path("tunnel");
    assert_eq!(kept.exchange("still").as_deref(), Ok("still"), "a connection from before goes on");
    lab.apply("yard.yaml", &namespace(""));
    path("plain");
    lab.apply("yard.yaml", &enrolled);
    path("tunnel");
}

#[test]
fn until_it_is_caught_a_pod_is_refused_where_its_namespace_is_closed_and_passes_where_it_is_plain() {
    for (namespace, account, closed) in [("shop", "web", true), ("open", "loose", false)] {
        let lab = Lab::up_with(&world(), &groups());
        let far = lab.probe("shop/far");
        let _served = far.serve(8080, Serve::Greet);
        let target = lab.v4("shop/far", 8080);
        let late = ByHand::new(&lab, 200);
        // An init container's process; the API does not know the pod yet, so nobody can tell it from one outside the mesh.
        let init = lab.probe_at("late's init container", &late.group.join("init"), &late.netns());
        init.call(target).expect("a pod that nobody knows is left alone");
        record_from(&lab, &late.ip, "plain");

        late.tell(namespace, account, None);
        if closed {
            eventually("the pod without an address is held", || {
                (init.call(target).err()?.0 == "connect: ECONNREFUSED").then_some(())
            });
            lab.metric_reaches("node-1", "weft_kernel_verdicts_total", &[("reason", "unknown_netns")], 1.0);
        } else {
            let before = lab.access_records("node-2").len();
            init.call(target).expect("it passes until it is caught");
            let record = lab.access_records("node-2").remove(before);
            assert_eq!(
                (&record["path"], record["source"].get("identity")),
                (&"plain".into(), None),
                "{record}"
            );
        }
        lab.metric_reaches("node-1", "weft_kernel_events_total", &[("kind", "unknown_netns")], 1.0);

        late.tell(namespace, account, Some(&late.ip));
        eventually("the pod is caught", || is_caught(&lab).then_some(()));
        init.call(target).expect("caught");
        let record = record_from(&lab, &late.ip, "tunnel");
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        assert_eq!(record["source"]["identity"], *identity, "{record}");
    }
}

fn is_caught(lab: &Lab) -> bool {
    lab.metrics("node-1").sum("weft_enrolled_pods", &[]) >= 4.0
}

#[test]
fn a_pod_whose_sandbox_is_made_anew_is_caught_anew() {
    let lab = Lab::up_with(&world(), &groups());
    let far = lab.probe("shop/far");
    let _served = far.serve(8080, Serve::Greet);
    let target = lab.v4("shop/far", 8080);
    let old = ByHand::new(&lab, 200);
    let first = lab.probe_at("the first sandbox", &old.group.join("first"), &old.netns());
    old.tell("shop", "web", Some(&old.ip));
    eventually("it is caught", || is_caught(&lab).then_some(()));
    first.call(target).expect("caught");
    record_from(&lab, &old.ip, "tunnel");

    // The runtime makes another network namespace, and the pod gets another address.
    let new = ByHand::new(&lab, 201);
    drop(first);
    let second = lab.probe_at("the second sandbox", &new.group.join("second"), &new.netns());
    assert_eq!(
        second.call(target).expect_err("not believed before the API says so").0,
        "connect: ECONNREFUSED"
    );
    new.tell("shop", "web", Some(&new.ip));
    eventually("it is caught again", || second.call(target).ok());
    let record = record_from(&lab, &new.ip, "tunnel");
    assert_eq!(record["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/web", "{record}");
}

#[test]
fn a_process_that_entered_another_pods_network_lends_it_nothing() {
    let lab = Lab::up_with(&world(), &groups());
    let (far, near) = (lab.probe("shop/far"), lab.probe("shop/near"));
    let _served = far.serve(8080, Serve::Greet);
    let late = ByHand::new(&lab, 200);
    // All that the pod has is a process in near's network.
    let _thief = lab.spawn_at(&late.group.join("app"), &lab.pod("shop/near").netns, &["sleep", "1000"]);
    late.tell("shop", "web", Some(&late.ip));
    let problem =
        eventually("it is told", || problems(&lab).into_iter().find(|one| one.contains("shop/late")));
    assert!(problem.contains("holds none of the pod's addresses"), "{problem}");
    near.call(lab.v4("shop/far", 8080)).expect("near is served as ever");
    let record = lab.record("node-2", "near's tunnel", |record| record["path"] == "tunnel");
    assert_eq!(record["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/near", "{record}");
    // With a process in its own network it is caught, though the other one is older.
    let own = lab.probe_at("late", &late.group.join("own"), &late.netns());
    eventually("it is caught", || own.call(lab.v4("shop/far", 8080)).ok());
    let record = record_from(&lab, &late.ip, "tunnel");
    assert_eq!(record["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/web", "{record}");
    eventually("the complaint is over", || problems(&lab).is_empty().then_some(()));
}

#[test]
fn a_pod_behind_another_kernel_stays_outside_and_the_reason_is_told() {
    let lab = Lab::up_with(&world(), &groups());
    let (_late, _sandbox) = sealed(&lab);
    let told = eventually("it is told", || problems(&lab).into_iter().find(|one| one.contains("gVisor")));
    assert!(told.contains("shop/late") && told.contains("outside the mesh"), "{told}");
    assert!(!is_caught(&lab), "not half captured");
}

/// A pod in a sandboxed runtime.
fn sealed(lab: &Lab) -> (ByHand<'_>, impl Sized) {
    let late = ByHand::new(lab, 200);
    // What stands for the whole pod is the runtime's own process, under its name.
    let words = ["bash", "-c", "exec -a runsc-sandbox sleep 1000"];
    let sandbox = lab.spawn_at(&late.group.join("sandbox"), &late.netns(), &words);
    late.tell("shop", "web", Some(&late.ip));
    (late, sandbox)
}

#[test]
fn a_pod_that_stays_outside_has_an_event_that_says_why_and_the_others_have_none() {
    // Where all labs are fed by the API the flag is there already.
    let source =
        if std::env::var_os("WEFT_LAB_SOURCE").is_some() { &[][..] } else { &["--source", "kubernetes"] };
    let options = source.iter().fold(groups(), |options, word| options.arg(word));
    let lab = Lab::up_with(&world(), &options);
    let (_late, _sandbox) = sealed(&lab);
    let events = || {
        let list = lab.api("/apis/events.k8s.io/v1/events");
        list["items"].as_array().expect("a list").clone()
    };
    // A complaint must last for 5 s.
    let all =
        within(Duration::from_secs(20), "there is an Event", || Some(events()).filter(|all| !all.is_empty()));
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (&all[0]["regarding"]["name"], &all[0]["regarding"]["uid"]),
        (&json!("late"), &json!(uid(&lab)))
    );
    assert_eq!((&all[0]["type"], &all[0]["reason"]), (&json!("Warning"), &json!("NotEnrolled")));
    assert_eq!(all[0]["reportingInstance"], "node-1");
    assert!(all[0]["note"].as_str().expect("text").contains("gVisor"), "{all:?}");
}
