//! The `AuthorizationPolicy` object, read into the model.
//!
//! One that cannot be enforced as written is not dropped: leaving out an ALLOW or a DENY opens what its author closed.
//! It becomes a policy that refuses everybody (docs/decisions/0002).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Fault, FieldPath, Key};
use crate::discovery::resources::{
    AuthorizationPolicySpec, EnforcementLevel, LabelOperator, LabelSelector, PolicyAction, RuleSpec,
    SourceSpec, SourceType, TargetRef,
};
use crate::model::{
    Action, AuthorizationPolicy, PolicyName, Requirement, Rule, Selector, Source, SpiffeId, canonical_ip,
};

mod requests;
#[cfg(test)]
mod tests;

/// Validates one policy.
///
/// # Errors
/// A value that cannot be read.
pub fn accept(key: &Key, spec: &AuthorizationPolicySpec) -> Result<AuthorizationPolicy, Fault> {
    let level = spec.enforcement_level;
    Ok(AuthorizationPolicy {
        name: PolicyName { namespace: key.namespace.clone(), name: key.name.clone() },
        cluster_wide: false,
        selectors: selectors(&spec.target_refs)?,
        action: action(spec.action),
        rules: spec
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| accept_rule(key, level, rule, &FieldPath::of("spec.rules").index(index)))
            .collect::<Result<_, Fault>>()?,
        unusable: None,
    })
}

/// What the policy asks for that the mesh cannot do yet: the policy is well-formed, yet must not be half enforced.
pub fn unsupported(spec: &AuthorizationPolicySpec) -> Option<Fault> {
    for (index, rule) in spec.rules.iter().enumerate() {
        let field = FieldPath::of("spec.rules").index(index);
        let jwt = rule.sources.iter().flatten().position(|source| source.kind == SourceType::Jwt);
        if let Some(source) = jwt {
            let field = field.key("sources").index(source).key("type");
            return Some(Fault::at(field, "JWT is not supported yet"));
        }
    }
    None
}

/// A stand-in that refuses everybody at the pods that the policy selects; `None` when even the selector cannot be read,
/// or when the policy only audits and so opens nothing by its absence.
pub fn refusing(
    key: &Key,
    target_refs: &[TargetRef],
    action: Action,
    reason: &str,
) -> Option<AuthorizationPolicy> {
    if action == Action::Audit {
        return None;
    }
    Some(AuthorizationPolicy {
        name: PolicyName { namespace: key.namespace.clone(), name: key.name.clone() },
        cluster_wide: false,
        selectors: selectors(target_refs).ok()?,
        action,
        rules: Vec::new(),
        unusable: Some(reason.into()),
    })
}

/// The least that must be readable of a broken policy for [`refusing`]. Unknown fields do not matter here.
#[derive(Debug, Deserialize)]
pub struct Remains {
    spec: RemainingSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RemainingSpec {
    target_refs: Vec<TargetRef>,
    #[serde(default)]
    action: ActionOrOther,
}

/// An action that cannot be read is taken for one that protects something.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum ActionOrOther {
    Known(PolicyAction),
    Other(IgnoredAny),
    #[default]
    #[serde(skip)]
    Absent,
}

impl Remains {
    /// See [`refusing`].
    pub fn refusing(&self, key: &Key, reason: &str) -> Option<AuthorizationPolicy> {
        let action = match self.spec.action {
            ActionOrOther::Known(known) => action(known),
            ActionOrOther::Other(_) | ActionOrOther::Absent => Action::Deny,
        };
        refusing(key, &self.spec.target_refs, action, reason)
    }
}

/// The action, as the model has it.
pub fn action(action: PolicyAction) -> Action {
    match action {
        PolicyAction::Allow => Action::Allow,
        PolicyAction::Deny => Action::Deny,
        PolicyAction::Audit => Action::Audit,
    }
}

fn selectors(target_refs: &[TargetRef]) -> Result<Vec<Selector>, Fault> {
    let field = FieldPath::of("spec.targetRefs");
    if target_refs.is_empty() {
        return Err(Fault::at(
            field,
            "empty: write [{kind: Pod, selector: {}}] for every pod of the namespace",
        ));
    }
    target_refs
        .iter()
        .enumerate()
        .map(|(index, target)| {
            let field = field.index(index);
            if target.kind != "Pod" || !target.group.is_empty() {
                let message = format!("{:?} cannot be targeted: only Pod of group \"\" can", target.kind);
                return Err(Fault::at(field.key("kind"), message));
            }
            selector(&target.selector, &field.key("selector").key("matchExpressions"))
        })
        .collect()
}

fn selector(selector: &LabelSelector, field: &FieldPath) -> Result<Selector, Fault> {
    let mut expressions = Vec::new();
    for (index, requirement) in selector.match_expressions.iter().enumerate() {
        let (label, values) = (requirement.key.clone(), requirement.values.clone());
        let wants_values = matches!(requirement.operator, LabelOperator::In | LabelOperator::NotIn);
        if wants_values == values.is_empty() {
            let message = if wants_values { "needs values" } else { "takes no values" };
            return Err(Fault::at(field.index(index), format!("{:?} {message}", requirement.operator)));
        }
        expressions.push(match requirement.operator {
            LabelOperator::In => Requirement::In(label, values),
            LabelOperator::NotIn => Requirement::NotIn(label, values),
            LabelOperator::Exists => Requirement::Exists(label),
            LabelOperator::DoesNotExist => Requirement::DoesNotExist(label),
        });
    }
    Ok(Selector { match_labels: selector.match_labels.clone(), expressions })
}

fn accept_rule(
    key: &Key,
    level: EnforcementLevel,
    rule: &RuleSpec,
    field: &FieldPath,
) -> Result<Rule, Fault> {
    let sources = match &rule.sources {
        None => None,
        Some(list) => Some(
            list.iter()
                .enumerate()
                .map(|(index, source)| accept_source(key, source, &field.key("sources").index(index)))
                .collect::<Result<Vec<_>, Fault>>()?,
        ),
    };
    let ports = rule.network_attributes.as_ref().and_then(|attributes| attributes.ports.clone());
    if let Some(index) = ports.iter().flatten().position(|port| *port == 0) {
        let field = field.key("networkAttributes").key("ports").index(index);
        return Err(Fault::at(field, "0 is not a port: use 1 to 65535"));
    }
    let http =
        rule.http.as_deref().map(|list| requests::accept(level, list, &field.key("http"))).transpose()?;
    Ok(Rule { sources, ports, http })
}

fn accept_source(key: &Key, source: &SourceSpec, field: &FieldPath) -> Result<Source, Fault> {
    only_its_own_field(source, field)?;
    let missing = |name: &str| Fault::at(field.clone(), format!("a {:?} source needs `{name}`", source.kind));
    match source.kind {
        SourceType::AnyAuthenticated => Ok(Source::AnyAuthenticated),
        SourceType::Cidr => {
            let text = source.cidr.as_deref().ok_or_else(|| missing("cidr"))?;
            cidr(text).map(Source::Cidr).ok_or_else(|| {
                let message = format!("{text:?} is not a range of addresses: write for example 10.0.0.0/8");
                Fault::at(field.key("cidr"), message)
            })
        }
        SourceType::Spiffe => {
            let pattern = source.spiffe.as_deref().ok_or_else(|| missing("spiffe"))?;
            check_spiffe(pattern).map_err(|message| Fault::at(field.key("spiffe"), message))?;
            Ok(Source::Spiffe(pattern.to_owned()))
        }
        SourceType::ServiceAccount => {
            let account = source.service_account.as_ref().ok_or_else(|| missing("serviceAccount"))?;
            let field = field.key("serviceAccount");
            let namespace = account.namespace.as_deref().unwrap_or(&key.namespace);
            super::check_name(namespace, 63).map_err(|m| Fault::at(field.key("namespace"), m))?;
            if account.name != "*" {
                super::check_name(&account.name, 253).map_err(|m| Fault::at(field.key("name"), m))?;
            }
            Ok(Source::ServiceAccount { namespace: namespace.to_owned(), name: account.name.clone() })
        }
        SourceType::Jwt => Err(Fault::at(field.key("type"), "JWT is not supported yet")),
    }
}

/// A `cidr` beside `type: SPIFFE` would be silently without effect.
fn only_its_own_field(source: &SourceSpec, field: &FieldPath) -> Result<(), Fault> {
    let written = [
        ("serviceAccount", source.service_account.is_some(), SourceType::ServiceAccount),
        ("spiffe", source.spiffe.is_some(), SourceType::Spiffe),
        ("cidr", source.cidr.is_some(), SourceType::Cidr),
        ("issuer", source.issuer.is_some(), SourceType::Jwt),
        ("claims", source.claims.is_some(), SourceType::Jwt),
    ];
    match written.iter().find(|(_, present, kind)| *present && *kind != source.kind) {
        Some((name, ..)) => {
            Err(Fault::at(field.key(name), format!("does not belong to a source of type {:?}", source.kind)))
        }
        None => Ok(()),
    }
}

/// A range or a single address; an IPv4-mapped range becomes the IPv4 range that it stands for.
fn cidr(text: &str) -> Option<IpNet> {
    let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let net = text.parse::<IpNet>().ok().or_else(single)?;
    let folded = canonical_ip(net.network());
    match (net, folded.is_ipv4() && net.prefix_len() >= 96) {
        (IpNet::V6(_), true) => IpNet::new(folded, net.prefix_len() - 96).ok(),
        _ => Some(net.trunc()),
    }
}

fn check_spiffe(pattern: &str) -> Result<(), String> {
    let Some(prefix) = pattern.strip_suffix('*') else {
        return pattern.parse::<SpiffeId>().map(drop).map_err(|error| error.to_string());
    };
    if prefix.starts_with("spiffe://") && !prefix.contains('*') {
        Ok(())
    } else {
        Err(format!(
            "{pattern:?} is not a pattern: write a SPIFFE id, or the beginning of one and a single `*`"
        ))
    }
}
