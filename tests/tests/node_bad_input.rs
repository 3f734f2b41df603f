//! Bad input: each fault is told with file, line and what to write, its last good state stays in force, and the rest
//! goes on.

use mesh_tests::lab::Options;
use mesh_tests::wire::Serve;
use mesh_tests::world::policy;
use mesh_tests::{Lab, World, eventually};
use serde_json::Value;

fn world() -> World {
    World::new()
        .meshed("shop")
        .pod("shop/web", "node-1")
        .pod("shop/guest", "node-1")
        .pod_like("shop/far", "node-2", "server", "")
}

/// Waits until an agent tells of a problem in a file; gives its line and all that is said.
#[track_caller]
fn problem(lab: &Lab, node: &str, file: &str) -> (u64, String) {
    eventually(&format!("{node} tells of a problem in {file}"), || {
        let problems = lab.view(node, "/problems");
        let here =
            |one: &&Value| one["location"].as_str().is_some_and(|at| at.contains(&format!("/{file}:")));
        let problem = problems.as_array()?.iter().find(here)?;
        // FILE:LINE:COLUMN
        let line = problem["location"].as_str()?.rsplit(':').nth(1)?.parse().ok()?;
        Some((line, problem.to_string()))
    })
}

#[test]
fn each_fault_names_file_and_line_and_hurts_nobody_else() {
    let good = policy(
        "shop/servers",
        "server",
        "ALLOW",
        &["{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}"],
    );
    let lab = Lab::up(&world().file("policy.yaml", &good));
    let far = lab.probe("shop/far");
    let server = far.serve(8080, Serve::Greet);
    let (web, guest) = (lab.probe("shop/web"), lab.probe("shop/guest"));
    let target = lab.v4("shop/far", 8080);
    let check_all_goes_on = |what: &str| {
        web.call(target).unwrap_or_else(|refusal| panic!("{what}: web: {refusal}"));
        assert!(guest.call(target).is_err(), "{what}: the policy stays in force");
    };
    check_all_goes_on("before");
    let taken = lab.v4("shop/far", 0).ip();
    let pod = |name: &str, account: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  nodeName: node-1\n  \
             serviceAccountName: {account}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let cases = [
        ("malformed.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [\n".to_owned(), 3..=5, ""),
        ("nonsense.yaml", "just a sentence\n".to_owned(), 1..=1, ""),
        (
            "field.yaml",
            // A policy that cannot be used refuses everything to its pods, so these two select nobody who matters.
            policy("shop/others", "elsewhere", "ALLOW", &["{}"]).replace("action:", "acton:"),
            4..=8,
            "acton",
        ),
        (
            "range.yaml",
            policy("shop/range", "elsewhere", "DENY", &["{sources: [{type: CIDR, cidr: 10.0.0.0/33}]}"]),
            7..=8,
            "10.0.0.0/33",
        ),
        // Of two pods with one address the one in the later file is left out.
        ("zz-twin.yaml", pod("twin", "default", &taken.to_string()), 1..=8, "address"),
        ("orphan.yaml", pod("orphan", "nobody", "10.244.1.99"), 1..=8, "nobody"),
    ];
    for (file, text, lines, says) in &cases {
        lab.write(file, text);
        for node in ["node-1", "node-2"] {
            let (line, message) = problem(&lab, node, file);
            assert!(lines.contains(&line), "{file}: {message}");
            assert!(message.contains(says), "{file}: {message}");
        }
        let told = lab.meshctl("node-1", &["problems"]);
        let told = String::from_utf8_lossy(&told.stdout);
        assert!(told.contains(file), "meshctl problems: {told}");
        check_all_goes_on(file);
    }
    lab.metric_reaches("node-1", "weft_discovery_problems", &[], cases.len() as f64);
    // A good policy that turns bad stays as it was.
    let before = server.served().len();
    lab.write("policy.yaml", &good.replace("ALLOW", "PERHAPS"));
    problem(&lab, "node-1", "policy.yaml");
    problem(&lab, "node-2", "policy.yaml");
    check_all_goes_on("a policy that turned bad");
    assert_eq!(server.served().len(), before + 1);
    // All mended: nothing is told any more.
    for (file, ..) in &cases {
        std::fs::remove_file(lab.world_dir().join(file)).unwrap();
    }
    lab.write("policy.yaml", &good);
    for node in ["node-1", "node-2"] {
        eventually("no problem is left", || {
            (lab.metrics(node).sum("weft_discovery_problems", &[]) == 0.0).then_some(())
        });
    }
    check_all_goes_on("after");
}

#[test]
fn a_mesh_config_that_cannot_be_used_stops_the_start_and_says_where() {
    let bad = "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec:\n  defaultInbond: Deny\n";
    let said =
        Lab::try_up(&world().file("mesh.yaml", bad), &Options::default()).expect_err("it must not start");
    assert!(said.contains("mesh.yaml:5"), "file and line: {said}");
    assert!(
        said.contains("defaultInbond") && said.contains("defaultInbound"),
        "the field, and what it could be: {said}"
    );
}

#[test]
fn a_node_with_a_wrong_join_token_gets_no_certificate_and_says_why() {
    let mut lab = Lab::up(&world());
    let (web, far) = (lab.probe("shop/web"), lab.probe("shop/far"));
    let _server = far.serve(8080, Serve::Greet);
    let target = lab.v4("shop/far", 8080);
    web.call(target).expect("all is well");
    lab.kill_agent("node-2");
    let token = lab.dir().join("bad-token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&token, mode).unwrap();
    let (impostor, log) = lab.impostor("node-2", &[("--join-token-file", &token.to_string_lossy())]);
    let control = &lab.control().log;
    eventually("control refuses", || {
        std::fs::read_to_string(control).unwrap().contains("certificate refused").then_some(())
    });
    eventually("and the agent says so", || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.lines().any(|line| line.contains("join token") || line.contains("token")).then_some(())
    });
    web.call(target).expect_err("no identity, no connection");
    drop(impostor);
    lab.restart_agent("node-2");
    eventually("with the right token all is well again", || web.call(target).ok());
}
