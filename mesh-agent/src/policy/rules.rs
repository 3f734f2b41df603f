//! Does one rule match? Fields of a rule are joined by AND, the entries of a field by OR.

use std::net::IpAddr;

use crate::model::{Rule, Source, SpiffeId, TrustDomain};

/// What a rule is matched against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer<'a> {
    pub(super) identity: Option<&'a SpiffeId>,
    /// Canonical: an IPv4 range must match the IPv4-mapped address of a dual-stack client.
    pub(super) client: IpAddr,
    pub(super) port: u16,
}

pub(super) fn rule_matches(rule: &Rule, peer: Peer<'_>, trust_domain: &TrustDomain) -> bool {
    ports_match(rule, peer.port) && sources_match(rule, peer, trust_domain)
}

pub(super) fn ports_match(rule: &Rule, port: u16) -> bool {
    rule.ports.as_ref().is_none_or(|ports| ports.contains(&port))
}

/// An absent list is anybody; an empty one is nobody (GEP-3779).
pub(super) fn sources_match(rule: &Rule, peer: Peer<'_>, trust_domain: &TrustDomain) -> bool {
    rule.sources
        .as_ref()
        .is_none_or(|sources| sources.iter().any(|source| source_matches(source, peer, trust_domain)))
}

/// Sources that name an identity match verified identities only; an address proves nothing about who is behind it.
fn source_matches(source: &Source, peer: Peer<'_>, trust_domain: &TrustDomain) -> bool {
    match source {
        Source::Cidr(net) => net.contains(&peer.client),
        Source::AnyAuthenticated => peer.identity.is_some(),
        Source::Spiffe(pattern) => peer.identity.is_some_and(|id| spiffe_matches(pattern, id.as_str())),
        Source::ServiceAccount { namespace, name } => {
            peer.identity.filter(|id| id.trust_domain() == trust_domain.as_str()).is_some_and(|id| {
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
