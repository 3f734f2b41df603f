//! What would be installed: no cluster is asked here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn meshctl(line: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = crate::cli::run(["meshctl"].iter().chain(line), &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (code, text(out), text(err))
}

fn installed(line: &[&str]) -> Vec<Value> {
    let (code, out, err) = meshctl(&[&["install", "--dry-run"], line].concat());
    assert_eq!(code, 0, "{err}");
    manifests::documents(&out)
}

fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn container(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]["containers"][0]
}

#[test]
fn every_file_for_kubectl_is_in_the_binary() {
    let mut there = BTreeSet::new();
    let mut dirs = ["base", "crds", "overlays"].map(|dir| deploy().join(dir)).to_vec();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("readable").flatten() {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(deploy()).expect("below").to_string_lossy().into_owned();
                there.insert(path);
            }
        }
    }
    let known: BTreeSet<String> = manifests::FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(known, there);
    assert_eq!(manifests::overlays(), ["debug", "kind", "strict"]);
}

#[test]
fn an_installation_without_overlay_is_the_base_as_it_lies_there() {
    let objects = installed(&[]);
    let mut expected = 0;
    for (path, text) in manifests::FILES {
        let is_ours = path.starts_with("base/") || path.starts_with("crds/");
        if is_ours && !path.ends_with("kustomization.yaml") {
            for document in manifests::documents(text) {
                assert!(objects.contains(&document), "{path} is changed or left out");
                expected += 1;
            }
        }
    }
    assert_eq!(objects.len(), expected);
    let kinds: Vec<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
    assert_eq!(kinds[..3], ["CustomResourceDefinition", "CustomResourceDefinition", "Namespace"]);
}

#[test]
fn what_is_printed_is_read_alike_by_yaml_of_both_versions() {
    let (_, out, _) = meshctl(&["install", "--dry-run"]);
    assert!(out.contains("value: \"off\"\n"), "kubectl would read a truth value");
}

#[test]
fn overlays_change_what_they_name_and_nothing_else() {
    let (base, debug) = (installed(&[]), installed(&["--overlay", "debug"]));
    let agent = container(object(&debug, "DaemonSet", "weft-agent"));
    let variable = |name: &str| {
        let all = agent["env"].as_array().expect("variables");
        all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!(variable("WEFT_ACCESS_LOG")["value"], "-");
    assert_eq!(variable("WEFT_NODE")["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
    assert_eq!(agent["args"], container(object(&base, "DaemonSet", "weft-agent"))["args"]);
    assert_eq!(base.len(), debug.len());
    let changed: Vec<_> = debug.iter().filter(|object| !base.contains(object)).collect();
    assert_eq!(changed.len(), 2, "{changed:#?}");

    let kind = installed(&["--overlay", "kind"]);
    assert_eq!(object(&kind, "Deployment", "weft-control")["spec"]["replicas"], 1);
    let strict = installed(&["--overlay", "strict"]);
    assert_eq!(strict.last().expect("objects")["spec"]["defaultInbound"], "Authenticated");
}

#[test]
fn settings_reach_the_objects_and_others_are_refused() {
    let set = ["--set", "image=example.org/weft:2", "--set", "cgroupRoot=/cg", "--set", "controlReplicas=3"];
    let objects = installed(&set);
    let (agent, control) =
        (object(&objects, "DaemonSet", "weft-agent"), object(&objects, "Deployment", "weft-control"));
    assert_eq!(container(agent)["image"], "example.org/weft:2");
    assert_eq!(container(control)["image"], "example.org/weft:2");
    assert_eq!(control["spec"]["replicas"], 3);
    let volumes = agent["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().any(|volume| volume["hostPath"]["path"] == "/cg"));
    for (setting, expected) in [
        ("image", "write NAME=VALUE"),
        ("image=", "empty"),
        ("imagePullPolicy=Sometimes", "Never"),
        ("cgroupRoot=cg", "absolute"),
        ("controlReplicas=0", "a number"),
        ("colour=red", "cgroupRoot"),
    ] {
        let (code, out, err) = meshctl(&["install", "--dry-run", "--set", setting]);
        assert_eq!((code, out.as_str()), (2, ""), "{setting}");
        assert!(err.contains(expected) && err.contains(setting), "{err}");
    }
    let (code, _, err) = meshctl(&["install", "--dry-run", "--overlay", "chaos"]);
    assert_eq!(code, 2);
    assert!(err.contains("debug, kind, strict"), "{err}");
}

#[test]
fn patches_merge_fields_and_keyed_lists_and_replace_the_rest() {
    let mut object = json!({"a": {"b": 1, "c": 2}, "args": ["x", "y"], "env": [
        {"name": "A", "value": "1"}, {"name": "B", "value": "2"}]});
    let patch = json!({"a": {"b": null, "d": 3}, "args": ["z"], "env": [
        {"name": "B", "value": "3"}, {"name": "C", "value": "4"}]});
    merge::merge(&mut object, &patch);
    let expected = json!({"a": {"c": 2, "d": 3}, "args": ["z"], "env": [
        {"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}]});
    assert_eq!(object, expected);
}

#[test]
fn an_older_kubernetes_gets_what_it_knows() {
    let rules = |objects: &[Value]| {
        objects.iter().any(|object| object.to_string().contains("x-kubernetes-validations"))
    };
    let budget =
        |objects: &[Value]| object(objects, "PodDisruptionBudget", "weft-control")["apiVersion"].clone();
    for (minor, with_rules, version) in
        [(20, false, "policy/v1beta1"), (24, false, "policy/v1"), (25, true, "policy/v1")]
    {
        let mut objects = installed(&[]);
        settings::suit(&mut objects, minor);
        assert_eq!((rules(&objects), budget(&objects)), (with_rules, json!(version)), "1.{minor}");
    }
}
