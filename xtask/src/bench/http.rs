//! HTTP between two pods: no mesh, Weft with a route on the service, HAProxy and Envoy as HTTP proxies in the same places.
//!
//! Files: this one (what is measured), [`world`] (Weft's service and routes), [`table`] (what is shown).

mod world;

mod table;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::envoy::{self, Envoy};
use super::haproxy::{self, Haproxy};
use super::peer::Rules;
use super::report::Report;
use super::rounds::interleave;
use super::stage::{Stage, namespace_yaml, pod_yaml};
use super::traffic::{Dial, Ends, Path, Traffic, measure};
use super::{Effort, wire};
use crate::app::bench::client::requests::Protocol;
use crate::shell::say;

/// Variants in the order of the table.
const LABELS: [&str; 4] = ["no mesh", "weft", "haproxy", "envoy"];

/// Bytes of every answer's body.
const BODY_BYTES: usize = 1024;

/// The rate of the measures that do not send as much as they can, in requests per second.
const RATE: u32 = 2000;

/// `bench http`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Both pods on one node, held to one CPU: one agent, HAProxy or Envoy between them, no TLS.
    #[arg(long)]
    same_node: bool,
    /// Routing rules on the service, in every variant; one takes everything.
    #[arg(long, value_name = "N", default_value_t = 1)]
    rules: usize,
    /// Measure only these variants, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "no mesh,weft,haproxy,envoy")]
    variants: Vec<String>,
    /// Agents and proxies write a record for each request to a file. Off otherwise, as by default in all of them.
    #[arg(long)]
    access_log: bool,
    /// What the two HAProxies speak with each other.
    #[arg(long, value_name = "PROTOCOL", value_parser = ["h2", "http/1.1"], default_value = "h2")]
    haproxy_between: String,
}

impl Default for Options {
    fn default() -> Self {
        let variants = LABELS.map(str::to_owned).to_vec();
        Self { same_node: false, rules: 1, variants, access_log: false, haproxy_between: "h2".into() }
    }
}

impl Options {
    fn wants(&self, label: &str) -> bool {
        self.variants.iter().any(|wanted| wanted == label)
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct Measure {
    #[serde(skip)]
    protocol: Protocol,
    connections: usize,
    /// Requests at a time on each connection.
    streams: usize,
    /// Requests per second; as many as possible when absent.
    rate: Option<u32>,
}

impl Measure {
    fn name(self) -> String {
        let protocol = match self.protocol {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        };
        let plural = if self.connections == 1 { "" } else { "s" };
        let mut name = format!("{protocol}, {} connection{plural}", self.connections);
        if self.streams > 1 {
            name += &format!(" of {} streams", self.streams);
        }
        if let Some(rate) = self.rate {
            name += &format!(", {rate} per s");
        }
        name
    }

    fn traffic(self, rules: Rules) -> Traffic {
        let protocol = match self.protocol {
            Protocol::Http1 => "http1",
            Protocol::Http2 => "http2",
        };
        let mut words = vec!["requests", "--protocol", protocol].into_iter().map(str::to_owned).collect();
        let mut option = |name: &str, value: String| Vec::extend(&mut words, [format!("--{name}"), value]);
        option("connections", self.connections.to_string());
        option("streams", self.streams.to_string());
        option("size", BODY_BYTES.to_string());
        option("path", rules.path());
        if let Some(rate) = self.rate {
            option("rate", rate.to_string());
        }
        Traffic {
            port: port(self.protocol),
            server_words: vec!["http".into(), "--size".into(), BODY_BYTES.to_string()],
            client_words: words,
            connections: Some(self.connections as u64),
        }
    }
}

/// The server's port: one for each protocol, as one would declare them.
fn port(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Http1 => 7031,
        Protocol::Http2 => 7032,
    }
}

fn measures() -> Vec<Measure> {
    let mut all = Vec::new();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for connections in [1, 32, 256] {
            all.push(Measure { protocol, connections, streams: 1, rate: None });
        }
        all.push(Measure { protocol, connections: 32, streams: 1, rate: Some(RATE) });
    }
    all.push(Measure { protocol: Protocol::Http2, connections: 1, streams: 32, rate: None });
    all
}

/// Everything that runs while measuring.
struct Scene {
    plain: Option<Stage>,
    mesh: Option<Stage>,
    haproxy: Option<Haproxy>,
    envoy: Option<Envoy>,
}

/// Runs the bench.
pub fn run(effort: &Effort, options: &Options) -> Result<Report> {
    ensure!(options.rules > 0, "--rules must be at least 1");
    for variant in &options.variants {
        ensure!(LABELS.contains(&variant.as_str()), "--variants: `{variant}` is none of {LABELS:?}");
    }
    ensure!(
        options.same_node || std::thread::available_parallelism()?.get() >= 2,
        "two nodes of one CPU each need two CPUs"
    );
    let rules = Rules::new(options.rules);
    let scene = Scene::set(options, rules)?;
    let ends = Ends { client_cpu: 0, server_cpu: usize::from(!options.same_node) };
    let variants = scene.variants(options)?;
    let measures: Vec<Measure> = measures().into_iter().filter(|one| effort.wants(&one.name())).collect();
    let mut report = table::empty(effort, options);
    if scene.envoy.is_some() {
        report.notes.push(format!("envoy: {}", envoy::version(&envoy::install()?).unwrap_or_default()));
    }
    for (label, path) in &variants {
        let traffic = measures.first().context("--only leaves nothing to measure")?.traffic(rules);
        if options.same_node {
            wire::wait_until_it_works(path, &traffic, ends, label)?;
        } else {
            wire::check(&mut report, path, &traffic, ends, label)?;
        }
    }
    say(format!("bench http: {}", if options.same_node { "one node" } else { "two nodes" }));
    let name = |one: &Measure, variant: &(&str, Path<'_>)| format!("{}, {}", one.name(), variant.0);
    let series = interleave(effort, &measures, &variants, name, |one, (_, path)| {
        measure(path, &one.traffic(rules), ends, effort.seconds)
    })?;
    let labels: Vec<&str> = variants.iter().map(|(label, _)| *label).collect();
    let mut samples = Vec::new();
    for (one, series) in measures.iter().zip(&series) {
        for (label, series) in labels.iter().zip(series) {
            report.tell_failures(&format!("{}, {label}", one.name()), series);
            samples.push(json!({"measure": one.name(), "variant": label, "samples": series.samples}));
        }
        table::fill(&mut report, &one.name(), one.rate, &labels, series);
        table::tell_layer(&mut report, &one.name(), &labels, series);
    }
    report.samples = json!(samples);
    Ok(report)
}

impl Scene {
    fn set(options: &Options, rules: Rules) -> Result<Self> {
        let wants = |label| options.wants(label);
        let mut scene = Self { plain: None, mesh: None, haproxy: None, envoy: None };
        if wants("envoy") {
            // Before anything else is made: it may have to be fetched.
            let binary = envoy::install()?;
            say(format!("envoy: {}", envoy::version(&binary).unwrap_or_default()));
        }
        let server_node = if options.same_node { "node-1" } else { "node-2" };
        let pods =
            namespace_yaml() + &pod_yaml("client", "node-1", "") + &pod_yaml("server", server_node, "");
        let nodes = if options.same_node { "1" } else { "2" };
        let arguments = ["--pin-cpus", "--nodes", nodes];
        if wants("no mesh") || wants("haproxy") || wants("envoy") {
            let plain = Stage::up("bench-http-plain", &pods, &[&arguments[..], &["--no-mesh"]].concat())?;
            if wants("haproxy") {
                let between = if options.haproxy_between == "h2" { "h2" } else { "http/1.1" };
                let front = |protocol| {
                    haproxy::Front::http(port(protocol), protocol, between, rules, options.access_log)
                };
                let fronts = [Protocol::Http1, Protocol::Http2].map(front);
                let start = if options.same_node { Haproxy::start_alone } else { Haproxy::start };
                scene.haproxy = Some(start(&plain, "client", "server", &fronts)?);
            }
            if wants("envoy") {
                let access_log = options.access_log;
                let front = |protocol| envoy::Front { port: port(protocol), protocol, rules, access_log };
                let fronts = [Protocol::Http1, Protocol::Http2].map(front);
                let start = if options.same_node { Envoy::start_alone } else { Envoy::start };
                scene.envoy = Some(start(&plain, "client", "server", &fronts)?);
            }
            scene.plain = Some(plain);
        }
        if wants("weft") {
            let (http1, http2) = (port(Protocol::Http1), port(Protocol::Http2));
            let service = world::service_yaml(http1, http2);
            let world =
                pods + &service + &world::routes_yaml(http1, rules) + &world::routes_yaml(http2, rules);
            let silent: &[&str] = if options.access_log { &[] } else { &["--agent-arg=--access-log=off"] };
            scene.mesh = Some(Stage::up("bench-http-mesh", &world, &[&arguments[..], silent].concat())?);
        }
        Ok(scene)
    }

    /// What takes turns, in the order of the table.
    fn variants(&self, options: &Options) -> Result<Vec<(&'static str, Path<'_>)>> {
        let path = |stage, dial, proxies, pids| Path {
            stage,
            client: "client",
            server: "server",
            dial,
            proxies,
            pids,
        };
        let mut all = Vec::new();
        if let Some(plain) = self.plain.as_ref().filter(|_| options.wants("no mesh")) {
            all.push(("no mesh", path(plain, Dial::Server, Vec::new(), Vec::new())));
        }
        if let Some(mesh) = &self.mesh {
            let agents = mesh.lab.nodes.iter().map(|node| node.agent_cgroup()).collect();
            let pids = mesh.lab.nodes.iter().filter_map(|node| Some(node.agent.as_ref()?.pid)).collect();
            let address: IpAddr = world::SERVICE_IP.parse().context("the service has an address")?;
            all.push(("weft", path(mesh, Dial::Address(address), agents, pids)));
        }
        if let Some((plain, haproxy)) = self.plain.as_ref().zip(self.haproxy.as_ref()) {
            let dial = Dial::Proxy(haproxy::OFFSETS.near);
            all.push(("haproxy", path(plain, dial, haproxy.cgroups(), haproxy.pids())));
        }
        if let Some((plain, envoy)) = self.plain.as_ref().zip(self.envoy.as_ref()) {
            let dial = Dial::Proxy(envoy::OFFSETS.near);
            all.push(("envoy", path(plain, dial, envoy.cgroups(), envoy.pids())));
        }
        Ok(all)
    }
}
