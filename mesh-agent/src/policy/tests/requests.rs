//! Rules about requests: each field, and every known way around a path.

use http::{HeaderName, HeaderValue};

use super::*;
use crate::model::{GrpcMethod, HeaderCondition, HeaderPattern, HttpMatch, PathFault, PathPattern};

/// Headers as they are sent.
type Lines = &'static [(&'static str, &'static str)];

/// A request to `shop/pod`, from an anonymous client.
#[derive(Clone, Copy)]
struct Sent<'a> {
    method: &'a str,
    target: &'a str,
    headers: &'a [(&'static str, &'static str)],
    host: Option<&'a str>,
}

const GET: Sent<'_> = Sent { method: "GET", target: "/", headers: &[], host: None };

fn get(target: &str) -> Sent<'_> {
    Sent { target, ..GET }
}

/// The answer as people read it; a path that has no normal form is refused before policy sees it.
fn judge(set: &PolicySet, sent: Sent<'_>) -> Result<String, PathFault> {
    with_facts(sent, |facts| match set.evaluate(facts) {
        Ok(permit) => format!("allowed: {permit}"),
        Err(refusal) => format!("{}: {refusal}", refusal.label()),
    })
}

fn with_facts<T>(sent: Sent<'_>, look: impl FnOnce(&Facts<'_>) -> T) -> Result<T, PathFault> {
    let path = RequestPath::parse(sent.target)?;
    let mut headers = HeaderMap::new();
    for (name, value) in sent.headers {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let method = sent.method.parse().unwrap();
    let request = Request { method: &method, path: &path, headers: &headers, host: sent.host };
    let destination = pod("shop", &[]);
    Ok(look(&Facts {
        identity: None,
        client: "10.0.0.9".parse().unwrap(),
        destination: &destination,
        port: 8080,
        node_probe: false,
        request: Some(request),
    }))
}

fn http(alternatives: Vec<HttpMatch>) -> Rule {
    Rule { http: Some(alternatives), ..Rule::default() }
}

fn one(action: Action, rule: Rule) -> PolicySet {
    set(vec![policy("shop/p", action, vec![rule])], DefaultInbound::Permissive)
}

/// Whether the rule matches as ALLOW, and as DENY.
#[track_caller]
fn matches(wanted: &HttpMatch, sent: Sent<'_>) -> (bool, bool) {
    let rule = || http(vec![wanted.clone()]);
    let allowed = judge(&one(Action::Allow, rule()), sent).unwrap().starts_with("allowed");
    let denied = judge(&one(Action::Deny, rule()), sent).unwrap().starts_with("denied");
    (allowed, denied)
}

const BOTH: (bool, bool) = (true, true);
const NEITHER: (bool, bool) = (false, false);
/// The doubtful case: not surely meant, so not allowed; perhaps meant, so denied.
const DENY_ONLY: (bool, bool) = (false, true);

fn path(pattern: PathPattern) -> HttpMatch {
    HttpMatch { paths: Some(vec![pattern]), ..HttpMatch::default() }
}

#[test]
fn methods_are_compared_with_regard_to_case() {
    let wanted = HttpMatch { methods: Some(vec![Method::GET, Method::HEAD]), ..HttpMatch::default() };
    let table = [("GET", BOTH), ("HEAD", BOTH), ("POST", NEITHER), ("get", NEITHER), ("GETX", NEITHER)];
    for (method, expected) in table {
        assert_eq!(matches(&wanted, Sent { method, ..GET }), expected, "{method}");
    }
}

#[test]
fn absent_fields_are_no_restriction_and_empty_lists_match_nothing() {
    assert_eq!(matches(&HttpMatch::default(), GET), BOTH);
    let empty = [
        HttpMatch { methods: Some(vec![]), ..HttpMatch::default() },
        HttpMatch { paths: Some(vec![]), ..HttpMatch::default() },
        HttpMatch { headers: Some(vec![]), ..HttpMatch::default() },
        HttpMatch { grpc_methods: Some(vec![]), ..HttpMatch::default() },
    ];
    for wanted in empty {
        assert_eq!(matches(&wanted, GET), NEITHER, "{wanted:?}");
        assert_eq!(matches(&wanted, get("")), NEITHER, "{wanted:?}");
    }
    assert!(judge(&one(Action::Allow, http(vec![])), GET).unwrap().starts_with("not_allowed"));
    assert!(judge(&one(Action::Deny, http(vec![])), GET).unwrap().starts_with("allowed"));
}

#[test]
fn fields_are_joined_by_and_and_alternatives_by_or() {
    let mut wanted = path(PathPattern::exact("/a").unwrap());
    wanted.methods = Some(vec![Method::POST]);
    assert_eq!(matches(&wanted, Sent { method: "POST", ..get("/a") }), BOTH);
    assert_eq!(matches(&wanted, get("/a")), NEITHER);
    assert_eq!(matches(&wanted, Sent { method: "POST", ..get("/b") }), NEITHER);

    let either = http(vec![path(PathPattern::exact("/a").unwrap()), path(PathPattern::exact("/b").unwrap())]);
    for (target, expected) in [("/a", "allowed"), ("/b", "allowed"), ("/c", "not_allowed")] {
        assert!(
            judge(&one(Action::Allow, either.clone()), get(target)).unwrap().starts_with(expected),
            "{target}"
        );
    }
    // The other fields of the rule still have to match.
    let elsewhere = Rule { ports: Some(vec![9090]), ..http(vec![HttpMatch::default()]) };
    assert!(judge(&one(Action::Deny, elsewhere), GET).unwrap().starts_with("allowed"));
}

#[test]
fn paths_match_by_type() {
    let exact = |value| path(PathPattern::exact(value).unwrap());
    let prefix = |value| path(PathPattern::prefix(value).unwrap());
    let template = |value| path(PathPattern::template(value).unwrap());
    let table = [
        (exact("/a"), "/a", BOTH),
        (exact("/a"), "/a?q=/b", BOTH),
        (exact("/a"), "/ab", NEITHER),
        (exact("/a"), "/a/b", NEITHER),
        (exact("/a"), "/a/", DENY_ONLY),
        (exact("/a"), "/A", DENY_ONLY),
        (exact("/a/"), "/a/", BOTH),
        (exact("/a/"), "/a", DENY_ONLY),
        (exact("/"), "/", BOTH),
        (exact("/"), "/a", NEITHER),
        (exact("/a%20b"), "/a%20b", BOTH),
        (exact("/a@b"), "/a%40b", BOTH),
        (exact("/a%40b"), "/a@b", BOTH),
        (exact("*"), "*", BOTH),
        (exact("/"), "*", NEITHER),
        (prefix("/a"), "/a", BOTH),
        (prefix("/a"), "/a/", BOTH),
        (prefix("/a"), "/a/b", BOTH),
        (prefix("/a/"), "/a", BOTH),
        (prefix("/a"), "/ab", NEITHER),
        (prefix("/a/b"), "/a", NEITHER),
        (prefix("/a"), "/A/b", DENY_ONLY),
        (prefix("/"), "/a", BOTH),
        (prefix("/"), "*", BOTH),
        (template("/users/{id}"), "/users/7", BOTH),
        (template("/users/{id}"), "/users", NEITHER),
        (template("/users/{id}"), "/users/", NEITHER),
        (template("/users/{id}"), "/users/7/orders", NEITHER),
        (template("/users/{id}"), "/users/7/", DENY_ONLY),
        (template("/users/{id}"), "/USERS/7", DENY_ONLY),
        (template("/users/{id}/"), "/users/7", DENY_ONLY),
        (template("/{ns}/users/{id}"), "/x/users/7", BOTH),
        (template("/{ns}/users/{id}"), "/users/7", NEITHER),
        (template("/files/{rest=**}"), "/files", BOTH),
        (template("/files/{rest=**}"), "/files/a/b", BOTH),
        (template("/files/{rest=**}"), "/filesystem", NEITHER),
        (template("/{rest=**}"), "/", BOTH),
        (template("/{rest=**}"), "*", NEITHER),
        (template("/"), "/", BOTH),
        (template("/"), "/a", NEITHER),
    ];
    for (wanted, target, expected) in table {
        assert_eq!(matches(&wanted, get(target)), expected, "{wanted:?} {target}");
    }
}

#[test]
fn headers_match_on_every_line_for_allow_and_on_any_for_deny() {
    let header = |name: &'static str, value| HttpMatch {
        headers: Some(vec![HeaderPattern { name: HeaderName::from_static(name), value }]),
        ..HttpMatch::default()
    };
    let exact = |value: &str| header("x-tier", HeaderCondition::Exact(value.into()));
    let prefix = |value: &str| header("x-tier", HeaderCondition::Prefix(value.into()));
    let present = || header("x-tier", HeaderCondition::Present);
    let table: Vec<(HttpMatch, Lines, (bool, bool))> = vec![
        (exact("gold"), &[("x-tier", "gold")], BOTH),
        (exact("gold"), &[("X-Tier", "gold")], BOTH),
        (exact("gold"), &[("x-tier", "Gold")], NEITHER),
        (exact("gold"), &[("x-tier", "golden")], NEITHER),
        (exact("gold"), &[("x-other", "gold")], NEITHER),
        (exact("gold"), &[], NEITHER),
        (exact("gold"), &[("x-tier", "gold"), ("x-tier", "gold")], BOTH),
        (exact("gold"), &[("x-tier", "blue"), ("x-tier", "gold")], DENY_ONLY),
        (exact("gold"), &[("x-tier", "blue, gold")], DENY_ONLY),
        (exact("blue, gold"), &[("x-tier", "blue, gold")], BOTH),
        (exact("blue, gold"), &[("x-tier", "blue"), ("x-tier", "gold")], DENY_ONLY),
        (prefix("go"), &[("x-tier", "gold")], BOTH),
        (prefix("go"), &[("x-tier", "blue, gold")], DENY_ONLY),
        (prefix("go"), &[("x-tier", "ergo")], NEITHER),
        (present(), &[("x-tier", "")], BOTH),
        (present(), &[], NEITHER),
    ];
    for (wanted, headers, expected) in table {
        assert_eq!(matches(&wanted, Sent { headers, ..GET }), expected, "{wanted:?} {headers:?}");
    }
    let mut two = exact("gold");
    two.headers.as_mut().unwrap().extend(header("x-beta", HeaderCondition::Present).headers.unwrap());
    assert_eq!(matches(&two, Sent { headers: &[("x-tier", "gold"), ("x-beta", "1")], ..GET }), BOTH);
    assert_eq!(matches(&two, Sent { headers: &[("x-tier", "gold")], ..GET }), NEITHER);
}

#[test]
fn the_header_host_is_the_authority_of_the_request() {
    let host = |value| HttpMatch {
        headers: Some(vec![HeaderPattern { name: http::header::HOST, value }]),
        ..HttpMatch::default()
    };
    let exact = |value: &str| host(HeaderCondition::Exact(value.into()));
    let table = [
        (exact("shop.example"), Some("shop.example"), BOTH),
        (exact("shop.example"), Some("SHOP.example:8080"), BOTH),
        (exact("shop.example"), Some("shop.example.:8080"), BOTH),
        (exact("shop.example:80"), Some("shop.example:80"), BOTH),
        (exact("shop.example:80"), Some("shop.example:8080"), NEITHER),
        (exact("[fd00::1]"), Some("[fd00::1]:80"), BOTH),
        (exact("shop.example"), Some("evil.shop.example"), NEITHER),
        (exact("shop.example"), None, NEITHER),
        (host(HeaderCondition::Prefix("shop.".into())), Some("Shop.example"), BOTH),
        (host(HeaderCondition::Present), Some("x"), BOTH),
    ];
    for (wanted, host, expected) in table {
        assert_eq!(matches(&wanted, Sent { host, ..GET }), expected, "{wanted:?} {host:?}");
    }
}

#[test]
fn a_grpc_call_is_a_post_of_its_content_type_to_service_and_method() {
    let call = |service: Option<&str>, method: Option<&str>| HttpMatch {
        grpc_methods: Some(vec![GrpcMethod {
            service: service.map(Into::into),
            method: method.map(Into::into),
        }]),
        ..HttpMatch::default()
    };
    let list = || call(Some("shop.v1.Orders"), Some("List"));
    let orders = || call(Some("shop.v1.Orders"), None);
    let any = || call(None, None);
    let grpc: &[(&str, &str)] = &[("content-type", "application/grpc")];
    let proto: &[(&str, &str)] = &[("content-type", "application/grpc+proto")];
    let web: &[(&str, &str)] = &[("content-type", "application/grpc-web")];
    let json: &[(&str, &str)] = &[("content-type", "application/json")];
    let table = [
        (list(), "POST", "/shop.v1.Orders/List", grpc, BOTH),
        (list(), "POST", "/shop.v1.Orders/List", proto, BOTH),
        (list(), "POST", "/shop.v1.Orders/Delete", grpc, NEITHER),
        (list(), "POST", "/shop.v2.Orders/List", grpc, NEITHER),
        (list(), "POST", "/shop.v1.Orders/List/x", grpc, NEITHER),
        (list(), "POST", "/shop.v1.Orders", grpc, NEITHER),
        (list(), "POST", "*", grpc, NEITHER),
        // Perhaps a call all the same, to a lenient server.
        (list(), "POST", "/shop.v1.Orders/List", web, DENY_ONLY),
        (list(), "POST", "/shop.v1.Orders/List", json, DENY_ONLY),
        (list(), "GET", "/shop.v1.Orders/List", grpc, DENY_ONLY),
        (list(), "POST", "/shop.v1.Orders/list", grpc, DENY_ONLY),
        (list(), "POST", "/shop.v1.Orders%2FList", grpc, DENY_ONLY),
        (orders(), "POST", "/shop.v1.Orders/Delete", grpc, BOTH),
        (orders(), "POST", "/shop.v1.Orders/", grpc, NEITHER),
        (any(), "POST", "/a/b", grpc, BOTH),
        // A rule about all gRPC is none about all of HTTP.
        (any(), "POST", "/a/b", json, NEITHER),
        (any(), "POST", "/a/b", web, DENY_ONLY),
        (any(), "GET", "/a/b", &[], NEITHER),
    ];
    for (wanted, method, target, headers, expected) in table {
        let sent = Sent { method, target, headers, host: None };
        assert_eq!(matches(&wanted, sent), expected, "{wanted:?} {method} {target} {headers:?}");
    }
}

/// One line per trick: what `DENY /admin` and `ALLOW /public` make of it (both by prefix).
#[test]
fn no_spelling_of_a_path_gets_around_a_rule() {
    let deny = one(Action::Deny, http(vec![path(PathPattern::prefix("/admin").unwrap())]));
    let allow = one(Action::Allow, http(vec![path(PathPattern::prefix("/public").unwrap())]));
    let table = [
        // target, DENY /admin, ALLOW /public
        ("/admin", "denied", "not_allowed"),
        ("/admin/", "denied", "not_allowed"),
        ("/admin/users", "denied", "not_allowed"),
        ("/admin?x", "denied", "not_allowed"),
        ("/ADMIN", "denied", "not_allowed"),
        ("//admin", "denied", "not_allowed"),
        ("///admin", "denied", "not_allowed"),
        ("//x/admin", "denied", "not_allowed"),
        ("/./admin", "denied", "not_allowed"),
        ("/x/../admin", "denied", "not_allowed"),
        ("/x//../admin", "allowed", "not_allowed"),
        ("/../admin", "denied", "not_allowed"),
        ("/%61dmin", "denied", "not_allowed"),
        ("/%41DMIN", "denied", "not_allowed"),
        ("/%2561dmin", "denied", "not_allowed"),
        ("/%252561dmin", "denied", "not_allowed"),
        ("/admin%2f..", "denied", "not_allowed"),
        ("/admin%2fusers", "denied", "not_allowed"),
        ("/admin%5cusers", "denied", "not_allowed"),
        ("/%2fadmin", "denied", "not_allowed"),
        ("/%2e%2e/admin", "denied", "not_allowed"),
        ("/x%2f..%2fadmin", "denied", "not_allowed"),
        ("/x%252f..%252fadmin", "denied", "not_allowed"),
        ("/x/..%2fadmin", "denied", "not_allowed"),
        ("/x%5c..%5cadmin", "denied", "not_allowed"),
        ("\\admin", "denied", "not_allowed"),
        ("/x\\..\\admin", "denied", "not_allowed"),
        ("/admin;x=1", "denied", "not_allowed"),
        ("/admin;x=1/users", "denied", "not_allowed"),
        ("/admin%3bx=1", "denied", "not_allowed"),
        ("/;x/admin", "denied", "not_allowed"),
        ("/x/..;/admin", "denied", "not_allowed"),
        ("/x/..;y=1/admin", "denied", "not_allowed"),
        ("/admin%3fx", "denied", "not_allowed"),
        ("/admin%23x", "denied", "not_allowed"),
        // A path that nobody can know is denied by any DENY about paths and allowed by none.
        ("/x%2500", "denied", "not_allowed"),
        ("", "denied", "not_allowed"),
        // Out of what is allowed, by every door.
        ("/public/../x", "allowed", "not_allowed"),
        ("/public/%2e%2e/x", "allowed", "not_allowed"),
        ("/public%2f..%2fx", "allowed", "not_allowed"),
        ("/public/..%2fx", "allowed", "not_allowed"),
        ("/public/..%5cx", "allowed", "not_allowed"),
        ("/public/..;/x", "allowed", "not_allowed"),
        ("/public/%252e%252e/x", "allowed", "not_allowed"),
        ("/public%252f..%252fx", "allowed", "not_allowed"),
        ("/public/..%2fadmin", "denied", "not_allowed"),
        ("//public", "allowed", "not_allowed"),
        ("/PUBLIC", "allowed", "not_allowed"),
        // What is something else must stay something else.
        ("/", "allowed", "not_allowed"),
        ("*", "allowed", "not_allowed"),
        ("/administrator", "allowed", "not_allowed"),
        ("/admi", "allowed", "not_allowed"),
        ("/x/admin", "allowed", "not_allowed"),
        ("/x?y=/admin", "allowed", "not_allowed"),
        ("/admin/../x", "allowed", "not_allowed"),
        ("/publicity", "allowed", "not_allowed"),
        ("/x%2fadmin", "allowed", "not_allowed"),
        // And what is allowed stays allowed, oddly spelled or not.
        ("/public", "allowed", "allowed"),
        ("/public/", "allowed", "allowed"),
        ("/public/a?b", "allowed", "allowed"),
        ("/x/../public", "allowed", "allowed"),
        ("/%70ublic", "allowed", "allowed"),
        ("/public//a", "allowed", "allowed"),
        ("/public/a;v=1/b", "allowed", "allowed"),
        ("/public/a%2fb", "allowed", "allowed"),
        ("/public/a/../b", "allowed", "allowed"),
        ("/public/100%25", "allowed", "allowed"),
        ("/public/a%20b%40c", "allowed", "allowed"),
        ("/public/admin", "allowed", "allowed"),
    ];
    for (target, by_deny, by_allow) in table {
        for (set, expected) in [(&deny, by_deny), (&allow, by_allow)] {
            let answer = judge(set, get(target)).unwrap();
            assert_eq!(answer.split(':').next(), Some(expected), "{target}: {answer}");
        }
    }
    for target in
        ["/admin#", "/admin%00", "/admin%", "/%c0%afadmin", "/x/%c0%ae%c0%ae/admin", "admin", "/admin%0d"]
    {
        assert!(judge(&deny, get(target)).is_err(), "{target}");
    }
}

#[test]
fn different_readings_can_be_allowed_by_different_rules() {
    let both =
        http(vec![path(PathPattern::exact("/a%2Fb").unwrap()), path(PathPattern::exact("/a/b").unwrap())]);
    let answer = judge(&one(Action::Allow, both), get("/a%2fb")).unwrap();
    assert_eq!(answer, "allowed: allowed by rule 0 of ALLOW policy shop/p");
    let only = http(vec![path(PathPattern::exact("/a%2Fb").unwrap())]);
    let answer = judge(&one(Action::Allow, only), get("/a%2fb")).unwrap();
    assert_eq!(
        answer,
        "not_allowed: refused because no rule of ALLOW policy shop/p matches: a server could read the path as /a/b"
    );
}

#[test]
fn a_refusal_names_the_policy_and_the_reading() {
    let deny = one(Action::Deny, http(vec![path(PathPattern::prefix("/admin").unwrap())]));
    assert_eq!(judge(&deny, get("/admin")).unwrap(), "denied: refused by rule 0 of DENY policy shop/p");
    assert_eq!(
        judge(&deny, get("/x;/..%2Fadmin")).unwrap(),
        "denied: refused by rule 0 of DENY policy shop/p: a server could read the path as /admin"
    );
}

#[test]
fn what_is_not_http_is_denied_by_rules_about_requests_and_not_allowed_by_them() {
    let connection = |set: &PolicySet| {
        with_facts(GET, |facts| set.evaluate(&Facts { request: None, ..*facts }).is_ok()).unwrap()
    };
    let rule = http(vec![path(PathPattern::exact("/a").unwrap())]);
    assert!(!connection(&one(Action::Deny, rule.clone())));
    assert!(!connection(&one(Action::Allow, rule.clone())));
    // Other fields that do not match keep the rule out of it, and so does a list that matches nothing.
    assert!(connection(&one(Action::Deny, Rule { ports: Some(vec![9090]), ..rule.clone() })));
    assert!(connection(&one(Action::Deny, http(vec![]))));
    assert!(connection(&one(
        Action::Deny,
        http(vec![HttpMatch { methods: Some(vec![]), ..HttpMatch::default() }])
    )));
    // A rule without `http` speaks about connections and about every request.
    assert!(connection(&one(Action::Allow, Rule::default())));
    assert!(
        judge(&one(Action::Allow, Rule::default()), get("/a%2F..%2Fb;c")).unwrap().starts_with("allowed")
    );
}

#[test]
fn audit_notes_requests_that_match() {
    let set = one(Action::Audit, http(vec![path(PathPattern::prefix("/a").unwrap())]));
    let audits =
        |target| with_facts(get(target), |facts| set.evaluate(facts).unwrap().audits().len()).unwrap();
    assert_eq!((audits("/a/b"), audits("/%2fa"), audits("/b")), (1, 1, 0));
    let connection = with_facts(GET, |facts| set.evaluate(&Facts { request: None, ..*facts }).unwrap());
    assert!(connection.unwrap().audits().is_empty());
}

#[test]
fn requests_are_needed_where_a_rule_about_them_can_apply() {
    let rule = |ports: Option<Vec<u16>>| Rule { ports, ..http(vec![HttpMatch::default()]) };
    let needs = |action, rule, port| one(action, rule).needs_requests(&pod("shop", &[]), port);
    for action in [Action::Allow, Action::Deny, Action::Audit] {
        assert!(needs(action, rule(None), 80));
        assert!(needs(action, rule(Some(vec![80])), 80));
        assert!(!needs(action, rule(Some(vec![80])), 81));
        assert!(!needs(action, Rule::default(), 80));
        assert!(!needs(action, Rule { sources: Some(vec![]), ..rule(None) }, 80));
    }
    assert!(!one(Action::Deny, rule(None)).needs_requests(&pod("other", &[]), 80));
}

#[test]
fn a_connection_is_given_up_only_when_no_request_could_pass() {
    let could = |policies| {
        let set = set(policies, DefaultInbound::Permissive);
        with_facts(GET, |facts| set.could_admit(facts)).unwrap()
    };
    let some = || http(vec![path(PathPattern::exact("/a").unwrap())]);
    assert!(could(vec![]));
    assert!(could(vec![policy("shop/a", Action::Allow, vec![some()])]));
    assert!(could(vec![policy("shop/d", Action::Deny, vec![some()])]));
    assert!(!could(vec![policy("shop/a", Action::Allow, vec![http(vec![])])]));
    assert!(!could(vec![policy("shop/d", Action::Deny, vec![http(vec![HttpMatch::default()])])]));
    assert!(!could(vec![policy("shop/d", Action::Deny, vec![Rule::default()])]));
    assert!(!could(vec![policy("shop/a", Action::Allow, vec![from(vec![Source::AnyAuthenticated])])]));
}

#[test]
fn an_explanation_shows_the_readings_and_the_field_that_did_not_match() {
    let mut post = path(PathPattern::template("/users/{id}").unwrap());
    post.methods = Some(vec![Method::POST]);
    let set = set(
        vec![
            policy(
                "shop/no-admin",
                Action::Deny,
                vec![http(vec![path(PathPattern::prefix("/admin").unwrap())])],
            ),
            policy("shop/web", Action::Allow, vec![http(vec![post]), Rule::default()]),
        ],
        DefaultInbound::Permissive,
    );
    let told = |target| {
        let sent = Sent { host: Some("shop"), ..get(target) };
        with_facts(sent, |facts| set.explain(facts).to_string()).unwrap()
    };
    assert_eq!(
        told("/users/7"),
        "10.0.0.9 (no verified identity) -> shop/pod:8080\n\
         GET /users/7 (shop)\n\
         ALLOWED: allowed by rule 1 of ALLOW policy shop/web\n\
         DENY shop/no-admin\n\
         \x20 rule 0: does not match\n\
         \x20   http: paths: /users/7 is not among: /admin/...\n\
         ALLOW shop/web\n\
         \x20 rule 0: does not match\n\
         \x20   http: methods: GET is not among: POST\n\
         \x20 rule 1: matches  <- decides\n"
    );
    assert_eq!(
        told("/%2fadmin"),
        "10.0.0.9 (no verified identity) -> shop/pod:8080\n\
         GET /%2Fadmin (shop)\n\
         a server could read the path as: /%2Fadmin, //admin, /admin, /\n\
         REFUSED: refused by rule 0 of DENY policy shop/no-admin: a server could read the path as /admin\n\
         DENY shop/no-admin\n\
         \x20 rule 0: matches /admin  <- decides\n\
         ALLOW shop/web\n\
         \x20 rule 0: does not match\n\
         \x20   http: methods: GET is not among: POST\n\
         \x20 rule 1: matches\n"
    );
}
