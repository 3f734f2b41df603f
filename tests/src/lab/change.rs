//! What a test does to a running lab: objects that change, processes that die and come back.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::leftovers::is_gone;
use super::state::Process;
use super::{Lab, Running, xtask};
use crate::seen::{self, Metrics};
use crate::wait::eventually;
use crate::world::World;

impl Lab {
    /// Writes a file into the world that the agents watch, without waiting for them.
    #[track_caller]
    pub fn write(&self, file: &str, yaml: &str) {
        // Renamed over, so that no agent reads half of it.
        let temporary = self.state.world.join(format!(".{file}.new"));
        fs::write(&temporary, yaml).expect("the world can be written");
        fs::rename(&temporary, self.state.world.join(file)).expect("the world can be written");
        self.sync();
    }

    /// Brings the world into the API that feeds the agents, where one does, and waits until each has heard all of it.
    #[track_caller]
    fn sync(&self) {
        if self.state.api.is_none() {
            return;
        }
        let output = xtask().args(["lab", "sync", "--name", &self.name]).output().expect("xtask runs");
        assert!(output.status.success(), "lab sync:\n{}", String::from_utf8_lossy(&output.stderr));
        let written: BTreeMap<String, u64> =
            serde_json::from_slice(&output.stdout).expect("revisions are printed");
        let has_heard = |agent: &Process| {
            // One that is away hears of it when it is back.
            let Ok((_, body)) = seen::get(&agent.admin, "/discovery") else { return true };
            let report: Value = serde_json::from_str(&body).expect("the window shows JSON");
            let kinds = report["kinds"].as_array().map(Vec::as_slice).unwrap_or_default();
            let heard =
                |kind: &Value| kind["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
            kinds.iter().all(|kind| {
                let wanted = kind["kind"].as_str().and_then(|name| written.get(name));
                wanted.is_none_or(|wanted| heard(kind) >= Some(*wanted))
            })
        };
        eventually("every agent hears what was written", || {
            self.state.nodes.iter().filter_map(|node| node.agent.as_ref()).all(has_heard).then_some(())
        });
    }

    /// Writes a file into the world and waits until every agent that lives has taken a new state.
    ///
    /// What the state means for the kernel's tables follows within moments; assert with [`eventually`].
    #[track_caller]
    pub fn apply(&self, file: &str, yaml: &str) {
        self.change(|| self.write(file, yaml));
    }

    /// Removes a file of the world and waits as [`Lab::apply`] does.
    #[track_caller]
    pub fn remove(&self, file: &str) {
        self.change(|| {
            fs::remove_file(self.state.world.join(file)).expect("the file is there");
            self.sync();
        });
    }

    /// Makes a change of the world and waits until every living agent has a new state.
    #[track_caller]
    pub fn change(&self, change: impl FnOnce()) {
        let versions = || -> Vec<Option<f64>> {
            let agents = self.state.nodes.iter().filter_map(|node| node.agent.as_ref());
            agents
                .map(|agent| {
                    let (_, body) = seen::get(&agent.admin, "/metrics").ok()?;
                    Some(Metrics::parse(&body).sum("weft_discovery_version", &[]))
                })
                .collect()
        };
        let before = versions();
        change();
        eventually("every agent takes the changed world", || {
            let now = versions();
            before.iter().zip(&now).all(|(before, now)| before.is_none() || now > before).then_some(())
        });
    }

    /// Makes a pod ready, or not, and waits until every living agent knows.
    #[track_caller]
    pub fn set_ready(&self, pod: &str, ready: bool) {
        let uid = format!("uid: {}", self.pod(pod).uid);
        let quoted = format!("uid: \"{}\"", self.pod(pod).uid);
        let state =
            |ready| format!("{{type: \"Ready\", status: \"{}\"}}", if ready { "True" } else { "False" });
        let files = fs::read_dir(&self.state.world).expect("the world is there").flatten();
        for file in files.map(|file| file.path()).filter(|file| file.extension().is_some_and(|e| e == "yaml"))
        {
            let text = fs::read_to_string(&file).expect("the world can be read");
            let documents = text.split("\n---\n").map(|document| {
                let is_it = document.contains(&uid) || document.contains(&quoted);
                if is_it { document.replace(&state(!ready), &state(ready)) } else { document.to_owned() }
            });
            let changed = documents.collect::<Vec<_>>().join("\n---\n");
            if changed != text {
                let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
                return self.apply(&name, &changed);
            }
        }
        panic!("no file says that {pod} is {}", if ready { "not ready" } else { "ready" });
    }

    /// Starts a node's agent by hand, with some of its flags changed, its log in a file of its own.
    ///
    /// It runs in the node's network namespace as always, its admin pages on 127.0.0.1:15020 in there.
    #[track_caller]
    pub fn impostor(&self, node: &str, flags: &[(&str, &str)]) -> (Running, PathBuf) {
        let mut words = self.agent(node).command.clone();
        for (flag, value) in flags {
            let place = words.iter().position(|word| word == flag);
            words[place.expect("the agent was started with this flag") + 1] = (*value).to_owned();
        }
        let logs = self.state.dir.join("logs");
        let number = fs::read_dir(&logs).expect("a lab has logs").count();
        let log = logs.join(format!("impostor-{number}.log"));
        let file = fs::File::create(&log).expect("the log can be written");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.node(node).netns.display())).arg("--").args(words);
        let stdio = file.try_clone().expect("a descriptor is free");
        let child = command.stdin(Stdio::null()).stdout(stdio).stderr(file).spawn();
        (Running(child.expect("nsenter (util-linux) is installed")), log)
    }

    /// Replaces the world: pods are started, ended and changed.
    #[track_caller]
    pub fn apply_world(&mut self, world: &World) {
        for (file, text) in world.files() {
            fs::write(self.source.path().join(file), text).expect("the world can be written");
        }
        self.lab_command(&["apply", "--json"]);
    }

    /// Kills a node's agent with SIGKILL and waits until it is gone.
    #[track_caller]
    pub fn kill_agent(&self, node: &str) {
        self.kill(self.agent(node));
    }

    /// Kills a process of the mesh with SIGKILL and waits until it is gone.
    #[track_caller]
    pub fn kill(&self, process: &Process) {
        let pid = Pid::from_raw(process.pid);
        kill(pid, Signal::SIGKILL).expect("the process runs");
        eventually("the killed process is gone", || is_gone(process.pid).then_some(()));
    }

    /// Starts a node's agent anew; one that runs is asked to end first.
    #[track_caller]
    pub fn restart_agent(&mut self, node: &str) {
        self.lab_command(&["restart", node, "--json"]);
    }

    /// Starts a node's new agent beside the running one, which is asked to end once the new one is ready to take over. Gives the
    /// old one, which may go on for a while.
    #[track_caller]
    pub fn replace_agent(&mut self, node: &str) -> Process {
        let old = self.agent(node).clone();
        self.lab_command(&["restart", node, "--beside", "--json"]);
        old
    }

    /// Whether a process of the mesh has ended.
    pub fn has_ended(&self, process: &Process) -> bool {
        is_gone(process.pid)
    }

    /// Starts control anew; one that runs is asked to end first.
    #[track_caller]
    pub fn restart_control(&mut self) {
        self.lab_command(&["restart", "control", "--json"]);
    }

    #[track_caller]
    fn lab_command(&mut self, words: &[&str]) {
        let output =
            xtask().arg("lab").args(words).args(["--name", &self.name]).output().expect("xtask runs");
        assert!(output.status.success(), "lab {words:?}:\n{}", String::from_utf8_lossy(&output.stderr));
        self.state = serde_json::from_slice(&output.stdout).expect("the lab is printed");
    }
}
