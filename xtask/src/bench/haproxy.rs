//! The first peer: HAProxy with mutual TLS in the places of the agents, one process with one thread per pod.
//!
//! The client dials its own pod's HAProxy, that one HAProxy in the server's pod (TLS 1.3, both ends show a certificate of a
//! CA made here), and that one the server over loopback. Within one node there is only the client's, without TLS.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::peer::{self, Offsets, Proxy, Rules};
use super::stage::Stage;
use crate::app::bench::client::requests::Protocol;
use crate::setup;

/// One thread, as an agent of a node with one CPU has one worker; otherwise HAProxy's own defaults.
const HEAD: &str = "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n";

/// Where they listen.
pub const OFFSETS: Offsets = Offsets { near: 1000, far: 2000 };

/// A port of the server, and how HAProxy carries what is sent to it.
#[derive(Clone, Copy, Debug)]
pub struct Front {
    port: u16,
    mode: Mode,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    /// Bytes, a connection for each connection.
    Tcp,
    /// Requests.
    Http {
        /// What the server speaks.
        protocol: Protocol,
        /// What the two HAProxies speak with each other: `h2`, or `http/1.1`.
        between: &'static str,
        /// Which requests go there.
        rules: Rules,
        /// A line for each request, on standard output, which goes to a file.
        access_log: bool,
    },
}

impl Front {
    /// Carries bytes.
    pub fn tcp(port: u16) -> Self {
        Self { port, mode: Mode::Tcp }
    }

    /// Carries requests.
    pub fn http(
        port: u16,
        protocol: Protocol,
        between: &'static str,
        rules: Rules,
        access_log: bool,
    ) -> Self {
        Self { port, mode: Mode::Http { protocol, between, rules, access_log } }
    }

    /// The sections of a HAProxy that listens with `bind` and goes on to `server`.
    fn sections(self, text: &mut String, bind: &str, server: &str, to_app: bool) {
        let port = self.port;
        // Writing to memory cannot fail.
        let _ = match self.mode {
            Mode::Tcp => writeln!(text, "listen p{port}\n  mode tcp\n  bind {bind}\n  server s {server}"),
            Mode::Http { protocol, rules, access_log, .. } => {
                let _ = writeln!(text, "frontend p{port}\n  mode http\n  bind {bind}");
                if access_log {
                    text.push_str("  log stdout format raw daemon\n  option httplog\n");
                }
                for prefix in rules.prefixes() {
                    let _ = writeln!(text, "  use_backend b{port} if {{ path_beg {prefix} }}");
                }
                let proto = if to_app && protocol == Protocol::Http2 { " proto h2" } else { "" };
                writeln!(
                    text,
                    "backend b{port}\n  mode http\n  http-reuse always\n  server s {server}{proto}"
                )
            }
        };
    }

    fn alpn(self) -> String {
        match self.mode {
            Mode::Tcp => String::new(),
            Mode::Http { between, .. } => format!(" alpn {between}"),
        }
    }
}

/// Running HAProxies, the client's first.
pub struct Haproxy {
    proxies: Vec<Proxy>,
}

impl Haproxy {
    /// Starts one in each pod, for the given ports of the server.
    pub fn start(stage: &Stage, client: &str, server: &str, fronts: &[Front]) -> Result<Self> {
        setup::require_bench_tools()?;
        let dir = peer::directory(stage, "haproxy")?;
        let server_ip = *stage.pod(server)?.ips.first().context("a pod has an address")?;
        let tls = |end: &str| {
            let dir = dir.display();
            format!("ssl crt {dir}/{end}.pem ca-file {dir}/ca.crt verify required ssl-min-ver TLSv1.3")
        };
        let (mut at_client, mut at_server) = (HEAD.to_owned(), HEAD.to_owned());
        for front in fronts {
            let (near, far, alpn) = (front.port + OFFSETS.near, front.port + OFFSETS.far, front.alpn());
            let onward = format!("{server_ip}:{far} {}{alpn}", tls("client"));
            front.sections(&mut at_client, &format!("127.0.0.1:{near}"), &onward, false);
            let bind = format!(":{far} {}{alpn}", tls("server"));
            front.sections(&mut at_server, &bind, &format!("127.0.0.1:{}", front.port), true);
        }
        let proxies = vec![
            start_one(stage, client, &dir.join("client.cfg"), &at_client)?,
            start_one(stage, server, &dir.join("server.cfg"), &at_server)?,
        ];
        Ok(Self { proxies })
    }

    /// Starts only the client's, which goes to the server without TLS.
    pub fn start_alone(stage: &Stage, client: &str, server: &str, fronts: &[Front]) -> Result<Self> {
        setup::require_bench_tools()?;
        let dir = peer::directory(stage, "haproxy")?;
        let server_ip = *stage.pod(server)?.ips.first().context("a pod has an address")?;
        let mut text = HEAD.to_owned();
        for front in fronts {
            let bind = format!("127.0.0.1:{}", front.port + OFFSETS.near);
            front.sections(&mut text, &bind, &format!("{server_ip}:{}", front.port), true);
        }
        Ok(Self { proxies: vec![start_one(stage, client, &dir.join("client.cfg"), &text)?] })
    }

    /// Their processes, once they have become haproxy.
    pub fn pids(&self) -> Vec<u32> {
        self.proxies.iter().map(Proxy::pid).collect()
    }

    /// Their cgroups.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        self.proxies.iter().map(|proxy| proxy.cgroup.clone()).collect()
    }
}

fn start_one(stage: &Stage, pod: &str, file: &Path, text: &str) -> Result<Proxy> {
    fs::write(file, text)?;
    let words = ["haproxy", "-db", "-f", &file.to_string_lossy()].map(str::to_owned);
    Proxy::start(stage, pod, "haproxy", &words, &file.with_extension("log"))
}
