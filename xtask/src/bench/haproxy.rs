//! The peer: HAProxy with mutual TLS in the places of the agents, one process with one thread per pod.
//!
//! The client dials its own pod's HAProxy, that one HAProxy in the server's pod (TLS 1.3, both ends show a certificate of a
//! CA made here), and that one the server over loopback.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::lab::exec::pod_entry;
use crate::lab::state::Pod;
use crate::lab::{cgroup, pods};
use crate::setup;

/// Added to a server's port: where the client's HAProxy listens.
const CLIENT_OFFSET: u16 = 1000;

/// Added to a server's port: where the server's HAProxy listens.
const SERVER_OFFSET: u16 = 2000;

/// Two running HAProxies. The lab they run in ends them.
pub struct Haproxy {
    processes: Vec<Child>,
    /// Their cgroups.
    pub cgroups: Vec<PathBuf>,
}

/// Where a client dials to reach a server's port through HAProxy.
pub fn dial(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port + CLIENT_OFFSET)
}

impl Haproxy {
    /// Starts one in each pod, for the given ports of the server.
    pub fn start(stage: &Stage, client: &str, server: &str, ports: &[u16]) -> Result<Self> {
        setup::require_bench_tools()?;
        let dir = stage.lab.dir.join("haproxy");
        fs::create_dir_all(&dir)?;
        certificates(&dir)?;
        let (client, server) = (stage.pod(client)?, stage.pod(server)?);
        let server_ip = server.ips.first().context("a pod has an address")?;
        let tls = |end: &str| {
            let dir = dir.display();
            format!("ssl crt {dir}/{end}.pem ca-file {dir}/ca.crt verify required ssl-min-ver TLSv1.3")
        };
        let (mut at_client, mut at_server) = (HEAD.to_owned(), HEAD.to_owned());
        for port in ports {
            let (near, far) = (port + CLIENT_OFFSET, port + SERVER_OFFSET);
            let _ = writeln!(
                at_client,
                "listen p{port}\n  bind 127.0.0.1:{near}\n  server s {server_ip}:{far} {}",
                tls("client")
            );
            let _ = writeln!(
                at_server,
                "listen p{port}\n  bind :{far} {}\n  server s 127.0.0.1:{port}",
                tls("server")
            );
        }
        let mut both = Self { processes: Vec::new(), cgroups: Vec::new() };
        both.start_one(stage, client, &dir.join("client.cfg"), &at_client)?;
        both.start_one(stage, server, &dir.join("server.cfg"), &at_server)?;
        Ok(both)
    }

    fn start_one(&mut self, stage: &Stage, pod: &Pod, file: &Path, text: &str) -> Result<()> {
        fs::write(file, text)?;
        let cgroup = pod.cgroup.join("haproxy");
        cgroup::create(&cgroup)?;
        let mut entry = pod_entry(&stage.lab, pod)?;
        entry.cgroup.clone_from(&cgroup);
        let words = ["haproxy", "-db", "-f", &file.to_string_lossy()].map(str::to_owned);
        let process = pods::spawn(&entry, &words, &file.with_extension("log"), Stdio::null())
            .context("cannot start haproxy")?;
        self.processes.push(process);
        self.cgroups.push(cgroup);
        Ok(())
    }

    /// Their processes, once they have become haproxy.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Child::id).collect()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// One thread, as an agent of a node with one CPU has one worker; otherwise HAProxy's own defaults.
const HEAD: &str = "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n";

/// A CA and two certificates (P-256, as the mesh's own), with the `openssl` command.
fn certificates(dir: &Path) -> Result<()> {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    openssl(
        dir,
        &[
            &["req", "-x509"],
            &key[..],
            &["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=bench CA", "-days", "2"],
        ],
    )?;
    for end in ["client", "server"] {
        let (key_file, request, certificate, subject) =
            (format!("{end}.key"), format!("{end}.csr"), format!("{end}.crt"), format!("/CN={end}"));
        openssl(dir, &[&["req"], &key[..], &["-keyout", &key_file, "-out", &request, "-subj", &subject]])?;
        let sign = ["x509", "-req", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(dir, &[&sign[..], &["-out", &certificate, "-days", "2"]])?;
        let mut both = fs::read(dir.join(certificate))?;
        both.extend(fs::read(dir.join(key_file))?);
        fs::write(dir.join(format!("{end}.pem")), both)?;
    }
    Ok(())
}

fn openssl(dir: &Path, words: &[&[&str]]) -> Result<()> {
    let words: Vec<&str> = words.concat();
    let output = Command::new("openssl").args(&words).current_dir(dir).stdin(Stdio::null()).output();
    let output = output.context("cannot run openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl {} failed: {}", words.join(" "), said.trim());
    Ok(())
}
