//! Who gets a certificate, and how a refusal is worded.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use tonic::Code;

use super::{Mesh, PATIENCE, id, put_secret, until, workload};
use crate::identity::{self, Error};
use crate::lifecycle::clock;
use crate::model::MeshConfig;
use crate::registry::Snapshot;

const HOUR: Duration = Duration::from_secs(3600);

fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> (Code, String) {
    match answer {
        Err(Error::CaRefused { code, message, .. }) => (code, message),
        other => panic!("not refused: {other:?}"),
    }
}

fn csr() -> String {
    let key = KeyPair::generate().expect("a key");
    CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("PEM")
}

#[tokio::test]
async fn node_gets_the_identities_of_its_pods() {
    let mesh = Mesh::new(HOUR);
    let (address, stats) = mesh.start_control();
    let identities = mesh.start_node("node-1", &address, &["orders", "web"]).await;
    let held = identities.certificates();
    assert_eq!(held.iter().map(|info| info.id.clone()).collect::<Vec<_>>(), [id("orders"), id("web")]);
    let left = held[0].not_after.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_secs();
    let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).expect("later").as_secs();
    assert!((now + 3590..=now + 3600).contains(&left), "MeshConfig's hour, not the 24 asked for");
    assert_eq!(
        held[0].not_after.duration_since(held[0].not_before).expect("later"),
        HOUR + Duration::from_secs(20)
    );
    assert_eq!(held[0].serial.len(), 40, "20 octets: {}", held[0].serial);
    assert_ne!(held[0].serial, held[1].serial);
    assert!(held[0].issuer.contains("cluster.local intermediate"), "{}", held[0].issuer);
    assert_eq!(stats.counts().issued, 2);
    assert_eq!(identities.counts().issued, 2);
}

#[tokio::test]
async fn certificates_of_three_seconds_are_renewed_without_a_gap() {
    let mesh = Mesh::new(Duration::from_secs(3));
    let (address, _) = mesh.start_control();
    let identities = mesh.start_node("node-1", &address, &["orders"]).await;
    let mut serials = HashSet::new();
    let started = clock::now();
    while clock::now().duration_since(started) < Duration::from_secs(7) {
        assert!(
            identities.client_config(&id("orders")).is_some(),
            "after {:?}",
            clock::now().duration_since(started)
        );
        assert!(
            identities.server_config(&id("orders")).is_some(),
            "after {:?}",
            clock::now().duration_since(started)
        );
        serials.insert(identities.certificates()[0].serial.clone());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!((3..=8).contains(&serials.len()), "{} certificates in 7 s", serials.len());
}

#[tokio::test]
async fn certificate_is_kept_until_it_expires_while_the_ca_is_away_and_then_it_is_gone() {
    let mesh = Mesh::new(Duration::from_secs(3));
    let (trigger, shutdown) = crate::lifecycle::shutdown::channel();
    let mut away = Mesh { shutdown, ..mesh };
    let (address, _) = away.start_control();
    (_, away.shutdown) = crate::lifecycle::shutdown::channel();
    let (_running, running) = crate::lifecycle::shutdown::channel();
    away.shutdown = running;
    let identities = away.start_node("node-1", &address, &["orders"]).await;
    trigger.fire();
    until("the CA is missed", || identities.counts().failed > 0).await;
    assert!(identities.client_config(&id("orders")).is_some(), "still valid");
    until("it expires", || identities.client_config(&id("orders")).is_none()).await;
    assert!(identities.server_config(&id("orders")).is_none());
    until("the expired one is dropped", || identities.certificates().is_empty()).await;

    away.settings.listen = address.parse().expect("the same address as before");
    away.start_control();
    assert!(identities.wait_for(&id("orders"), PATIENCE).await, "the CA is back");
}

#[tokio::test]
async fn identity_that_is_no_longer_wanted_is_dropped() {
    let mesh = Mesh::new(HOUR);
    let (address, _) = mesh.start_control();
    let identities = mesh.start_node("node-1", &address, &["orders", "web"]).await;
    let series =
        r#"weft_certificate_expiry_timestamp_seconds{spiffe_id="spiffe://cluster.local/ns/shop/sa/orders"}"#;
    assert!(mesh.metrics().contains(series), "{}", mesh.metrics());
    assert!(mesh.metrics().contains(r#"weft_certificate_renewals_total{result="success"} 2"#));
    identities.set_wanted(HashSet::from([id("web")]));
    until("orders is dropped", || identities.client_config(&id("orders")).is_none()).await;
    assert_eq!(identities.certificates().len(), 1);
    assert!(!mesh.metrics().contains(series));
    assert!(identities.client_config(&id("web")).is_some());
    assert!(!identities.wait_for(&id("orders"), Duration::from_millis(50)).await);
}

#[tokio::test]
async fn node_without_a_pod_of_the_account_is_refused_until_one_arrives() {
    let mesh = Mesh::new(HOUR);
    let (address, stats) = mesh.start_control();
    let client = mesh.client("node-2", &address);
    let (code, message) = refusal(client.svid(&id("orders")).await);
    assert_eq!(code, Code::PermissionDenied);
    assert_eq!(message, "pod on node: no pod with service account shop/orders is on node node-2");
    assert_eq!((stats.counts().issued, stats.counts().no_pod_on_node), (0, 1));

    let pods = vec![workload("shop", "orders-1", "orders", "node-2")];
    mesh.writer.publish(Snapshot::new(MeshConfig::default(), pods, Vec::new()));
    client.svid(&id("orders")).await.expect("a pod is there now");
}

#[tokio::test]
async fn token_that_names_no_node_is_refused_and_a_changed_one_is_followed() {
    let mesh = Mesh::new(HOUR);
    let (address, stats) = mesh.start_control();
    let client = mesh.client("node-1", &address);
    for wrong in ["not-the-token-of-any-node", "a-join-token-for-node-", "x"] {
        put_secret(&mesh.path("node-1.token"), wrong);
        let (code, message) = refusal(client.svid(&id("orders")).await);
        assert_eq!(code, Code::Unauthenticated);
        assert!(message.starts_with("join token"), "{message}");
    }
    assert_eq!(stats.counts().bad_token, 3);

    put_secret(&mesh.path("tokens").join("node-1"), "another-token-for-node-1");
    put_secret(&mesh.path("node-1.token"), "another-token-for-node-1");
    let mut answer = client.svid(&id("orders")).await;
    for _ in 0..100 {
        if answer.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer = client.svid(&id("orders")).await;
    }
    answer.expect("the new token is known without a restart");
}

#[tokio::test]
async fn ids_that_are_not_ours_are_refused_by_name() {
    let mesh = Mesh::new(HOUR);
    let (address, stats) = mesh.start_control();
    let client = mesh.client("node-1", &address);
    for (wanted, rule) in [
        ("spiffe://other.example/ns/shop/sa/orders", "trust domain: other.example is not cluster.local"),
        ("spiffe://cluster.local/agent/node-1", "id shape:"),
    ] {
        let (code, message) = refusal(client.svid(&wanted.parse().expect("an id")).await);
        assert_eq!(code, Code::PermissionDenied);
        assert!(message.contains(rule), "{message}");
    }
    assert_eq!((stats.counts().trust_domain, stats.counts().id_shape), (1, 1));
}

#[tokio::test]
async fn signing_requests_must_be_well_formed_and_signed_by_their_own_key() {
    let mesh = Mesh::new(HOUR);
    let (address, stats) = mesh.start_control();
    let client = mesh.client("node-1", &address);
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let p384 = CertificateParams::default().serialize_request(&p384).expect("a request").pem().expect("PEM");
    for (wrong, expected) in [
        (String::new(), "malformed"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".to_owned(),
            "malformed",
        ),
        (with_a_flipped_signature_bit(&csr()), "not signed by its own key"),
        (p384, "not ECDSA P-256"),
    ] {
        let (code, message) = refusal(client.create_certificate(&id("orders"), wrong).await);
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(stats.counts().bad_request, 4);
    client.create_certificate(&id("orders"), csr()).await.expect("a good one passes");
}

fn with_a_flipped_signature_bit(csr: &str) -> String {
    use rustls_pki_types::CertificateSigningRequestDer;
    use rustls_pki_types::pem::PemObject as _;
    let mut der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).expect("PEM").to_vec();
    *der.last_mut().expect("not empty") ^= 1;
    let certificate = super::super::ca::pems::certificate_pem(&der.into());
    certificate.replace("CERTIFICATE", "CERTIFICATE REQUEST")
}

#[tokio::test]
async fn nothing_of_the_request_but_its_key_reaches_the_certificate() {
    let mesh = Mesh::new(HOUR);
    let (address, _) = mesh.start_control();
    let key = KeyPair::generate().expect("a key");
    let mut greedy = CertificateParams::new(["admin.example".to_owned()]).expect("a name");
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let greedy = greedy.serialize_request(&key).expect("a request").pem().expect("PEM");
    let answer =
        mesh.client("node-1", &address).create_certificate(&id("orders"), greedy).await.expect("signed");
    let (_, pem) = x509_parser::pem::parse_x509_pem(answer.cert_chain[0].as_bytes()).expect("PEM");
    let leaf = pem.parse_x509().expect("a certificate");
    let names = leaf.subject_alternative_name().expect("parses").expect("is there");
    assert_eq!(format!("{:?}", names.value.general_names), format!("[URI({:?})]", id("orders").as_str()));
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(answer.cert_chain.len(), 3, "leaf, intermediate, root");
}

#[tokio::test]
async fn a_hundred_identities_are_fetched_and_renewed_side_by_side() {
    let mesh = Mesh::new(Duration::from_secs(6));
    let accounts: Vec<String> = (0..100).map(|index| format!("account-{index}")).collect();
    let pods = accounts.iter().map(|account| workload("shop", account, account, "node-1")).collect();
    let config = MeshConfig { certificate_ttl: Duration::from_secs(6), ..MeshConfig::default() };
    mesh.writer.publish(Snapshot::new(config, pods, Vec::new()));
    let (address, stats) = mesh.start_control();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let identities = mesh.start_node("node-1", &address, &accounts).await;
    until("each is renewed", || stats.counts().issued >= 200).await;
    assert_eq!(identities.certificates().len(), 100);
    assert!(accounts.iter().all(|account| identities.client_config(&id(account)).is_some()));
    assert_eq!(identities.counts().failed, 0);
}

#[tokio::test]
async fn ca_under_a_foreign_root_is_not_talked_to() {
    let (mesh, impostor) = (Mesh::new(HOUR), Mesh::new(HOUR));
    mesh.start_control();
    let (address, stats) = impostor.start_control();
    match mesh.client("node-1", &address).svid(&id("orders")).await {
        Err(Error::CaUnreachable { message, .. }) => assert!(message.contains("UnknownIssuer"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(stats.counts(), Default::default(), "the token was not sent");
}

#[tokio::test]
async fn identities_start_without_a_ca_and_catch_up() {
    let mut mesh = Mesh::new(HOUR);
    let control = super::Control::open(mesh.settings.clone(), mesh.registry.clone()).expect("opens");
    mesh.settings.listen = control.local_addr();
    drop(control);
    let settings = mesh.identity_settings("node-1", &mesh.settings.listen.to_string());
    let identities =
        identity::start(settings, mesh.telemetry.clone(), mesh.shutdown.clone()).expect("starts");
    identities.set_wanted(HashSet::from([id("orders")]));
    until("it has asked in vain", || identities.counts().failed >= 2).await;
    mesh.start_control();
    assert!(identities.wait_for(&id("orders"), PATIENCE).await);
}
