//! Table tests through one helper. What rules say about requests is tested in `requests`, and the compiled set against a
//! naive reading of the documentation in `reference`.

mod reference;
mod requests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::model::{Requirement, Rule, Selector, Source, WorkloadName, WorkloadUid};

const TRUST_DOMAIN: &str = "cluster.local";

fn pod(namespace: &str, labels: &[(&str, &str)]) -> Workload {
    Workload {
        uid: WorkloadUid(format!("{namespace}/pod").into()),
        name: WorkloadName { namespace: namespace.into(), name: "pod".into() },
        owner: "pod".into(),
        node: "node-1".into(),
        zone: None,
        addresses: vec!["10.0.0.1".parse().unwrap()],
        service_account: "default".into(),
        identity: SpiffeId::of_service_account(&TRUST_DOMAIN.parse().unwrap(), namespace, "default"),
        labels: Arc::new(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
        ports: Vec::new(),
        enrolled: true,
        splice: None,
        forward_client_cert: false,
        skip_outbound_ports: Default::default(),
        skip_inbound_ports: Default::default(),
        probe_ports: Default::default(),
        manifest_hash: None,
        failure_mode: Default::default(),
        host_network: false,
        ready: true,
        terminating: false,
    }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    AuthorizationPolicy {
        name: PolicyName { namespace: namespace.into(), name: name.into() },
        cluster_wide: namespace == "weft-system",
        selectors: Vec::new(),
        action,
        rules,
        unusable: None,
    }
}

fn from(sources: Vec<Source>) -> Rule {
    Rule { sources: Some(sources), ports: None, http: None }
}

fn account(namespace: &str, name: &str) -> Source {
    Source::ServiceAccount { namespace: namespace.into(), name: name.into() }
}

fn cidr(text: &str) -> Source {
    Source::Cidr(text.parse().unwrap())
}

fn set(policies: Vec<AuthorizationPolicy>, default_inbound: DefaultInbound) -> PolicySet {
    let policies = policies.into_iter().map(Arc::new).collect();
    PolicySet::new(policies, default_inbound, TRUST_DOMAIN.parse().unwrap())
}

/// A connection to port 8080 of pod `shop/pod` with label `app: web`, unless a field says otherwise.
struct Case<'a> {
    policies: Vec<AuthorizationPolicy>,
    default_inbound: DefaultInbound,
    identity: Option<&'a str>,
    client: &'a str,
    port: u16,
}

impl Default for Case<'_> {
    fn default() -> Self {
        Self {
            policies: Vec::new(),
            default_inbound: DefaultInbound::Permissive,
            identity: None,
            client: "10.0.0.9",
            port: 8080,
        }
    }
}

const CART: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/cart");

/// Judges the case; the answer is `allowed` or the refusal's label, a blank, and the sentence that names the reason.
/// Explanation and judgement must agree.
#[track_caller]
fn check(case: Case<'_>, expected: &str) {
    let set = set(case.policies, case.default_inbound);
    let identity = case.identity.map(|id| id.parse::<SpiffeId>().unwrap());
    let destination = pod("shop", &[("app", "web")]);
    let client = case.client.parse().unwrap();
    let facts = Facts {
        identity: identity.as_ref(),
        client,
        destination: &destination,
        port: case.port,
        node_probe: false,
        request: None,
    };
    let answer = match set.evaluate(&facts) {
        Ok(permit) => format!("allowed: {permit}"),
        Err(refusal) => format!("{}: {refusal}", refusal.label()),
    };
    assert_eq!(answer, expected);
    let explanation = set.explain(&facts);
    assert_eq!(format!("{}: {}", explanation.label, explanation.reason), expected);
}

/// The same rule once as ALLOW and once as DENY, for a client that it matches or does not.
#[track_caller]
fn check_both_actions(rule: &Rule, identity: Option<&str>, client: &str, port: u16, matches: bool) {
    let case = |action| Case {
        policies: vec![policy("shop/p", action, vec![rule.clone()])],
        identity,
        client,
        port,
        ..Case::default()
    };
    let (allow, deny) = if matches {
        (
            "allowed: allowed by rule 0 of ALLOW policy shop/p",
            "denied: refused by rule 0 of DENY policy shop/p",
        )
    } else {
        (
            "not_allowed: refused because no rule of ALLOW policy shop/p matches",
            "allowed: allowed by the mesh-wide default: no ALLOW policy selects the pod",
        )
    };
    check(case(Action::Allow), allow);
    check(case(Action::Deny), deny);
}

#[test]
fn every_source_type_matches_whom_it_names_and_nobody_else() {
    let sa = |text| Some(text);
    let table: Vec<(Vec<Source>, Option<&str>, &str, bool)> = vec![
        // A service account, by name.
        (vec![account("shop", "cart")], CART, "10.0.0.9", true),
        (vec![account("shop", "cart")], sa("spiffe://cluster.local/ns/shop/sa/cart2"), "10.0.0.9", false),
        (vec![account("shop", "cart")], sa("spiffe://cluster.local/ns/other/sa/cart"), "10.0.0.9", false),
        (vec![account("shop", "cart")], None, "10.0.0.9", false),
        // The same name in a foreign trust domain is somebody else.
        (vec![account("shop", "cart")], sa("spiffe://evil.example/ns/shop/sa/cart"), "10.0.0.9", false),
        (vec![account("shop", "*")], sa("spiffe://evil.example/ns/shop/sa/cart"), "10.0.0.9", false),
        // Every account of a namespace.
        (vec![account("shop", "*")], CART, "10.0.0.9", true),
        (vec![account("shop", "*")], sa("spiffe://cluster.local/ns/shopping/sa/cart"), "10.0.0.9", false),
        (vec![account("shop", "*")], None, "10.0.0.9", false),
        // An id of another shape is no service account.
        (vec![account("shop", "*")], sa("spiffe://cluster.local/host/shop"), "10.0.0.9", false),
        // A SPIFFE id, whole or by prefix.
        (vec![Source::Spiffe(CART.unwrap().into())], CART, "10.0.0.9", true),
        (vec![Source::Spiffe("spiffe://cluster.local/ns/shop/sa/car".into())], CART, "10.0.0.9", false),
        (vec![Source::Spiffe("spiffe://cluster.local/ns/shop/*".into())], CART, "10.0.0.9", true),
        (vec![Source::Spiffe("spiffe://other/*".into())], CART, "10.0.0.9", false),
        (
            vec![Source::Spiffe("spiffe://partner.example/*".into())],
            sa("spiffe://partner.example/x"),
            "10.0.0.9",
            true,
        ),
        (vec![Source::Spiffe("*".into())], None, "10.0.0.9", false),
        // Addresses, with or without an identity, IPv4-mapped folded.
        (vec![cidr("10.0.0.0/24")], None, "10.0.0.255", true),
        (vec![cidr("10.0.0.0/24")], None, "10.0.1.0", false),
        (vec![cidr("10.0.0.0/24")], CART, "10.0.0.9", true),
        (vec![cidr("10.0.0.0/24")], None, "::ffff:10.0.0.9", true),
        (vec![cidr("fd00::/8")], None, "fd00::9", true),
        (vec![cidr("fd00::/8")], None, "fe80::9", false),
        (vec![cidr("0.0.0.0/0")], None, "fd00::9", false),
        // Anybody who proved who they are, of whatever domain.
        (vec![Source::AnyAuthenticated], CART, "10.0.0.9", true),
        (vec![Source::AnyAuthenticated], sa("spiffe://partner.example/x"), "10.0.0.9", true),
        (vec![Source::AnyAuthenticated], None, "10.0.0.9", false),
        // Entries are alternatives; an empty list is nobody.
        (vec![cidr("192.0.2.0/24"), account("shop", "cart")], CART, "10.0.0.9", true),
        (vec![cidr("192.0.2.0/24"), account("shop", "cart")], None, "192.0.2.1", true),
        (vec![cidr("192.0.2.0/24"), account("shop", "cart")], None, "10.0.0.9", false),
        (vec![], CART, "10.0.0.9", false),
    ];
    for (sources, identity, client, matches) in table {
        check_both_actions(&from(sources), identity, client, 8080, matches);
    }
}

#[test]
fn absent_fields_match_everything_and_fields_are_joined_by_and() {
    check_both_actions(&Rule::default(), None, "192.0.2.1", 1, true);
    check_both_actions(
        &Rule { sources: None, ports: Some(vec![8080, 9090]), http: None },
        None,
        "10.0.0.9",
        9090,
        true,
    );
    check_both_actions(
        &Rule { sources: None, ports: Some(vec![8080]), http: None },
        None,
        "10.0.0.9",
        8081,
        false,
    );
    check_both_actions(
        &Rule { sources: None, ports: Some(vec![]), http: None },
        None,
        "10.0.0.9",
        8080,
        false,
    );
    let both = Rule { sources: Some(vec![account("shop", "cart")]), ports: Some(vec![8080]), http: None };
    check_both_actions(&both, CART, "10.0.0.9", 8080, true);
    check_both_actions(&both, CART, "10.0.0.9", 8081, false);
    check_both_actions(&both, None, "10.0.0.9", 8080, false);
}

#[test]
fn rules_are_joined_by_or_and_the_first_match_is_named() {
    let rules = vec![from(vec![cidr("192.0.2.0/24")]), from(vec![account("shop", "cart")])];
    check(
        Case { policies: vec![policy("shop/p", Action::Allow, rules)], identity: CART, ..Case::default() },
        "allowed: allowed by rule 1 of ALLOW policy shop/p",
    );
}

#[test]
fn deny_is_read_before_allow() {
    let policies = vec![
        policy("shop/a", Action::Allow, vec![Rule::default()]),
        policy("shop/z", Action::Deny, vec![from(vec![account("shop", "cart")])]),
    ];
    let case = |identity| Case { policies: policies.clone(), identity, ..Case::default() };
    check(case(CART), "denied: refused by rule 0 of DENY policy shop/z");
    check(case(None), "allowed: allowed by rule 0 of ALLOW policy shop/a");
}

#[test]
fn an_allow_without_rules_refuses_everybody_and_any_allow_overrides_the_default() {
    let policies = vec![policy("shop/a", Action::Allow, vec![]), policy("shop/b", Action::Allow, vec![])];
    check(
        Case { policies, identity: CART, ..Case::default() },
        "not_allowed: refused because no rule of ALLOW policies shop/a, shop/b matches",
    );
    check(
        Case {
            policies: vec![policy("shop/a", Action::Allow, vec![Rule::default()])],
            default_inbound: DefaultInbound::Deny,
            ..Case::default()
        },
        "allowed: allowed by rule 0 of ALLOW policy shop/a",
    );
}

#[test]
fn the_default_decides_only_where_no_allow_selects_the_pod() {
    let case = |default_inbound, identity| Case { default_inbound, identity, ..Case::default() };
    let admitted = "allowed: allowed by the mesh-wide default: no ALLOW policy selects the pod";
    check(case(DefaultInbound::Permissive, None), admitted);
    check(case(DefaultInbound::Authenticated, CART), admitted);
    check(
        case(DefaultInbound::Authenticated, None),
        "not_authenticated: refused by the mesh-wide default Authenticated: the client has no verified identity",
    );
    check(
        case(DefaultInbound::Deny, CART),
        "default_deny: refused by the mesh-wide default Deny: no ALLOW policy selects the pod",
    );
    check(case(DefaultInbound::Audit, CART), admitted);
    check(case(DefaultInbound::Audit, None), "allowed: allowed by the mesh-wide default Audit, and recorded");
}

#[test]
fn policies_of_other_namespaces_and_other_pods_are_not_read() {
    let mut elsewhere = policy("other/p", Action::Deny, vec![Rule::default()]);
    let mut unselected = policy("shop/q", Action::Deny, vec![Rule::default()]);
    unselected.selectors = vec![Selector {
        match_labels: BTreeMap::from([("app".to_owned(), "db".to_owned())]),
        expressions: vec![],
    }];
    let admitted = "allowed: allowed by the mesh-wide default: no ALLOW policy selects the pod";
    check(Case { policies: vec![elsewhere.clone(), unselected.clone()], ..Case::default() }, admitted);

    elsewhere.cluster_wide = true;
    check(
        Case { policies: vec![elsewhere], ..Case::default() },
        "denied: refused by rule 0 of DENY policy other/p",
    );
    unselected.selectors.push(Selector {
        match_labels: BTreeMap::new(),
        expressions: vec![Requirement::In("app".into(), vec!["web".into()])],
    });
    check(
        Case { policies: vec![unselected], ..Case::default() },
        "denied: refused by rule 0 of DENY policy shop/q",
    );
}

#[test]
fn a_policy_that_cannot_be_enforced_refuses_everybody_whatever_its_action() {
    for action in [Action::Allow, Action::Deny] {
        let mut unusable = policy("shop/p", action, vec![Rule::default()]);
        unusable.unusable = Some("`http` is not supported yet".into());
        let policies = vec![unusable, policy("shop/a", Action::Allow, vec![Rule::default()])];
        check(
            Case { policies, identity: CART, ..Case::default() },
            "unusable_policy: refused because policy shop/p cannot be enforced: `http` is not supported yet",
        );
    }
}

#[test]
fn audit_only_records_and_both_answers_carry_it() {
    let audit = || policy("shop/watch", Action::Audit, vec![from(vec![cidr("10.0.0.0/24")])]);
    let facts_pod = pod("shop", &[]);
    let judge = |policies, client: &str| {
        let facts = Facts {
            identity: None,
            client: client.parse().unwrap(),
            destination: &facts_pod,
            port: 80,
            node_probe: false,
            request: None,
        };
        set(policies, DefaultInbound::Permissive).evaluate(&facts)
    };
    let names = |audits: &[PolicyName]| audits.iter().map(ToString::to_string).collect::<Vec<_>>();

    assert_eq!(names(judge(vec![audit()], "10.0.0.9").unwrap().audits()), ["shop/watch"]);
    assert!(judge(vec![audit()], "10.0.1.9").unwrap().audits().is_empty());
    let deny = policy("shop/no", Action::Deny, vec![Rule::default()]);
    assert_eq!(names(judge(vec![audit(), deny.clone()], "10.0.0.9").unwrap_err().audits()), ["shop/watch"]);
    assert!(judge(vec![audit(), deny], "10.0.1.9").unwrap_err().audits().is_empty());
}

#[test]
fn strict_means_that_no_anonymous_client_could_pass() {
    let strict = |policies: Vec<AuthorizationPolicy>, default_inbound, port| {
        set(policies, default_inbound).requires_identity(&pod("shop", &[]), port)
    };
    let allow = |rules| vec![policy("shop/p", Action::Allow, rules)];
    use DefaultInbound::{Authenticated, Permissive};

    assert!(!strict(vec![], Permissive, 80));
    assert!(!strict(vec![], DefaultInbound::Audit, 80));
    assert!(strict(vec![], Authenticated, 80));
    assert!(strict(vec![], DefaultInbound::Deny, 80));
    assert!(strict(allow(vec![from(vec![Source::AnyAuthenticated])]), Permissive, 80));
    assert!(!strict(allow(vec![Rule::default()]), Authenticated, 80));
    let only_80 = || allow(vec![Rule { sources: None, ports: Some(vec![80]), http: None }]);
    assert!(!strict(only_80(), Permissive, 80));
    assert!(strict(only_80(), Permissive, 81));
    // A range far from the edges of the address space is found.
    assert!(!strict(allow(vec![from(vec![cidr("192.0.2.128/25")])]), Permissive, 80));
    assert!(!strict(allow(vec![from(vec![cidr("fd12::/16")])]), Permissive, 80));
    // Allowed in one range and denied in its lower half: the upper half passes.
    let mut half = allow(vec![from(vec![cidr("192.0.2.0/24")])]);
    half.push(policy("shop/d", Action::Deny, vec![from(vec![cidr("192.0.2.0/25")])]));
    assert!(!strict(half.clone(), Permissive, 80));
    half.push(policy("shop/e", Action::Deny, vec![from(vec![cidr("192.0.2.128/25")])]));
    assert!(strict(half, Permissive, 80));
    // Denying all of IPv4 leaves IPv6 open.
    let no_v4 = policy("shop/d", Action::Deny, vec![from(vec![cidr("0.0.0.0/0")])]);
    assert!(!strict(vec![no_v4.clone()], Permissive, 80));
    let no_v6 = policy("shop/e", Action::Deny, vec![from(vec![cidr("::/0")])]);
    assert!(strict(vec![no_v4, no_v6], Permissive, 80));
}

#[test]
fn mentioned_ports_are_those_of_selecting_policies() {
    let rule = |ports: &[u16]| Rule { sources: None, ports: Some(ports.to_vec()), http: None };
    let set = set(
        vec![
            policy("shop/a", Action::Allow, vec![rule(&[80, 443]), Rule::default()]),
            policy("shop/d", Action::Deny, vec![rule(&[22])]),
            policy("weft-system/w", Action::Audit, vec![rule(&[9090])]),
            policy("other/x", Action::Deny, vec![rule(&[1])]),
        ],
        DefaultInbound::Permissive,
    );
    assert_eq!(Vec::from_iter(set.mentions_ports(&pod("shop", &[]))), [22, 80, 443, 9090]);
    assert_eq!(Vec::from_iter(set.mentions_ports(&pod("other", &[]))), [1, 9090]);
    assert_eq!(set.policies().count(), 4);
}

#[test]
fn an_explanation_names_the_field_that_did_not_match() {
    let set = set(
        vec![
            policy("shop/no-batch", Action::Deny, vec![from(vec![account("batch", "*")])]),
            policy(
                "shop/web",
                Action::Allow,
                vec![
                    Rule {
                        sources: Some(vec![account("shop", "cart")]),
                        ports: Some(vec![9090]),
                        http: None,
                    },
                    from(vec![Source::AnyAuthenticated]),
                ],
            ),
        ],
        DefaultInbound::Permissive,
    );
    let identity = CART.unwrap().parse().unwrap();
    let destination = pod("shop", &[]);
    let facts = Facts {
        identity: Some(&identity),
        client: "10.0.0.9".parse().unwrap(),
        destination: &destination,
        port: 8080,
        node_probe: false,
        request: None,
    };
    let explanation = set.explain(&facts);
    assert_eq!(
        explanation.to_string(),
        "10.0.0.9 (spiffe://cluster.local/ns/shop/sa/cart) -> shop/pod:8080\n\
         ALLOWED: allowed by rule 1 of ALLOW policy shop/web\n\
         DENY shop/no-batch\n\
         \x20 rule 0: does not match\n\
         \x20   sources: spiffe://cluster.local/ns/shop/sa/cart at 10.0.0.9 is not among: service account batch/*\n\
         ALLOW shop/web\n\
         \x20 rule 0: does not match\n\
         \x20   networkAttributes.ports: 8080 is not among: 9090\n\
         \x20 rule 1: matches  <- decides\n"
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["deciding"], serde_json::json!({"policy": "shop/web", "rule": 1}));
    assert_eq!(json["policies"][1]["rules"][0]["matched"], false);
    assert_eq!(json["policies"][1]["rules"][0]["sources"], serde_json::Value::Null);
}

#[test]
fn readers_see_a_published_set_and_are_told() {
    let (writer, policies) = new();
    let changes = policies.changes();
    assert!(!changes.has_changed().unwrap());
    assert_eq!(writer.publish(set(vec![policy("shop/a", Action::Allow, vec![])], DefaultInbound::Deny)), 1);
    assert!(changes.has_changed().unwrap());
    assert_eq!(policies.current().default_inbound(), DefaultInbound::Deny);
    assert_eq!(policies.current().policies().count(), 1);
}

#[test]
fn a_probe_of_the_node_passes_whatever_policies_say_and_says_so() {
    let destination = pod("shop", &[]);
    let unusable = AuthorizationPolicy {
        unusable: Some("broken".into()),
        ..policy("shop/broken", Action::Allow, vec![])
    };
    let everybody = || vec![Rule { sources: None, ports: None, http: None }];
    let set = set(
        vec![
            policy("shop/none", Action::Deny, everybody()),
            policy("shop/watch", Action::Audit, everybody()),
            policy("shop/known", Action::Allow, vec![from(vec![Source::AnyAuthenticated])]),
            unusable,
        ],
        DefaultInbound::Deny,
    );
    let facts = |node_probe| Facts {
        identity: None,
        client: "10.0.0.9".parse().unwrap(),
        destination: &destination,
        port: 8080,
        node_probe,
        request: None,
    };
    let permit = set.evaluate(&facts(true)).unwrap();
    assert!(permit.is_node_probe() && permit.policy().is_none());
    assert_eq!(permit.reason().as_deref(), Some(NODE_PROBE));
    assert_eq!(permit.audits().len(), 1, "AUDIT sees it");
    assert!(set.explain(&facts(true)).reason.contains("probe of the node"));
    set.evaluate(&facts(false)).unwrap_err();
    assert!(set.requires_identity(&destination, 8080), "a probe does not make the port any less strict");
}
