//! `meshctl`: what a person asks the mesh at a shell.
//!
//! Layer 8. It reads an agent's windows (see `admin`) or a directory of objects, prints tables for eyes or JSON and YAML
//! for scripts, and says by its exit code what was found. It changes nothing.
//!
//! Reading order: [`flags`] (every command there is), [`client`] (asking an agent), [`commands`] (one function per
//! command), [`check`] (is all well?), [`explain`] (would this connection pass?), [`columns`] and [`table`] (how lists are
//! printed).
#![forbid(unsafe_code)]

mod check;
mod client;
mod cluster;
mod columns;
mod commands;
mod explain;
pub mod flags;
mod install;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Parser;

/// What was found: the exit codes of `meshctl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Allowed, healthy, or simply printed (0).
    Good,
    /// Denied or unhealthy (1).
    Bad,
}

/// Why there is no answer (exit code 2).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent's address cannot be read.
    #[error("{0:?} is not an agent's address: write http://HOST:PORT")]
    Address(String),
    /// Nobody answers there.
    #[error("no agent answers at {address}; name another with --agent or WEFT_AGENT")]
    Unreachable {
        /// `HOST:PORT`.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent broke off or does not speak HTTP.
    #[error("the agent at {address} broke off")]
    BrokeOff {
        /// `HOST:PORT`.
        address: String,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The agent took too long.
    #[error("the agent at {address} did not answer within {waited_seconds} s")]
    Timeout {
        /// `HOST:PORT`.
        address: String,
        /// How long we waited.
        waited_seconds: u64,
    },
    /// The agent cannot answer this.
    #[error("the agent refuses {path}: {message} (status {status})")]
    Refused {
        /// Path that was asked for.
        path: String,
        /// HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// The answer is not what an agent says.
    #[error("the answer to {path} is not JSON; is this a Weft agent?")]
    Malformed {
        /// Path that was asked for.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The question about a policy cannot be understood or answered.
    #[error(transparent)]
    Question(#[from] crate::admin::explain::Error),
    /// The directory of objects cannot be read.
    #[error("{dir} cannot be read as a mesh: {problem}")]
    World {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The answer cannot be written as YAML.
    #[error("the answer cannot be written as YAML")]
    Yaml(#[from] serde_yaml_ng::Error),
    /// The kubeconfig names no cluster that can be asked.
    #[error("no cluster can be asked by the kubeconfig: {0}")]
    Kubeconfig(String),
    /// The API server does not do what it is asked.
    #[error("the API server does not give {what}: {why}")]
    Api {
        /// What was asked for.
        what: String,
        /// What it said.
        why: String,
    },
    /// The cluster has no such pod of ours.
    #[error("there is no {what} in {namespace}; is Weft installed? (meshctl install)")]
    NoPod {
        /// What was looked for.
        what: String,
        /// Where.
        namespace: &'static str,
    },
    /// The API server does not take an object.
    #[error("{object} is not taken: {why}")]
    Apply {
        /// Which.
        object: String,
        /// What the API server said.
        why: String,
    },
    /// The API server does not serve a kind that was just defined.
    #[error("the API server does not serve {0} yet; run the command again")]
    NotServed(String),
    /// There is no such variant.
    #[error("there is no overlay {name:?}; there are {known}")]
    Overlay {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A setting cannot be carried out.
    #[error("{setting}: {problem}")]
    Setting {
        /// As it was written.
        setting: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No runtime for the connection.
    #[error("the connection cannot be set up")]
    Runtime(#[source] io::Error),
    /// Standard output is closed.
    #[error("the answer cannot be printed")]
    Print(#[from] io::Error),
}

/// Runs `meshctl` (`arguments` begins with the program's name) and returns its exit code: 0 good, 1 denied or unhealthy,
/// 2 no answer.
pub fn run<I, T>(arguments: I, out: &mut dyn Write, err: &mut dyn Write) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let line = match flags::Meshctl::try_parse_from(arguments) {
        Ok(line) => line,
        Err(answer) => {
            let failed = answer.use_stderr();
            let _ = if failed { write!(err, "{answer}") } else { write!(out, "{answer}") };
            return if failed { 2 } else { 0 };
        }
    };
    match commands::run(&line, out, err) {
        Ok(Found::Good) => 0,
        Ok(Found::Bad) => 1,
        // The reader has seen enough (`meshctl ... | head`): no failure, and nobody to tell.
        Err(Error::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let _ = writeln!(err, "error: {}", chain(&error));
            2
        }
    }
}

/// The error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}
