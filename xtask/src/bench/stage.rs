//! A lab for a bench: made from generated YAML, removed when dropped.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{RUN_DIR, interrupt};
use crate::lab::names::Names;
use crate::lab::state::{Lab, Pod};
use crate::lab::{cgroup, down};
use crate::shell;

/// The namespace of all pods of the benches.
pub const NAMESPACE: &str = "bench";

/// Port range for dialling pods. Few ports would cap the number of new connections per second, and measure nothing else:
/// a closed connection's port rests, and only one parity of the range is given out by connect(2). Servers listen below it.
const DIAL_PORTS: &str = "10000 65500";

/// A running lab.
pub struct Stage {
    /// What it is.
    pub lab: Lab,
    names: Names,
    dir: PathBuf,
}

impl Stage {
    /// Makes the lab `name` of `world`. One that an earlier, killed bench left behind is removed first.
    pub fn up(name: &str, world: &str, arguments: &[&str]) -> Result<Self> {
        interrupt::check()?;
        let names = Names::new(name)?;
        let dir = Path::new(RUN_DIR).join(name);
        down::down(&names)?;
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("world.yaml"), world)?;
        let mut up = xtask()?;
        up.args(["lab", "up", "--name", name, "--world"]).arg(&dir).args(arguments);
        // A process group of its own: Ctrl-C reaches only the bench, which then removes what was made.
        up.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let made = shell::run(&mut up).and_then(|()| Lab::load_up(&names));
        let lab = match made {
            Ok(lab) => lab,
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                return Err(error);
            }
        };
        let stage = Self { lab, names, dir };
        for pod in &stage.lab.pods {
            stage.allow_many_dials(pod)?;
        }
        Ok(stage)
    }

    /// A pod of the benches' namespace.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.lab.pod(&format!("{NAMESPACE}/{name}"))
    }

    /// A command in a pod. It stands for itself: killing it kills what runs in the pod.
    pub fn command(&self, pod: &str, words: impl IntoIterator<Item = OsString>) -> Result<Command> {
        let mut command = xtask()?;
        command.args(["lab", "exec", "--name", self.names.lab(), &format!("{NAMESPACE}/{pod}"), "--"]);
        command.args(words).process_group(0);
        Ok(command)
    }

    /// The cgroup of everything in the lab.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup::root()?.join(self.names.cgroup()))
    }

    fn allow_many_dials(&self, pod: &Pod) -> Result<()> {
        // The delay can be set since Linux 6.13; where it cannot, a port rests for a second.
        let write = format!(
            "cd /proc/sys/net/ipv4; echo {DIAL_PORTS} > ip_local_port_range; echo 1 > tcp_tw_reuse; \
             if [ -e tcp_tw_reuse_delay ]; then echo 1 > tcp_tw_reuse_delay; fi"
        );
        let words = ["sh", "-e", "-c", &write].map(OsString::from);
        shell::run(self.command(&pod.name, words)?.stdin(Stdio::null()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        shell::say(format!("removing the lab {}", self.names.lab()));
        if let Err(error) = down::down(&self.names) {
            shell::say(format!("{error:#}"));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A command of this program.
pub fn xtask() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find the running executable")?))
}

/// The YAML of the namespace, part of the mesh.
pub fn namespace_yaml() -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels: {{weft.dev/mesh: enabled}}\n"
    )
}

/// The YAML of a pod with a service account of its own and no command.
pub fn pod_yaml(name: &str, node: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  labels: {{app: {name}{labels}}}\n\
         spec:\n  nodeName: {node}\n  serviceAccountName: {name}\n"
    )
}
