//! Text as written, turned into each room's `Settings`, or a refusal that names the flag and says what to do.
//!
//! Layer 7: what a person wrote on a command line or in the environment (`WEFT_*`) ends here; rooms get values that are
//! already checked. Objects in YAML are `discovery`'s. Nothing here opens a socket, starts a thread or changes a file.
//!
//! Reading order: [`flags`] (every flag there is), [`node`], [`control`] and `source` (flags to settings), [`checks`] (how a refusal
//! is made).
#![forbid(unsafe_code)]

mod checks;
pub mod control;
pub mod flags;
pub mod node;
mod source;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::Parser;

pub use control::{ControlMode, ControlSettings, RotateRootSettings, RotatedKeys};
pub use flags::MeshAgent;
pub use node::{CaSettings, NodeSettings, ServiceVips, SpliceMode, UninstallSettings};

/// What the process is asked to do.
#[derive(Clone, Debug)]
pub enum Task {
    /// Run a node's agent.
    Node(Box<NodeSettings>),
    /// Take everything of an agent out of the kernel.
    Uninstall(UninstallSettings),
    /// Run the control plane.
    Control(Box<ControlSettings>),
    /// Carry out one stage of a root rotation.
    RotateRoot(RotateRootSettings),
    /// Say whether an agent has started, by this file.
    Started(PathBuf),
}

/// Why the command line is not one.
#[derive(Debug)]
pub enum Error {
    /// clap's answer: help, a version, or a flag it cannot read.
    Usage(clap::Error),
    /// Flags whose values cannot work, all of them at once.
    Invalid(Vec<Invalid>),
}

/// One flag whose value cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The flag, for example `--ca-roots`.
    pub flag: &'static str,
    /// What is wrong with the value and what to do.
    pub problem: String,
}

/// Exit code for a command line that cannot be used.
pub const EXIT_USAGE: u8 = 2;
/// Exit code for a task that failed.
pub const EXIT_FAILURE: u8 = 1;

/// Reads the command line of `mesh-agent` (`arguments` begins with the program's name) and the environment.
///
/// # Errors
/// The arguments are not understood, or values in them cannot work.
pub fn read<I, T>(arguments: I) -> Result<Task, Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let line = MeshAgent::try_parse_from(arguments).map_err(Error::Usage)?;
    match line.command {
        flags::Command::Node(flags) if flags.uninstall => {
            node::uninstall(&flags).map(Task::Uninstall).map_err(Error::Invalid)
        }
        flags::Command::Node(flags) => {
            node::settings(*flags).map(|settings| Task::Node(Box::new(settings))).map_err(Error::Invalid)
        }
        flags::Command::Control(flags) => control::task(*flags).map_err(Error::Invalid),
        flags::Command::Started { file } => Ok(Task::Started(file)),
    }
}

impl Error {
    /// The process's exit code: 0 when help or the version was asked for.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) if !error.use_stderr() => 0,
            Self::Usage(_) | Self::Invalid(_) => EXIT_USAGE,
        }
    }

    /// Whether the text belongs on standard error; help and version belong on standard output.
    pub fn is_failure(&self) -> bool {
        self.exit_code() != 0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) => write!(f, "{}", error.to_string().trim_end()),
            Self::Invalid(all) => {
                let lines: Vec<String> = all.iter().map(|one| format!("error: {one}")).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.flag, self.problem)
    }
}
