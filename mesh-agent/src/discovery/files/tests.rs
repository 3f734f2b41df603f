//! Every kind of mistake with its place, and what stays in force meanwhile.

use super::super::testing::{World, pod};
use super::*;
use crate::discovery::Source as _;

/// A directory with one file `a.yaml` gives these problems.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let (_, problems) = World::new(&[("a.yaml", text)]).load();
    assert_eq!(problems, expected, "for:\n{text}");
}

/// A policy whose `spec` begins on line 4.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n{spec}"
    )
}

/// A policy whose first rule is on line 7.
fn rule(rule: &str) -> String {
    policy(&format!(
        "spec:\n  targetRefs: [{{kind: Pod, selector: {{}}}}]\n  action: ALLOW\n  rules:\n{rule}"
    ))
}

/// A `MeshConfig` whose spec begins on line 5.
fn mesh_config(spec: &str) -> String {
    format!("apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec:\n{spec}")
}

#[test]
fn text_that_is_no_object_is_named_by_line() {
    check("a: [1, 2\n", &["a.yaml:2:1: a: did not find expected ',' or ']'"]);
    check(
        "\n# comment\njust: text\n",
        &["a.yaml:3: not a Kubernetes object: apiVersion and kind are needed"],
    );
    check("apiVersion: v1\nkind: Pod\n", &["a.yaml:1: metadata.name: missing: every object needs a name"]);
    check(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Bad_Name\n",
        &[
            "a.yaml:4:9: metadata.name: \"Bad_Name\" is not a name: use up to 253 of a-z, 0-9, '-' and '.', no '-' or '.' at the ends",
        ],
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: ../b\n",
        &[
            "a.yaml:5:14: metadata.namespace: \"../b\" is not a name: use up to 63 of a-z, 0-9, '-' and '.', no '-' or '.' at the ends",
        ],
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: 3\n",
        &["a.yaml:3:11: metadata: invalid type: integer `3`, expected struct HeaderMetadata"],
    );
}

#[test]
fn documents_are_counted_from_the_top_of_the_file() {
    let good = pod("web", "10.0.0.1");
    let text = format!("# a world\n---\n{good}---\n\n{}", rule("  - sourcs: []\n"));
    check(
        &text,
        &[
            "a.yaml:17:5: AuthorizationPolicy shop/p: spec.rules[0].sourcs: unknown field `sourcs`, expected one of `sources`, `networkAttributes`, `http`",
        ],
    );
}

#[test]
fn blank_documents_and_other_kinds_are_no_problem() {
    let mut world = World::new(&[
        (
            "a.yaml",
            "---\n# nothing\n---\nnull\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n...\n",
        ),
        ("sub/b.yml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n"),
        ("c.json", r#"{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "json"}}"#),
        ("d.txt", "not read"),
        (".hidden.yaml", "not: read"),
        ("empty.yaml", ""),
    ]);
    assert_eq!(world.load().1, Vec::<String>::new());
    let ignored = world.source().ignored();
    assert_eq!(Vec::from_iter(ignored), [("ConfigMap".to_owned(), 1), ("Deployment.apps".to_owned(), 1)]);
    assert_eq!(world.keys(), ["ServiceAccount default/json"]);
}

#[test]
fn kinds_of_ours_that_are_not_read_are_refused_by_name() {
    let object = |version: &str, kind: &str| {
        format!("apiVersion: weft.dev/{version}\nkind: {kind}\nmetadata: {{name: a}}\n")
    };
    check(&object("v1alpha1", "BackendPolicy"), &["a.yaml:2:7: kind: BackendPolicy is not supported yet"]);
    check(&object("v1alpha1", "Polcy"), &["a.yaml:2:7: kind: \"Polcy\" is not a kind of weft.dev/v1alpha1"]);
    check(
        &object("v1", "MeshConfig"),
        &["a.yaml:1:13: apiVersion: version \"v1\" of weft.dev is not known: write weft.dev/v1alpha1"],
    );
    check(
        "apiVersion: v1\nkind: List\nitems: []\n",
        &["a.yaml:2:7: kind: a List is not read: write its items as documents of their own"],
    );
}

#[test]
fn unknown_fields_are_accepted_in_core_kinds_and_refused_in_ours() {
    check(&format!("{}extra: 1\n", pod("web", "10.0.0.1")), &[]);
    check(
        &mesh_config("  trustDomian: x\n"),
        &[
            "a.yaml:5:3: MeshConfig default: spec.trustDomian: unknown field `trustDomian`, expected one of `trustDomain`, `systemNamespace`, `certificates`, `defaultInbound`, `fastPath`, `trustBundles`, `ca`, `egressDefault`, `protocolDetection`, `telemetry`, `enrollment`",
        ],
    );
    check(&format!("{}status: {{}}\n", mesh_config("  {}\n")), &[]);
    check(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspecs: {}\n",
        &[
            "a.yaml:4:1: MeshConfig default: specs: unknown field `specs`, expected one of `apiVersion`, `kind`, `metadata`, `spec`, `status`",
        ],
    );
}

#[test]
fn each_value_of_a_policy_is_checked_where_it_stands() {
    let cases = [
        (
            rule("  - sources: [{type: CIDR, cidr: 10.0.0.0/33}]\n"),
            "a.yaml:8:34: AuthorizationPolicy shop/p: spec.rules[0].sources[0].cidr: \"10.0.0.0/33\" is not a range of addresses: write for example 10.0.0.0/8",
        ),
        (
            rule("  - sources:\n    - type: CIDR\n"),
            "a.yaml:9:7: AuthorizationPolicy shop/p: spec.rules[0].sources[0]: a Cidr source needs `cidr`",
        ),
        (
            rule("  - sources: [{type: SPIFFE, spiffe: \"cluster.local/x\"}]\n"),
            "a.yaml:8:38: AuthorizationPolicy shop/p: spec.rules[0].sources[0].spiffe: \"cluster.local/x\" does not start with spiffe://",
        ),
        (
            rule("  - sources: [{type: SPIFFE, spiffe: \"*/web\"}]\n"),
            "a.yaml:8:38: AuthorizationPolicy shop/p: spec.rules[0].sources[0].spiffe: \"*/web\" does not start with spiffe://",
        ),
        (
            rule("  - sources: [{type: SPIFFE, spiffe: \"*\"}]\n"),
            "a.yaml:8:38: AuthorizationPolicy shop/p: spec.rules[0].sources[0].spiffe: \"*\" is not a pattern: write a SPIFFE id, or the beginning of one and a single `*`",
        ),
        (
            rule("  - sources: [{type: AnyAuthenticated, cidr: 10.0.0.0/8}]\n"),
            "a.yaml:8:46: AuthorizationPolicy shop/p: spec.rules[0].sources[0].cidr: does not belong to a source of type AnyAuthenticated",
        ),
        (
            rule("  - sources: [{type: ServiceAccount, serviceAccount: {name: \"a*\"}}]\n"),
            "a.yaml:8:61: AuthorizationPolicy shop/p: spec.rules[0].sources[0].serviceAccount.name: \"a*\" is not a name: use up to 253 of a-z, 0-9, '-' and '.', no '-' or '.' at the ends",
        ),
        (
            rule("  - sources: [{type: Anybody}]\n"),
            "a.yaml:8:22: AuthorizationPolicy shop/p: spec.rules[0].sources[0].type: unknown variant `Anybody`, expected one of `ServiceAccount`, `SPIFFE`, `CIDR`, `AnyAuthenticated`, `JWT`",
        ),
        (
            rule("  - sources:\n"),
            "a.yaml:8:5: AuthorizationPolicy shop/p: spec.rules[0].sources: null can be read in two ways: leave the field out for no restriction, or write an empty value",
        ),
        (
            rule("  - networkAttributes: {ports: [80, 0]}\n"),
            "a.yaml:8:37: AuthorizationPolicy shop/p: spec.rules[0].networkAttributes.ports[1]: 0 is not a port: use 1 to 65535",
        ),
        (
            rule("  - networkAttributes: {ports: [65536]}\n"),
            "a.yaml:8:33: AuthorizationPolicy shop/p: spec.rules[0].networkAttributes.ports[0]: invalid value: integer `65536`, expected u16",
        ),
        (
            policy("spec:\n  targetRefs: []\n  action: ALLOW\n"),
            "a.yaml:5:15: AuthorizationPolicy shop/p: spec.targetRefs: empty: write [{kind: Pod, selector: {}}] for every pod of the namespace",
        ),
        (
            policy("spec:\n  action: ALLOW\n"),
            "a.yaml:5:3: AuthorizationPolicy shop/p: spec: missing field `targetRefs`",
        ),
        (
            policy("spec:\n  targetRefs: [{kind: Service, selector: {}}]\n  action: DENY\n"),
            "a.yaml:5:23: AuthorizationPolicy shop/p: spec.targetRefs[0].kind: \"Service\" cannot be targeted: only Pod of group \"\" can",
        ),
        (
            policy(
                "spec:\n  targetRefs: [{kind: Pod, selector: {matchExpressions: [{key: a, operator: In}]}}]\n  action: DENY\n",
            ),
            "a.yaml:5:58: AuthorizationPolicy shop/p: spec.targetRefs[0].selector.matchExpressions[0]: In needs values",
        ),
        (
            policy("spec:\n  targetRefs: [{kind: Pod, selector: {}}]\n  action: allow\n"),
            "a.yaml:6:11: AuthorizationPolicy shop/p: spec.action: unknown variant `allow`, expected one of `ALLOW`, `DENY`, `AUDIT`",
        ),
        (
            rule("  - http: [{methods: [GET]}]\n"),
            "a.yaml:8:11: AuthorizationPolicy shop/p: spec.rules[0].http: needs spec.enforcementLevel: Application, because requests are judged one by one",
        ),
        (
            rule("  - sources: [{type: JWT, issuer: x}]\n"),
            "a.yaml:8:22: AuthorizationPolicy shop/p: spec.rules[0].sources[0].type: JWT is not supported yet",
        ),
    ];
    for (text, expected) in cases {
        check(&text, &[expected]);
    }
}

#[test]
fn each_value_of_other_kinds_is_checked_where_it_stands() {
    let meta = |kind: &str, key: &str, name: &str, value: &str| {
        format!("apiVersion: v1\nkind: {kind}\nmetadata:\n  name: a\n  {key}:\n    {name}: {value}\n")
    };
    let service = |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n{spec}");
    let cases = [
        (mesh_config("  trustDomain: Bad!\n"), "a.yaml:5:16: MeshConfig default: spec.trustDomain: \"Bad!\" is not a trust domain: use 1 to 255 of a-z, 0-9, '.', '_' and '-'"),
        (mesh_config("  certificates: {ttl: 1 day}\n"), "a.yaml:5:23: MeshConfig default: spec.certificates.ttl: \"1 day\" is not a lifetime: write a duration of at least 1s, for example 24h or 1h30m"),
        (mesh_config("  certificates: {ttl: 0s}\n"), "a.yaml:5:23: MeshConfig default: spec.certificates.ttl: \"0s\" is not a lifetime: write a duration of at least 1s, for example 24h or 1h30m"),
        (mesh_config("  certificates:\n    keyAlg: RSA\n"), "a.yaml:6:13: MeshConfig default: spec.certificates.keyAlg: not supported yet"),
        (mesh_config("  telemetry: {metrics: {}}\n"), "a.yaml:5:24: MeshConfig default: spec.telemetry.metrics: not supported yet"),
        (mesh_config("  telemetry: {tracing: {sampling: 0.125}}\n"), "a.yaml:5:35: MeshConfig default: spec.telemetry.tracing.sampling: 0.125 is not a percentage: write 0 to 100 with up to two decimals"),
        (mesh_config("  telemetry: {tracing: {sampling: 101}}\n"), "a.yaml:5:35: MeshConfig default: spec.telemetry.tracing.sampling: 101 is not a percentage: write 0 to 100 with up to two decimals"),
        (mesh_config("  protocolDetection: {timeout: 11s}\n"), "a.yaml:5:32: MeshConfig default: spec.protocolDetection.timeout: \"11s\" is not a waiting time: write a duration from 0s to 10s, for example 500ms"),
        (mesh_config("  fastPath: {splice: true}\n"), "a.yaml:5:22: MeshConfig default: spec.fastPath.splice: unknown variant `true`, expected `Enabled` or `Disabled`"),
        (mesh_config("  defaultInbound: Open\n"), "a.yaml:5:19: MeshConfig default: spec.defaultInbound: unknown variant `Open`, expected one of `Permissive`, `Authenticated`, `Deny`, `Audit`"),
        (mesh_config("  systemNamespace: A\n"), "a.yaml:5:20: MeshConfig default: spec.systemNamespace: \"A\" is not a name: use up to 63 of a-z, 0-9, '-' and '.', no '-' or '.' at the ends"),
        (meta("Pod", "labels", "weft.dev/mesh", "enable"), "a.yaml:6:20: Pod default/a: metadata.labels[weft.dev/mesh]: \"enable\" is not a setting: write enabled or disabled"),
        (meta("Pod", "labels", "weft.dev/splice", "off"), "a.yaml:6:22: Pod default/a: metadata.labels[weft.dev/splice]: \"off\" is not a setting: write enabled or disabled"),
        (meta("Pod", "annotations", "weft.dev/forward-client-cert", "\"yes\""), "a.yaml:6:35: Pod default/a: metadata.annotations[weft.dev/forward-client-cert]: \"yes\" is not a setting: write enabled or disabled"),
        (meta("Pod", "annotations", "weft.dev/skip-inbound-ports", "22,ssh"), "a.yaml:6:34: Pod default/a: metadata.annotations[weft.dev/skip-inbound-ports]: \"ssh\" is not a port: write a list like \"22,9100\""),
        (meta("Pod", "annotations", "weft.dev/skip-outbound-ports", "\"70000\""), "a.yaml:6:35: Pod default/a: metadata.annotations[weft.dev/skip-outbound-ports]: \"70000\" is not a port: write a list like \"22,9100\""),
        (meta("Namespace", "labels", "weft.dev/mesh", "yes"), "a.yaml:6:20: Namespace a: metadata.labels[weft.dev/mesh]: \"yes\" is not a setting: write enabled or disabled"),
        (meta("Namespace", "annotations", "weft.dev/agent-down", "open"), "a.yaml:6:26: Namespace a: metadata.annotations[weft.dev/agent-down]: \"open\" is not a failure mode: write closed or plain"),
        (pod("web", "10.0.0.256"), "a.yaml:5:17: Pod shop/web: status.podIP: \"10.0.0.256\" is not an IP address"),
        (service("  clusterIP: x\n"), "a.yaml:5:14: Service default/a: spec.clusterIP: \"x\" is not an IP address"),
        (service("  ports:\n  - port: 0\n"), "a.yaml:6:11: Service default/a: spec.ports[0].port: 0 is not a port: use 1 to 65535"),
        (service("  ports:\n  - port: 80\n    targetPort: 70000\n"), "a.yaml:7:17: Service default/a: spec.ports[0].targetPort: 70000 is not a port: use 1 to 65535"),
        (service("  ports:\n  - port: 80\n    protocol: tcp\n"), "a.yaml:7:15: Service default/a: spec.ports[0].protocol: \"tcp\" is not a protocol: use TCP, UDP or SCTP"),
        (service("  trafficDistribution: Near\n"), "a.yaml:5:24: Service default/a: spec.trafficDistribution: \"Near\" is not known: use PreferSameNode, PreferSameZone or PreferClose"),
        ("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints:\n- addresses: [nowhere]\n".to_owned(), "a.yaml:6:15: EndpointSlice default/a: endpoints[0].addresses[0]: \"nowhere\" is not an IP address"),
    ];
    for (text, expected) in cases {
        check(&text, &[expected]);
    }
}

#[test]
fn json_is_read_and_its_faults_have_lines() {
    let text = "{\n \"apiVersion\": \"weft.dev/v1alpha1\", \"kind\": \"MeshConfig\", \"metadata\": {\"name\": \"a\"},\n \"spec\": {\n  \"trustDomain\": \"A\"\n }\n}\n";
    let (_, problems) = World::new(&[("a.json", text)]).load();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("a.json:4:"), "{problems:?}");
    assert!(
        problems[0].contains("MeshConfig a: spec.trustDomain: \"A\" is not a trust domain"),
        "{problems:?}"
    );
}

#[test]
fn text_in_another_encoding_keeps_what_the_file_said() {
    let mut world = World::new(&[("a.yaml", &pod("web", "10.0.0.1"))]);
    world.load();
    fs::write(world.path("a.yaml"), b"# fine\nkind: \xff\n").unwrap();
    assert_eq!(world.load().1, ["a.yaml:2: not UTF-8 text"]);
    assert_eq!(world.keys(), ["Pod shop/web"]);
}

#[test]
fn a_bad_object_stands_beside_good_ones() {
    let text = format!("{}---\n{}---\n{}", pod("a", "10.0.0.1"), pod("b", "nowhere"), pod("c", "10.0.0.3"));
    let mut world = World::new(&[("a.yaml", &text)]);
    let (compiled, problems) = world.load();
    assert_eq!(problems, ["a.yaml:11:17: Pod shop/b: status.podIP: \"nowhere\" is not an IP address"]);
    assert_eq!(compiled.snapshot.workloads().count(), 2);
}

#[test]
fn a_bad_object_keeps_its_last_good_version() {
    let mut world = World::new(&[("a.yaml", &pod("web", "10.0.0.1"))]);
    world.load();
    world.write("a.yaml", &pod("web", "nowhere"));
    let (compiled, problems) = world.load();
    assert_eq!(problems.len(), 1);
    assert!(compiled.snapshot.workload_by_ip("10.0.0.1".parse().unwrap()).is_some());
    // Also when it has moved to another file at the same moment.
    world.write("b.yaml", &pod("web", "nowhere at all"));
    world.remove("a.yaml");
    let (compiled, problems) = world.load();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("b.yaml:5:"), "{problems:?}");
    assert!(compiled.snapshot.workload_by_ip("10.0.0.1".parse().unwrap()).is_some());
    // And it gives way as soon as there is a good one.
    world.write("b.yaml", &pod("web", "10.0.0.2"));
    let (compiled, problems) = world.load();
    assert_eq!(problems, Vec::<String>::new());
    assert!(compiled.snapshot.workload_by_ip("10.0.0.1".parse().unwrap()).is_none());
    assert!(compiled.snapshot.workload_by_ip("10.0.0.2".parse().unwrap()).is_some());
}

#[test]
fn a_document_without_a_readable_name_keeps_what_its_file_said_and_does_not_say_now() {
    let mut world = World::new(&[(
        "a.yaml",
        &format!("{}---\n{}---\n{}", pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3")),
    )]);
    world.load();
    // `a` is renewed, `b` is broken, `c` is gone; it cannot be told which of the two the broken one is.
    world.write("a.yaml", &format!("{}---\nkind: [Pod\n", pod("a", "10.0.0.9")));
    let (compiled, problems) = world.load();
    assert_eq!(problems.len(), 1);
    assert_eq!(world.keys(), ["Pod shop/a", "Pod shop/b", "Pod shop/c"]);
    assert!(compiled.snapshot.workload_by_ip("10.0.0.9".parse().unwrap()).is_some());
    // Mended: what is not written is gone.
    world.write("a.yaml", &pod("a", "10.0.0.9"));
    assert_eq!(world.load().1, Vec::<String>::new());
    assert_eq!(world.keys(), ["Pod shop/a"]);
}

#[test]
fn a_deleted_file_takes_its_objects_along() {
    let mut world = World::new(&[("a.yaml", &pod("a", "10.0.0.1")), ("sub/b.yaml", &pod("b", "10.0.0.2"))]);
    world.load();
    assert_eq!(world.keys(), ["Pod shop/a", "Pod shop/b"]);
    world.remove("sub/b.yaml");
    world.load();
    assert_eq!(world.keys(), ["Pod shop/a"]);
    // An error in the deleted file goes with it.
    world.write("c.yaml", "kind: [");
    assert_eq!(world.load().1.len(), 1);
    world.remove("c.yaml");
    assert_eq!(world.load().1.len(), 0);
}

#[test]
fn of_two_objects_with_one_name_the_first_file_wins() {
    let mut world = World::new(&[("b.yaml", &pod("web", "10.0.0.2")), ("a.yaml", &pod("web", "10.0.0.1"))]);
    let (compiled, problems) = world.load();
    let place = world.path("a.yaml").display().to_string();
    let place = place.rsplit('/').next().unwrap();
    assert_eq!(
        problems,
        [format!("b.yaml:1: Pod shop/web: is written twice; {place}:1 was first and stays in force")]
    );
    assert!(compiled.snapshot.workload_by_ip("10.0.0.1".parse().unwrap()).is_some());
    // In one file the first document wins.
    world.remove("b.yaml");
    world.write("a.yaml", &format!("{}---\n{}", pod("web", "10.0.0.7"), pod("web", "10.0.0.8")));
    let (compiled, problems) = world.load();
    assert_eq!(problems, ["a.yaml:7: Pod shop/web: is written twice; a.yaml:1 was first and stays in force"]);
    assert!(compiled.snapshot.workload_by_ip("10.0.0.7".parse().unwrap()).is_some());
}

#[test]
fn a_directory_that_is_away_for_a_while_changes_nothing() {
    let mut world = World::new(&[("a.yaml", &pod("a", "10.0.0.1"))]);
    world.load();
    let (dir, aside) = (world.path(""), world.path("").with_extension("aside"));
    fs::rename(&dir, &aside).unwrap();
    assert!(matches!(world.source().refresh(true), Err(Error::Directory { .. })));
    assert_eq!(world.keys(), ["Pod shop/a"]);
    fs::rename(&aside, &dir).unwrap();
    assert!(!world.source().refresh(true).unwrap());
}

#[test]
fn only_real_changes_count_as_changes() {
    let mut world = World::new(&[("a.yaml", &pod("a", "10.0.0.1"))]);
    assert!(world.source().refresh(false).unwrap());
    assert!(!world.source().refresh(false).unwrap());
    assert!(!world.source().refresh(true).unwrap());
    world.write("a.yaml", &pod("a", "10.0.0.1"));
    assert!(!world.source().refresh(true).unwrap(), "the same text again");
    world.write("a.yaml", &pod("a", "10.0.0.22"));
    assert!(world.source().refresh(false).unwrap());
}

#[test]
fn fields_of_an_example_are_found_through_every_style() {
    let text = "spec:\n  a.b/c: [1, {x: 2}]\n  list:\n  - first\n  - second: |\n      text\n";
    let document = document::split(text, Format::Yaml).remove(0);
    let spot = |path: FieldPath| {
        let spot = document.locate(&path);
        (spot.line.unwrap(), spot.column)
    };
    let spec = FieldPath::of("spec");
    assert_eq!(spot(spec.key("a.b/c").index(1).key("x")), (2, Some(18)));
    assert_eq!(spot(spec.key("list").index(1)), (5, Some(5)));
    assert_eq!(spot(spec.key("list").index(1).key("second")), (5, Some(13)));
    // What is not there is shown at what holds it.
    assert_eq!(spot(spec.key("list").index(7)), (4, Some(3)));
    assert_eq!(spot(FieldPath::of("status")), (1, None));
}

/// The fenced blocks of `docs/resources.md` with this info string.
fn documented(info: &str) -> Vec<&'static str> {
    let page = include_str!("../../../../docs/resources.md");
    let fence = format!("\n```{info}\n");
    let blocks = page.split(&fence).skip(1);
    blocks.map(|block| block.split_inclusive("```").next().unwrap().trim_end_matches("```")).collect()
}

#[test]
fn the_documentation_shows_good_objects_and_real_errors() {
    let examples: Vec<String> = documented("yaml").iter().map(|block| format!("---\n{block}")).collect();
    assert_eq!(examples.len(), 4);
    let mut world = World::new(&[("a.yaml", &examples.concat())]);
    assert_eq!(world.load().1, Vec::<String>::new());
    assert_eq!(world.keys().len(), 7);

    let (_, problems) = World::new(&[("bad.yaml", documented("yaml bad")[0])]).load();
    assert_eq!(problems, documented("text")[0].lines().collect::<Vec<_>>());
}

#[test]
fn only_objects_that_a_write_changed_are_told_as_changed() {
    let mut world = World::new(&[("a.yaml", &pod("a", "10.0.0.1")), ("b.yaml", &pod("b", "10.0.0.2"))]);
    let changed = |world: &mut World| {
        world.source().refresh(true).unwrap();
        world.source().take_changed().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(changed(&mut world), ["Pod shop/a", "Pod shop/b"]);
    world.write("a.yaml", &pod("a", "10.0.0.9"));
    assert_eq!(changed(&mut world), ["Pod shop/a"]);
    // A comment is no change of an object.
    world.write("b.yaml", &(pod("b", "10.0.0.2") + "# seen\n"));
    assert_eq!(changed(&mut world), [""; 0]);
    world.write("c.yaml", &pod("c", "10.0.0.3"));
    world.remove("b.yaml");
    assert_eq!(changed(&mut world), ["Pod shop/b", "Pod shop/c"]);
}
