//! The lab in which routes are tried: cases of a table, asked from both nodes and by both versions of HTTP, so that each
//! backend is reached on the same node and across nodes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::routes::{self, CLIENTS, FILE, SERVERS};
use super::{Answer, Ask, Backend, Web};
use crate::lab::Lab;
use crate::wait;

/// A lab with servers and clients, and no routes yet.
#[derive(Debug)]
pub struct Scene {
    /// Two of the namespace `echo`, one on each node, and one of `consumer`.
    pub clients: Vec<Web>,
    /// `echo-v1` on node-1, `echo-v2` on node-2.
    pub servers: Vec<Backend>,
    /// The lab; it ends last.
    pub lab: Lab,
}

/// What a request must come to.
#[derive(Clone, Debug)]
pub struct Case {
    ask: Ask,
    /// Status, and the server's pod; empty when no server answers.
    status: u16,
    pod: &'static str,
    /// What the server received: `path`, `query`, `host`, or `header NAME`; `-` for none.
    seen: Vec<(&'static str, String)>,
    /// Headers of the answer; `-` for none.
    headers: Vec<(&'static str, String)>,
}

/// An answer of this pod.
pub fn to(pod: &'static str, ask: Ask) -> Case {
    Case { ask, status: 200, pod, seen: Vec::new(), headers: Vec::new() }
}

/// An answer that no pod gives.
pub fn answered(status: u16, ask: Ask) -> Case {
    Case { ask, status, pod: "", seen: Vec::new(), headers: Vec::new() }
}

impl Case {
    /// The server received this: `path`, `query`, `host`, or `header NAME`; `-` for none.
    #[must_use]
    pub fn seen(mut self, what: &'static str, value: &str) -> Self {
        self.seen.push((what, value.to_owned()));
        self
    }

    /// The answer has this header; `-` for none.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// What is wrong with an answer.
    fn fault(&self, answer: &Answer) -> Option<String> {
        let mut faults = Vec::new();
        let mut compare = |what: &str, expected: &str, came: String| {
            if expected != came {
                faults.push(format!("{what} is {came:?}, not {expected:?}"));
            }
        };
        compare("the status", &self.status.to_string(), answer.status.to_string());
        compare("the pod", self.pod, answer.pod());
        for (what, expected) in &self.seen {
            let came = match what.strip_prefix("header ") {
                Some(name) => answer.seen_header(name),
                None => answer.seen()[*what].as_str().map(str::to_owned),
            };
            compare(what, expected, came.unwrap_or_else(|| "-".to_owned()));
        }
        for (name, expected) in &self.headers {
            compare(name, expected, answer.header(name).unwrap_or_else(|| "-".to_owned()));
        }
        (!faults.is_empty()).then(|| faults.join(", "))
    }
}

impl Scene {
    /// Makes it.
    #[track_caller]
    pub fn up() -> Self {
        let lab = Lab::up(&routes::world());
        let servers = SERVERS.iter().map(|pod| Backend::start(&lab, pod, &routes::PORTS)).collect();
        let clients = CLIENTS.iter().chain(&["consumer/client"]).map(|pod| Web::start(&lab, pod)).collect();
        Self { clients, servers, lab }
    }

    /// Clients of the namespace `echo`, one on each node.
    pub fn callers(&self) -> &[Web] {
        &self.clients[..2]
    }

    /// A port of a service of the namespace `echo`.
    pub fn vip(&self, service: &str, port: u16) -> SocketAddr {
        self.lab.vip(&format!("echo/{service}"), port)
    }

    /// Puts routes in force, and runs cases against a service by HTTP/1 and HTTP/2. The first case tells when they are.
    #[track_caller]
    pub fn run(&self, yaml: &str, service: &str, port: u16, cases: &[Case]) {
        self.lab.apply(FILE, yaml);
        self.check(service, port, cases);
    }

    /// Runs cases with the routes that are in force.
    #[track_caller]
    pub fn check(&self, service: &str, port: u16, cases: &[Case]) {
        let target = self.vip(service, port);
        let mut faults = Vec::new();
        for (number, web) in self.callers().iter().enumerate() {
            let mut last = String::new();
            let first = &cases[0];
            let settled = wait::now() + wait::PATIENCE;
            while wait::now() < settled {
                last = match web.try_ask(target, first.ask.clone()) {
                    Ok(answer) => first.fault(&answer).unwrap_or_default(),
                    Err(error) => format!("{error:#}"),
                };
                if last.is_empty() {
                    break;
                }
            }
            assert!(last.is_empty(), "{}: {:?}: {last}", CLIENTS[number], first.ask);
            for case in cases {
                let http1 = web.try_ask(target, case.ask.clone()).map_err(|error| format!("{error:#}"));
                let http2 = web.http2(target).and_then(|mut session| session.try_ask(case.ask.clone()));
                for (version, answer) in
                    [("HTTP/1.1", http1), ("HTTP/2", http2.map_err(|error| format!("{error:#}")))]
                {
                    let fault = match answer {
                        Ok(answer) => case.fault(&answer),
                        Err(error) => Some(error),
                    };
                    faults.extend(
                        fault.map(|fault| format!("{} {version} {:?}: {fault}", CLIENTS[number], case.ask)),
                    );
                }
            }
        }
        assert!(faults.is_empty(), "{}\n{}", faults.len(), faults.join("\n"));
    }

    /// Asks so often; says how often each pod answered, or each status that no pod gave.
    #[track_caller]
    pub fn shares(&self, web: &Web, target: SocketAddr, times: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let mut session = web.http2(target).unwrap();
        for answer in session.ask_all(vec![Ask::get("/"); times]) {
            let answer = answer.unwrap_or_else(|error| panic!("{target}: {error:#}"));
            let who = if answer.pod().is_empty() { answer.status.to_string() } else { answer.pod() };
            *counts.entry(who).or_insert(0) += 1;
        }
        counts
    }
}
