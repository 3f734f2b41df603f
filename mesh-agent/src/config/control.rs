//! Flags of `mesh-agent control` to settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::checks::Checks;
use super::flags::{ControlCommand, ControlFlags, RotateRootFlags, StageFlag};
use super::node::process;
use super::{Invalid, Task, source};
use crate::control::ca::Stage;
use crate::model::MeshConfig;
use crate::telemetry::log::LogSettings;
use crate::{admin, control, discovery};

/// Everything the control plane needs to know from its command line.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// Where the mesh's objects come from.
    pub objects: discovery::Settings,
    /// Directory of the CA's keys.
    pub state_dir: PathBuf,
    /// Where the certificate service listens.
    pub listen: SocketAddr,
    /// Further names for its serving certificate.
    pub server_names: Vec<String>,
    /// Directory of the nodes' join tokens.
    pub join_tokens_dir: PathBuf,
    /// Where to publish the roots.
    pub trust_bundle_out: Option<PathBuf>,
    /// The process log.
    pub log: LogSettings,
    /// Read-only windows.
    pub admin: admin::Settings,
}

/// One stage of a root rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotateRootSettings {
    /// Directory of the CA's keys.
    pub state_dir: PathBuf,
    /// Which stage.
    pub stage: Stage,
    /// Longest lifetime of a certificate.
    pub certificate_ttl: Duration,
    /// Do not wait for the stage before to have lasted long enough.
    pub now: bool,
}

impl ControlSettings {
    /// Completed with what the mesh's configuration says.
    pub fn control(&self, mesh: &MeshConfig) -> control::Settings {
        control::Settings {
            trust_domain: mesh.trust_domain.clone(),
            listen: self.listen,
            server_names: self.server_names.clone(),
            state_dir: self.state_dir.clone(),
            join_tokens_dir: self.join_tokens_dir.clone(),
            trust_bundle_out: self.trust_bundle_out.clone(),
        }
    }
}

impl RotateRootSettings {
    /// How long the stage before must have lasted.
    pub fn patience(&self) -> Duration {
        if self.now { Duration::ZERO } else { self.stage.patience(self.certificate_ttl) }
    }
}

/// Checks the flags.
pub(super) fn task(flags: ControlFlags) -> Result<Task, Vec<Invalid>> {
    match flags.command {
        Some(ControlCommand::RotateRoot(flags)) => rotate_root(flags).map(Task::RotateRoot),
        None => settings(flags).map(|settings| Task::Control(Box::new(settings))),
    }
}

fn settings(flags: ControlFlags) -> Result<ControlSettings, Vec<Invalid>> {
    let mut checks = Checks::default();
    let objects = source::settings(&mut checks, flags.source);
    // clap has made sure that the required ones are there.
    let join_tokens_dir = flags.join_tokens_dir.unwrap_or_default();
    let state_dir = flags.state_dir.unwrap_or_default();
    checks.directory("--join-tokens-dir", &join_tokens_dir, "the directory with one token file per node");
    if state_dir.exists() {
        checks.directory("--state-dir", &state_dir, "the directory for the certificate authority's keys");
    }
    if let Some(out) = &flags.trust_bundle_out {
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            checks.directory("--trust-bundle-out", parent, "a file in an existing directory");
        }
    }
    let (log, admin) = process(&mut checks, &flags.process);
    checks.pass(ControlSettings {
        objects,
        state_dir,
        listen: flags.listen,
        server_names: flags.server_names,
        join_tokens_dir,
        trust_bundle_out: flags.trust_bundle_out,
        log,
        admin,
    })
}

fn rotate_root(flags: RotateRootFlags) -> Result<RotateRootSettings, Vec<Invalid>> {
    let mut checks = Checks::default();
    checks.directory("--state-dir", &flags.state_dir, "the directory of the certificate authority's keys");
    let parsed = flags.certificate_ttl.parse::<jiff::SignedDuration>().ok();
    let certificate_ttl = parsed.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or_default();
    if certificate_ttl.is_zero() {
        let problem = format!("{:?} is not a length of time; write 24h or 90s", flags.certificate_ttl);
        checks.refuse("--certificate-ttl", problem);
    }
    checks.pass(RotateRootSettings {
        state_dir: flags.state_dir,
        stage: match flags.stage {
            StageFlag::Begin => Stage::Begin,
            StageFlag::Switch => Stage::Switch,
            StageFlag::Finish => Stage::Finish,
        },
        certificate_ttl,
        now: flags.now,
    })
}
