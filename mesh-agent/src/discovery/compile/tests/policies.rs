//! Policies and settings: what they come to, and that what cannot be enforced fails closed.

use super::*;
use crate::model::{Action, PolicyName, SpiffeId};
use crate::policy::{Facts, Refusal};

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// How a connection from service account `shop/cart` to pod `shop/web` ends: `allowed` or the refusal's label.
fn judge(compiled: &Compiled) -> &'static str {
    let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let destination = workload(compiled, "web");
    let facts = Facts {
        identity: Some(&identity),
        client: "10.0.0.9".parse().unwrap(),
        destination: &destination,
        port: 80,
        node_probe: false,
        request: None,
    };
    compiled.policies.evaluate(&facts).as_ref().map_or_else(Refusal::label, |_| "allowed")
}

#[test]
fn a_policy_holds_for_its_namespace_and_in_the_system_namespace_for_all() {
    let deny = "targetRefs: [{kind: Pod, selector: {}}], action: DENY, rules: [{}]";
    assert_eq!(judge(&compiled(&[&web("", ""), &policy("shop", deny)])), "denied");
    assert_eq!(judge(&compiled(&[&web("", ""), &policy("other", deny)])), "allowed");
    assert_eq!(judge(&compiled(&[&web("", ""), &policy("weft-system", deny)])), "denied");
}

#[test]
fn every_field_of_a_policy_reaches_the_model() {
    let spec = "targetRefs: [{group: '', kind: Pod, selector: {matchLabels: {app: web}, matchExpressions: [{key: a, operator: Exists}, {key: b, operator: NotIn, values: [x]}]}}], action: AUDIT, enforcementLevel: Network,
  rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: '*'}}, {type: ServiceAccount, serviceAccount: {namespace: n, name: a}}, {type: SPIFFE, spiffe: 'spiffe://td/*'}, {type: CIDR, cidr: '::ffff:10.0.0.0/104'}, {type: CIDR, cidr: 192.0.2.7}, {type: AnyAuthenticated}], networkAttributes: {ports: [80, 443]}}, {sources: []}, {}]";
    let outcome = compiled(&[&policy("shop", spec)]);
    let found = outcome.policies.policies().next().unwrap();
    assert_eq!(found.name, PolicyName { namespace: "shop".into(), name: "p".into() });
    assert_eq!((found.action, found.cluster_wide, &found.unusable), (Action::Audit, false, &None));
    let sources: Vec<String> = found.rules[0].sources.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(
        sources,
        [
            "service account shop/*",
            "service account n/a",
            "spiffe://td/*",
            "10.0.0.0/8",
            "192.0.2.7/32",
            "any authenticated peer"
        ]
    );
    assert_eq!(found.rules[0].ports, Some(vec![80, 443]));
    assert_eq!((&found.rules[1].sources, &found.rules[1].ports), (&Some(vec![]), &None));
    assert_eq!(found.rules[2].sources, None);
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    assert!(found.selectors[0].matches(&labels(&[("app", "web"), ("a", "")])));
    assert!(!found.selectors[0].matches(&labels(&[("app", "web")])));
    assert!(!found.selectors[0].matches(&labels(&[("app", "web"), ("a", ""), ("b", "x")])));
}

#[test]
fn policies_that_cannot_be_enforced_fail_closed_for_the_pods_they_select() {
    let selecting = |app: &str, rest: &str| {
        policy(
            "shop",
            &format!("targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: {app}}}}}}}], {rest}"),
        )
    };
    let web = pod("web", "10.0.0.1");
    let outcome = |policy: &str| {
        let (compiled, problems) = problems(&[&web, policy]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        judge(&compiled)
    };
    let not_supported = [
        "action: ALLOW, rules: [{sources: [{type: JWT, claims: {}}]}]",
        "action: DENY, rules: [{sources: [{type: JWT, issuer: i}]}]",
    ];
    let broken = [
        "action: ALLOW, rules: [{http: [{methods: [GET]}]}]",
        "action: DENY, enforcementLevel: Application, rules: [{http: [{paths: [{type: Exact, value: /a/../b}]}]}]",
        "action: ALLOW, rules: [{sources: [{type: CIDR, cidr: nowhere}]}]",
        "action: DENY, rules: [{surces: []}]",
        "action: Deny",
        "rules: []",
        "action: {}",
    ];
    for rest in not_supported.into_iter().chain(broken) {
        assert_eq!(outcome(&selecting("web", rest)), "unusable_policy", "{rest}");
        assert_eq!(outcome(&selecting("db", rest)), "allowed", "{rest}");
    }
    // One that only audits opens nothing by its absence, and without a selector there is nothing to close.
    assert_eq!(outcome(&selecting("web", "action: AUDIT, rules: [{http: []}]")), "allowed");
    assert_eq!(outcome(&selecting("web", "action: AUDIT, rules: [{surces: []}]")), "allowed");
    assert_eq!(outcome(&policy("shop", "target: [{kind: Pod, selector: {}}], action: DENY")), "allowed");
}

#[test]
fn an_unsupported_policy_closes_even_over_a_last_good_version_and_a_broken_one_does_not() {
    let all = |rest: &str| policy("shop", &format!("targetRefs: [{{kind: Pod, selector: {{}}}}], {rest}"));
    let mut world = World::new(&[("pod.yaml", &pod("web", "10.0.0.1"))]);
    world.write("policy.yaml", &all("action: ALLOW, rules: [{}]"));
    assert_eq!(judge(&world.load().0), "allowed");
    world.write("policy.yaml", &all("action: ALLOW, rules: [{port: 1}]"));
    assert_eq!(judge(&world.load().0), "allowed");
    world.write("policy.yaml", &all("action: ALLOW, rules: [{sources: [{type: JWT, issuer: i}]}]"));
    assert_eq!(judge(&world.load().0), "unusable_policy");
    world.write("policy.yaml", &all("action: ALLOW, rules: [{}]"));
    let (outcome, problems) = world.load();
    assert_eq!((judge(&outcome), problems.len()), ("allowed", 0));
}

#[test]
fn a_stand_in_follows_the_selector_of_its_broken_policy() {
    let text = |app: &str| {
        policy(
            "shop",
            &format!("targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: {app}}}}}}}], action: no"),
        )
    };
    let mut world = World::new(&[("pod.yaml", &pod("web", "10.0.0.1")), ("policy.yaml", &text("web"))]);
    assert_eq!(judge(&world.load().0), "unusable_policy");
    world.write("policy.yaml", &text("db"));
    assert_eq!(judge(&world.load().0), "allowed");
}

#[test]
fn settings_that_cannot_be_used_admit_nobody_by_default() {
    let config = |name: &str, spec: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        )
    };
    let web = pod("web", "10.0.0.1");
    let (outcome, found) = problems(&[&web, &config("default", "trustDomain: A")]);
    assert_eq!((judge(&outcome), found.len()), ("default_deny", 1));
    // Two of them: the first is in force.
    let (outcome, found) =
        problems(&[&web, &config("b", "defaultInbound: Deny"), &config("a", "defaultInbound: Permissive")]);
    assert_eq!(judge(&outcome), "default_deny");
    assert_eq!(
        found,
        ["a.yaml:12: MeshConfig a: there can be one MeshConfig only; MeshConfig b is in force"]
    );
}
