//! Policy: the same answer on every path (same node, tunnel, plaintext from outside the mesh), before any byte reaches the
//! application, and again for what is open when a policy changes.

use std::collections::BTreeMap;

use mesh_tests::wire::Serve;
use mesh_tests::world::policy;
use mesh_tests::{Lab, Probe, World, eventually};
use serde_json::Value;

/// Who calls: two accounts of the mesh, and a pod outside it.
const CLIENTS: [&str; 3] = ["shop/web", "shop/guest", "outside/plain"];

/// Who is called: on the clients' node, and on the other.
const SERVERS: [&str; 2] = ["shop/near", "shop/far"];

/// The file that the tests change.
const FILE: &str = "policy.yaml";

fn world() -> World {
    World::new()
        .meshed("shop")
        .unmeshed("outside")
        .pod("shop/web", "node-1")
        .pod("shop/guest", "node-1")
        .pod("outside/plain", "node-1")
        .pod_like("shop/near", "node-1", "server", "")
        .pod_like("shop/far", "node-2", "server", "")
        .file(FILE, "")
}

/// One policy and whom it must admit to port 8080.
struct Case {
    action: &'static str,
    rules: Vec<String>,
    /// In the order of [`CLIENTS`].
    admits: [bool; 3],
}

fn case(action: &'static str, rule: &str, admits: [bool; 3]) -> Case {
    Case { action, rules: vec![rule.to_owned()], admits }
}

/// Every source type, every action, ports, and the two ways to name nobody and anybody.
fn cases(lab: &Lab) -> Vec<Case> {
    let (web, plain) = (lab.v4("shop/web", 0).ip(), lab.v4("outside/plain", 0).ip());
    let account = "{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}";
    let every_account = "{sources: [{type: ServiceAccount, serviceAccount: {namespace: shop, name: \"*\"}}]}";
    let spiffe = "{sources: [{type: SPIFFE, spiffe: \"spiffe://cluster.local/ns/shop/sa/guest\"}]}";
    let prefix = "{sources: [{type: SPIFFE, spiffe: \"spiffe://cluster.local/ns/shop/*\"}]}";
    let cidr_web = format!("{{sources: [{{type: CIDR, cidr: {web}/32}}]}}");
    let cidr_plain = format!("{{sources: [{{type: CIDR, cidr: {plain}/32}}]}}");
    let anybody_verified = "{sources: [{type: AnyAuthenticated}]}";
    let either = "{sources: [{type: ServiceAccount, serviceAccount: {name: web}}, {type: AnyAuthenticated}]}";
    vec![
        case("ALLOW", account, [true, false, false]),
        case("DENY", account, [false, true, true]),
        case("ALLOW", every_account, [true, true, false]),
        case("DENY", every_account, [false, false, true]),
        case("ALLOW", spiffe, [false, true, false]),
        case("DENY", spiffe, [true, false, true]),
        case("ALLOW", prefix, [true, true, false]),
        case("DENY", prefix, [false, false, true]),
        case("ALLOW", &cidr_plain, [false, false, true]),
        case("DENY", &cidr_plain, [true, true, false]),
        case("ALLOW", &cidr_web, [true, false, false]),
        case("DENY", &cidr_web, [false, true, true]),
        case("ALLOW", anybody_verified, [true, true, false]),
        case("DENY", anybody_verified, [false, false, true]),
        case("DENY", either, [false, false, true]),
        case("ALLOW", "{networkAttributes: {ports: [8080]}}", [true; 3]),
        case("ALLOW", "{networkAttributes: {ports: [9999]}}", [false; 3]),
        case("DENY", "{networkAttributes: {ports: [9999]}}", [true; 3]),
        case("DENY", "{networkAttributes: {ports: [8080]}}", [false; 3]),
        case("ALLOW", "{}", [true; 3]),
        case("ALLOW", "{sources: []}", [false; 3]),
        case("DENY", "{sources: []}", [true; 3]),
        case("DENY", "{}", [false; 3]),
        case("AUDIT", account, [true; 3]),
        Case {
            action: "ALLOW",
            rules: vec![account.to_owned(), cidr_plain.clone()],
            admits: [true, false, true],
        },
    ]
}

fn calls(lab: &Lab, clients: &[Probe]) -> BTreeMap<(&'static str, &'static str), bool> {
    let pairs = CLIENTS.into_iter().zip(clients);
    pairs
        .flat_map(|(name, probe)| {
            SERVERS.map(|server| ((name, server), probe.call(lab.v4(server, 8080)).is_ok()))
        })
        .collect()
}

/// The record by which a server's side tells of a refusal, on whichever node tells it.
fn refusals(lab: &Lab, marks: &[usize; 2]) -> Vec<Value> {
    let mut records = lab.access_records("node-1").split_off(marks[0]);
    records.extend(lab.access_records("node-2").split_off(marks[1]));
    records.retain(|record| record["ending"] == "policy_denied");
    records
}

#[test]
fn every_rule_gives_the_same_answer_on_every_path_and_before_any_byte() {
    let lab = Lab::up(&world());
    let servers = SERVERS.map(|server| lab.probe(server));
    let served = servers.each_ref().map(|server| server.serve(8080, Serve::Greet));
    let clients = CLIENTS.map(|client| lab.probe(client));
    for case in cases(&lab) {
        let rules: Vec<&str> = case.rules.iter().map(String::as_str).collect();
        let yaml = policy("shop/case", "server", case.action, &rules);
        lab.apply(FILE, &yaml);
        let pairs = CLIENTS.into_iter().zip(case.admits);
        let expected: BTreeMap<_, _> =
            pairs.flat_map(|(client, admits)| SERVERS.map(|server| ((client, server), admits))).collect();
        let mut seen = BTreeMap::new();
        let deadline = mesh_tests::wait::now() + mesh_tests::wait::PATIENCE;
        while seen != expected && mesh_tests::wait::now() < deadline {
            seen = calls(&lab, &clients);
        }
        assert_eq!(seen, expected, "{yaml}");
        check_settled(&lab, &case, &expected, &clients, || {
            served.iter().map(|server| server.served().len()).sum()
        });
    }
    // AUDIT was among them: it decides nothing and says so.
    for node in ["node-1", "node-2"] {
        let log = std::fs::read_to_string(&lab.agent(node).log).unwrap();
        assert!(
            log.contains("shop/case") && log.to_lowercase().contains("audit"),
            "{node} tells of the audit"
        );
    }
}

/// With the policy in force everywhere: exactly the admitted calls reach a server, each refusal is recorded with the
/// policy that decided, and `policy explain` says the same.
fn check_settled(
    lab: &Lab,
    case: &Case,
    expected: &BTreeMap<(&'static str, &'static str), bool>,
    clients: &[Probe],
    served: impl Fn() -> usize,
) {
    let what = format!("{} {:?}", case.action, case.rules);
    let marks = ["node-1", "node-2"].map(|node| lab.access_records(node).len());
    let before = served();
    assert_eq!(&calls(lab, clients), expected, "{what}");
    let admitted = expected.values().filter(|admitted| **admitted).count();
    assert_eq!(served() - before, admitted, "{what}: a refused call reached a server");
    for ((client, server), admitted) in expected {
        let explained = lab.meshctl(
            "node-1",
            &["policy", "explain", "--from", client, "--to", &format!("pod/{server}:8080")],
        );
        let says = String::from_utf8_lossy(&explained.stdout);
        assert_eq!(
            explained.status.code(),
            Some(i32::from(!admitted)),
            "{what}: {client} to {server}: {says}"
        );
        if !admitted {
            assert!(says.contains("shop/case"), "{what}: {says}");
        }
    }
    for ((client, server), _) in expected.iter().filter(|(_, admitted)| !**admitted) {
        let names = [client, server].map(|pod| pod.split('/').nth(1).unwrap());
        eventually(&format!("{what}: {client} to {server} is recorded as refused by shop/case"), || {
            let fits = |record: &Value| {
                record["source"]["pod"] == names[0]
                    && record["destination"]["pod"] == names[1]
                    && record["reason"] == "shop/case"
            };
            refusals(lab, &marks).iter().any(fits).then_some(())
        });
    }
}

#[test]
fn a_change_closes_the_losers_on_every_path_and_nobody_else() {
    let lab = Lab::up(&world());
    let servers = SERVERS.map(|server| lab.probe(server));
    let _served = servers.each_ref().map(|server| server.serve(8080, Serve::Echo));
    let clients = CLIENTS.map(|client| lab.probe(client));
    let pairs = || {
        CLIENTS.iter().zip(&clients).flat_map(|(name, probe)| SERVERS.map(|server| (*name, probe, server)))
    };
    let mut open = BTreeMap::new();
    for (client, probe, server) in pairs() {
        let conn = probe.connect(lab.v4(server, 8080)).expect("all is admitted");
        conn.exchange("before").expect("all is admitted");
        open.insert((client, server), conn);
    }
    // Each change has a loser on both servers; the others go on, byte for byte.
    let guest_loses = policy(
        "shop/case",
        "server",
        "DENY",
        &["{sources: [{type: ServiceAccount, serviceAccount: {name: guest}}]}"],
    );
    let only_web = policy(
        "shop/case",
        "server",
        "ALLOW",
        &["{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}"],
    );
    let sent = "before".len();
    // The second loser has seen one exchange more.
    for (yaml, loser, sent) in
        [(guest_loses, "shop/guest", sent), (only_web, "outside/plain", sent + "still".len())]
    {
        lab.apply(FILE, &yaml);
        for server in SERVERS {
            let conn = open.remove(&(loser, server)).unwrap();
            let ending = conn.receive().expect_err("the loser's connection ends").0;
            assert!(["ECONNRESET", "ECONNABORTED"].contains(&&*ending), "{loser} to {server}: {ending}");
            let names = [loser, server].map(|pod| pod.split('/').nth(1).unwrap());
            let told = |record: &Value| {
                record["source"]["pod"] == names[0]
                    && record["destination"]["pod"] == names[1]
                    && record["ending"] == "policy_revoked"
            };
            let tells = if server == "shop/near" { "node-1" } else { "node-2" };
            let record = lab.record(tells, &format!("{loser} to {server} being revoked"), told);
            assert_eq!(record["bytes_sent"], sent, "{record}");
        }
        for ((client, server), conn) in &open {
            assert_eq!(conn.exchange("still").as_deref(), Ok("still"), "{client} to {server}");
        }
    }
    assert_eq!(open.len(), 2, "web is left, with both");
    // Away with the policy: everybody may come again.
    lab.apply(FILE, "");
    for (client, probe, server) in pairs() {
        eventually(&format!("{client} is admitted to {server} again"), || {
            let conn = probe.connect(lab.v4(server, 8080)).ok()?;
            conn.exchange("again").ok()
        });
    }
}
