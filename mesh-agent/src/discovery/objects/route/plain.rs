//! The rule of a TLSRoute or TCPRoute, which has backends and nothing to match.

use gateway_api::tlsroutes::TlsRouteRules;
use serde_json::Value;

use super::{Fault, Flaw, Key, backends, rule_field, strict};
use crate::model::{PathMatch, RequestMatch, RouteKind, RouteRule, RouteTimeouts};

pub(super) fn accept(key: &Key, kind: RouteKind, index: usize, rule: &Value) -> Result<RouteRule, Flaw> {
    let field = rule_field(index);
    if index > 0 {
        let message = format!("a {} has one rule: nothing would ever come to this one", kind.label());
        return Err(Fault::at(field, message).into());
    }
    // Rules of both kinds have one shape; the crate has that of TCPRoute among experimental ones only.
    let rule: TlsRouteRules = strict::read(rule, &field)?;
    let refs_field = field.key("backendRefs");
    let refs: Vec<_> = strict::recast(&rule.backend_refs, &refs_field)?;
    if refs.is_empty() {
        return Err(Fault::at(refs_field, "write at least one backend").into());
    }
    Ok(RouteRule {
        index,
        name: rule.name.map(Into::into),
        matches: vec![RequestMatch {
            path: PathMatch::Prefix("".into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        }],
        filters: Vec::new(),
        backends: backends::accept(key, &refs, &refs_field)?,
        timeouts: RouteTimeouts::default(),
    })
}
