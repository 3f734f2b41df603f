//! Documents before and after.

use super::*;
use crate::lab::world::plan::{Given, plan};
use crate::lab::world::{parse, text_at};

fn completed(name: &str, world: &str) -> Vec<(String, String)> {
    let files = [parse(name, world).unwrap()];
    let plan = plan(&files, None, &Given::default(), &mut || Ok("uid-1".to_owned())).unwrap();
    complete(&files, &plan).unwrap()
}

#[test]
fn a_pod_keeps_its_lines_and_comments_and_gains_what_a_cluster_adds() {
    let world = "# the web\napiVersion: v1\nkind: Pod\nmetadata:\n  name: web # short\n  namespace: shop\nspec:\n  containers:\n  - command: [a]\n";
    let expected = "# the web\napiVersion: v1\nkind: Pod\nmetadata:\n  uid: uid-1\n  name: web # short\n  namespace: shop\nspec:\n  \
                    serviceAccountName: default\n  nodeName: node-1\n  containers:\n  - command: [a]\n\
                    status: {phase: \"Running\", hostIP: \"172.18.0.2\", podIP: \"10.244.1.2\", podIPs: [{ip: \"10.244.1.2\"}, \
                    {ip: \"fd00:10:244:1::2\"}], conditions: [{type: \"Ready\", status: \"True\"}]}\n";
    assert_eq!(completed("w.yaml", world)[0].1, expected);
}

#[test]
fn fields_in_flow_style_gain_theirs_on_the_same_line() {
    let world = "kind: Pod # here\napiVersion: v1\nmetadata: {name: a}\nspec: {}\n";
    let text = &completed("w.yaml", world)[0].1;
    let start = "kind: Pod # here\napiVersion: v1\nmetadata: {name: a, namespace: default, uid: uid-1}\n\
                 spec: {nodeName: node-1, serviceAccountName: default}\nstatus: ";
    assert!(text.starts_with(start), "{text}");
}

#[test]
fn completing_what_is_complete_changes_nothing() {
    let world = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  nodeName: node-1\n---\napiVersion: v1\nkind: Service\n\
                 metadata:\n  name: s\nspec:\n  ports: []\n---\n{apiVersion: v1, kind: Pod, metadata: {name: b}}\n";
    let first = completed("w.yaml", world);
    assert_eq!(completed("w.yaml", &first[0].1), first);
}

#[test]
fn every_style_of_writing_says_the_same_afterwards() {
    let check = |name: &str, world: &str| {
        let text = &completed(name, world)[0].1;
        let file = parse(name, text).unwrap();
        let pod = &file.documents.iter().find(|(_, d)| d.is("v1", "Pod")).unwrap().1.value;
        assert_eq!(text_at(pod, &["spec", "nodeName"]), Some("node-1"), "{text}");
        assert_eq!(text_at(pod, &["metadata", "uid"]), Some("uid-1"), "{text}");
        assert_eq!(text_at(pod, &["status", "podIP"]), Some("10.244.1.2"), "{text}");
    };
    check("w.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n");
    check("w.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n    name: a\n");
    check(
        "w.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  # why\n\n  name: a\nspec:   # later\n  nodeName: \"\"\n",
    );
    check(
        "w.yaml",
        "kind: Pod\nspec:\n  nodeName: node-1\nstatus:\n  podIP: 1.2.3.4\nmetadata:\n  name: a\napiVersion: v1",
    );
    check("w.json", "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"a\"}}");
}

#[test]
fn other_documents_pass_untouched() {
    let policy =
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:   {  }\n";
    let world = format!("---\n{policy}--- # next\napiVersion: apps/v1\nkind: Pod # of another group\n");
    assert_eq!(completed("w.yaml", &world)[0].1, world);
}

#[test]
fn a_readiness_that_the_world_states_is_kept() {
    let world = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nstatus:\n  conditions: [{type: Ready, status: 'False'}]\n";
    assert!(completed("w.yaml", world)[0].1.contains("status: 'False'"));
}

#[test]
fn a_service_gains_its_addresses() {
    let world = "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\nspec:\n  clusterIP: 10.96.0.7\n";
    let text = &completed("w.yaml", world)[0].1;
    assert!(text.contains("  clusterIPs: [\"10.96.0.7\", \"fd00:96::100\"]\n"), "{text}");
    assert!(text.contains("  clusterIP: 10.96.0.7\n"), "{text}");
    let headless = completed("w.yaml", &world.replace("10.96.0.7", "None"));
    assert!(!headless[0].1.contains("clusterIPs"), "{headless:?}");
}

#[test]
fn undeclared_namespaces_and_default_accounts_are_added_once() {
    let world = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: p, \
                 namespace: b}}\n---\n{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: b}}\n";
    let all = completed("w.yaml", world);
    let file = parse(&all[1].0, &all[1].1).unwrap();
    let objects: Vec<_> = file
        .documents
        .iter()
        .filter_map(|(_, d)| Some((text_at(&d.value, &["kind"])?, d.namespace(), d.name().ok()?)))
        .collect();
    assert_eq!(objects, [("ServiceAccount", "a", "default"), ("Namespace", "default", "b")]);
}
