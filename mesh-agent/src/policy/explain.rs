//! The judgement told to people and scripts: which policies select the pod, rule by rule what matched and what did not,
//! and what decided. `meshctl policy explain` prints it.

use std::fmt;

use serde::Serialize;

use crate::model::{AuthorizationPolicy, Rule, Source};

use super::rules::{Peer, ports_match, sources_match};
use super::{Facts, PolicySet};

/// Why a connection passes or does not.
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

/// One rule against this connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRule {
    /// Index.
    pub rule: usize,
    /// Both fields match.
    pub matched: bool,
    /// Why `sources` does not match; absent when it does.
    pub sources: Option<String>,
    /// Why `networkAttributes.ports` does not match; absent when it does.
    pub ports: Option<String>,
}

impl PolicySet {
    /// Judges as [`PolicySet::evaluate`] does and says how the answer came about.
    pub fn explain(&self, facts: &Facts<'_>) -> Explanation {
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
            admitted,
            label,
            reason,
            deciding: deciding(&answer),
            audits: audits.iter().map(ToString::to_string).collect(),
            policies: self
                .selecting_any(facts.destination)
                .map(|policy| self.explain_policy(policy, facts))
                .collect(),
        }
    }

    fn explain_policy(&self, policy: &AuthorizationPolicy, facts: &Facts<'_>) -> ExplainedPolicy {
        ExplainedPolicy {
            policy: policy.name.to_string(),
            action: policy.action.label(),
            unusable: policy.unusable.as_deref().map(str::to_owned),
            rules: policy
                .rules
                .iter()
                .enumerate()
                .map(|(index, rule)| self.explain_rule(index, rule, facts))
                .collect(),
        }
    }

    fn explain_rule(&self, index: usize, rule: &Rule, facts: &Facts<'_>) -> ExplainedRule {
        let sources = (!sources_match(rule, Peer::of(facts), &self.trust_domain))
            .then(|| why_not_sources(rule.sources.as_deref().unwrap_or_default(), facts));
        let ports = (!ports_match(rule, facts.port))
            .then(|| why_not_ports(rule.ports.as_deref().unwrap_or_default(), facts.port));
        ExplainedRule { rule: index, matched: sources.is_none() && ports.is_none(), sources, ports }
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

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.identity.as_deref().unwrap_or("no verified identity");
        writeln!(f, "{} ({identity}) -> {}:{}", self.client, self.destination, self.port)?;
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
                writeln!(f, "  rule {}: matches{}", rule.rule, decides(Some(rule.rule)))?;
                continue;
            }
            writeln!(f, "  rule {}: does not match", rule.rule)?;
            for (field, why) in [("sources", &rule.sources), ("networkAttributes.ports", &rule.ports)] {
                if let Some(why) = why {
                    writeln!(f, "    {field}: {why}")?;
                }
            }
        }
        Ok(())
    }
}
