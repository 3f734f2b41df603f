//! The Kubernetes API of a lab that was made with `--source kubernetes`: a small API server beside control, which holds what
//! the world directory says. The directory stays the truth; this room only brings it there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::exec::Entry;
use super::names::Names;
use super::pods::{spawn, tail};
use super::state::{Api, Lab};
use super::world::plan::fabric_ips;
use super::{cgroup, network};
use crate::{clock, shell};

/// The server's program, which is built with the tests.
const PROGRAM: &str = "weft-apiserver";

/// Its port on the fabric, as everywhere.
const PORT: u16 = 6443;

/// How long it may take to listen.
const READY_PATIENCE: Duration = Duration::from_secs(10);

/// Finds the server's program.
pub fn find() -> Result<PathBuf> {
    let program = shell::executable_dir()?.join(PROGRAM);
    if !program.exists() {
        bail!(
            "{} is missing: it is built with the tests, `cargo build --release --package mesh-tests --bin {PROGRAM}`",
            program.display()
        );
    }
    Ok(program)
}

/// Starts the server and waits until it takes connections.
pub fn start(lab: &mut Lab, names: &Names) -> Result<()> {
    let program = find()?;
    let kubeconfig = lab.dir.join("kubeconfig");
    let address = format!("{}:{PORT}", fabric_ips()[0]);
    let command: Vec<String> = [
        &*program.to_string_lossy(),
        "--listen",
        &address,
        "--kubeconfig-out",
        &kubeconfig.to_string_lossy(),
        // Sandboxes are told by the UIDs that the lab gave.
        "--keep-as-given",
        "--mesh-kinds",
    ]
    .map(str::to_owned)
    .to_vec();
    let entry = entry(names)?;
    cgroup::create(&entry.cgroup)?;
    let log = lab.dir.join("logs/api.log");
    let mut child = spawn(&entry, &command, &log, Stdio::null()).context("cannot start the API server")?;
    let api = Api { pid: child.id(), address, kubeconfig, known: lab.dir.join("known.json"), log, command };
    let deadline = clock::now() + READY_PATIENCE;
    // The file is written when the server listens.
    while !api.kubeconfig.exists() {
        if let Some(status) = child.try_wait()? {
            bail!("the API server ended with {status}; the end of its log:\n{}", tail(&api.log));
        }
        if clock::now() > deadline {
            bail!(
                "the API server is not ready after {READY_PATIENCE:?}; the end of its log:\n{}",
                tail(&api.log)
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
    lab.api = Some(api);
    lab.save()
}

/// Brings what the world directory says into the server: the difference to what was brought before. Gives the revision that
/// each kind has then. Nothing happens in a lab without a server.
pub fn sync(lab: &Lab, names: &Names) -> Result<BTreeMap<String, u64>> {
    let Some(api) = &lab.api else { return Ok(BTreeMap::new()) };
    let mut sync = Command::new(std::env::current_exe().context("cannot find the running executable")?);
    sync.args(["lab-init", &serde_json::to_string(&entry(names)?)?, "--"]).arg(find()?).arg("sync");
    sync.arg("--kubeconfig").arg(&api.kubeconfig).arg("--dir").arg(&lab.world).arg("--known").arg(&api.known);
    let output = sync.stdin(Stdio::null()).output().context("cannot start the API server's client")?;
    if !output.status.success() {
        bail!("the world cannot be brought into the API: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("the API server's client says something unexpected")
}

fn entry(names: &Names) -> Result<Entry> {
    Ok(Entry {
        cgroup: cgroup::root()?.join(names.cgroup()).join("api"),
        netns: network::netns_path(&names.fabric_netns()),
        cpus: None,
        pod: None,
    })
}
