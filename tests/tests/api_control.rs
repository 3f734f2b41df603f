//! `mesh-agent control` as it runs in a cluster: real processes over one API server. The one test about tokens holds for a real
//! API server too (`WEFT_TEST_KUBECONFIG`), since only that one signs tokens.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use mesh_agent::identity::ca_client::{CaClient, Svid};
use mesh_agent::identity::trust::Trust;
use mesh_agent::identity::{self, Error};
use mesh_agent::model::{SpiffeId, TrustDomain};
use mesh_tests::api::ApiServer;
use mesh_tests::api::stage::{KUBECONFIG, Stage, on_stage};
use mesh_tests::control::{PATIENCE, ROUTES, Replica, agent_token, control, mesh, route};
use mesh_tests::wait::{eventually, now, within};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tonic::Code;

fn accepted(server: &ApiServer, group: &str, plural: &str, name: &str, at: &str) -> Option<String> {
    let object = server.object(group, plural, name)?;
    let conditions = object["status"].pointer(at)?.as_array()?;
    let accepted = conditions.iter().find(|one| one["type"] == "Accepted")?;
    Some(format!("{} {}", accepted["status"].as_str()?, accepted["reason"].as_str()?))
}

/// The published roots, each as PEM.
fn bundle(server: &ApiServer) -> Vec<String> {
    let bundle = server.object("", "configmaps", "weft-system/weft-trust-bundle");
    let text = bundle.map_or_else(String::new, |bundle| {
        bundle["data"]["roots.pem"].as_str().unwrap_or_default().to_owned()
    });
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END).map(|one| one.trim().to_owned()).filter(|one| one.ends_with(END)).collect()
}

fn roots(server: &ApiServer) -> usize {
    bundle(server).len()
}

/// Writes that are not the Lease's.
fn writes(server: &ApiServer) -> u64 {
    let verbs = ["create", "update", "patch"];
    let counts = server.counts();
    let counted =
        counts.iter().filter(|((verb, on), _)| verbs.contains(&verb.as_str()) && !on.contains("leases"));
    counted.map(|(_, count)| count).sum()
}

#[test]
fn two_replicas_share_keys_and_one_leads_until_it_dies() {
    let server = ApiServer::with_mesh_kinds();
    mesh(&server);
    let dir = tempfile::tempdir().expect("a directory");
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(None)).expect("written");
    let mut replicas = [Replica::start(&kubeconfig), Replica::start(&kubeconfig)];
    within(PATIENCE, "both are ready", || replicas.iter().all(Replica::is_ready).then_some(()));
    within(PATIENCE, "one leads", || (replicas.iter().filter(|one| one.leads()).count() == 1).then_some(()));
    assert_eq!(roots(&server), 1);

    // Status, and then silence.
    let said = |group: &str, plural: &str, name: &str, at: &str| {
        within(PATIENCE, name, || accepted(&server, group, plural, name, at))
    };
    assert_eq!(said(ROUTES, "httproutes", "shop/split", "/parents/0/conditions"), "True Accepted");
    assert_eq!(
        said("weft.dev", "authorizationpolicies", "shop/web", "/ancestors/0/conditions"),
        "False TargetNotFound"
    );
    assert_eq!(said("weft.dev", "meshconfigs", "default", "/conditions"), "True Accepted");
    assert_eq!(said("gateway.networking.x-k8s.io", "xmeshes", "weft", "/conditions"), "True Accepted");
    std::thread::sleep(Duration::from_secs(3));
    let before = writes(&server);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(writes(&server), before, "nothing changes, nothing is written: {:?}", server.counts());

    // The leader dies without a word.
    let first = usize::from(!replicas[0].leads());
    let started = now();
    replicas[first].kill().expect("killed");
    let other = &replicas[1 - first];
    within(PATIENCE, "the other leads", || other.leads().then_some(()));
    assert!(now().duration_since(started) > Duration::from_secs(9), "not before the Lease was old");
    assert!(other.is_ready());

    // It writes, and follows a rotation through the Secret.
    server.put(route("nobody"));
    within(PATIENCE, "the route is told", || {
        let said = accepted(&server, ROUTES, "httproutes", "shop/split", "/parents/0/conditions");
        (said.as_deref() == Some("False NoMatchingParent")).then_some(())
    });
    for (stage, expected) in [("begin", 2), ("switch", 2), ("finish", 1)] {
        let words = ["rotate-root", stage, "--ca-secret=weft-system/weft-ca", "--now"];
        assert!(control(&kubeconfig, &words).status().expect("it runs").success(), "{stage}");
        eventually(stage, || (roots(&server) == expected).then_some(()));
    }
    assert!(other.window("/metrics").contains("\nweft_control_authority_fault 0"));
}

/// An agent's view of control: a token, the roots that it trusts, and what it asks.
struct Caller {
    dir: TempDir,
    client: CaClient,
}

impl Caller {
    fn new(replica: &Replica, roots: &str, token: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (ca_roots, token_file) = (dir.path().join("roots.pem"), dir.path().join("token"));
        std::fs::write(&ca_roots, roots).expect("written");
        std::fs::write(&token_file, token).expect("written");
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        let trust = Trust::load(vec![(domain.clone(), ca_roots.clone())]).expect("roots");
        let settings = identity::Settings {
            trust_domain: domain,
            ca_address: replica.listen.clone(),
            ca_server_name: None,
            ca_roots,
            federated_roots: Vec::new(),
            token_file,
            certificate_ttl: Duration::from_secs(3600),
        };
        Self { dir, client: CaClient::new(&settings, Arc::new(trust)).expect("an address") }
    }

    /// A certificate for an account; its chain ends at one of the roots.
    async fn certificate(&self, namespace: &str, account: &str) -> Result<Svid, Error> {
        assert!(self.dir.path().exists(), "the token is read for each call");
        let domain = "cluster.local".parse().expect("valid");
        self.client.svid(&SpiffeId::of_service_account(&domain, namespace, account)).await
    }
}

fn run<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(work)
}

/// Waits for what needs a question each time.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A token of the agent's pod on a node, which the server knows; the pod and one of account `orders` are on the node.
fn agent_on(server: &ApiServer, node: &str) -> String {
    for (namespace, account) in [("weft-system", "weft-agent"), ("shop", "orders")] {
        let name = format!("{account}-{node}");
        server.put(json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace},
        }));
        server.put(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": []},
        }));
    }
    let name = format!("weft-agent-{node}");
    agent_token(server, &name)
}

/// A server with a mesh of two nodes, and where its kubeconfig is.
struct Scene {
    server: ApiServer,
    tokens: [String; 2],
    _dir: TempDir,
    kubeconfig: PathBuf,
}

fn scene() -> Scene {
    let server = ApiServer::with_mesh_kinds();
    mesh(&server);
    let tokens = ["node-1", "node-2"].map(|node| agent_on(&server, node));
    let dir = tempfile::tempdir().expect("a directory");
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(None)).expect("written");
    Scene { server, tokens, _dir: dir, kubeconfig }
}

#[test]
fn while_the_api_is_away_a_known_caller_is_served_and_a_new_one_told_to_try_again() {
    let scene = scene();
    let replica = Replica::start(&scene.kubeconfig);
    within(PATIENCE, "it is ready", || replica.is_ready().then_some(()));
    let roots = bundle(&scene.server).concat();
    let [known, new] = [0, 1].map(|index| Caller::new(&replica, &roots, &scene.tokens[index]));
    run(async {
        known.certificate("shop", "orders").await.expect("all is well");
        scene.server.down();
        known.certificate("shop", "orders").await.expect("keys and callers are in memory");
        match new.certificate("shop", "orders").await {
            Err(Error::CaUnreachable { message, .. }) => assert!(message.contains("try again"), "{message}"),
            answer => panic!("{answer:?}"),
        }
        assert!(replica.is_ready());
        scene.server.up();
        new.certificate("shop", "orders").await.expect("the API is back");
        known.certificate("shop", "orders").await.expect("as before");
    });
    within(PATIENCE, "it leads again", || replica.leads().then_some(()));
}

#[test]
fn a_root_is_exchanged_through_the_secret_and_the_bundle_vouches_for_it_at_each_stage() {
    let scene = scene();
    let replica = Replica::start(&scene.kubeconfig);
    within(PATIENCE, "it is ready", || replica.is_ready().then_some(()));
    let rotate = |stage: &str| {
        let words = ["rotate-root", stage, "--ca-secret=weft-system/weft-ca", "--now"];
        control(&scene.kubeconfig, &words).stderr(Stdio::null()).status().expect("it runs").success()
    };
    // Whether what is signed now ends at this root alone.
    let signs_under = |root: &str| {
        let caller = Caller::new(&replica, root, &scene.tokens[0]);
        async move { caller.certificate("shop", "orders").await.ok().map(drop) }
    };
    run(async {
        let [old] = <[String; 1]>::try_from(bundle(&scene.server)).expect("one root");
        signs_under(&old).await.expect("under the first root");
        assert!(!rotate("switch") && !rotate("finish"), "begin comes first");

        assert!(rotate("begin"));
        let both = until("both are published", || async {
            Some(bundle(&scene.server)).filter(|roots| roots.len() == 2)
        })
        .await;
        assert!(both.contains(&old), "{both:?}");
        let new = both.iter().find(|root| **root != old).expect("another one").clone();
        assert!(signs_under(&old).await.is_some() && signs_under(&new).await.is_none(), "begun only");

        assert!(rotate("switch"));
        until("it signs under the new root", || signs_under(&new)).await;
        assert!(signs_under(&old).await.is_none(), "and no more under the old one");
        assert_eq!(bundle(&scene.server).len(), 2, "certificates under the old one are still out");
        assert!(!rotate("begin"), "finish comes first");

        assert!(rotate("finish"));
        until("one is left", || async { (bundle(&scene.server) == [new.clone()]).then_some(()) }).await;
        signs_under(&new).await.expect("under the new root");
    });
    assert!(replica.window("/metrics").contains("\nweft_control_authority_fault 0"));
}

/// The authority behind an intermediate, as cert-manager has one.
struct Above {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from_unix_timestamp(1_600_000_000).expect("valid");
    params.not_after = OffsetDateTime::from_unix_timestamp(4_000_000_000).expect("valid");
    params
}

impl Above {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = authority("their root");
        let root = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// Writes an intermediate into the Secret, and gives its certificate. `until` is a time as Unix counts it.
    fn issue(&self, server: &ApiServer, name: &str, until: i64) -> Vec<u8> {
        let key = KeyPair::generate().expect("a key");
        let mut params = authority(name);
        params.not_after = OffsetDateTime::from_unix_timestamp(until).expect("valid");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let text = |text: &str| BASE64.encode(text.as_bytes());
        server.put(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "weft-intermediate", "namespace": "weft-system"},
            "data": {
                "tls.crt": text(&certificate.pem()), "tls.key": text(&key.serialize_pem()), "ca.crt": text(&self.root),
            },
        }));
        certificate.der().to_vec()
    }
}

#[test]
fn an_intermediate_of_another_authority_is_followed_and_an_expired_one_keeps_the_last_good() {
    const LATER: i64 = 4_000_000_000;
    let scene = scene();
    let above = Above::new();
    let first = above.issue(&scene.server, "first", LATER);
    let replica =
        Replica::start_with(&scene.kubeconfig, &["--intermediate-secret=weft-system/weft-intermediate"]);
    within(PATIENCE, "it is ready", || replica.is_ready().then_some(()));
    assert_eq!(bundle(&scene.server), [above.root.trim()]);
    assert!(scene.server.object("", "secrets", "weft-system/weft-ca").is_none(), "no keys of our own");
    let caller = Caller::new(&replica, &above.root, &scene.tokens[0]);
    let signer = || async {
        let svid = caller.certificate("shop", "orders").await.expect("signed");
        svid.chain[1].to_vec()
    };
    let is_faulty = || replica.window("/metrics").contains("\nweft_control_authority_fault 1");
    run(async {
        assert_eq!(signer().await, first);
        let second = above.issue(&scene.server, "second", LATER);
        until("the renewal signs", || async { (signer().await == second).then_some(()) }).await;

        let expired = above.issue(&scene.server, "expired", 1_600_000_001);
        until("it is noticed", || async { is_faulty().then_some(()) }).await;
        let conditions = scene.server.object("weft.dev", "meshconfigs", "default");
        assert!(conditions.is_some() && replica.is_ready());
        assert!(signer().await == second && second != expired, "the last good one signs");
        assert_eq!(bundle(&scene.server), [above.root.trim()]);

        let third = above.issue(&scene.server, "third", LATER);
        until("the next renewal signs", || async { (signer().await == third).then_some(()) }).await;
        assert!(!is_faulty());
    });
}

/// A token of an account, made by the server, bound to a pod where one is named.
async fn token_of(stage: &Stage, account: &str, audience: &str, pod: Option<&Value>) -> String {
    let mut request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [audience], "expirationSeconds": 3600},
    });
    if let Some(pod) = pod {
        let metadata = &pod["metadata"];
        request["spec"]["boundObjectRef"] =
            json!({"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]});
    }
    let path = stage.path(&format!("serviceaccounts/{account}/token"));
    let answer = stage.create_all(&path, &request).await.expect("a token can be made");
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

async fn pod_of(stage: &Stage, name: &str, account: &str, node: &str) -> Value {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "example.test/main:1"}],
        },
    });
    stage.create("pods", &pod).await.expect("a pod can be made")
}

fn refused(answer: Result<Svid, Error>) -> Code {
    match answer {
        Err(Error::CaRefused { code, .. }) => code,
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn a_token_that_the_api_server_made_for_an_agents_pod_stands_for_its_node() {
    on_stage(|stage| async move {
        let system = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "weft-system"}});
        let made = stage.create_all("/api/v1/namespaces", &system).await;
        assert!(made.is_ok() || made.as_ref().is_err_and(|refusal| refusal.code == 409), "{made:?}");
        if let Some(server) = stage.small() {
            server.serve_mesh_kinds();
        }
        for account in ["weft-agent", "orders", "payments"] {
            let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
            stage.create("serviceaccounts", &object).await.expect("an account can be made");
        }
        let agent = pod_of(&stage, "agent", "weft-agent", "node-1").await;
        pod_of(&stage, "orders-0", "orders", "node-1").await;
        pod_of(&stage, "payments-0", "payments", "node-2").await;

        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = match stage.small() {
            Some(server) => {
                let path = dir.path().join("kubeconfig");
                std::fs::write(&path, server.kubeconfig(None)).expect("written");
                path
            }
            None => std::env::var_os(KUBECONFIG).expect("it named the server").into(),
        };
        let namespace = stage.namespace();
        let account = format!("--agent-service-account={namespace}/weft-agent");
        let secret = format!("--ca-secret={namespace}/weft-ca");
        let replica = Replica::start_with(&kubeconfig, &[&account, &secret]);
        until("it is ready", || async { replica.is_ready().then_some(()) }).await;
        let (_, bundle) = stage.get("/api/v1/namespaces/weft-system/configmaps/weft-trust-bundle").await;
        let roots = bundle["data"]["roots.pem"].as_str().expect("published");

        let token = token_of(&stage, "weft-agent", "weft-control", Some(&agent)).await;
        let caller = Caller::new(&replica, roots, &token);
        caller.certificate(namespace, "orders").await.expect("a pod of its node");
        assert_eq!(refused(caller.certificate(namespace, "payments").await), Code::PermissionDenied);

        let unbound = token_of(&stage, "weft-agent", "weft-control", None).await;
        let elsewhere = token_of(&stage, "weft-agent", "somebody-else", Some(&agent)).await;
        let orders = pod_of(&stage, "orders-1", "orders", "node-1").await;
        let another = token_of(&stage, "orders", "weft-control", Some(&orders)).await;
        let (head, tail) = token.rsplit_once('.').expect("three parts");
        let flipped: String = tail.chars().rev().collect();
        for (what, token) in [
            ("no pod", unbound),
            ("another audience", elsewhere),
            ("another account", another),
            ("another signature", format!("{head}.{flipped}")),
        ] {
            let caller = Caller::new(&replica, roots, &token);
            assert_eq!(
                refused(caller.certificate(namespace, "orders").await),
                Code::Unauthenticated,
                "{what}"
            );
        }

        // The pod goes; its token is worth nothing from then on.
        let at_once = json!({"gracePeriodSeconds": 0});
        stage.ask("DELETE", &stage.path("pods/agent"), "application/json", &at_once).await;
        until("it is refused", || async {
            let answer = caller.certificate(namespace, "orders").await;
            matches!(answer, Err(Error::CaRefused { code: Code::Unauthenticated, .. })).then_some(())
        })
        .await;
    });
}
