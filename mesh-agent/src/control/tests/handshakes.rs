//! What peers accept of each other: real rustls handshakes, in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::{ClientConfig, ClientConnection, NamedGroup, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use time::OffsetDateTime;

use super::{Mesh, domain, id};
use crate::control::ca::Authority;
use crate::identity::trust::Trust;
use crate::identity::verify::Verifier;
use crate::identity::{peer_identity, refusal_label, tls};
use crate::model::SpiffeId;

const HOUR: Duration = Duration::from_secs(3600);

/// Each side's peer, or why it refused.
pub(super) type Outcome = Result<(SpiffeId, SpiffeId), &'static str>;

/// A whole handshake. On success: whom the client sees, whom the server sees. On failure: the label of the side that
/// found the fault.
pub(super) fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Outcome {
    let (client, server) = connect(client, server).map_err(|error| refusal_label(&error))?;
    assert_eq!(client.alpn_protocol(), Some(&b"weft/1"[..]));
    let seen = |certs: Option<&[CertificateDer<'_>]>| peer_identity(certs.expect("shown")).expect("an id");
    Ok((seen(client.peer_certificates()), seen(server.peer_certificates())))
}

fn connect(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from("10.0.0.7").expect("an address");
    let mut client = ClientConnection::new(client, name)?;
    let mut server = ServerConnection::new(server)?;
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).expect("to memory");
        }
        server.read_tls(&mut &flight[..]).expect("from memory");
        server.process_new_packets()?;
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).expect("to memory");
        }
        client.read_tls(&mut &flight[..]).expect("from memory");
        client.process_new_packets()?;
    }
    Ok((client, server))
}

/// Signs whatever a test likes with a CA's intermediate.
fn forge(state_dir: &Path, change: impl FnOnce(&mut CertificateParams)) -> Arc<rustls::sign::CertifiedKey> {
    let pem = std::fs::read(state_dir.join("authority.pem")).expect("the CA's file");
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().expect("PEM");
    let keys: Vec<_> = PrivateKeyDer::pem_slice_iter(&pem).collect::<Result<_, _>>().expect("PEM");
    let issuer_key = KeyPair::try_from(&keys[1]).expect("a key");
    let issuer = Issuer::from_ca_cert_der(&certificates[1], &issuer_key).expect("an issuer");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/orders")];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = OffsetDateTime::now_utc() - HOUR;
    params.not_after = OffsetDateTime::now_utc() + HOUR;
    change(&mut params);
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, &issuer).expect("signed").into();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    tls::certified(vec![leaf, certificates[1].clone()], key).expect("they match")
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// A CA on disk with its bundle published, and what verifies against it.
fn authority() -> (Mesh, Arc<Verifier>) {
    let mesh = Mesh::new(HOUR);
    let authority = Authority::open(&mesh.settings.state_dir, &domain("cluster.local")).expect("opens");
    std::fs::write(mesh.path("roots.pem"), authority.bundle_pem()).expect("written");
    let trust = Trust::load(vec![(domain("cluster.local"), mesh.path("roots.pem"))]).expect("roots");
    (mesh, Arc::new(Verifier::new(Arc::new(trust))))
}

#[tokio::test]
async fn workloads_see_each_others_identity() {
    let mesh = Mesh::new(HOUR);
    let (address, _) = mesh.start_control();
    let one = mesh.start_node("node-1", &address, &["orders"]).await;
    let two = mesh.start_node("node-2", &address, &["payments"]).await;
    let client = one.client_config(&id("orders")).expect("valid");
    let server = two.server_config(&id("payments")).expect("valid");
    assert_eq!(shake(client.clone(), server.clone()), Ok((id("payments"), id("orders"))));

    let (client, server) = connect(client, server).expect("connects");
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = client.negotiated_key_exchange_group().expect("agreed").name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    let suite = client.negotiated_cipher_suite().expect("agreed").suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(client.peer_certificates().expect("shown").len(), 2, "leaf and intermediate, no root");
    assert_eq!(server.server_name(), None);
    assert_eq!(client.tls13_tickets_received(), 0);
}

#[test]
fn each_fault_of_a_certificate_has_its_own_label_on_either_side() {
    let (mesh, verifier) = authority();
    let (foreign, _) = authority();
    let (ours, theirs) = (mesh.settings.state_dir.as_path(), foreign.settings.state_dir.as_path());
    let now = OffsetDateTime::now_utc();
    let good = forge(ours, |_| {});
    for (expected, bad) in [
        (None, forge(ours, |_| {})),
        (Some("expired"), forge(ours, |params| params.not_after = now - Duration::from_secs(2))),
        (Some("not_yet_valid"), forge(ours, |params| params.not_before = now + HOUR / 2)),
        (Some("unknown_issuer"), forge(theirs, |_| {})),
        (
            Some("wrong_trust_domain"),
            forge(ours, |params| params.subject_alt_names = vec![uri("spiffe://other.example/ns/a/sa/b")]),
        ),
        (Some("no_spiffe_id"), forge(ours, |params| params.subject_alt_names.clear())),
        (
            Some("no_spiffe_id"),
            forge(ours, |params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/a/sa/b"))),
        ),
        (
            Some("bad_certificate"),
            forge(ours, |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }),
        ),
    ] {
        let client = |certified| tls::client_config(certified, verifier.clone()).expect("a configuration");
        let server = |certified| tls::server_config(certified, verifier.clone()).expect("a configuration");
        assert_eq!(shake(client(bad.clone()), server(good.clone())).err(), expected, "as a client");
        assert_eq!(shake(client(good.clone()), server(bad)).err(), expected, "as a server");
    }
}

#[test]
fn client_without_a_certificate_and_plain_bytes_have_labels_of_their_own() {
    let (mesh, verifier) = authority();
    let server =
        tls::server_config(forge(&mesh.settings.state_dir, |_| {}), verifier.clone()).expect("usable");
    let anonymous = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let mut anonymous_without_alpn = anonymous.clone();
    anonymous_without_alpn.alpn_protocols.clear();
    assert_eq!(shake(Arc::new(anonymous_without_alpn), server.clone()), Err("no_certificate"));
    let mut other_protocol = anonymous;
    other_protocol.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert_eq!(shake(Arc::new(other_protocol), server.clone()), Err("protocol"));

    for plain in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.9\r\n", b"\x00\x00\x00\x00\x00\x00"] {
        let mut server = ServerConnection::new(server.clone()).expect("a connection");
        server.read_tls(&mut &plain[..]).expect("from memory");
        let error = server.process_new_packets().expect_err("no TLS");
        assert_eq!(refusal_label(&error), "not_tls", "{plain:?}: {error}");
    }
}

#[test]
fn refused_side_learns_that_it_was_refused() {
    let (mesh, verifier) = authority();
    let now = OffsetDateTime::now_utc();
    let expired = forge(&mesh.settings.state_dir, |params| params.not_after = now - HOUR / 2);
    let server = tls::server_config(expired, verifier.clone()).expect("usable");
    let client = tls::client_config(forge(&mesh.settings.state_dir, |_| {}), verifier).expect("usable");
    let name = ServerName::try_from("10.0.0.7").expect("an address");
    let (mut client, mut server) =
        (ClientConnection::new(client, name).expect("new"), ServerConnection::new(server).expect("new"));
    let mut flight = Vec::new();
    client.write_tls(&mut flight).expect("to memory");
    server.read_tls(&mut &flight[..]).expect("from memory");
    server.process_new_packets().expect("a good hello");
    flight.clear();
    while server.wants_write() {
        server.write_tls(&mut flight).expect("to memory");
    }
    client.read_tls(&mut &flight[..]).expect("from memory");
    assert_eq!(client.process_new_packets().err().map(|error| refusal_label(&error)), Some("expired"));
    flight.clear();
    while client.wants_write() {
        client.write_tls(&mut flight).expect("to memory");
    }
    server.read_tls(&mut &flight[..]).expect("from memory");
    assert_eq!(
        server.process_new_packets().err().map(|error| refusal_label(&error)),
        Some("refused_by_peer")
    );
}

#[test]
fn federated_domain_is_recognised_by_its_own_roots_only() {
    let (mesh, _) = authority();
    let (foreign, _) = authority();
    let bundles = vec![
        (domain("cluster.local"), mesh.path("roots.pem")),
        (domain("other.example"), foreign.path("roots.pem")),
    ];
    let verifier = Arc::new(Verifier::new(Arc::new(Trust::load(bundles).expect("roots"))));
    let (ours, theirs) = (mesh.settings.state_dir.as_path(), foreign.settings.state_dir.as_path());
    let named = |dir, name: &str| forge(dir, |params| params.subject_alt_names = vec![uri(name)]);
    for (expected, certified) in [
        (Ok(()), named(theirs, "spiffe://other.example/ns/a/sa/b")),
        (Err("unknown_issuer"), named(ours, "spiffe://other.example/ns/a/sa/b")),
        (Err("unknown_issuer"), named(theirs, "spiffe://cluster.local/ns/a/sa/b")),
    ] {
        let checked = verifier.check(&certified.cert, tls::unix_now());
        assert_eq!(checked.map_err(|error| refusal_label(&error)), expected);
    }
}
