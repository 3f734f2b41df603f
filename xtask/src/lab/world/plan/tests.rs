//! Tables for scheduling and addresses.

use super::*;
use crate::lab::world::parse;

fn planned(world: &str, node_count: Option<usize>, given: &Given) -> Result<Plan> {
    let mut uids = 0;
    let mut new_uid = || {
        uids += 1;
        Ok(format!("new-{uids}"))
    };
    plan(&[parse("w.yaml", world)?], node_count, given, &mut new_uid)
}

fn fresh(world: &str) -> Result<Plan> {
    planned(world, None, &Given::default())
}

fn pod(name: &str, spec: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n")
}

fn service(name: &str, spec: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n")
}

fn ips(plan: &Plan) -> Vec<Vec<String>> {
    plan.pods.iter().map(|pod| pod.ips.iter().map(ToString::to_string).collect()).collect()
}

#[test]
fn pods_without_a_node_are_spread_over_two() {
    let plan = fresh(&["a", "b", "c"].map(|name| pod(name, "")).concat()).unwrap();
    let nodes: Vec<&str> = plan.pods.iter().map(|pod| pod.node.as_str()).collect();
    assert_eq!(nodes, ["node-1", "node-2", "node-1"]);
    assert_eq!(
        ips(&plan),
        [
            ["10.244.1.2", "fd00:10:244:1::2"],
            ["10.244.2.2", "fd00:10:244:2::2"],
            ["10.244.1.3", "fd00:10:244:1::3"]
        ]
    );
}

#[test]
fn nodes_are_those_named_filled_up_to_the_count() {
    let world = pod("a", "nodeName: node-2") + "---\n{apiVersion: v1, kind: Node, metadata: {name: big}}\n";
    assert_eq!(fresh(&world).unwrap().nodes, ["big", "node-2"]);
    assert_eq!(planned(&world, Some(3), &Given::default()).unwrap().nodes, ["big", "node-1", "node-2"]);
    let error = planned(&world, Some(1), &Given::default()).unwrap_err().to_string();
    assert!(error.contains("--nodes 1 is too few"), "{error}");
}

#[test]
fn names_that_would_meet_the_labs_own_are_refused() {
    for node in ["fabric", "control", "a.b", "A"] {
        assert!(fresh(&pod("a", &format!("nodeName: {node}"))).is_err(), "{node}");
    }
    assert!(fresh(&pod("../a", "")).is_err());
    assert!(fresh(&(pod("a", "") + &pod("a", ""))).unwrap_err().to_string().contains("second time"));
}

#[test]
fn applying_again_keeps_addresses_and_uids_of_what_is_unchanged() {
    let first = fresh(&[pod("a", ""), pod("b", ""), service("s", "")].concat()).unwrap();
    let world =
        [pod("new", "nodeName: node-1"), service("r", ""), service("s", ""), pod("b", ""), pod("a", "")]
            .concat();
    let again = planned(&world, None, &first.given()).unwrap();
    let find = |plan: &Plan, name: &str| plan.pods.iter().find(|pod| pod.name == name).cloned();
    assert_eq!(find(&again, "a"), find(&first, "a"));
    assert_eq!(find(&again, "b"), find(&first, "b"));
    assert_eq!(again.services[1], first.services[0]);
    assert_ne!(again.services[0].cluster_ips, first.services[0].cluster_ips);
    assert_eq!(find(&again, "new").unwrap().ips[0].to_string(), "10.244.1.3");
}

#[test]
fn a_changed_pod_is_a_new_one_at_the_same_address() {
    let first = fresh(&pod("a", "containers: [{command: [x]}]")).unwrap();
    let again = planned(&pod("a", "containers: [{command: [y]}]"), None, &first.given()).unwrap();
    assert_eq!(first.pods[0].ips, again.pods[0].ips);
    assert_ne!(first.pods[0].fingerprint, again.pods[0].fingerprint);
    let moved = planned(&pod("a", "nodeName: node-2"), None, &first.given()).unwrap();
    assert_eq!(moved.pods[0].ips[0].to_string(), "10.244.2.2");
}

#[test]
fn enrolment_follows_the_namespace_unless_the_pod_says_otherwise() {
    let check = |namespace: &str, pod: &str, expected: bool| {
        let label = |value: &str| {
            if value.is_empty() { String::new() } else { format!("labels: {{weft.dev/mesh: {value}}}") }
        };
        let world = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: default, {}}}}}\n---\n{{apiVersion: v1, kind: Pod, \
             metadata: {{name: a, {}}}}}",
            label(namespace),
            label(pod)
        );
        assert_eq!(fresh(&world).unwrap().pods[0].meshed, expected, "{namespace} {pod}");
    };
    check("", "", false);
    check("enabled", "", true);
    check("enabled", "disabled", false);
    check("", "enabled", true);
    check("disabled", "enabled", true);
}

#[test]
fn services_get_what_they_lack_and_keep_what_they_have() {
    let check = |spec: &str, expected: &[&str]| {
        let plan = fresh(&service("s", spec)).unwrap();
        let seen: Vec<String> = plan.services[0].cluster_ips.iter().map(ToString::to_string).collect();
        assert_eq!(seen, expected, "{spec}");
    };
    check("", &["10.96.1.0", "fd00:96::100"]);
    check("clusterIP: 10.96.0.10", &["10.96.0.10", "fd00:96::100"]);
    check("clusterIP: 'fd00:96::a'", &["fd00:96::a", "10.96.1.0"]);
    check("clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]", &["10.96.0.10"]);
    check("clusterIP: 10.96.0.10, ipFamilyPolicy: SingleStack", &["10.96.0.10"]);
    check("clusterIP: None", &[]);
    check("type: ExternalName", &[]);
}

#[test]
fn an_address_that_a_later_service_asks_for_is_not_given_to_an_earlier_one() {
    let plan = fresh(&(service("a", "") + &service("b", "clusterIP: 10.96.1.0"))).unwrap();
    assert_eq!(plan.services[0].cluster_ips[0].to_string(), "10.96.1.1");
    let twice = service("a", "clusterIP: 10.96.0.1") + &service("b", "clusterIP: 10.96.0.1");
    assert!(fresh(&twice).unwrap_err().to_string().contains("is taken by"));
}

#[test]
fn environment_knows_the_pods_own_fields_and_fills_the_command() {
    let env =
        "env: [{name: PORT, value: '80'}, {name: ME, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]";
    let plan =
        fresh(&pod("a", &format!("containers: [{{command: [serve, '$(ME):$(PORT)', '$(X)'], {env}}}]")))
            .unwrap();
    assert_eq!(plan.pods[0].command, ["serve", "10.244.1.2:80", "$(X)"]);
}

#[test]
fn a_full_node_is_refused() {
    let world: String = (0..254).map(|n| pod(&format!("p{n}"), "nodeName: node-1")).collect();
    assert!(fresh(&world).unwrap_err().to_string().contains("no free pod address"));
}

#[test]
fn the_shop_of_this_repository_can_be_planned() {
    let files = crate::lab::world::read(&crate::shell::workspace_dir().join("deploy/worlds/shop")).unwrap();
    let plan = plan(&files, None, &Given::default(), &mut || Ok("u".to_owned())).unwrap();
    assert_eq!(plan.nodes, ["node-1", "node-2"]);
    let meshed: Vec<(&str, bool)> = plan.pods.iter().map(|pod| (pod.name.as_str(), pod.meshed)).collect();
    assert!(meshed.contains(&("curl", false)) && meshed.contains(&("web", true)), "{meshed:?}");
}
