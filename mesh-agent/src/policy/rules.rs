//! Does one rule match? Fields of a rule are joined by AND, the entries of a field by OR. What a rule says about requests
//! is `requests`' matter.

use std::net::IpAddr;

use crate::model::{Action, AuthorizationPolicy, Rule, Source, SpiffeId, TrustDomain, canonical_ip};

use super::Facts;
use super::requests::{Asked, Stance, View, http_matches};

/// What rules are matched against.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    pub(super) identity: Option<&'a SpiffeId>,
    /// Canonical: an IPv4 range must match the IPv4-mapped address of a dual-stack client.
    pub(super) client: IpAddr,
    pub(super) port: u16,
    pub(super) asked: Asked<'a>,
}

impl<'a> Question<'a> {
    pub(super) fn of(facts: &'a Facts<'a>) -> Self {
        Self { asked: Asked::of(facts.request.as_ref()), ..Self::of_any_request(facts) }
    }

    /// Whatever request it is.
    pub(super) fn of_any_request(facts: &'a Facts<'a>) -> Self {
        Self {
            identity: facts.identity,
            client: canonical_ip(facts.client),
            port: facts.port,
            asked: Asked::AnyRequest,
        }
    }
}

impl Action {
    pub(super) fn stance(self) -> Stance {
        match self {
            Self::Allow | Self::Audit => Stance::Narrow,
            Self::Deny => Stance::Wide,
        }
    }
}

/// The first rule of a policy that matches, under one reading of the request.
pub(super) fn matching_rule(
    policy: &AuthorizationPolicy,
    question: &Question<'_>,
    view: View<'_>,
    trust_domain: &TrustDomain,
) -> Option<usize> {
    let stance = policy.action.stance();
    policy.rules.iter().position(|rule| {
        ports_match(rule, question.port)
            && sources_match(rule, question, trust_domain)
            && http_matches(rule.http.as_deref(), view, stance)
    })
}

pub(super) fn ports_match(rule: &Rule, port: u16) -> bool {
    rule.ports.as_ref().is_none_or(|ports| ports.contains(&port))
}

/// An absent list is anybody; an empty one is nobody (GEP-3779).
pub(super) fn sources_match(rule: &Rule, question: &Question<'_>, trust_domain: &TrustDomain) -> bool {
    rule.sources
        .as_ref()
        .is_none_or(|sources| sources.iter().any(|source| source_matches(source, question, trust_domain)))
}

/// Sources that name an identity match verified identities only; an address proves nothing about who is behind it.
fn source_matches(source: &Source, question: &Question<'_>, trust_domain: &TrustDomain) -> bool {
    match source {
        Source::Cidr(net) => net.contains(&question.client),
        Source::AnyAuthenticated => question.identity.is_some(),
        Source::Spiffe(pattern) => question.identity.is_some_and(|id| spiffe_matches(pattern, id.as_str())),
        Source::ServiceAccount { namespace, name } => {
            question.identity.filter(|id| id.trust_domain() == trust_domain.as_str()).is_some_and(|id| {
                id.service_account().is_some_and(|(its_namespace, its_name)| {
                    its_namespace == namespace && (name == "*" || its_name == name)
                })
            })
        }
    }
}

fn spiffe_matches(pattern: &str, id: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => id.starts_with(prefix),
        None => id == pattern,
    }
}
