//! A cluster before an installation: does its API server answer, may we do what is to be done, can its nodes carry the mesh?

use std::time::{Duration, SystemTime};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{ListParams, PostParams};
use kube::client::Body;

use super::host;
use super::look::{Complaint, Finding, Said};
use crate::cli::cluster::{Cluster, NAMESPACE, why};
use crate::lifecycle::clock;

/// Oldest minor version that was tried; the one from which on deploy/ can be applied as it is (policy/v1, `maxSurge` of
/// DaemonSets); and that whose API server judges objects by the rules in our definitions.
const MINOR_MIN: u32 = 20;
const MINOR_WITH_SURGE: u32 = 22;
const MINOR_WITH_RULES: u32 = 25;
/// Certificates begin a little before they are made, so that clocks may differ so much.
const SKEW_MAX: Duration = Duration::from_secs(60);

/// What an installation makes: group, resource, and whether it is in our namespace.
const MADE: [(&str, &str, bool); 13] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("apps", "daemonsets", true),
    ("apps", "deployments", true),
    ("policy", "poddisruptionbudgets", true),
    ("networking.k8s.io", "networkpolicies", true),
    ("weft.dev", "meshconfigs", false),
];

/// Looks at everything; an API server that does not answer is a finding.
pub(super) fn looks(cluster: &Cluster) -> Vec<Finding> {
    cluster.wait(async {
        let mut findings =
            vec![Finding::new("api", version(cluster).await, "see that kubectl version answers; a Kubernetes from 1.25 on judges policies when they are applied")];
        if matches!(findings[0].said, Err(Complaint::Failure(_))) {
            return findings;
        }
        findings.push(Finding::new(
            "rights",
            rights(cluster).await,
            "install as somebody with the role cluster-admin",
        ));
        findings.push(Finding::new(
            "clock",
            clock_skew(cluster).await,
            "set the clocks of this machine and of the control plane by the same time server",
        ));
        findings.push(Finding::new(
            "gateway api",
            gateway_api(cluster).await,
            "install the standard channel of the Gateway API for routes: https://gateway-api.sigs.k8s.io",
        ));
        findings.push(Finding::new(
            "nodes",
            nodes(cluster).await,
            "keep the agent off these nodes (nodeSelector) or bring them up to date; meshctl check --host says more on a node",
        ));
        findings
    })
}

fn failed(error: &kube::Error) -> Complaint {
    Complaint::Failure(why(error))
}

async fn version(cluster: &Cluster) -> Said {
    let version = cluster.client.apiserver_version().await.map_err(|error| failed(&error))?;
    let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
    let minor: u32 = digits.parse().unwrap_or(u32::MAX);
    let said = format!("Kubernetes {}", version.git_version);
    match minor {
        minor if minor < MINOR_MIN => {
            Err(Complaint::Failure(format!("{said}; 1.{MINOR_MIN} is the oldest that works")))
        }
        minor if minor < MINOR_WITH_SURGE => Err(Complaint::Warning(format!(
            "{said} does not take all of the manifests as they are (docs/install.md, Older versions), and judges no policy"
        ))),
        minor if minor < MINOR_WITH_RULES => Err(Complaint::Warning(format!(
            "{said} takes policies without looking at their rules: agents refuse bad ones later"
        ))),
        _ => Ok(said),
    }
}

async fn rights(cluster: &Cluster) -> Said {
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let mut missing = Vec::new();
    for (group, resource, namespaced) in MADE {
        for verb in ["create", "patch"] {
            let attributes = ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                verb: Some(verb.to_owned()),
                namespace: namespaced.then(|| NAMESPACE.to_owned()),
                ..ResourceAttributes::default()
            };
            let spec =
                SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..Default::default() };
            let answer =
                reviews.create(&PostParams::default(), &review).await.map_err(|error| failed(&error))?;
            if !answer.status.is_some_and(|status| status.allowed) {
                missing.push(format!("{verb} {resource}"));
            }
        }
    }
    if missing.is_empty() {
        return Ok("all that an installation makes may be made".to_owned());
    }
    Err(Complaint::Failure(format!("not allowed: {}", missing.join(", "))))
}

async fn clock_skew(cluster: &Cluster) -> Said {
    let request = http::Request::get("/version").body(Body::empty()).expect("a request without surprises");
    let answer = cluster.client.send(request).await.map_err(|error| failed(&error))?;
    let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    let Some(theirs) = date.and_then(http_date) else {
        return Err(Complaint::Warning("the API server does not say what time it is".to_owned()));
    };
    judge_skew(clock::wall(), theirs)
}

/// The one form of a date that servers send (RFC 9110 section 5.6.7).
fn http_date(text: &str) -> Option<SystemTime> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(time.into())
}

fn judge_skew(ours: SystemTime, theirs: SystemTime) -> Said {
    let skew = ours.duration_since(theirs).unwrap_or_else(|earlier| earlier.duration());
    // A date has whole seconds, and the answer was under way.
    let said = format!("differs by {} s from the API server's", skew.as_secs());
    if skew > SKEW_MAX { Err(Complaint::Warning(said)) } else { Ok(said) }
}

async fn gateway_api(cluster: &Cluster) -> Said {
    let groups = cluster.client.list_api_groups().await.map_err(|error| failed(&error))?;
    let ours = groups.groups.iter().find(|group| group.name == "gateway.networking.k8s.io");
    match ours.map(|group| group.versions.iter().any(|version| version.version == "v1")) {
        Some(true) => Ok("routes are known".to_owned()),
        Some(false) => Err(Complaint::Warning("its version v1 is not served: no routes".to_owned())),
        None => Err(Complaint::Warning("not installed: the mesh works, without routes".to_owned())),
    }
}

async fn nodes(cluster: &Cluster) -> Said {
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await;
    let nodes = nodes.map_err(|error| failed(&error))?.items;
    let bad: Vec<String> = nodes.iter().filter_map(complaint_about).collect();
    if bad.is_empty() {
        return Ok(format!("{} nodes", nodes.len()));
    }
    Err(Complaint::Failure(bad.join(", ")))
}

fn complaint_about(node: &Node) -> Option<String> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let info = node.status.as_ref()?.node_info.as_ref()?;
    // Agents are kept off nodes of other systems by their selector.
    if info.operating_system != "linux" || host::is_new_enough(&info.kernel_version) {
        return None;
    }
    Some(format!("{name} has kernel {}", info.kernel_version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_by_a_minute() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(judge_skew(at(1_000), at(1_060)).is_ok());
        assert!(matches!(judge_skew(at(1_000), at(900)), Err(Complaint::Warning(_))));
        assert!(matches!(judge_skew(at(900), at(1_000)), Err(Complaint::Warning(_))));
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(expected));
        assert_eq!(http_date("yesterday"), None);
    }
}
