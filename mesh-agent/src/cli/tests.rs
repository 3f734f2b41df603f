//! Commands against a real admin server on loopback: what is printed, and with which exit code.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::columns::{bytes, short};
use super::explain::in_namespace;
use super::*;
use crate::admin::{self, Query, Refused, Windows};
use crate::lifecycle::{Block, Readiness, shutdown};
use crate::telemetry::Telemetry;

mod worlds;

/// An agent whose windows show a small shop.
struct Shop {
    address: SocketAddr,
    telemetry: Telemetry,
    _running: shutdown::Trigger,
}

fn workloads() -> Value {
    let pod = |name: &str, node: &str, enrolled: bool, captured: bool| {
        json!({
            "namespace": "shop", "name": name, "owner": name, "node": node, "zone": null,
            "addresses": ["10.0.0.1", "fd00::1"], "identity": format!("spiffe://cluster.local/ns/shop/sa/{name}"),
            "enrolled": enrolled, "captured": captured, "splice": "auto", "ready": true, "terminating": false,
        })
    };
    let mut all = vec![pod("web", "n1", true, true), pod("orders-with-a-long-name", "n2", true, false)];
    let mut outside = pod("legacy", "n1", false, false);
    outside["namespace"] = json!("old");
    all.push(outside);
    Value::Array(all)
}

/// A canary at two parents, one of which another kind has, and a route for gateways only.
fn routes() -> Value {
    let said = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message});
    let parent = |port: Value, conditions: Value| {
        json!({"parentRef": {"group": "", "kind": "Service", "namespace": "shop", "name": "orders", "port": port},
            "layer": "producer", "ports": [80], "conditions": conditions})
    };
    json!([
        {"kind": "HTTPRoute", "namespace": "shop", "name": "canary", "hostnames": [], "rules": 1,
         "refusedRules": [{"rule": 1, "field": "f", "message": "m"}], "parents": [
            parent(json!(80), json!([said("Accepted", "True", "Accepted", "in force"), said("ResolvedRefs", "True", "ResolvedRefs", ""),
                said("PartiallyInvalid", "True", "UnsupportedValue", "Dropped Rule 1")])),
            parent(Value::Null, json!([said("Accepted", "False", "Conflicted", "taken"), said("ResolvedRefs", "True", "ResolvedRefs", "")]))]},
        {"kind": "TCPRoute", "namespace": "edge", "name": "gate", "hostnames": [], "rules": 1, "refusedRules": [], "parents": []},
    ])
}

fn explain(query: &Query) -> Result<Value, Refused> {
    let admitted = query.required("from")? == "shop/web";
    if query.required("to")? != "shop/orders:80" {
        return Err(Refused::NotFound("no pod or service shop/nobody is known".to_owned()));
    }
    Ok(json!({
        "from": query.value("from"), "to": query.value("to"), "admitted": admitted,
        "reason": if admitted { "allowed by rule 0 of ALLOW policy shop/p" } else { "refused because no rule matches" },
        "notes": ["web is on another node"],
        "explanations": [{
            "identity": "spiffe://cluster.local/ns/shop/sa/web", "client": "10.0.0.1", "destination": "shop/orders-0",
            "port": 8080, "admitted": admitted, "deciding": {"policy": "shop/p", "rule": 0},
            "policies": [{"policy": "shop/p", "action": "ALLOW", "unusable": null, "rules": [
                {"rule": 0, "matched": admitted, "sources": if admitted { Value::Null } else { json!("not among: web") }, "ports": null},
                {"rule": 1, "matched": false, "sources": null, "ports": "8080 is not among: 9"},
            ]}],
        }],
    }))
}

fn shop_with(readiness: Readiness, change: impl FnOnce(Windows) -> Windows) -> Shop {
    let telemetry = Telemetry::without_access_log();
    telemetry.splice_enabled(true);
    let windows = Windows::new(telemetry.clone(), readiness)
        .of_node("n1")
        .view("/workloads", workloads)
        .view("/services", || {
            json!([{"namespace": "shop", "name": "orders", "clusterIPs": ["10.96.0.1"], "trafficDistribution": null,
                "ports": [{"port": 80, "protocol": "TCP", "endpoints": [
                    {"address": "10.0.0.2:8080", "state": "ready"}, {"address": "10.0.0.3:8080", "state": "draining"},
                ]}]}])
        })
        .view("/policies", || {
            json!({"defaultInbound": "Permissive", "policies": [
                {"namespace": "shop", "name": "p", "action": "ALLOW", "clusterWide": false, "selectors": ["app=orders"],
                 "rules": [{"sources": ["service account shop/web"], "ports": null}], "unusable": null}]})
        })
        .view("/routes", routes)
        .view("/certificates", || {
            json!([{"identity": "spiffe://cluster.local/ns/shop/sa/web", "state": "valid", "serial": "0a",
                "notAfter": "2000-01-01T00:00:00Z", "pods": ["shop/web"], "error": null}])
        })
        .view("/connections", || {
            json!([{"source": "shop/web", "destination": "shop/orders-0", "path": "splice", "opened": "2026-01-01T00:00:00Z",
                "bytesSent": 2048, "bytesReceived": 12, "reporter": "source"}])
        })
        .view("/problems", || json!([]))
        .ask("/policy/explain", explain);
    let (running, stop) = shutdown::channel();
    let settings = admin::Settings { listen: SocketAddr::from(([127, 0, 0, 1], 0)) };
    let listener = admin::bind(&settings).expect("loopback has free ports");
    let server = admin::serve(listener, change(windows), stop).expect("starts");
    Shop { address: server.address(), telemetry, _running: running }
}

fn shop() -> Shop {
    shop_with(Readiness::default(), |windows| windows)
}

struct Printed {
    code: u8,
    out: String,
    err: String,
}

fn meshctl(line: &[&str]) -> Printed {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(["meshctl"].iter().chain(line), &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Printed { code, out: text(out), err: text(err) }
}

impl Shop {
    fn ask(&self, line: &[&str]) -> Printed {
        let address = format!("http://{}", self.address);
        meshctl(&[line, &["--agent", &address]].concat())
    }
}

#[test]
fn tables_are_aligned_under_upper_case_headers() {
    let printed = shop().ask(&["workloads"]);
    assert_eq!((printed.code, printed.err.as_str()), (0, ""));
    assert_eq!(
        printed.out,
        "\
NAMESPACE   NAME                      NODE   ADDRESS    MESH       READY
shop        web                       n1     10.0.0.1   captured   yes
shop        orders-with-a-long-name   n2     10.0.0.1   enrolled   yes
old         legacy                    n1     10.0.0.1   no         yes
"
    );
}

#[test]
fn every_list_prints_its_rows() {
    let shop = shop();
    for (command, header, row) in [
        ("services", "NAMESPACE   NAME", "shop        orders   10.96.0.1    80/TCP   1/2"),
        ("policies", "NAMESPACE   NAME", "shop        p      ALLOW    app=orders   1       ok"),
        ("certificates", "IDENTITY", "spiffe://cluster.local/ns/shop/sa/web   valid"),
        ("connections", "SOURCE", "shop/web   shop/orders-0   splice"),
    ] {
        let printed = shop.ask(&[command]);
        assert_eq!(printed.code, 0, "{}", printed.err);
        let mut lines = printed.out.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with(header)), "{}", printed.out);
        assert!(lines.next().is_some_and(|line| line.starts_with(row)), "{}", printed.out);
    }
    let connections = shop.ask(&["connections"]);
    assert!(connections.out.contains("2.0Ki   12"), "{}", connections.out);
}

#[test]
fn a_route_has_a_row_for_each_parent_and_the_reason_that_says_most() {
    let shop = shop();
    let printed = shop.ask(&["routes"]);
    assert_eq!(
        printed.out,
        "\
NAMESPACE   KIND        NAME     PARENT           RULES   ACCEPTED   RESOLVED   REASON
shop        HTTPRoute   canary   shop/orders:80   1/2     yes        yes        UnsupportedValue
shop        HTTPRoute   canary   shop/orders      1/2     no         yes        Conflicted
edge        TCPRoute    gate     <none>           1       <none>     <none>     <none>
"
    );
    let wide = shop.ask(&["routes", "-n", "shop", "-o", "wide"]);
    assert!(wide.out.contains("Dropped Rule 1\n") && !wide.out.contains("edge"), "{}", wide.out);
    let printed = shop.ask(&["routes", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&printed.out).expect("JSON"), routes());
}

#[test]
fn wide_adds_columns() {
    let shop = shop();
    let (narrow, wide) = (shop.ask(&["workloads"]), shop.ask(&["workloads", "-o", "wide"]));
    assert!(!narrow.out.contains("IDENTITY"));
    assert!(wide.out.contains("IDENTITY") && wide.out.contains("10.0.0.1,fd00::1"), "{}", wide.out);
}

#[test]
fn machines_get_what_the_agent_says() {
    let shop = shop();
    let printed = shop.ask(&["workloads", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&printed.out).expect("JSON"), workloads());
    let printed = shop.ask(&["workloads", "-o", "yaml"]);
    assert_eq!(serde_yaml_ng::from_str::<Value>(&printed.out).expect("YAML"), workloads());
    let printed = shop.ask(&["status", "-o", "json"]);
    let status: Value = serde_json::from_str(&printed.out).expect("JSON");
    assert_eq!(
        (&status["node"], &status["workloads"], &status["captured"]),
        (&json!("n1"), &json!(3), &json!(1))
    );
}

#[test]
fn namespace_narrows_every_list() {
    let shop = shop();
    assert_eq!(shop.ask(&["workloads", "-n", "old"]).out.lines().count(), 2);
    assert_eq!(shop.ask(&["connections", "-n", "shop"]).out.lines().count(), 2);
    assert_eq!(shop.ask(&["certificates", "-n", "shop"]).out.lines().count(), 2);
    let none = shop.ask(&["workloads", "-n", "nowhere"]);
    assert_eq!((none.code, none.out.as_str(), none.err.as_str()), (0, "", "No workloads found.\n"));
}

#[test]
fn status_is_bad_until_the_agent_is_ready() {
    let readiness = Readiness::default();
    let block: Block = readiness.block("kernel");
    let shop = shop_with(readiness, |windows| windows);
    let printed = shop.ask(&["status"]);
    assert_eq!(printed.code, 1);
    assert!(printed.out.contains("State:               waiting for kernel"), "{}", printed.out);
    drop(block);
    let printed = shop.ask(&["status"]);
    assert_eq!(printed.code, 0);
    assert!(printed.out.contains("Workloads captured:  1 of 3"), "{}", printed.out);
}

#[test]
fn check_passes_on_a_healthy_agent() {
    let printed = shop().ask(&["check"]);
    assert_eq!(printed.code, 0, "{}", printed.out);
    assert!(!printed.out.contains("failed") && !printed.out.contains("warning"), "{}", printed.out);
}

#[test]
fn check_fails_by_name_on_what_is_wrong() {
    let readiness = Readiness::default();
    let _block = readiness.block("certificates");
    let shop = shop_with(readiness, |windows| {
        windows
            .alive("worker 1", || false)
            .view("/problems", || json!([{"location": "a.yaml:3", "message": "no such field"}]))
            .view("/certificates", || json!([{"identity": "spiffe://td/x", "state": "pending"}]))
            .view("/policies", || json!({"policies": [{"namespace": "shop", "name": "p", "unusable": "bad CIDR"}]}))
            .view("/workloads", || {
                json!([{"namespace": "shop", "name": "web", "node": "n1", "enrolled": true, "captured": false, "ready": true}])
            })
    });
    let printed = shop.ask(&["check", "-o", "json"]);
    assert_eq!(printed.code, 1);
    let looks: Value = serde_json::from_str(&printed.out).expect("JSON");
    for (look, detail) in [
        ("alive", "dead: worker 1"),
        ("ready", "waiting for: certificates"),
        ("objects", "a.yaml:3: no such field; see meshctl problems"),
        ("policies", "shop/p"),
        ("certificates", "spiffe://td/x"),
        ("capture", "shop/web"),
    ] {
        let found = columns::items(&looks).iter().find(|one| one["check"] == look).expect(look);
        assert_eq!(found["result"], "failed", "{found}");
        assert!(found["detail"].as_str().is_some_and(|text| text.contains(detail)), "{found}");
    }
}

#[test]
fn check_warns_without_failing_where_only_speed_suffers() {
    let shop = shop();
    shop.telemetry.splice_enabled(false);
    shop.telemetry.probe_result("slow_reader", false);
    shop.telemetry.probe_result("order", true);
    let printed = shop.ask(&["check"]);
    assert_eq!(printed.code, 0);
    assert!(printed.out.contains("off, since probes failed: slow_reader\n"), "{}", printed.out);
}

#[test]
fn explain_says_which_rule_decides() {
    let shop = shop();
    let allowed = shop.ask(&["policy", "explain", "--from", "shop/web", "--to", "shop/orders:80"]);
    assert_eq!(allowed.code, 0, "{}", allowed.err);
    assert_eq!(
        allowed.out,
        "\
ALLOWED  shop/web -> shop/orders:80
allowed by rule 0 of ALLOW policy shop/p
note: web is on another node

shop/orders-0:8080
  client: 10.0.0.1 (spiffe://cluster.local/ns/shop/sa/web)
  ALLOW shop/p
    rule 0: matches, and decides
    rule 1: does not match (ports: 8080 is not among: 9)
"
    );
    let denied = shop.ask(&["policy", "explain", "-n", "shop", "--from", "guest", "--to", "orders:80"]);
    assert_eq!(denied.code, 1);
    assert!(denied.out.starts_with("DENIED  shop/guest -> shop/orders:80\n"), "{}", denied.out);
}

#[test]
fn no_answer_is_exit_code_two() {
    let shop = shop();
    let free =
        admin::bind(&admin::Settings { listen: SocketAddr::from(([127, 0, 0, 1], 0)) }).expect("bound");
    let nobody = format!("http://{}", free.local_addr().expect("bound"));
    drop(free);
    for (line, expected) in [
        (
            &["status", "--agent", nobody.as_str()][..],
            "name another with --agent or WEFT_AGENT: Connection refused",
        ),
        (&["status", "--agent", "https://x:1"], "write http://HOST:PORT"),
        (&["status", "--agent", "nowhere"], "write http://HOST:PORT"),
        (&["fly"], "unrecognized subcommand"),
        (&["workloads", "-o", "xml"], "possible values: table, wide, json, yaml"),
        (&["policy", "explain", "--from", "shop/web"], "--to"),
        (&["policy", "explain", "--from", "shop/web", "--to", "shop/orders"], "is not a target"),
    ] {
        let printed = meshctl(line);
        assert_eq!(printed.code, 2, "{line:?}: {}", printed.out);
        assert!(printed.err.contains(expected), "{line:?}: {}", printed.err);
        assert_eq!(printed.out, "");
    }
    let unknown = shop.ask(&["policy", "explain", "--from", "shop/web", "--to", "shop/nobody:1"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("no pod or service shop/nobody is known"), "{}", unknown.err);
    let windowless = shop_with(Readiness::default(), |_| {
        Windows::new(Telemetry::without_access_log(), Readiness::default())
    });
    let printed = windowless.ask(&["workloads"]);
    assert_eq!(printed.code, 2);
    assert!(printed.err.contains("there is no /workloads"), "{}", printed.err);
}

#[test]
fn silent_agent_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    let closer = std::thread::spawn(move || drop(listener.accept()));
    let printed = meshctl(&["status", "--agent", &address]);
    closer.join().expect("no panic");
    assert_eq!(printed.code, 2);
    assert!(printed.err.contains(&address), "{}", printed.err);
}

#[test]
fn metrics_are_printed_as_scraped() {
    let shop = shop();
    let all = shop.ask(&["metrics"]);
    assert!(all.code == 0 && all.out.contains("weft_build_info"), "{}", all.out);
    let part = shop.ask(&["metrics", "splice"]);
    assert!(part.out.contains("weft_splice_enabled 1"), "{}", part.out);
    assert!(part.out.lines().all(|line| line.contains("splice")), "{}", part.out);
}

#[test]
fn versions_of_both_are_shown() {
    let ours = env!("CARGO_PKG_VERSION");
    let both = shop().ask(&["version"]);
    assert_eq!(both.out, format!("meshctl: {ours}\nagent:   {ours}\n"));
    let alone = meshctl(&["version", "--client", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&alone.out).expect("JSON"), json!({"meshctl": ours}));
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let printed = meshctl(&["--help"]);
    assert_eq!((printed.code, printed.err.as_str()), (0, ""));
    assert!(printed.out.contains("Examples:") && printed.out.contains("Exit codes:"), "{}", printed.out);
}

#[test]
fn names_without_a_namespace_get_one() {
    for (name, expected) in [
        ("web", "shop/web"),
        ("web:80", "shop/web:80"),
        ("a/web", "a/web"),
        ("svc/web:80", "svc/shop/web:80"),
        ("pod/a/web:80", "pod/a/web:80"),
        ("192.0.2.1", "192.0.2.1"),
        ("fd00::1", "fd00::1"),
    ] {
        assert_eq!(in_namespace(name, "shop"), expected);
    }
}

#[test]
fn lengths_and_sizes_are_short() {
    let second = std::time::Duration::from_secs;
    for (seconds, expected) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_720, "1h2m"), (93_600, "1d2h")] {
        assert_eq!(short(second(seconds)), expected);
    }
    for (count, expected) in
        [(0, "0"), (1023, "1023"), (1024, "1.0Ki"), (1_572_864, "1.5Mi"), (1 << 30, "1.0Gi")]
    {
        assert_eq!(bytes(&json!(count)), expected);
    }
}

#[test]
fn directory_of_objects_answers_without_an_agent() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let pod = |name: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}, weft.dev/mesh: enabled}}}}\n\
             spec: {{nodeName: n1, serviceAccountName: {name}}}\nstatus: {{podIP: {ip}, podIPs: [{{ip: {ip}}}]}}\n---\n\
             apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: shop}}\n---\n"
        )
    };
    let policy = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: only-web, namespace: shop}\n\
         spec:\n  enforcementLevel: Network\n  action: ALLOW\n\
         \x20 targetRefs: [{group: '', kind: Pod, selector: {matchLabels: {app: orders}}}]\n\
         \x20 rules:\n  - sources: [{type: ServiceAccount, serviceAccount: {namespace: shop, name: web}}]\n";
    let world = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n{}{}{}{policy}",
        pod("web", "10.0.0.1"),
        pod("guest", "10.0.0.2"),
        pod("orders", "10.0.0.3")
    );
    std::fs::write(dir.path().join("world.yaml"), world).expect("written");
    let world = dir.path().to_string_lossy().into_owned();
    for (from, code, word) in
        [("shop/web", 0, "ALLOWED"), ("shop/guest", 1, "DENIED"), ("192.0.2.1", 1, "DENIED")]
    {
        let printed =
            meshctl(&["policy", "explain", "--from", from, "--to", "shop/orders:8080", "--world", &world]);
        assert_eq!(printed.code, code, "{from}: {}{}", printed.out, printed.err);
        assert!(printed.out.starts_with(word) && printed.out.contains("shop/only-web"), "{}", printed.out);
    }
    let without_policy =
        std::fs::read_to_string(dir.path().join("world.yaml")).expect("read").replace(policy, "");
    std::fs::write(dir.path().join("world.yaml"), without_policy + requests_policy()).expect("written");
    for (request, code, expected) in [
        (&["--path", "/orders/7?x"][..], 0, "request: GET /orders/7 (no host)"),
        (
            &["--path", "/orders/7", "--method", "DELETE", "--header", "X-Tier: gold", "--host", "o"],
            0,
            "rule 1: matches, and decides",
        ),
        (
            &["--path", "/orders/7", "--method", "DELETE"],
            1,
            "http: methods: DELETE is not among: GET; rule 1",
        ),
        (
            &["--path", "/orders/..%2fadmin"],
            1,
            "a server could read the path as: /orders/..%2Fadmin, /orders/../admin, /admin",
        ),
        (
            &["--path", "/orders%00"],
            1,
            "refused with 400 before policy is asked, because the path contains a control character",
        ),
        (&[], 1, "note: shop/orders port 8080 has rules about requests"),
        (&["--header", "nonsense"], 2, "\"nonsense\" is not a header"),
        (&["--method", "A B"], 2, "\"A B\" is not a method"),
    ] {
        let line = ["policy", "explain", "--from", "shop/web", "--to", "shop/orders:8080", "--world", &world];
        let printed = meshctl(&[&line[..], request].concat());
        let all = format!("{}{}", printed.out, printed.err);
        assert_eq!(printed.code, code, "{request:?}: {all}");
        let flat = all.replace(")\n    rule", "; rule");
        assert!(flat.contains(expected), "{request:?}: {all}");
    }
    let nowhere = meshctl(&["policy", "explain", "--from", "a/b", "--to", "a/c:1", "--world", "/nowhere"]);
    assert_eq!(nowhere.code, 2);
    assert!(nowhere.err.contains("/nowhere"), "{}", nowhere.err);
}

/// In place of the policy about connections: `GET /orders/...` for everybody, everything for gold.
fn requests_policy() -> &'static str {
    "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: requests, namespace: shop}\n\
     spec:\n  enforcementLevel: Application\n  action: ALLOW\n\
     \x20 targetRefs: [{kind: Pod, selector: {matchLabels: {app: orders}}}]\n\
     \x20 rules:\n  - http: [{methods: [GET], paths: [{type: PathPrefix, value: /orders}]}]\n\
     \x20 - http: [{headers: [{name: x-tier, value: gold}]}]\n"
}
