//! What a cluster may want otherwise (`--set`), and what an older Kubernetes cannot take.

use serde_json::{Value, json};

use crate::cli::Error;

/// What can be set, and what it is for.
pub(crate) const SETTINGS: [(&str, &str); 4] = [
    ("image", "the image, HOST/NAME:TAG"),
    ("imagePullPolicy", "IfNotPresent, Always or Never"),
    ("cgroupRoot", "where the nodes mount control groups"),
    ("controlReplicas", "how many control planes"),
];

/// From this minor version on the API server knows validation rules in definitions without being told to.
const RULES_SINCE: u32 = 25;
/// From this minor version on there is `policy/v1`.
const BUDGETS_SINCE: u32 = 21;

/// Carries out `--set NAME=VALUE`.
pub(super) fn set(objects: &mut [Value], settings: &[String]) -> Result<(), Error> {
    for setting in settings {
        let bad = |problem: String| Error::Setting { setting: setting.clone(), problem };
        let (name, value) = setting.split_once('=').ok_or_else(|| bad("write NAME=VALUE".to_owned()))?;
        if value.is_empty() {
            return Err(bad("the value is empty".to_owned()));
        }
        match name {
            "image" => each_container(objects, |container| container["image"] = json!(value)),
            "imagePullPolicy" if ["IfNotPresent", "Always", "Never"].contains(&value) => {
                each_container(objects, |container| container["imagePullPolicy"] = json!(value));
            }
            "cgroupRoot" if value.starts_with('/') => set_cgroup_root(objects, value),
            "controlReplicas" => {
                let count = value.parse::<u32>().ok().filter(|count| *count > 0);
                let count = count.ok_or_else(|| bad("write a number from 1".to_owned()))?;
                workloads(objects, "Deployment").for_each(|object| object["spec"]["replicas"] = json!(count));
            }
            "imagePullPolicy" => return Err(bad("write IfNotPresent, Always or Never".to_owned())),
            "cgroupRoot" => return Err(bad("write an absolute path".to_owned())),
            _ => {
                let known: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
                return Err(bad(format!("can be set: {}", known.join(", "))));
            }
        }
    }
    Ok(())
}

fn workloads<'a>(objects: &'a mut [Value], kind: &'a str) -> impl Iterator<Item = &'a mut Value> {
    objects.iter_mut().filter(move |object| object["kind"] == kind)
}

fn each_container(objects: &mut [Value], mut change: impl FnMut(&mut Value)) {
    for object in objects.iter_mut().filter(|object| object["spec"]["template"].is_object()) {
        let containers = object["spec"]["template"]["spec"]["containers"].as_array_mut();
        containers.into_iter().flatten().for_each(&mut change);
    }
}

fn set_cgroup_root(objects: &mut [Value], path: &str) {
    for object in workloads(objects, "DaemonSet") {
        let volumes = object["spec"]["template"]["spec"]["volumes"].as_array_mut();
        for volume in volumes.into_iter().flatten().filter(|volume| volume["name"] == "cgroup") {
            volume["hostPath"]["path"] = json!(path);
        }
    }
}

/// Takes out what a Kubernetes of this minor version would refuse; agents check the same by themselves.
pub(super) fn suit(objects: &mut [Value], minor: u32) {
    for object in objects {
        match object["kind"].as_str() {
            Some("CustomResourceDefinition") if minor < RULES_SINCE => without_rules(object),
            Some("PodDisruptionBudget") if minor < BUDGETS_SINCE => {
                object["apiVersion"] = json!("policy/v1beta1");
            }
            _ => {}
        }
    }
}

fn without_rules(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("x-kubernetes-validations");
            fields.values_mut().for_each(without_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(without_rules),
        _ => {}
    }
}
