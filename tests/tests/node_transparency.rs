//! A program in an enrolled pod finds the same network as without a mesh: CPython's own network tests, which poke at every
//! corner of the socket interface, give the same result for each test inside an enrolled pod and in a pod without a mesh.
//!
//! Both run at the same time, so that neither has the quieter machine. Every difference must be in [`EXPLAINED`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use mesh_tests::lab::Options;
use mesh_tests::{Lab, World};

const POD: &str = "shop/python";

/// Tests whose result in an enrolled pod may differ, each with the reason. One that no longer differs must leave the list.
const EXPLAINED: &[(&str, &str)] = &[];

/// Left out: address families that need no network or that this mesh has nothing to do with, processes and terminals, and
/// asyncio's event loops but for the one that programs get (epoll).
const IGNORED: &[&str] = &[
    "*VSOCK*",
    "*SCM*",
    "*Unix*",
    "*SCTP*",
    "*UDPLITE*",
    "*subprocess*",
    "*pty*",
    "*pipe*",
    "*signal*",
    "test.test_asyncio.*.SelectEventLoopTest*",
    "test.test_asyncio.*.PollEventLoopTest*",
];

/// What runs on loopback, as the tests are written.
const MODULES: &[&str] = &[
    "test_socket",
    "test_asyncio.test_sock_lowlevel",
    "test_asyncio.test_streams",
    "test_asyncio.test_server",
    "test_asyncio.test_sendfile",
    "test_asyncio.test_buffered_proto",
    "test_asyncio.test_events",
];

/// What runs on the pod's own address instead: everything over TCP.
const ON_OWN_ADDRESS: &[&str] = &[
    "*TCP*",
    "*FileObject*",
    "*Sendfile*",
    "*NetworkConnection*",
    "*CreateServer*",
    "*Buffer*",
    "*Inheritance*",
];

/// Makes CPython's helpers listen on and connect to the address in the environment, then runs its test runner.
const RUN_ON_OWN_ADDRESS: &str = "import os
from test.support import socket_helper as helper
helper.HOST = helper.HOSTv4 = os.environ['POD_ADDRESS']
helper.bind_port.__defaults__ = (helper.HOST,)
from test.libregrtest.main import main
main()";

/// Results by test name: `passed`, `skipped`, `failed` or `error`.
type Results = BTreeMap<String, String>;

fn world() -> World {
    World::new().meshed("shop").pod(POD, "node-1")
}

#[test]
fn cpythons_network_tests_give_the_same_results_in_an_enrolled_pod() {
    let python = interpreter();
    let lab = Lab::up(&world());
    let plain_lab = Lab::up_with(&world(), &Options::default().arg("--no-mesh"));
    let reports = tempfile::tempdir().expect("a temporary directory can be made");
    let passed_before = connects(&lab);
    let [meshed, plain] = thread::scope(|scope| {
        let run = |lab, name: &str| {
            let report = |suite| reports.path().join(format!("{name}-{suite}.xml"));
            let (python, loopback, own) = (&python, report("loopback"), report("own"));
            let on_loopback = scope.spawn(move || run_on_loopback(lab, python, &loopback));
            let on_own = scope.spawn(move || run_on_own_address(lab, python, &own));
            [on_loopback, on_own]
        };
        [run(&lab, "meshed"), run(&plain_lab, "plain")].map(|suites| {
            suites.map(|suite| suite.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    });
    assert!(
        connects(&lab) > passed_before,
        "the pod is caught: its connections are seen by the kernel programs"
    );
    let mut differences = Vec::new();
    for ((suite, meshed), plain) in ["loopback", "own address"].into_iter().zip(&meshed).zip(&plain) {
        let passed = meshed.values().filter(|result| *result == "passed").count();
        eprintln!("{suite}: {} tests, {passed} passed in the enrolled pod", meshed.len());
        assert!(passed > 150, "too few tests ran on {suite} to mean anything: {passed}");
        differences.extend(compare(suite, meshed, plain));
    }
    let explained: BTreeSet<&str> = EXPLAINED.iter().map(|(name, _)| *name).collect();
    let seen: BTreeSet<&str> = differences.iter().map(|(name, _)| name.as_str()).collect();
    let unexplained: Vec<&str> = differences
        .iter()
        .filter(|(name, _)| !explained.contains(name.as_str()))
        .map(|(_, text)| text.as_str())
        .collect();
    assert!(unexplained.is_empty(), "differences that nobody has explained:\n{}", unexplained.join("\n"));
    let settled: Vec<_> = explained.difference(&seen).collect();
    assert!(settled.is_empty(), "explained, but no longer different: {settled:?}");
    plain_lab.down();
    lab.down();
}

/// Connections that the kernel programs judged, whatever the verdict.
fn connects(lab: &Lab) -> f64 {
    let metrics = lab.metrics("node-1");
    ["connect_pass", "connect_proxy", "connect_direct", "connect_splice"]
        .iter()
        .map(|verdict| metrics.sum("weft_kernel_verdicts_total", &[("verdict", verdict)]))
        .sum()
}

fn run_on_loopback(lab: &Lab, python: &str, report: &Path) -> Results {
    let mut words = vec![python, "-m", "test", "-j3"];
    words.extend(IGNORED.iter().flat_map(|pattern| ["-i", pattern]));
    run(lab, words, MODULES, report)
}

fn run_on_own_address(lab: &Lab, python: &str, report: &Path) -> Results {
    let address = format!("POD_ADDRESS={}", lab.v4(POD, 0).ip());
    let mut words = vec!["env", &address, python, "-c", RUN_ON_OWN_ADDRESS];
    // The runner heeds the order of patterns: what is left out comes last.
    words.extend(ON_OWN_ADDRESS.iter().flat_map(|pattern| ["-m", pattern]));
    words.extend(["-i", "*SCTP*"]);
    run(lab, words, &["test_socket"], report)
}

/// Runs CPython's test runner in the pod; whether tests pass is for the comparison to say.
#[track_caller]
fn run<'w>(lab: &Lab, mut words: Vec<&'w str>, modules: &[&'w str], report: &'w Path) -> Results {
    words.extend(["-v", "--timeout", "85", "--junit-xml", report.to_str().expect("the path is text")]);
    words.extend(modules);
    let output = lab.exec(POD, &words);
    let xml = fs::read_to_string(report).unwrap_or_else(|error| {
        let said = String::from_utf8_lossy(&output.stdout);
        let last: Vec<&str> = said.lines().rev().take(40).collect();
        panic!(
            "CPython's tests wrote no report ({error}); the last lines, newest first:\n{}",
            last.join("\n")
        )
    });
    parse(&xml)
}

/// Reads a JUnit report.
fn parse(xml: &str) -> Results {
    let cases = xml.split("<testcase ").skip(1).filter_map(|case| {
        let name = case.split("name=\"").nth(1)?.split('"').next()?;
        let result = [("<error", "error"), ("<failure", "failed"), ("<skipped", "skipped")]
            .iter()
            .find(|(mark, _)| case.contains(mark))
            .map_or("passed", |(_, result)| *result);
        Some((name.to_owned(), result.to_owned()))
    });
    cases.collect()
}

/// Tests that did not give the same result in both places, with what they gave.
fn compare(suite: &str, meshed: &Results, plain: &Results) -> Vec<(String, String)> {
    let names: BTreeSet<&String> = meshed.keys().chain(plain.keys()).collect();
    let result = |results: &Results, name| results.get(name).map_or("did not run", String::as_str).to_owned();
    names
        .into_iter()
        .map(|name| (name, result(meshed, name), result(plain, name)))
        .filter(|(_, meshed, plain)| meshed != plain)
        .map(|(name, meshed, plain)| {
            (name.clone(), format!("{name} on {suite}: {meshed} in the mesh, {plain} without"))
        })
        .collect()
}

/// A Python that has its own tests.
#[track_caller]
fn interpreter() -> String {
    let find =
        "import sys, test.test_socket, test.test_asyncio, test.libregrtest.main; print(sys.executable)";
    for python in ["python3", "/usr/bin/python3"] {
        if let Ok(output) = Command::new(python).args(["-c", find]).output()
            && output.status.success()
        {
            return String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
    }
    panic!(
        "no python3 has its own tests: run `sudo cargo xtask setup` (Debian: apt-get install libpython3-testsuite)"
    )
}

#[test]
fn reports_are_read_test_by_test() {
    let xml = "<testsuites><testsuite><testcase name=\"a.b\" time=\"1\"><system-out>&lt;failure</system-out></testcase>\
               <testcase name=\"a.c\"><skipped>why</skipped></testcase><testcase name=\"a.d\"><failure message=\"m\"/></testcase>\
               <testcase name=\"a.e\"><error/></testcase></testsuite></testsuites>";
    let results = parse(xml);
    let expected = [("a.b", "passed"), ("a.c", "skipped"), ("a.d", "failed"), ("a.e", "error")];
    assert_eq!(results, expected.map(|(name, result)| (name.to_owned(), result.to_owned())).into());
    let other = parse(&xml.replace("<error/>", ""));
    let found = compare("loopback", &results, &other);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].1, "a.e on loopback: error in the mesh, passed without");
}
