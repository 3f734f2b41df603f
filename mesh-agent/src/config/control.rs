//! Flags of `mesh-agent control` to settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::checks::Checks;
use super::flags::{ControlCommand, ControlFlags, RotateRootFlags, StageFlag};
use super::node::process;
use super::{Invalid, Task, source};
use crate::admin;
use crate::control::ca::{SecretRef, Stage};
use crate::control::cluster::Keys;
use crate::control::review::Expected;
use crate::discovery::{self, Access};
use crate::telemetry::log::LogSettings;

/// Everything the control plane needs to know from its command line.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// Where the mesh's objects come from.
    pub objects: discovery::Settings,
    /// Where keys are and how callers prove themselves.
    pub mode: ControlMode,
    /// Where the certificate service listens.
    pub listen: SocketAddr,
    /// Further names for its serving certificate.
    pub server_names: Vec<String>,
    /// The process log.
    pub log: LogSettings,
    /// Read-only windows.
    pub admin: admin::Settings,
}

/// Where keys are and how callers prove themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlMode {
    /// Files.
    Standalone {
        /// Directory of the CA's keys.
        state_dir: PathBuf,
        /// Directory of the nodes' join tokens.
        join_tokens_dir: PathBuf,
        /// Where to publish the roots.
        trust_bundle_out: Option<PathBuf>,
    },
    /// A Secret, and TokenReview.
    Cluster {
        /// How the API is reached.
        access: Access,
        /// Whose keys.
        keys: Keys,
        /// What callers must show.
        expected: Expected,
    },
}

/// The keys whose root is rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotatedKeys {
    /// Files of a directory.
    Dir(PathBuf),
    /// A Secret.
    Secret(SecretRef, Access),
}

/// One stage of a root rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotateRootSettings {
    /// Where the keys are.
    pub keys: RotatedKeys,
    /// Which stage.
    pub stage: Stage,
    /// Longest lifetime of a certificate.
    pub certificate_ttl: Duration,
    /// Do not wait for the stage before to have lasted long enough.
    pub now: bool,
}

/// Kubelets take up to a minute and a half to bring a changed ConfigMap to its pods; before that, no agent may meet a
/// certificate under the new root.
const MOUNT_TIME_MAX: Duration = Duration::from_secs(120);

impl RotateRootSettings {
    /// How long the stage before must have lasted.
    pub fn patience(&self) -> Duration {
        let patience = self.stage.patience(self.certificate_ttl);
        match &self.keys {
            _ if self.now => Duration::ZERO,
            RotatedKeys::Secret(..) if self.stage == Stage::Switch => patience.max(MOUNT_TIME_MAX),
            RotatedKeys::Secret(..) | RotatedKeys::Dir(_) => patience,
        }
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
    let mode = match (&flags.ca_secret, &flags.intermediate_secret) {
        (None, None) => standalone(&mut checks, &flags),
        _ => cluster(&mut checks, &flags),
    };
    let objects = source::settings(&mut checks, flags.source);
    let (log, admin) = process(&mut checks, &flags.process);
    let (listen, server_names) = (flags.listen, flags.server_names);
    checks.pass(ControlSettings { objects, mode, listen, server_names, log, admin })
}

fn standalone(checks: &mut Checks, flags: &ControlFlags) -> ControlMode {
    match &flags.state_dir {
        Some(dir) if dir.exists() => {
            checks.directory("--state-dir", dir, "the directory for the certificate authority's keys");
        }
        Some(_) => {}
        None => checks.refuse(
            "--state-dir",
            "missing; name a directory for the certificate authority's keys, or write --ca-secret in a cluster",
        ),
    }
    match &flags.join_tokens_dir {
        Some(dir) => checks.directory("--join-tokens-dir", dir, "the directory with one token file per node"),
        None if flags.token_review => checks.refuse(
            "--token-review",
            "does not go with --state-dir; name --ca-secret or --intermediate-secret, or --join-tokens-dir",
        ),
        None => checks.refuse(
            "--join-tokens-dir",
            "missing; name the directory with one token file per node, or write --token-review and --ca-secret in a \
             cluster",
        ),
    }
    if let Some(out) = &flags.trust_bundle_out {
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            checks.directory("--trust-bundle-out", parent, "a file in an existing directory");
        }
    }
    ControlMode::Standalone {
        state_dir: flags.state_dir.clone().unwrap_or_default(),
        join_tokens_dir: flags.join_tokens_dir.clone().unwrap_or_default(),
        trust_bundle_out: flags.trust_bundle_out.clone(),
    }
}

fn cluster(checks: &mut Checks, flags: &ControlFlags) -> ControlMode {
    let keys = match (&flags.ca_secret, &flags.intermediate_secret) {
        (Some(_), Some(_)) => {
            checks.refuse("--intermediate-secret", "does not go with --ca-secret; name one source of keys");
            Keys::Own(SecretRef { namespace: String::new(), name: String::new() })
        }
        (Some(secret), None) => Keys::Own(secret.clone()),
        (None, secret) => Keys::Issued(secret.clone().expect("one of the two is there")),
    };
    let others = [
        ("--state-dir", &flags.state_dir),
        ("--join-tokens-dir", &flags.join_tokens_dir),
        ("--trust-bundle-out", &flags.trust_bundle_out),
    ];
    for (flag, _) in others.iter().filter(|(_, value)| value.is_some()) {
        checks.refuse(flag, "does not go with keys in a Secret; leave it out");
    }
    if !flags.token_review {
        checks.refuse(
            "--token-review",
            "missing; with keys in a Secret, agents prove themselves by their pod's token",
        );
    }
    let account = flags.agent_service_account.split_once('/').filter(|(_, name)| !name.contains('/'));
    let (namespace, account) = account.unwrap_or_default();
    if namespace.is_empty() || account.is_empty() {
        let problem = format!("{:?} names no account; write NAMESPACE/NAME", flags.agent_service_account);
        checks.refuse("--agent-service-account", problem);
    }
    let expected = Expected {
        audience: flags.token_audience.clone(),
        namespace: namespace.to_owned(),
        account: account.to_owned(),
    };
    ControlMode::Cluster { access: flags.source.access.access(), keys, expected }
}

fn rotate_root(flags: RotateRootFlags) -> Result<RotateRootSettings, Vec<Invalid>> {
    let mut checks = Checks::default();
    let keys = match (flags.ca_secret, flags.state_dir) {
        (Some(secret), _) => RotatedKeys::Secret(secret, flags.access.access()),
        // clap has made sure that one of the two is there.
        (None, dir) => {
            let dir = dir.unwrap_or_default();
            checks.directory("--state-dir", &dir, "the directory of the certificate authority's keys");
            RotatedKeys::Dir(dir)
        }
    };
    let certificate_ttl = checks.time("--certificate-ttl", &flags.certificate_ttl);
    checks.pass(RotateRootSettings {
        keys,
        stage: match flags.stage {
            StageFlag::Begin => Stage::Begin,
            StageFlag::Switch => Stage::Switch,
            StageFlag::Finish => Stage::Finish,
        },
        certificate_ttl,
        now: flags.now,
    })
}
