//! Replicas over an API in memory: real gRPC, real handshakes, keys in a Secret.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use kube::Client;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tonic::Code;

use super::fake_api::FakeApi;
use super::handshakes::shake;
use super::reviewing::{bound_to, expected, token};
use super::{Mesh, domain, id, put_secret, until, workload};
use crate::control::ca::{Phase, SecretRef, Stage, rotate_in_secret};
use crate::control::cluster::{self, Candidacy, Keys, Standing};
use crate::control::reports::desk::Desk;
use crate::control::{Control, Stats};
use crate::identity::{Error, Identities};
use crate::lifecycle::{Trigger, clock, shutdown, tasks};
use crate::model::MeshConfig;
use crate::registry::Snapshot;

const SECRET: &str = "/api/v1/namespaces/weft-system/secrets/weft-ca";
const ISSUED: &str = "/api/v1/namespaces/weft-system/secrets/weft-issued";
const BUNDLE: &str = "/api/v1/namespaces/weft-system/configmaps/weft-trust-bundle";
const USER: &str = "system:serviceaccount:weft-system:weft-agent";
const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn own() -> Keys {
    Keys::Own(SecretRef { namespace: "weft-system".to_owned(), name: "weft-ca".to_owned() })
}

fn issued() -> Keys {
    Keys::Issued(SecretRef { namespace: "weft-system".to_owned(), name: "weft-issued".to_owned() })
}

/// One replica, from its first word to its last.
pub(super) struct Replica {
    standing: Standing,
    stats: std::sync::Arc<Stats>,
    pub(super) desk: std::sync::Arc<Desk>,
    pub(super) address: String,
    pub(super) trigger: Trigger,
}

impl Replica {
    pub(super) fn leads(&self) -> bool {
        *self.standing.leads.borrow()
    }

    fn fault(&self) -> Option<String> {
        self.standing.fault.borrow().clone()
    }
}

/// A mesh whose agents have tokens of their pods, and read the bundle as a kubelet would give it to them.
pub(super) struct Cluster {
    pub(super) mesh: Mesh,
    pub(super) api: FakeApi,
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self::with_ttl(HOUR)
    }

    fn with_ttl(certificate_ttl: Duration) -> Self {
        let mesh = Mesh::new(HOUR);
        let mut pods = vec![
            workload("shop", "orders-0", "orders", "node-1"),
            workload("shop", "web-0", "web", "node-1"),
            workload("shop", "payments-0", "payments", "node-2"),
        ];
        let api = FakeApi::default();
        for node in ["node-1", "node-2"] {
            let pod = format!("agent-{node}");
            pods.push(workload("weft-system", &pod, "weft-agent", node));
            let token = token("weft-control", USER, 3600, node);
            api.review(&token, bound_to(&pod, &format!("weft-system-{pod}")));
            put_secret(&mesh.path(&format!("{node}.token")), &token);
        }
        let config = MeshConfig { certificate_ttl, ..MeshConfig::default() };
        mesh.writer.publish(Snapshot::new(config, pods, Vec::new()));
        let cluster = Self { mesh, api };
        tasks::spawn("kubelet", mount(cluster.api.clone(), cluster.mesh.path("roots.pem")));
        cluster
    }

    fn client(&self) -> Client {
        self.api.client()
    }

    pub(super) async fn start(&self, keys: Keys) -> Replica {
        let (trigger, shutdown) = shutdown::channel();
        let telemetry = self.mesh.telemetry.clone();
        let candidacy = Candidacy::begin(&self.client(), "weft-system", &telemetry, shutdown.clone());
        let settings = cluster::Settings {
            trust_domain: domain("cluster.local"),
            listen: "127.0.0.1:0".parse().expect("an address"),
            server_names: Vec::new(),
            namespace: "weft-system".to_owned(),
            keys,
            expected: expected(),
        };
        let registry = self.mesh.registry.clone();
        let opened =
            cluster::open(settings, self.client(), candidacy.leading(), registry, telemetry, &shutdown);
        let opened = tokio::time::timeout(super::PATIENCE, opened).await.expect("in time");
        let (control, standing): (Control, Standing) = opened.expect("opens").expect("not stopped");
        let (listens, stats, desk) = (control.local_addr(), control.stats(), control.desk());
        candidacy.serves_at(cluster::reachable(
            listens,
            "weft-system".to_owned(),
            self.mesh.registry.clone(),
        ));
        tasks::spawn("control", async move { control.run(shutdown).await.expect("runs") });
        until("the bundle is mounted", || self.mesh.path("roots.pem").exists()).await;
        Replica { standing, stats, desk, address: listens.to_string(), trigger }
    }

    fn bundle(&self) -> String {
        let bundle = self.api.get(BUNDLE).map(|bundle| bundle["data"]["roots.pem"].clone());
        bundle.and_then(|roots| roots.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// Writes the ConfigMap's roots to a file whenever they change.
async fn mount(api: FakeApi, path: std::path::PathBuf) {
    let mut before = Value::Null;
    loop {
        let roots = api.get(BUNDLE).map_or(Value::Null, |bundle| bundle["data"]["roots.pem"].clone());
        if roots != before
            && let Some(text) = roots.as_str()
        {
            let beside = path.with_extension("new");
            std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &path)).expect("written");
            before = roots;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn issuer(identities: &Identities) -> String {
    identities.certificates()[0].issuer.clone()
}

#[tokio::test]
async fn replicas_make_one_secret_and_sign_under_one_root() {
    let cluster = Cluster::new();
    let (one, two) = tokio::join!(cluster.start(own()), cluster.start(own()));
    until("one of them leads", || one.leads() != two.leads()).await;
    assert_eq!(cluster.bundle().matches("BEGIN CERTIFICATE").count(), 1);
    let at_one = cluster.mesh.start_node("node-1", &one.address, &["orders"]).await;
    let at_two = cluster.mesh.start_node("node-2", &two.address, &["payments"]).await;
    assert_eq!(issuer(&at_one), issuer(&at_two));
    let (client, server) = (at_one.client_config(&id("orders")), at_two.server_config(&id("payments")));
    assert_eq!(shake(client.expect("valid"), server.expect("valid")), Ok((id("payments"), id("orders"))));
    let secret = cluster.api.get(SECRET).expect("made");
    assert_eq!(secret["data"].as_object().expect("data").len(), 1, "no rotation: one text");
    assert!(!cluster.mesh.path("state").exists(), "nothing of it on disk");
    assert_eq!((one.stats.counts().issued, two.stats.counts().issued), (1, 1));
}

#[tokio::test]
async fn an_agent_gets_certificates_for_the_pods_of_its_own_node_only() {
    let cluster = Cluster::new();
    let replica = cluster.start(own()).await;
    let client = cluster.mesh.client("node-1", &replica.address);
    client.svid(&id("orders")).await.expect("a pod of node-1");
    match client.svid(&id("payments")).await {
        Err(Error::CaRefused { code: Code::PermissionDenied, message, .. }) => {
            assert_eq!(message, "pod on node: no pod with service account shop/payments is on node node-1");
        }
        other => panic!("{other:?}"),
    }
    put_secret(&cluster.mesh.path("node-1.token"), &token("weft-control", USER, 3600, "forged"));
    match client.svid(&id("orders")).await {
        Err(Error::CaRefused { code: Code::Unauthenticated, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn while_the_api_is_away_known_agents_are_served_and_others_told_to_try_again() {
    let cluster = Cluster::new();
    let replica = cluster.start(own()).await;
    let (known, other) =
        (cluster.mesh.client("node-1", &replica.address), cluster.mesh.client("node-2", &replica.address));
    known.svid(&id("orders")).await.expect("all is well");
    cluster.api.set_away(true);
    known.svid(&id("web")).await.expect("keys and callers are in memory");
    match other.svid(&id("payments")).await {
        Err(Error::CaUnreachable { message, .. }) => assert!(message.contains("try again"), "{message}"),
        answer => panic!("{answer:?}"),
    }
    cluster.api.set_away(false);
    other.svid(&id("payments")).await.expect("the API is back");
}

#[tokio::test]
async fn a_root_is_rotated_through_the_secret_without_a_failed_handshake() {
    let cluster = Cluster::with_ttl(Duration::from_secs(6));
    let (one, two) = tokio::join!(cluster.start(own()), cluster.start(own()));
    let at_one = cluster.mesh.start_node("node-1", &one.address, &["orders"]).await;
    let at_two = cluster.mesh.start_node("node-2", &two.address, &["payments"]).await;
    let (before, roots_before) = (issuer(&at_one), cluster.bundle());
    let failed = AtomicBool::new(false);
    let handshakes = async {
        loop {
            let (client, server) =
                (at_one.client_config(&id("orders")), at_two.server_config(&id("payments")));
            let outcome = shake(client.expect("valid"), server.expect("valid"));
            failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let Keys::Own(secret) = own() else { unreachable!() };
    let client = cluster.client();
    let rotate = |stage| rotate_in_secret(&client, &secret, stage, Duration::ZERO);
    let rotation = async {
        let early = rotate_in_secret(&client, &secret, Stage::Switch, Duration::ZERO).await;
        assert!(early.is_err(), "{early:?}");
        assert_eq!(rotate(Stage::Begin).await.expect("begins"), Phase::Begun);
        let reloaded = |count| move |node: &Identities| node.counts().bundle_reloads >= count;
        until("both follow the bundle", || reloaded(1)(&at_one) && reloaded(1)(&at_two)).await;
        let too_early = rotate_in_secret(&client, &secret, Stage::Switch, HOUR).await;
        assert!(too_early.expect_err("too early").to_string().contains("too early"));
        assert_eq!(rotate(Stage::Switch).await.expect("switches"), Phase::Switched);
        until("both have certificates under the new root", || {
            issuer(&at_one) != before && issuer(&at_two) == issuer(&at_one)
        })
        .await;
        assert_eq!(rotate(Stage::Finish).await.expect("finishes"), Phase::Steady);
        until("one root is left", || cluster.bundle().matches("BEGIN").count() == 1).await;
        until("both follow the bundle", || reloaded(2)(&at_one) && reloaded(2)(&at_two)).await;
    };
    tokio::select! {
        () = rotation => {}
        () = handshakes => {}
    }
    assert!(!failed.load(Ordering::Relaxed), "a handshake failed");
    assert_ne!(cluster.bundle(), roots_before);
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_changes_nothing_until_it_is_mended() {
    let cluster = Cluster::new();
    let replica = cluster.start(own()).await;
    let client = cluster.mesh.client("node-1", &replica.address);
    let good = cluster.api.get(SECRET).expect("made");
    let mut bad = good.clone();
    bad["data"]["authority.pem"] = json!(ByteString(b"-----BEGIN".to_vec()));
    cluster.api.put(SECRET, bad);
    until("it is noticed", || replica.fault().is_some()).await;
    assert!(replica.fault().expect("said").contains("Secret weft-system/weft-ca, key authority.pem"));
    assert!(cluster.mesh.metrics().contains("weft_control_authority_fault 1"));
    client.svid(&id("orders")).await.expect("the last good keys sign");
    cluster.api.delete(SECRET);
    until("it is missed", || replica.fault().is_some_and(|said| said.contains("not there"))).await;
    assert!(cluster.api.get(SECRET).is_none(), "not made anew");
    client.svid(&id("orders")).await.expect("the last good keys sign");
    cluster.api.put(SECRET, good);
    until("it is mended", || replica.fault().is_none()).await;
    assert!(cluster.mesh.metrics().contains("weft_control_authority_fault 0"));
}

#[tokio::test]
async fn a_bundle_that_somebody_removed_is_published_again_by_the_leader_alone() {
    let cluster = Cluster::new();
    let one = cluster.start(own()).await;
    until("it leads", || one.leads()).await;
    let two = cluster.start(own()).await;
    assert_eq!(cluster.api.requests("PATCH").len(), 1, "{:?}", cluster.api.requests("PATCH"));
    let roots = cluster.bundle();
    cluster.api.delete(BUNDLE);
    one.trigger.fire();
    until("the other leads", || two.leads()).await;
    until("it publishes", || cluster.bundle() == roots).await;
}

/// What cert-manager would have written, and the root behind it.
fn issue(root: &Issuer<'_, KeyPair>, root_pem: &str, change: impl FnOnce(&mut CertificateParams)) -> Value {
    let key = KeyPair::generate().expect("a key");
    let mut params = authority_params("intermediate");
    change(&mut params);
    let certificate = params.signed_by(&key, root).expect("signed").pem();
    let data = [("tls.crt", certificate), ("tls.key", key.serialize_pem()), ("ca.crt", root_pem.to_owned())];
    let data: serde_json::Map<String, Value> =
        data.into_iter().map(|(key, text)| (key.to_owned(), json!(ByteString(text.into_bytes())))).collect();
    json!({"metadata": {"name": "weft-issued", "namespace": "weft-system"}, "type": "kubernetes.io/tls", "data": data})
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (clock::wall() - HOUR).into();
    params.not_after = (clock::wall() + HOUR * 24).into();
    params
}

fn foreign_root(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let params = authority_params(name);
    let pem = params.self_signed(&key).expect("signed").pem();
    (Issuer::new(params, key), pem)
}

#[tokio::test]
async fn an_intermediate_of_another_authority_signs_and_its_renewals_are_followed() {
    let cluster = Cluster::new();
    let (root, root_pem) = foreign_root("their root");
    let first =
        issue(&root, &root_pem, |params| params.distinguished_name.push(DnType::OrganizationName, "1"));
    cluster.api.put(ISSUED, first.clone());
    let replica = cluster.start(issued()).await;
    assert_eq!(cluster.bundle().matches("BEGIN").count(), 1);
    let one = cluster.mesh.start_node("node-1", &replica.address, &["orders"]).await;
    let two = cluster.mesh.start_node("node-2", &replica.address, &["payments"]).await;
    let (client, server) = (one.client_config(&id("orders")), two.server_config(&id("payments")));
    assert_eq!(shake(client.expect("valid"), server.expect("valid")), Ok((id("payments"), id("orders"))));
    assert!(cluster.api.get(SECRET).is_none(), "no keys of our own");

    let (stranger, _) = foreign_root("another root");
    let expired = (clock::wall() - Duration::from_secs(60)).into();
    let mut without_key = first.clone();
    without_key["data"].as_object_mut().expect("data").remove("tls.key");
    for (bad, why) in [
        (issue(&stranger, &root_pem, |_| {}), "ends at none of the roots"),
        (issue(&root, &root_pem, |params| params.is_ca = IsCa::NoCa), "not a CA's"),
        (issue(&root, &root_pem, |params| params.not_after = expired), "has expired"),
        (issue(&root, "", |_| {}), "holds no certificate"),
        (without_key, "key tls.key, is not usable: it is missing"),
    ] {
        cluster.api.put(ISSUED, bad);
        until(why, || replica.fault().is_some_and(|said| said.contains(why))).await;
        cluster.mesh.client("node-1", &replica.address).svid(&id("orders")).await.expect("still signs");
    }
    let renewed =
        issue(&root, &root_pem, |params| params.distinguished_name.push(DnType::OrganizationName, "2"));
    cluster.api.put(ISSUED, renewed);
    until("the renewal is taken up", || replica.fault().is_none()).await;
    let again = cluster.mesh.start_node("node-1", &replica.address, &["web"]).await;
    assert!(issuer(&again).contains('2'), "{}", issuer(&again));
    let wanted: HashSet<_> = [id("web")].into();
    again.set_wanted(wanted);
    assert!(again.certificates()[0].not_after > SystemTime::UNIX_EPOCH);
}
