//! What every proxy needs that stands in the places of the agents: certificates, routes, and a process of its own in a pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::lab::exec::pod_entry;
use crate::lab::{cgroup, pods};

/// Where a peer's proxies listen.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    /// The client's, above the server's port.
    pub near: u16,
    /// The server's, above the server's port.
    pub far: u16,
}

/// The routes of the server, the same for every variant.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    count: usize,
}

impl Rules {
    /// One that takes everything, or several that take what is below a prefix of their own.
    pub fn new(count: usize) -> Self {
        Self { count }
    }

    /// What each takes: paths that begin so.
    pub fn prefixes(self) -> Vec<String> {
        match self.count {
            0 | 1 => vec!["/".to_owned()],
            count => (0..count).map(|number| format!("/rule-{number}/")).collect(),
        }
    }

    /// A path that the one in the middle takes.
    pub fn path(self) -> String {
        format!("{}item", self.prefixes()[self.count / 2])
    }
}

/// A running proxy; killed when dropped.
pub struct Proxy {
    process: Child,
    /// Its cgroup.
    pub cgroup: PathBuf,
}

impl Proxy {
    /// Starts a program in a pod, in a cgroup of its own with the given name. What it says goes to `log`.
    pub fn start(stage: &Stage, pod: &str, name: &str, words: &[String], log: &Path) -> Result<Self> {
        let pod = stage.pod(pod)?;
        let cgroup = pod.cgroup.join(name);
        cgroup::create(&cgroup)?;
        let mut entry = pod_entry(&stage.lab, pod)?;
        entry.cgroup.clone_from(&cgroup);
        let process = pods::spawn(&entry, words, log, Stdio::null())
            .with_context(|| format!("cannot start {}", words[0]))?;
        Ok(Self { process, cgroup })
    }

    /// Its process, once it has become the program.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A directory for a peer's files, with a CA and certificates for `client` and `server`: `ca.crt`, and for each end `.crt`,
/// `.key`, and `.pem` with both.
pub fn directory(stage: &Stage, name: &str) -> Result<PathBuf> {
    let dir = stage.lab.dir.join(name);
    fs::create_dir_all(&dir)?;
    certificates(&dir)?;
    Ok(dir)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_that_is_asked_for_is_below_exactly_one_prefix() {
        for count in [1, 2, 3, 1000] {
            let rules = Rules::new(count);
            let path = rules.path();
            assert_eq!(rules.prefixes().len(), count);
            assert_eq!(rules.prefixes().iter().filter(|prefix| path.starts_with(prefix.as_str())).count(), 1);
        }
    }
}
