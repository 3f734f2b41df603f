//! The CA and the agents' identities together: a real authority, a real gRPC server on loopback, real handshakes.
//!
//! [`issuing`]: who gets what. [`handshakes`]: what peers accept of each other. [`rotation`]: one root after another.
//! [`files`]: what the CA's own files must be like. Against [`fake_api`], a Kubernetes API in memory: [`reviewing`], who a
//! pod's token stands for; [`election`], who leads; [`cluster`], replicas over one Secret; [`reporting`], what nodes say is in
//! force; [`statuses`], what is written on objects.

mod cluster;
mod election;
mod fake_api;
mod files;
mod handshakes;
mod issuing;
mod reporting;
mod reviewing;
mod rotation;
mod statuses;

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Control, Settings, Stats};
use crate::identity::ca_client::CaClient;
use crate::identity::line::Line;
use crate::identity::trust::Trust;
use crate::identity::{self, Identities};
use crate::lifecycle::{Shutdown, Trigger, shutdown, tasks};
use crate::model::{FailureMode, MeshConfig, SpiffeId, TrustDomain, Workload, WorkloadName, WorkloadUid};
use crate::registry::{self, Registry, Snapshot, Writer};
use crate::telemetry::{Format, Telemetry};

/// Long enough for anything that must happen on a busy machine, short enough to notice that it does not.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn workload(namespace: &str, name: &str, account: &str, node: &str) -> Workload {
    Workload {
        uid: WorkloadUid(format!("{namespace}-{name}").into()),
        name: WorkloadName { namespace: namespace.into(), name: name.into() },
        owner: name.into(),
        node: node.into(),
        zone: None,
        addresses: Vec::new(),
        service_account: account.into(),
        identity: SpiffeId::of_service_account(&domain("cluster.local"), namespace, account),
        labels: Default::default(),
        ports: Vec::new(),
        enrolled: true,
        splice: None,
        forward_client_cert: false,
        skip_outbound_ports: Default::default(),
        skip_inbound_ports: Default::default(),
        probe_ports: std::collections::BTreeSet::new(),
        manifest_hash: None,
        failure_mode: FailureMode::default(),
        host_network: false,
        ready: true,
        terminating: false,
    }
}

fn domain(name: &str) -> TrustDomain {
    name.parse().expect("a valid trust domain")
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::of_service_account(&domain("cluster.local"), "shop", account)
}

fn put_secret(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode set");
}

fn token_of(node: &str) -> String {
    format!("a-join-token-for-{node}")
}

/// A mesh of two nodes: pods of `orders` and `web` on node-1, of `payments` on node-2.
struct Mesh {
    dir: tempfile::TempDir,
    settings: Settings,
    registry: Registry,
    writer: Writer,
    telemetry: Telemetry,
    /// Stops whatever runs when the test ends.
    _trigger: Trigger,
    shutdown: Shutdown,
}

impl Mesh {
    fn new(certificate_ttl: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let tokens = dir.path().join("tokens");
        std::fs::create_dir(&tokens).expect("made");
        for node in ["node-1", "node-2"] {
            put_secret(&tokens.join(node), &token_of(node));
            put_secret(&dir.path().join(format!("{node}.token")), &(token_of(node) + "\n"));
        }
        let settings = Settings {
            trust_domain: domain("cluster.local"),
            listen: "127.0.0.1:0".parse().expect("an address"),
            server_names: Vec::new(),
            state_dir: dir.path().join("state"),
            join_tokens_dir: tokens,
            trust_bundle_out: Some(dir.path().join("roots.pem")),
        };
        let (writer, registry) = registry::new();
        let pods = vec![
            workload("shop", "orders-0", "orders", "node-1"),
            workload("shop", "web-0", "web", "node-1"),
            workload("shop", "payments-0", "payments", "node-2"),
        ];
        writer.publish(Snapshot::new(
            MeshConfig { certificate_ttl, ..MeshConfig::default() },
            pods,
            Vec::new(),
        ));
        let (trigger, shutdown) = shutdown::channel();
        let telemetry = Telemetry::without_access_log();
        Self { dir, settings, registry, writer, telemetry, _trigger: trigger, shutdown }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn metrics(&self) -> String {
        self.telemetry.scrape(Format::Prometheus)
    }

    /// Starts the control plane; gives its address and counters.
    fn start_control(&self) -> (String, Arc<Stats>) {
        let control = Control::open(self.settings.clone(), self.registry.clone()).expect("opens");
        let found = (control.local_addr().to_string(), control.stats());
        let shutdown = self.shutdown.clone();
        tasks::spawn("control", async move { control.run(shutdown).await.expect("runs") });
        found
    }

    fn identity_settings(&self, node: &str, ca_address: &str) -> identity::Settings {
        identity::Settings {
            trust_domain: domain("cluster.local"),
            ca_address: ca_address.to_owned(),
            ca_server_name: None,
            ca_roots: self.path("roots.pem"),
            federated_roots: Vec::new(),
            token_file: self.path(&format!("{node}.token")),
            certificate_ttl: Duration::from_secs(24 * 3600),
        }
    }

    /// Starts a node's identities and waits until it has the wanted ones.
    async fn start_node(&self, node: &str, ca_address: &str, accounts: &[&str]) -> Identities {
        let settings = self.identity_settings(node, ca_address);
        let identities =
            identity::start(settings, self.telemetry.clone(), self.shutdown.clone()).expect("starts");
        identities.set_wanted(accounts.iter().map(|account| id(account)).collect::<HashSet<_>>());
        for account in accounts {
            assert!(identities.wait_for(&id(account), PATIENCE).await, "{account} on {node}");
        }
        identities
    }

    /// A line of its own to the CA.
    fn line(&self, node: &str, ca_address: &str) -> Line {
        let trust = Trust::load(vec![(domain("cluster.local"), self.path("roots.pem"))]).expect("roots");
        Line::new(&self.identity_settings(node, ca_address), Arc::new(trust)).expect("an address")
    }

    /// The bare client, for asking what an honest agent would not ask.
    fn client(&self, node: &str, ca_address: &str) -> CaClient {
        let trust = Trust::load(vec![(domain("cluster.local"), self.path("roots.pem"))]).expect("roots");
        CaClient::new(&self.identity_settings(node, ca_address), Arc::new(trust)).expect("an address")
    }
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, holds).await.is_ok(), "in vain: {what}");
}
