//! A whole installation: kinds, control plane, leader, trust bundle, an agent on every node, and what each of them says.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use super::agent;
use super::look::{Complaint, Finding, Said};
use crate::cli::Error;
use crate::cli::client::Agent;
use crate::cli::cluster::{AGENTS, CONTROLS, Cluster, NAMESPACE, is_ready, node_of, why};
use crate::cli::columns::items;
use crate::discovery::crds;
use crate::lifecycle::clock;

/// A leader renews every two seconds and loses a Lease that it did not renew for fifteen.
const LEASE_AGE_MAX: Duration = Duration::from_secs(15);
/// A root is exchanged in three stages, each as long as a certificate lives, so a month is time enough to begin.
const ROOT_LEFT_MIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// Looks at everything. What cannot be asked is a finding; only the API server must answer.
pub(super) fn looks(cluster: &Cluster) -> Result<Vec<Finding>, Error> {
    let (agents, controls) = (cluster.wait(cluster.pods(AGENTS))?, cluster.wait(cluster.pods(CONTROLS))?);
    let mut findings = cluster.wait(async {
        vec![
            Finding::new("kinds", kinds(cluster).await, "kubectl apply --server-side -k deploy/crds, or meshctl install"),
            Finding::new(
                "control",
                control(cluster).await,
                "kubectl -n weft-system describe pods -l app.kubernetes.io/component=control",
            ),
            Finding::new(
                "leader",
                leader(cluster).await,
                "without a leader no status and no trust bundle is written: see the logs of weft-control",
            ),
            Finding::new(
                "trust bundle",
                trust_bundle(cluster).await,
                "see the logs of weft-control; exchange a root that runs out: docs/operating.md",
            ),
            Finding::new(
                "agents",
                on_every_node(cluster, &agents).await,
                "kubectl -n weft-system describe the agent's pod on that node; meshctl check --node NAME says what it waits for",
            ),
        ]
    });
    findings.push(Finding::new(
        "routes",
        routes(cluster, &controls),
        "meshctl routes --cluster says what became of each, and why",
    ));
    findings.extend(of_agents(cluster, &agents));
    Ok(findings)
}

fn failure(error: &kube::Error) -> Complaint {
    Complaint::Failure(why(error))
}

async fn kinds(cluster: &Cluster) -> Said {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
    ));
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let mut missing = Vec::new();
    for definition in crds::all() {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let found = api.get_opt(&name).await.map_err(|error| failure(&error))?;
        let established = found.is_some_and(|found| has_condition(&found.data["status"], "Established"));
        if !established {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        Ok("served".to_owned())
    } else {
        Err(Complaint::Failure(format!("missing: {}", missing.join(", "))))
    }
}

fn has_condition(status: &Value, kind: &str) -> bool {
    items(&status["conditions"]).iter().any(|one| one["type"] == kind && one["status"] == "True")
}

async fn control(cluster: &Cluster) -> Said {
    let api = Api::<Deployment>::namespaced(cluster.client.clone(), NAMESPACE);
    let found = api.get_opt("weft-control").await.map_err(|error| failure(&error))?;
    let Some(found) = found else {
        return Err(Complaint::Failure("there is no Deployment weft-control".to_owned()));
    };
    let wanted = found.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = found.status.and_then(|status| status.ready_replicas).unwrap_or(0);
    let said = format!("{ready} of {wanted} ready");
    match ready {
        0 => Err(Complaint::Failure(said)),
        _ if ready < wanted => Err(Complaint::Warning(said)),
        _ => Ok(said),
    }
}

async fn leader(cluster: &Cluster) -> Said {
    let api = Api::<Lease>::namespaced(cluster.client.clone(), NAMESPACE);
    let found = api.get_opt("weft-control").await.map_err(|error| failure(&error))?;
    let spec = found.and_then(|lease| lease.spec).unwrap_or_default();
    let Some(holder) = spec.holder_identity.filter(|holder| !holder.is_empty()) else {
        return Err(Complaint::Failure("nobody leads".to_owned()));
    };
    let renewed: Option<SystemTime> = spec.renew_time.map(|time| time.0.into());
    judge_lease(&holder, renewed, clock::wall())
}

fn judge_lease(holder: &str, renewed: Option<SystemTime>, now: SystemTime) -> Said {
    let age = renewed.map(|renewed| now.duration_since(renewed).unwrap_or_default());
    match age {
        Some(age) if age <= LEASE_AGE_MAX => Ok(holder.to_owned()),
        Some(age) => {
            Err(Complaint::Failure(format!("{holder} has not renewed its Lease for {} s", age.as_secs())))
        }
        None => Err(Complaint::Failure(format!("{holder} has never renewed its Lease"))),
    }
}

async fn trust_bundle(cluster: &Cluster) -> Said {
    let api = Api::<ConfigMap>::namespaced(cluster.client.clone(), NAMESPACE);
    let found = api.get_opt("weft-trust-bundle").await.map_err(|error| failure(&error))?;
    let text = found.and_then(|map| map.data).and_then(|mut data| data.remove("roots.pem"));
    judge_roots(text.as_deref(), clock::wall())
}

fn judge_roots(text: Option<&str>, now: SystemTime) -> Said {
    let Some(text) = text else {
        return Err(Complaint::Failure("ConfigMap weft-trust-bundle has no roots.pem".to_owned()));
    };
    let unreadable = || Complaint::Failure("roots.pem cannot be read as certificates".to_owned());
    let roots = pem::parse_many(text).map_err(|_malformed| unreadable())?;
    let mut ends = Vec::new();
    for root in &roots {
        let (_, certificate) =
            x509_parser::parse_x509_certificate(root.contents()).map_err(|_malformed| unreadable())?;
        let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        ends.push(SystemTime::UNIX_EPOCH + Duration::from_secs(end));
    }
    let Some(last) = ends.iter().max() else { return Err(unreadable()) };
    let said = format!("{} roots, the last good until {}", ends.len(), clock::wall_rfc3339(*last));
    match last.duration_since(now) {
        Ok(left) if left >= ROOT_LEFT_MIN => Ok(said),
        Ok(_) => Err(Complaint::Warning(said)),
        Err(_past) => Err(Complaint::Failure(said)),
    }
}

async fn on_every_node(cluster: &Cluster, agents: &[Pod]) -> Said {
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await;
    let nodes = nodes.map_err(|error| failure(&error))?.items;
    let linux = |node: &&Node| {
        let labels = node.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get("kubernetes.io/os")).is_none_or(|os| os == "linux")
    };
    let names = nodes.iter().filter(linux).filter_map(|node| node.metadata.name.as_deref());
    judge_nodes(names, agents)
}

fn judge_nodes<'a>(nodes: impl Iterator<Item = &'a str>, agents: &[Pod]) -> Said {
    let (mut without, mut unready, mut well) = (Vec::new(), Vec::new(), 0);
    for node in nodes {
        match agents.iter().find(|pod| node_of(pod) == Some(node)) {
            None => without.push(node),
            Some(pod) if !is_ready(pod) => unready.push(node),
            Some(_) => well += 1,
        }
    }
    if without.is_empty() && unready.is_empty() {
        return Ok(format!("ready on {well} nodes"));
    }
    let part =
        |what: &str, nodes: &[&str]| (!nodes.is_empty()).then(|| format!("{what} {}", nodes.join(", ")));
    let parts = [part("none on", &without), part("not ready on", &unready)];
    Err(Complaint::Failure(parts.into_iter().flatten().collect::<Vec<_>>().join("; ")))
}

/// Routes that are not taken as written, and those that lost against another one.
fn routes(cluster: &Cluster, controls: &[Pod]) -> Said {
    let ready = controls.iter().find(|pod| is_ready(pod)).and_then(|pod| pod.metadata.name.clone());
    let Some(pod) = ready else {
        return Err(Complaint::Warning("no control plane is ready that could be asked".to_owned()));
    };
    let answer = Agent::Pod(cluster.clone(), pod).json("/routes");
    let answer = answer.map_err(|error| Complaint::Warning(error.to_string()))?;
    judge_routes(items(&answer))
}

fn judge_routes(routes: &[Value]) -> Said {
    let refused = |route: &&Value| {
        items(&route["parents"]).iter().any(|parent| {
            let said = items(&parent["conditions"]);
            said.iter().any(|one| one["type"] == "Accepted" && one["status"] != "True")
        })
    };
    let bad: Vec<String> = routes
        .iter()
        .filter(refused)
        .map(|route| {
            let text = |field: &str| route[field].as_str().unwrap_or_default().to_owned();
            format!("{} {}/{}", text("kind"), text("namespace"), text("name"))
        })
        .collect();
    if bad.is_empty() {
        return Ok(format!("{} accepted", routes.len()));
    }
    Err(Complaint::Warning(format!("not accepted, or in conflict: {}", bad.join(", "))))
}

/// One look, the sentence that mends what it finds, and what each node said.
type Looked = (&'static str, &'static str, Vec<(String, Said)>);

/// What agents say of themselves, put together by look: who is unwell, and how the first of them puts it.
fn of_agents(cluster: &Cluster, agents: &[Pod]) -> Vec<Finding> {
    let mut by_node = BTreeMap::new();
    for pod in agents {
        let (Some(name), Some(node)) = (&pod.metadata.name, node_of(pod)) else { continue };
        by_node.insert(node.to_owned(), agent::looks(&Agent::Pod(cluster.clone(), name.clone())));
    }
    let mut silent = Vec::new();
    let mut looks: Vec<Looked> = Vec::new();
    for (node, found) in by_node {
        match found {
            Err(error) => silent.push(format!("{node} ({error})")),
            Ok(findings) => {
                for finding in findings {
                    let said = (node.clone(), finding.said);
                    match looks.iter_mut().find(|(look, ..)| *look == finding.look) {
                        Some((_, _, all)) => all.push(said),
                        None => looks.push((finding.look, finding.fix, vec![said])),
                    }
                }
            }
        }
    }
    let mut findings: Vec<Finding> =
        looks.into_iter().map(|(look, fix, all)| Finding::new(look, together(&all), fix)).collect();
    if !silent.is_empty() {
        findings.push(Finding::new(
            "windows",
            Err(Complaint::Failure(format!("no answer from {}", silent.join(", ")))),
            "a port-forward to the agent's pod must be allowed: kubectl -n weft-system port-forward POD 15020",
        ));
    }
    findings
}

fn together(all: &[(String, Said)]) -> Said {
    let mut failed = Vec::new();
    let mut warned = Vec::new();
    for (node, said) in all {
        match said {
            Ok(_) => {}
            Err(Complaint::Failure(text)) => failed.push((node, text)),
            Err(Complaint::Warning(text)) => warned.push((node, text)),
        }
    }
    let say = |unwell: &[(&String, &String)]| {
        let nodes: Vec<&str> = unwell.iter().map(|(node, _)| node.as_str()).collect();
        format!("{}: {}", nodes.join(", "), unwell[0].1)
    };
    match (failed.is_empty(), warned.is_empty()) {
        (false, _) => Err(Complaint::Failure(say(&failed))),
        (true, false) => Err(Complaint::Warning(say(&warned))),
        (true, true) => Ok(format!("well on {} nodes", all.len())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(node: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(json!({"spec": {"nodeName": node},
            "status": {"conditions": [{"type": "Ready", "status": status}]}}))
        .expect("a pod")
    }

    #[test]
    fn nodes_without_a_ready_agent_are_named() {
        let agents = [pod("a", true), pod("b", false)];
        assert!(judge_nodes(["a"].into_iter(), &agents).is_ok());
        let said = judge_nodes(["a", "b", "c"].into_iter(), &agents);
        assert_eq!(said, Err(Complaint::Failure("none on c; not ready on b".to_owned())));
    }

    #[test]
    fn a_leader_is_one_that_renews() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(judge_lease("one", Some(at(100)), at(110)), Ok("one".to_owned()));
        assert!(judge_lease("one", Some(at(100)), at(90)).is_ok(), "clocks differ");
        assert!(judge_lease("one", Some(at(100)), at(120)).is_err());
        assert!(judge_lease("one", None, at(120)).is_err());
    }

    #[test]
    fn roots_that_run_out_are_told_in_time() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let root = params.self_signed(&key).expect("a certificate").pem();
        let end: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
        let before = |days: u64| SystemTime::from(end) - Duration::from_secs(days * 24 * 3600);
        assert!(judge_roots(Some(&root), before(31)).is_ok());
        assert!(matches!(judge_roots(Some(&root), before(29)), Err(Complaint::Warning(_))));
        assert!(matches!(
            judge_roots(Some(&root), SystemTime::from(end) + Duration::from_secs(1)),
            Err(Complaint::Failure(_))
        ));
        for unusable in [None, Some(""), Some("-----BEGIN")] {
            assert!(matches!(judge_roots(unusable, before(31)), Err(Complaint::Failure(_))));
        }
    }

    #[test]
    fn agents_are_put_together_by_look_and_failures_come_first() {
        let well = |node: &str| (node.to_owned(), Ok("fine".to_owned()));
        let slow = (String::from("b"), Err(Complaint::Warning("off".to_owned())));
        let broken = (String::from("c"), Err(Complaint::Failure("dead".to_owned())));
        assert_eq!(together(&[well("a"), well("b")]), Ok("well on 2 nodes".to_owned()));
        assert_eq!(together(&[well("a"), slow.clone()]), Err(Complaint::Warning("b: off".to_owned())));
        assert_eq!(together(&[slow, broken]), Err(Complaint::Failure("c: dead".to_owned())));
    }

    #[test]
    fn a_route_that_is_not_accepted_anywhere_is_named() {
        let route = |status: &str| {
            json!({"kind": "HTTPRoute", "namespace": "shop", "name": "r",
                "parents": [{"conditions": [{"type": "Accepted", "status": status}]}]})
        };
        assert!(judge_routes(&[route("True")]).is_ok());
        let said = judge_routes(&[route("True"), route("False")]);
        assert!(matches!(said, Err(Complaint::Warning(text)) if text.contains("HTTPRoute shop/r")));
    }
}
