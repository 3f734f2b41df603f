//! The judgement told to people and scripts: which policies select the pod, rule by rule what matched and what did not,
//! and what decided. `meshctl policy explain` prints it.

use std::fmt;

use serde::Serialize;

use crate::model::path::Readings;
use crate::model::{AuthorizationPolicy, HttpMatch, Rule, Source};

use super::requests::{
    Stance, View, grpc_matches, headers_match, http_matches, method_matches, path_matches,
};
use super::rules::{Question, ports_match, sources_match};
use super::{Facts, PolicySet, Request};

/// Why a connection or a request passes or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The client's verified identity.
    pub identity: Option<String>,
    /// The client's address.
    pub client: String,
    /// The pod, `namespace/name`.
    pub destination: String,
    /// Its port.
    pub port: u16,
    /// The request, where one was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<ExplainedRequest>,
    /// The answer.
    pub admitted: bool,
    /// `allowed`, or the label of the refusal.
    pub label: &'static str,
    /// The answer in one sentence, naming what decided.
    pub reason: String,
    /// What decided; absent when the mesh-wide default did.
    pub deciding: Option<Deciding>,
    /// AUDIT policies that matched.
    pub audits: Vec<String>,
    /// Every policy that selects the pod, in the order of judgement (AUDIT, DENY, ALLOW).
    pub policies: Vec<ExplainedPolicy>,
}

/// A request, as policy saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRequest {
    /// Its method.
    pub method: String,
    /// Its path in normal form: what is forwarded.
    pub path: String,
    /// Its host.
    pub host: Option<String>,
    /// Every way in which a server could read the path, the path itself first. Empty: it cannot be known, and then
    /// every DENY that names a path matches and no ALLOW that does.
    pub readings: Vec<String>,
}

/// The policy that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deciding {
    /// `namespace/name`.
    pub policy: String,
    /// Index of the rule; absent when the policy cannot be enforced and refuses as a whole.
    pub rule: Option<usize>,
}

/// One policy that selects the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedPolicy {
    /// `namespace/name`.
    pub policy: String,
    /// `ALLOW`, `DENY` or `AUDIT`, as written.
    pub action: &'static str,
    /// Why it cannot be enforced, if so: then it refuses everybody.
    pub unusable: Option<String>,
    /// Each rule, in order.
    pub rules: Vec<ExplainedRule>,
}

/// One rule against this connection or request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRule {
    /// Index.
    pub rule: usize,
    /// All fields match, the path in at least one reading.
    pub matched: bool,
    /// The readings of the path under which it matches; absent when that is all of them or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readings: Option<Vec<String>>,
    /// Why `sources` does not match; absent when it does.
    pub sources: Option<String>,
    /// Why `networkAttributes.ports` does not match; absent when it does.
    pub ports: Option<String>,
    /// Why `http` does not match; absent when it does.
    pub http: Option<String>,
}

impl PolicySet {
    /// Judges as [`PolicySet::evaluate`] does and says how the answer came about.
    pub fn explain(&self, facts: &Facts<'_>) -> Explanation {
        let question = Question::of(facts);
        let answer = self.evaluate(facts);
        let (admitted, label, reason, audits) = match &answer {
            Ok(permit) => (true, "allowed", permit.to_string(), permit.audits()),
            Err(refusal) => (false, refusal.label(), refusal.to_string(), refusal.audits()),
        };
        Explanation {
            identity: facts.identity.map(ToString::to_string),
            client: facts.client.to_string(),
            destination: facts.destination.name.to_string(),
            port: facts.port,
            request: facts.request.as_ref().map(ExplainedRequest::of),
            admitted,
            label,
            reason,
            deciding: deciding(&answer),
            audits: audits.iter().map(ToString::to_string).collect(),
            policies: self
                .selecting_any(facts.destination)
                .map(|policy| self.explain_policy(policy, facts, &question))
                .collect(),
        }
    }

    fn explain_policy(
        &self,
        policy: &AuthorizationPolicy,
        facts: &Facts<'_>,
        question: &Question<'_>,
    ) -> ExplainedPolicy {
        let stance = policy.action.stance();
        let rules = policy.rules.iter().enumerate();
        ExplainedPolicy {
            policy: policy.name.to_string(),
            action: policy.action.label(),
            unusable: policy.unusable.as_deref().map(str::to_owned),
            rules: rules
                .map(|(index, rule)| self.explain_rule(index, rule, stance, facts, question))
                .collect(),
        }
    }

    fn explain_rule(
        &self,
        index: usize,
        rule: &Rule,
        stance: Stance,
        facts: &Facts<'_>,
        question: &Question<'_>,
    ) -> ExplainedRule {
        let sources = (!sources_match(rule, question, &self.trust_domain))
            .then(|| why_not_sources(rule.sources.as_deref().unwrap_or_default(), facts));
        let ports = (!ports_match(rule, facts.port))
            .then(|| why_not_ports(rule.ports.as_deref().unwrap_or_default(), facts.port));
        let views: Vec<_> = question.asked.views().collect();
        let matching: Vec<_> =
            views.iter().filter(|view| http_matches(rule.http.as_deref(), **view, stance)).collect();
        let http = matching
            .is_empty()
            .then(|| why_not_http(rule.http.as_deref().unwrap_or_default(), facts, &views, stance));
        let matched = sources.is_none() && ports.is_none() && http.is_none();
        let only_some = matched && matching.len() < views.len();
        let readings = only_some.then(|| matching.into_iter().filter_map(path_of).collect());
        ExplainedRule { rule: index, matched, readings, sources, ports, http }
    }
}

fn path_of(view: &View<'_>) -> Option<String> {
    match view {
        View::Request(_, path) => path.map(str::to_owned),
        View::Connection | View::AnyRequest => None,
    }
}

impl ExplainedRequest {
    fn of(request: &Request<'_>) -> Self {
        Self {
            method: request.method.to_string(),
            path: request.path.as_str().to_owned(),
            host: request.host.map(str::to_owned),
            readings: request.path.readings().iter().map(str::to_owned).collect(),
        }
    }
}

fn deciding(answer: &Result<super::Permit, super::Refusal>) -> Option<Deciding> {
    use super::Refusal;
    match answer {
        Ok(permit) => {
            permit.policy().map(|(policy, rule)| Deciding { policy: policy.to_string(), rule: Some(rule) })
        }
        Err(Refusal::Denied { policy, rule, .. }) => {
            Some(Deciding { policy: policy.to_string(), rule: Some(*rule) })
        }
        Err(Refusal::Unusable { policy, .. }) => Some(Deciding { policy: policy.to_string(), rule: None }),
        Err(Refusal::NotAllowed { candidates, .. }) if candidates.len() == 1 => {
            Some(Deciding { policy: candidates[0].to_string(), rule: None })
        }
        Err(Refusal::NotAllowed { .. } | Refusal::NotAuthenticated { .. } | Refusal::DefaultDeny { .. }) => {
            None
        }
    }
}

fn why_not_sources(sources: &[Source], facts: &Facts<'_>) -> String {
    if sources.is_empty() {
        return "the list is empty, which matches nobody".to_owned();
    }
    let wanted: Vec<String> = sources.iter().map(ToString::to_string).collect();
    let wanted = wanted.join(", ");
    match facts.identity {
        Some(identity) => format!("{identity} at {} is not among: {wanted}", facts.client),
        None => format!("{} without a verified identity is not among: {wanted}", facts.client),
    }
}

fn why_not_ports(ports: &[u16], port: u16) -> String {
    if ports.is_empty() {
        return "the list is empty, which matches no port".to_owned();
    }
    let wanted: Vec<String> = ports.iter().map(ToString::to_string).collect();
    format!("{port} is not among: {}", wanted.join(", "))
}

/// For each alternative, the first field that does not match under any reading.
fn why_not_http(alternatives: &[HttpMatch], facts: &Facts<'_>, views: &[View<'_>], stance: Stance) -> String {
    if alternatives.is_empty() {
        return "the list is empty, which matches no request".to_owned();
    }
    let Some(request) = &facts.request else {
        return "the connection is not known to carry HTTP".to_owned();
    };
    let whys = alternatives.iter().enumerate().map(|(index, alternative)| {
        let why = why_not_alternative(alternative, request, views, stance);
        if alternatives.len() == 1 { why } else { format!("[{index}] {why}") }
    });
    whys.collect::<Vec<_>>().join("; ")
}

fn why_not_alternative(
    wanted: &HttpMatch,
    request: &Request<'_>,
    views: &[View<'_>],
    stance: Stance,
) -> String {
    let under_any = |matches: &dyn Fn(Option<&str>) -> bool| {
        views.iter().any(|view| matches!(view, View::Request(_, path) if matches(*path)))
    };
    let path = match request.path.readings() {
        Readings::Unknown => "a path that cannot be known".to_owned(),
        Readings::One(_) | Readings::Several(_) => request.path.as_str().to_owned(),
    };
    if !method_matches(wanted, request.method) {
        return not_among("methods", request.method, wanted.methods.as_deref().unwrap_or_default());
    }
    if !under_any(&|path| path_matches(wanted, path, stance)) {
        return not_among("paths", path, wanted.paths.as_deref().unwrap_or_default());
    }
    if !headers_match(wanted, request, stance) {
        let wanted = list(wanted.headers.as_deref().unwrap_or_default());
        return format!("headers: the request does not have all of: {wanted}");
    }
    if !under_any(&|path| grpc_matches(wanted, request, path, stance)) {
        let call = format!("{} {path}", request.method);
        return not_among("grpcMethods", call, wanted.grpc_methods.as_deref().unwrap_or_default());
    }
    "no reading of the path matches all fields".to_owned()
}

fn not_among(field: &str, text: impl fmt::Display, wanted: &[impl fmt::Display]) -> String {
    format!("{field}: {text} is not among: {}", list(wanted))
}

fn list(wanted: &[impl fmt::Display]) -> String {
    let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    if wanted.is_empty() { "nothing".to_owned() } else { wanted.join(", ") }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.identity.as_deref().unwrap_or("no verified identity");
        writeln!(f, "{} ({identity}) -> {}:{}", self.client, self.destination, self.port)?;
        if let Some(request) = &self.request {
            write!(f, "{request}")?;
        }
        writeln!(f, "{}: {}", if self.admitted { "ALLOWED" } else { "REFUSED" }, self.reason)?;
        if self.policies.is_empty() {
            writeln!(f, "no policy selects this pod")?;
        }
        for policy in &self.policies {
            self.write_policy(f, policy)?;
        }
        Ok(())
    }
}

impl fmt::Display for ExplainedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} ({})", self.method, self.path, self.host.as_deref().unwrap_or("no host"))?;
        match self.readings.as_slice() {
            [] => writeln!(f, "the path cannot be known"),
            [_] => Ok(()),
            several => writeln!(f, "a server could read the path as: {}", several.join(", ")),
        }
    }
}

impl Explanation {
    fn write_policy(&self, f: &mut fmt::Formatter<'_>, policy: &ExplainedPolicy) -> fmt::Result {
        let decides = |rule| {
            let here = self.deciding.as_ref().is_some_and(|d| d.policy == policy.policy && d.rule == rule);
            if here { "  <- decides" } else { "" }
        };
        writeln!(f, "{} {}{}", policy.action, policy.policy, decides(None))?;
        if let Some(reason) = &policy.unusable {
            return writeln!(f, "  cannot be enforced, so it refuses everybody: {reason}");
        }
        if policy.rules.is_empty() {
            writeln!(f, "  no rules: matches nothing")?;
        }
        for rule in &policy.rules {
            if rule.matched {
                let only =
                    rule.readings.as_ref().map_or(String::new(), |paths| format!(" {}", paths.join(", ")));
                writeln!(f, "  rule {}: matches{only}{}", rule.rule, decides(Some(rule.rule)))?;
                continue;
            }
            writeln!(f, "  rule {}: does not match", rule.rule)?;
            let fields =
                [("sources", &rule.sources), ("networkAttributes.ports", &rule.ports), ("http", &rule.http)];
            for (field, why) in fields {
                if let Some(why) = why {
                    writeln!(f, "    {field}: {why}")?;
                }
            }
        }
        Ok(())
    }
}
