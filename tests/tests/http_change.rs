//! Routes that change 200 times a second under load: no request fails, each is handled by one version of the route and not
//! by a mixture, no version comes back, and none older than what the agent has acknowledged is used.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::http::routes::{self, CLIENTS, FILE, PORTS, SERVERS};
use mesh_tests::http::{Answer, Session};
use mesh_tests::wait::now;
use mesh_tests::{Ask, Backend, Lab, Web, eventually};

/// How long the routes change.
const STORM: Duration = Duration::from_secs(30);

/// Between two changes: 200 a second.
const STEP: Duration = Duration::from_millis(5);

/// Version `number` of the route: even ones lead to echo-v1, odd ones to echo-v2, and each writes its number into the
/// request and the answer.
fn version(number: u64) -> String {
    let backend = if number.is_multiple_of(2) { "echo-v1" } else { "echo-v2" };
    let edit = |kind: &str, field: &str| {
        format!("{{type: {kind}, {field}: {{set: [{{name: x-version, value: \"{number}\"}}]}}}}")
    };
    let rule = format!(
        "- filters: [{}, {}]\n  backendRefs: [{{name: {backend}, port: 8080}}]",
        edit("RequestHeaderModifier", "requestHeaderModifier"),
        edit("ResponseHeaderModifier", "responseHeaderModifier"),
    );
    let yaml = routes::route("HTTPRoute", "echo/storm", &["echo:80"], &rule);
    yaml.replace("generation: 1", &format!("generation: {number}"))
}

/// The version that handled a request.
fn version_of(answer: &Answer) -> Result<u64> {
    ensure!(answer.status == 200, "status {}: {:?}", answer.status, answer.body);
    let said = answer.header("x-version").context("the answer has no version")?;
    ensure!(
        answer.seen_header("x-version").as_ref() == Some(&said),
        "the request had another version than the answer"
    );
    let number: u64 = said.parse()?;
    let backend = if number.is_multiple_of(2) { "echo-v1" } else { "echo-v2" };
    ensure!(answer.pod() == backend, "version {number} led to {}", answer.pod());
    Ok(number)
}

/// Asks until told to stop; gives the number of answers and of versions seen.
fn load(mut session: Session, node: &str, stop: &AtomicBool) -> Result<(u64, u64)> {
    let (mut answers, mut versions, mut last) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let ask =
            if answers % 3 == 0 { Ask::get("/storm").body(vec![b'x'; 3000]) } else { Ask::get("/storm") };
        let answer = session.try_ask(ask).with_context(|| format!("{node}: request {answers}"))?;
        let number = version_of(&answer).with_context(|| format!("{node}: request {answers}"))?;
        ensure!(number >= last, "{node}: version {number} came after {last}");
        versions += u64::from(number > last);
        last = number;
        answers += 1;
    }
    Ok((answers, versions))
}

/// Reads what the agent has acknowledged, then asks: the answer is not older.
fn check_acknowledged(lab: &Lab, node: &str, web: &Web, to: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let mut checks = 0;
    while !stop.load(Ordering::Relaxed) {
        let page = lab.view(node, "/routes");
        let acknowledged = page[0]["parents"][0]["conditions"][0]["observedGeneration"].as_u64();
        let acknowledged =
            acknowledged.with_context(|| format!("{node} says nothing of the route: {page}"))?;
        let number = version_of(&web.try_ask(to, Ask::get("/acknowledged"))?)?;
        ensure!(number >= acknowledged, "{node} acknowledged version {acknowledged} and used {number}");
        checks += 1;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(checks)
}

#[test]
fn routes_that_change_200_times_a_second_fail_no_request_and_never_lead_back() {
    let lab = Lab::up(&routes::world());
    let servers = SERVERS.map(|pod| Backend::start(&lab, pod, &PORTS));
    let webs = CLIENTS.map(|pod| Web::start(&lab, pod));
    let to = lab.vip("echo/echo", 80);
    lab.apply(FILE, &version(0));
    for web in &webs {
        eventually("the first version is in force", || {
            version_of(&web.try_ask(to, Ask::get("/")).ok()?).ok()
        });
    }
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let built_before = lab.metrics("node-1").sum("weft_discovery_version", &[]);
    thread::scope(|scope| {
        let (stop, lab) = (&stop, &lab);
        let mut loads = Vec::new();
        let mut checks = Vec::new();
        for (web, node) in webs.iter().zip(["node-1", "node-2"]) {
            for session in [web.http1(to), web.http1(to), web.http2(to)] {
                let session = session.expect("a connection");
                loads.push(scope.spawn(move || load(session, node, stop)));
            }
            checks.push(scope.spawn(move || check_acknowledged(lab, node, web, to, stop)));
        }
        let began = now();
        let mut next = began;
        while began.elapsed() < STORM && !loads.iter().any(thread::ScopedJoinHandle::is_finished) {
            lab.write(FILE, &version(written.fetch_add(1, Ordering::Relaxed) + 1));
            next += STEP;
            thread::sleep(next.saturating_duration_since(now()));
        }
        stop.store(true, Ordering::Relaxed);
        let (mut answers, mut versions) = (0, Vec::new());
        for load in loads {
            let (some, seen) = load.join().expect("no panic").unwrap_or_else(|error| panic!("{error:#}"));
            answers += some;
            versions.push(seen);
        }
        for check in checks {
            let checked = check.join().expect("no panic").unwrap_or_else(|error| panic!("{error:#}"));
            assert!(checked > 100, "the agent was asked {checked} times what it has acknowledged");
        }
        let built = lab.metrics("node-1").sum("weft_discovery_version", &[]) - built_before;
        let written = written.load(Ordering::Relaxed);
        eprintln!(
            "{written} changes, {built} states built, {answers} answers, versions seen by each connection: {versions:?}"
        );
        assert!(written >= 5000, "only {written} changes were made");
        assert!(answers > 2000, "only {answers} requests were made");
        // The agent looks at the files again at most once a second while they do not rest.
        assert!(versions.iter().all(|seen| *seen > 20), "{versions:?}");
    });
    // The last version, once acknowledged, is the only one.
    let last = 1_000_000;
    lab.apply(FILE, &version(last));
    for web in &webs {
        eventually("the last version is in force", || {
            (version_of(&web.try_ask(to, Ask::get("/last")).ok()?).ok()? == last).then_some(())
        });
        for _ in 0..50 {
            assert_eq!(version_of(&web.ask(to, Ask::get("/last"))).unwrap(), last);
        }
    }
    drop(servers);
    lab.down();
}
