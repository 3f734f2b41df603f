//! Where routes lead, for whom, and what their status says: weights, mirrors, timeouts, frontends, ports, the layers of
//! producer and consumer (Gateway API, GEP-1294), replayed in a lab from both nodes.

use std::collections::BTreeMap;

use mesh_tests::http::routes::{CLIENTS, FILE, all, route};
use mesh_tests::http::scene::{Scene, answered, to};
use mesh_tests::http::{Answer, Backend};
use mesh_tests::{Ask, Lab, Web, eventually};
use serde_json::Value;

fn get(target: &str) -> Ask {
    Ask::get(target)
}

/// 70 and 30 of a hundred, give or take five.
fn is_seventy_thirty(counts: &BTreeMap<String, usize>, times: usize) -> bool {
    let share = |pod: &str| counts.get(pod).copied().unwrap_or(0) * 100;
    share("echo-v1").abs_diff(70 * times) <= 5 * times && share("echo-v2").abs_diff(30 * times) <= 5 * times
}

#[test]
fn weights_are_kept_and_broken_backends_take_their_share() {
    let scene = Scene::up();
    let weighted = |third: &str| {
        format!(
            "- backendRefs:\n  - {{name: echo-v1, port: 8080, weight: 70}}\n  - {{name: echo-v2, port: 8080, weight: 30}}\n{third}"
        )
    };
    // A third backend that does not exist must not hurt with weight 0, and takes its share with another.
    for (kind, port, third) in [
        ("HTTPRoute", 80, ""),
        ("HTTPRoute", 80, "  - {name: echo-v3, port: 8080, weight: 0}\n"),
        ("GRPCRoute", 7070, "  - {name: echo-v3, port: 8080, weight: 0}\n"),
    ] {
        let yaml = route(kind, "echo/weights", &[&format!("echo:{port}")], &weighted(third));
        scene.lab.apply(FILE, &yaml);
        let target = scene.vip("echo", port);
        for (web, name) in scene.callers().iter().zip(CLIENTS) {
            // Up to ten rounds, as the Gateway API's test has it: a share may be out by chance.
            let mut rounds = Vec::new();
            let fits = (0..10).any(|_| {
                let counts = scene.shares(web, target, 500);
                let fits = is_seventy_thirty(&counts, 500);
                rounds.push(counts);
                fits
            });
            assert!(fits, "{kind} {name}: {rounds:?}");
        }
    }
    let half = route(
        "HTTPRoute",
        "echo/weights",
        &["echo:80"],
        "- backendRefs: [{name: echo-v1, port: 8080}, {name: echo-v3, port: 8080}]",
    );
    scene.lab.apply(FILE, &half);
    eventually("half of the requests have nowhere to go", || {
        let counts = scene.shares(&scene.clients[0], scene.vip("echo", 80), 300);
        let share = |who: &str| counts.get(who).copied().unwrap_or(0);
        let fits = (100..=200).contains(&share("500")) && share("500") + share("echo-v1") == 300;
        fits.then_some(())
    });
    // Nothing but weight 0, and nothing at all.
    for rules in
        ["- backendRefs: [{name: echo-v1, port: 8080, weight: 0}]", "- matches: [{path: {value: /}}]"]
    {
        scene.run(
            &route("HTTPRoute", "echo/weights", &["echo:80"], rules),
            "echo",
            80,
            &[answered(500, get("/"))],
        );
    }
    scene.lab.down();
}

#[test]
fn copies_of_requests_go_to_the_mirror_and_answers_do_not_come_from_it() {
    let scene = Scene::up();
    let yaml = |more: &str| {
        route(
            "HTTPRoute",
            "echo/mirror",
            &["echo:80"],
            &format!(
                "- filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: echo-v2, port: 8080}}{more}}}}}]\n  backendRefs: [{{name: echo-v1, port: 8080}}]"
            ),
        )
    };
    let [v1, v2] = &scene.servers[..] else { unreachable!() };
    scene.run(&yaml(""), "echo", 80, &[to("echo-v1", get("/warm"))]);
    eventually("the mirror is in force", || {
        scene.clients[0].get(scene.vip("echo", 80), "/warm");
        (v2.count() > 0).then_some(())
    });
    for web in scene.callers() {
        [v1, v2].into_iter().for_each(Backend::forget);
        let ask =
            get("/copied?x=1").host("mirrored.example").header("x-copy", "yes").body(b"the body".to_vec());
        let answer = web.ask(scene.vip("echo", 80), ask);
        assert_eq!((answer.status, answer.pod().as_str()), (200, "echo-v1"));
        let copy = v2.tells("the copy", |line| line["path"] == "/copied");
        for (what, expected) in [("method", "POST"), ("query", "x=1"), ("host", "mirrored.example")] {
            assert_eq!(copy[what], expected, "{copy}");
        }
        assert_eq!(
            (&copy["body_bytes"], &copy["headers"]["x-copy"][0]),
            (&8.into(), &"yes".into()),
            "{copy}"
        );
    }
    // A mirror that hangs or fails is nobody's trouble.
    let slow = get("/slow").plan("status=503");
    let answer = scene.clients[0].ask(scene.vip("echo", 80), slow);
    assert_eq!((answer.status, answer.pod().as_str()), (503, "echo-v1"), "the answer is the server's own");
    // Some of them.
    scene.lab.apply(FILE, &yaml(", percent: 20"));
    eventually("a fifth is copied", || {
        [v1, v2].into_iter().for_each(Backend::forget);
        scene.shares(&scene.clients[0], scene.vip("echo", 80), 400);
        std::thread::sleep(std::time::Duration::from_millis(200));
        (v1.count() == 400 && (40..=120).contains(&v2.count())).then_some(())
    });
    scene.lab.down();
}

#[test]
fn a_request_that_takes_too_long_is_answered_with_504() {
    let scene = Scene::up();
    let yaml = |timeouts: &str| {
        route(
            "HTTPRoute",
            "echo/timeouts",
            &["echo:80"],
            &format!("- timeouts: {{{timeouts}}}\n  backendRefs: [{{name: echo-v2, port: 8080}}]"),
        )
    };
    let late = |ms: u32| get("/late").plan(&format!("head-delay={ms}"));
    scene.run(&yaml("request: 500ms"), "echo", 80, &[answered(504, late(1500)), to("echo-v2", late(50))]);
    scene.servers[1].tells("the late request being given up", |line| line["given_up"].is_number());
    scene.run(
        &yaml("request: 2s, backendRequest: 300ms"),
        "echo",
        80,
        &[answered(504, late(1000)), to("echo-v2", late(50))],
    );
    // The whole body has to come in time.
    scene.lab.apply(FILE, &yaml("request: 600ms"));
    let target = scene.vip("echo", 80);
    eventually("an answer that takes too long breaks off", || {
        scene.clients[0]
            .try_ask(target, get("/slow").plan("chunks=30 chunk-delay=100"))
            .is_err()
            .then_some(())
    });
    scene.run(&yaml("request: 0s"), "echo", 80, &[to("echo-v2", late(1500))]);
    scene.lab.down();
}

#[test]
fn a_route_holds_for_its_services_ports_and_clients_and_for_nobody_else() {
    let scene = Scene::up();
    let marks = |name: &str, parents: &[&str], value: &str, service: &str| {
        let rule = format!(
            "- filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: X-Header-Set, value: {value}}}]}}}}]\n  backendRefs: [{{name: {service}, namespace: echo, port: 8080}}]"
        );
        route("HTTPRoute", name, parents, &rule)
    };
    let marked = |pod, host: &str| to(pod, get("/").host(host)).seen("header x-header-set", "set");
    let unmarked = |pod, host: &str| to(pod, get("/").host(host)).seen("header x-header-set", "-");
    // MeshFrontend, MeshFrontendHostname: what is dialled counts, not what Host says.
    scene.run(
        &marks("echo/frontend", &["echo-v2"], "set", "echo-v2"),
        "echo-v2",
        80,
        &[marked("echo-v2", "echo-v2")],
    );
    scene.check("echo-v2", 80, &[marked("echo-v2", "echo-v1")]);
    scene.check("echo-v2", 8080, &[marked("echo-v2", "echo-v2")]);
    scene.check("echo-v1", 80, &[unmarked("echo-v1", "echo-v2"), unmarked("echo-v1", "echo-v1")]);
    for web in scene.callers() {
        let to_pod = web.ask(scene.lab.v4("echo/echo-v2", 8080), get("/").host("echo-v2"));
        assert_eq!(
            (to_pod.status, to_pod.seen_header("x-header-set")),
            (200, None),
            "a pod's own address has no routes"
        );
    }
    // MeshPorts
    let ports = all(&[
        marks("echo/ports-1", &["echo-v1:80"], "set", "echo-v1"),
        marks("echo/ports-2", &["echo-v2"], "set", "echo-v2"),
    ]);
    scene.run(&ports, "echo-v1", 80, &[marked("echo-v1", "echo-v1")]);
    scene.check("echo-v1", 8080, &[unmarked("echo-v1", "echo-v1")]);
    scene.check("echo-v2", 80, &[marked("echo-v2", "echo-v2")]);
    scene.check("echo-v2", 8080, &[marked("echo-v2", "echo-v2")]);
    // MeshConsumerRoute: a route of the client's namespace holds for the clients in it, instead of the service's own.
    let consumer = &scene.clients[2];
    let target = scene.vip("echo-v1", 80);
    let seen =
        |web: &Web| web.try_ask(target, get("/")).ok().map(|answer| answer.seen_header("x-header-set"));
    scene.lab.apply(FILE, &marks("consumer/route", &["echo/echo-v1"], "consumer", "echo-v1"));
    eventually("the consumer's route holds for its namespace", || {
        (seen(consumer) == Some(Some("consumer".to_owned()))).then_some(())
    });
    scene.check("echo-v1", 80, &[unmarked("echo-v1", "echo-v1")]);
    let both = all(&[
        marks("consumer/route", &["echo/echo-v1"], "consumer", "echo-v1"),
        marks("echo/route", &["echo-v1"], "set", "echo-v1"),
    ]);
    scene.run(&both, "echo-v1", 80, &[marked("echo-v1", "echo-v1")]);
    assert_eq!(seen(consumer), Some(Some("consumer".to_owned())), "the layers are not merged");
    scene.lab.apply(FILE, "");
    eventually("without routes nothing is changed", || (seen(consumer) == Some(None)).then_some(()));
    scene.lab.down();
}

#[test]
fn grpc_routes_match_services_and_methods() {
    let scene = Scene::up();
    let yaml = route(
        "GRPCRoute",
        "echo/grpc",
        &["echo:7070"],
        "- matches: [{method: {service: grpc.testing.TestService, method: EmptyCall}}]\n  backendRefs: [{name: echo-v1, port: 7070}]\n\
         - matches: [{method: {service: grpc.testing.TestService}}]\n  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-routed, value: \"yes\"}]}}]\n  backendRefs: [{name: echo-v2, port: 7070}]",
    );
    scene.lab.apply(FILE, &yaml);
    let target = scene.vip("echo", 7070);
    for web in scene.callers() {
        let call = |path: &str| {
            // A call with an empty message.
            let ask = get(path)
                .body(vec![0; 5])
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            web.http2(target).and_then(|mut session| session.try_ask(ask)).ok()
        };
        let pod = |answer: &Answer| answer.header("x-server").unwrap_or_default();
        eventually("the route is in force", || {
            let all_first = (0..8).all(|_| {
                call("/grpc.testing.TestService/EmptyCall").is_some_and(|answer| pod(&answer) == "echo-v1")
            });
            all_first.then_some(())
        });
        let other = call("/grpc.testing.TestService/UnaryCall").expect("an answer");
        assert_eq!((other.status, pod(&other).as_str()), (200, "echo-v2"), "{other:?}");
        let nowhere = call("/other.Service/Call").expect("an answer");
        let status = nowhere.trailers.as_ref().unwrap_or(&nowhere.headers).get("grpc-status").cloned();
        assert_eq!(nowhere.status, 200, "{nowhere:?}");
        assert_eq!(
            status.as_ref().map(http::HeaderValue::as_bytes),
            Some(&b"12"[..]),
            "UNIMPLEMENTED: {nowhere:?}"
        );
    }
    scene.servers[1].tells("the header", |line| line["headers"]["x-routed"][0] == "yes");
    scene.lab.down();
}

/// The conditions of a route towards its first parent: type to status and reason.
fn conditions(lab: &Lab, kind: &str, name: &str) -> BTreeMap<String, (String, String)> {
    let page = lab.view("node-1", "/routes");
    let routes = page.as_array().cloned().unwrap_or_default();
    let is_it = |route: &&Value| route["kind"] == kind && route["name"] == name;
    let Some(route) = routes.iter().find(is_it) else { return BTreeMap::new() };
    let conditions = route["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    assert!(conditions.iter().all(|one| one["observedGeneration"] == 1), "{name}: {conditions:?}");
    conditions.iter().map(|one| (text(one, "type"), (text(one, "status"), text(one, "reason")))).collect()
}

#[test]
fn a_routes_status_says_what_became_of_it() {
    let scene = Scene::up();
    let fine = "- backendRefs: [{name: echo-v1, port: 8080}]";
    let cases = [
        (
            "HTTPRoute",
            "fine",
            "echo:80",
            fine,
            vec![("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "ResolvedRefs")],
        ),
        (
            "HTTPRoute",
            "missing-backend",
            "echo:80",
            "- backendRefs: [{name: echo-v9, port: 8080}]",
            vec![("Accepted", "True", "Accepted"), ("ResolvedRefs", "False", "BackendNotFound")],
        ),
        (
            "HTTPRoute",
            "wrong-kind",
            "echo:80",
            "- backendRefs: [{group: apps, kind: Deployment, name: echo-v1, port: 8080}]",
            vec![("ResolvedRefs", "False", "InvalidKind")],
        ),
        ("HTTPRoute", "no-parent", "echo-v9:80", fine, vec![("Accepted", "False", "NoMatchingParent")]),
        ("HTTPRoute", "no-port", "echo:81", fine, vec![("Accepted", "False", "NoMatchingParent")]),
        (
            "HTTPRoute",
            "partly",
            "echo:80",
            "- matches: [{path: {value: /a}}]\n  filters: [{type: ExtensionRef, extensionRef: {group: example.org, kind: Filter, name: f}}]\n  backendRefs: [{name: echo-v1, port: 8080}]\n- backendRefs: [{name: echo-v1, port: 8080}]",
            vec![("Accepted", "True", "Accepted"), ("PartiallyInvalid", "True", "UnsupportedValue")],
        ),
        ("GRPCRoute", "grpc", "echo-v1:80", fine, vec![("Accepted", "True", "Accepted")]),
        ("HTTPRoute", "loses", "echo-v1:80", fine, vec![("Accepted", "False", "Conflicted")]),
    ];
    let yaml: Vec<String> = cases
        .iter()
        .map(|(kind, name, parent, rules, _)| route(kind, &format!("echo/{name}"), &[parent], rules))
        .collect();
    scene.lab.apply(FILE, &all(&yaml));
    let mut faults = Vec::new();
    for (kind, name, _, _, expected) in &cases {
        let came = eventually(&format!("{name} has a status"), || {
            let came = conditions(&scene.lab, kind, name);
            (!came.is_empty()).then_some(came)
        });
        for (condition, status, reason) in expected {
            let fits = came.get(*condition) == Some(&((*status).to_owned(), (*reason).to_owned()));
            if !fits {
                faults.push(format!("{name}: {condition} is to be {status} {reason}, is {came:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let output = scene.lab.meshctl("node-1", &["routes", "-o", "json"]);
    let told: Value = serde_json::from_slice(&output.stdout).expect("meshctl prints JSON");
    assert_eq!(told, scene.lab.view("node-1", "/routes"));
    scene.lab.down();
}
