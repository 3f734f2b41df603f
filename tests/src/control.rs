//! `mesh-agent control` as a process over an API server.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::release_dir;

/// One process; it is killed when dropped.
#[derive(Debug)]
pub struct Replica {
    process: Child,
    admin: String,
    /// Where it serves agents.
    pub listen: String,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

/// `mesh-agent control WORDS`, over the API of this kubeconfig.
pub fn control(kubeconfig: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(release_dir().join("mesh-agent"));
    command.arg("control").args(words).arg("--kubeconfig").arg(kubeconfig).stdout(Stdio::null());
    command
}

impl Replica {
    /// Starts one with keys of our own.
    ///
    /// # Panics
    /// There is no `mesh-agent`.
    pub fn start(kubeconfig: &Path) -> Self {
        Self::start_with(kubeconfig, &["--ca-secret=weft-system/weft-ca"])
    }

    /// Starts one; `more` says whose keys.
    ///
    /// # Panics
    /// There is no `mesh-agent`.
    pub fn start_with(kubeconfig: &Path, more: &[&str]) -> Self {
        let (admin, listen) = (free_address(), free_address());
        let words = ["--kubernetes", "--token-review", "--listen", &listen, "--admin-listen", &admin];
        let process = control(kubeconfig, &[&words[..], more].concat()).spawn();
        Self { process: process.expect("mesh-agent is built: cargo build --release"), admin, listen }
    }

    /// Kills it: nothing is given back.
    ///
    /// # Errors
    /// It has ended already.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.process.kill()
    }

    /// The body of one of its windows; empty while it does not answer.
    pub fn window(&self, path: &str) -> String {
        let ask = || {
            let mut stream = TcpStream::connect(&self.admin)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\nconnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        };
        ask().unwrap_or_default()
    }

    /// It serves.
    pub fn is_ready(&self) -> bool {
        self.window("/readyz").starts_with("HTTP/1.1 200")
    }

    /// It leads.
    pub fn leads(&self) -> bool {
        self.window("/metrics").contains("\nweft_control_leader 1")
    }
}
