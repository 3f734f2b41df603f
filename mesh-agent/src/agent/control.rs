//! The process `mesh-agent control`: objects of the mesh into a registry, and the certificate authority over it.

use kube::Client;

use super::Error;
use super::process::Process;
use super::windows::{LateDiscovery, add_mesh, first_state, report_discovery};
use crate::admin;
use crate::config::{ControlMode, ControlSettings, RotateRootSettings, RotatedKeys};
use crate::control::ca::{self, Phase};
use crate::control::cluster::{self, Candidacy, Keys};
use crate::control::review::Expected;
use crate::control::status::{self, Writer};
use crate::control::{self, Control};
use crate::discovery::{self, Discovery};
use crate::lifecycle::{Block, Shutdown};
use crate::model::TrustDomain;
use crate::registry::{self, Registry};
use crate::telemetry::{self, Telemetry};
use crate::{policy, route};

/// Runs the control plane until it is asked to stop.
///
/// # Errors
/// Whatever keeps it from starting; once it runs, it keeps running.
pub fn run(settings: &ControlSettings) -> Result<(), Error> {
    let open = || admin::bind(&settings.admin).map(Into::into);
    let process = Process::begin(&settings.log, &telemetry::Settings::default(), open)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let objects = process.readiness.block("objects");
    let authority = process.readiness.block("certificate authority");
    let (registry_writer, registry) = registry::new();
    let (policy_writer, policies) = policy::new();
    let (route_writer, _routes) = route::new();
    let found = LateDiscovery::default();
    report_discovery(&process.telemetry, &registry, &found);
    let windows = add_mesh(process.windows(), &registry, &policies, &found, |_| false);
    let (telemetry, shutdown) = (process.telemetry.clone(), process.shutdown.clone());
    let server = process.serve(windows, &runtime)?;

    let done = runtime.block_on(async {
        let source = settings.objects.clone();
        let stop = shutdown.clone();
        let started =
            discovery::start(source, registry_writer, policy_writer, route_writer, &telemetry, stop).await?;
        let _first = found.set(started.clone());
        if !first_state(&started, &shutdown).await {
            return Ok(());
        }
        drop(objects);
        let parts = Parts { settings, registry, telemetry, shutdown };
        match &settings.mode {
            ControlMode::Standalone { state_dir, join_tokens_dir, trust_bundle_out } => {
                let control = Control::open(
                    control::Settings {
                        trust_domain: parts.trust_domain(),
                        listen: settings.listen,
                        server_names: settings.server_names.clone(),
                        state_dir: state_dir.clone(),
                        join_tokens_dir: join_tokens_dir.clone(),
                        trust_bundle_out: trust_bundle_out.clone(),
                    },
                    parts.registry.clone(),
                )?;
                parts.serve(control, authority).await
            }
            ControlMode::Cluster { access, keys, expected } => {
                let client = access.client().await?;
                parts.in_cluster(client, keys.clone(), expected.clone(), &started, authority).await
            }
        }
    });
    if done.is_ok() {
        server.join();
    }
    done
}

/// What both ways of running need.
struct Parts<'a> {
    settings: &'a ControlSettings,
    registry: Registry,
    telemetry: Telemetry,
    shutdown: Shutdown,
}

impl Parts<'_> {
    fn trust_domain(&self) -> TrustDomain {
        self.registry.snapshot().config.trust_domain.clone()
    }

    /// Serves until shutdown. `authority` holds readiness back until then.
    async fn serve(&self, control: Control, authority: Block) -> Result<(), Error> {
        tracing::info!(address = %control.local_addr(), "the certificate service listens");
        let (stats, desk) = (control.stats(), control.desk());
        self.telemetry.before_scrape(move |telemetry| {
            let counts = stats.counts();
            telemetry.certificate_requests("issued", counts.issued);
            for (reason, count) in counts.refused() {
                telemetry.certificate_requests(reason, count);
            }
            desk.counts().for_each(|(result, count)| telemetry.reports(result, count));
            telemetry.nodes_reporting(desk.heard().reporting());
        });
        drop(authority);
        Ok(control.run(self.shutdown.clone()).await?)
    }

    /// One of several replicas.
    async fn in_cluster(
        &self,
        client: Client,
        keys: Keys,
        expected: Expected,
        discovery: &Discovery,
        authority: Block,
    ) -> Result<(), Error> {
        let (trust_domain, telemetry) = (self.trust_domain(), self.telemetry.clone());
        let namespace = self.registry.snapshot().config.system_namespace.clone();
        let candidacy = Candidacy::begin(&client, &namespace, &telemetry, self.shutdown.clone());
        let settings = cluster::Settings {
            trust_domain: trust_domain.clone(),
            listen: self.settings.listen,
            server_names: self.settings.server_names.clone(),
            namespace: namespace.clone(),
            keys,
            expected: expected.clone(),
        };
        let (leading, registry) = (candidacy.leading(), self.registry.clone());
        let (api, told) = (client.clone(), telemetry.clone());
        let opened = cluster::open(settings, api, leading, registry.clone(), told, &self.shutdown).await?;
        if let Some((control, standing)) = opened {
            candidacy.serves_at(cluster::reachable(control.local_addr(), namespace, registry.clone()));
            // Objects of a directory have no status to write.
            if matches!(self.settings.objects, discovery::Settings::Kubernetes(_)) {
                let discovery = discovery.clone();
                let (heard, agents) = (control.desk().heard(), expected);
                let writer =
                    Writer { client, standing, discovery, registry, telemetry, trust_domain, heard, agents };
                status::start(writer, self.shutdown.clone());
            }
            self.serve(control, authority).await?;
        }
        candidacy.over().await;
        Ok(())
    }
}

/// Carries out one stage of a root rotation.
///
/// # Errors
/// The stage does not come next or comes too early; a file or Secret is unusable or cannot be written.
pub fn rotate_root(settings: &RotateRootSettings) -> Result<Phase, Error> {
    match &settings.keys {
        RotatedKeys::Dir(dir) => Ok(ca::rotate(dir, settings.stage, settings.patience())?),
        RotatedKeys::Secret(secret, access) => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
            runtime.block_on(async {
                let client = access.client().await?;
                Ok(ca::rotate_in_secret(&client, secret, settings.stage, settings.patience()).await?)
            })
        }
    }
}
