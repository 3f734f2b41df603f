//! The demo's labs: the shop with a mesh, and for a moment the same shop without one.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::Interrupt;
use crate::lab::down;
use crate::lab::names::Names;
use crate::lab::state::{Agent, Lab};
use crate::shell::{self, say};

/// The labs of one demo.
pub struct Stage {
    names: Names,
    twin: Names,
    interrupt: Interrupt,
    lab: Option<Lab>,
}

/// A command that ended.
pub struct Ran {
    /// Its exit code; -1 when a signal ended it.
    pub exit_code: i32,
    /// Standard output, then standard error.
    pub output: String,
}

/// A program in a pod that ends with this value.
pub struct Running(Child);

impl Stage {
    /// The stage of the lab `name`. What an earlier demo left behind is removed.
    pub fn new(name: &str, interrupt: Interrupt) -> Result<Self> {
        let (names, twin) = (Names::new(name)?, Names::new(&format!("{name}-plain"))?);
        for lab in [&names, &twin] {
            if !down::leftovers(lab).is_empty() {
                say(format!("a lab named {} is left from before: taking it down first", lab.lab()));
                down::down(lab)?;
            }
        }
        Ok(Self { names, twin, interrupt, lab: None })
    }

    /// Brings up the shop.
    pub fn up(&mut self) -> Result<()> {
        self.xtask_step(&["lab", "up", "--name", self.names.lab()])?;
        self.lab = Some(Lab::load_up(&self.names)?);
        Ok(())
    }

    /// Brings up the shop a second time, without a mesh.
    pub fn twin_up(&self) -> Result<()> {
        self.xtask_step(&["lab", "up", "--no-mesh", "--name", self.twin.lab()])
    }

    /// Takes the lab without a mesh down.
    pub fn twin_down(&self) -> Result<()> {
        down::down(&self.twin)
    }

    /// Takes a changed world into the lab.
    pub fn apply(&mut self, world: &std::path::Path) -> Result<()> {
        let world = world.to_string_lossy();
        self.xtask_step(&["lab", "apply", "--name", self.names.lab(), "--world", &world])?;
        self.lab = Some(Lab::load_up(&self.names)?);
        Ok(())
    }

    /// Takes everything down.
    pub fn down(&self) -> Result<()> {
        let twin = down::down(&self.twin);
        down::down(&self.names)?;
        twin
    }

    /// The lab.
    pub fn lab(&self) -> Result<&Lab> {
        self.lab.as_ref().context("the lab is not up")
    }

    /// The name of the lab, or of the one without a mesh.
    pub fn lab_name(&self, meshed: bool) -> &str {
        if meshed { self.names.lab() } else { self.twin.lab() }
    }

    /// A node's agent.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.lab()?.node(node)?.agent.as_ref().with_context(|| format!("{node} has no agent"))
    }

    /// Runs a command to its end.
    pub fn run(&self, program: &std::path::Path, words: &[&str]) -> Result<Ran> {
        self.interrupt.check()?;
        // A process group of its own: Ctrl-C reaches only the demo, which then removes what was made.
        let output = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .process_group(0)
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        self.interrupt.check()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Ran {
            exit_code: output.status.code().unwrap_or(-1),
            output: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// Runs a command in a pod of the lab. Returns what a person would type for it, too.
    pub fn in_pod(&self, pod: &str, words: &[&str]) -> Result<(String, Ran)> {
        let ran = self.run(&own_executable()?, &exec_words(self.names.lab(), pod, words))?;
        let typed = format!("cargo xtask lab exec --name {} {pod} -- {}", self.names.lab(), words.join(" "));
        Ok((typed, ran))
    }

    /// Starts a program in a pod, of either lab, and returns it with the first line that it printed.
    pub fn start(&self, lab: &str, pod: &str, words: &[&str]) -> Result<(Running, String)> {
        use std::io::BufRead;
        self.interrupt.check()?;
        let mut child = Command::new(own_executable()?)
            .args(exec_words(lab, pod, words))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot start a program in a pod")?;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        let running = Running(child);
        let mut line = String::new();
        std::io::BufReader::new(stdout).read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "{} ended in {pod} before it was ready", words.join(" "));
        Ok((running, line))
    }

    /// How the kept lab is used.
    pub fn usage(&self) -> Vec<String> {
        let name = self.names.lab();
        vec![
            format!("cargo xtask lab status --name {name}"),
            format!("cargo xtask lab exec --name {name} shop/web -- xtask app get http://orders/"),
            format!("edit /run/weft-lab/{name}/world/shop.yaml (a policy in it counts at once)"),
            format!("cargo xtask lab down --name {name}      # removes it"),
        ]
    }

    fn xtask_step(&self, words: &[&str]) -> Result<()> {
        self.interrupt.check()?;
        let mut command = Command::new(own_executable()?);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        shell::run(&mut command)?;
        self.interrupt.check()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // `lab exec` becomes the program, so this ends what runs in the pod. One that ended by itself is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program, which is also `xtask` in pods.
pub fn own_executable() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the running executable")
}

/// A program that was built along with this one.
pub fn sister(name: &str) -> Result<PathBuf> {
    Ok(shell::executable_dir()?.join(name))
}

fn exec_words<'a>(lab: &'a str, pod: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["lab", "exec", "--name", lab, pod, "--"];
    all.extend(words);
    all
}
