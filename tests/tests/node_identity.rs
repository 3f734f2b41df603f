//! Identity: every way to be somebody else is refused with its own reason, on either side of a tunnel, and certificates and
//! roots change under traffic without a failure.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_tests::seen::{self, Metrics};
use mesh_tests::wire::Serve;
use mesh_tests::{Lab, World, eventually, wait};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use time::OffsetDateTime;

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(3);

fn world() -> World {
    World::new()
        .meshed("shop")
        .unmeshed("outside")
        .pod("shop/web", "node-1")
        .pod("shop/near", "node-1")
        .pod("shop/far", "node-2")
        .pod("outside/plain", "node-1")
}

/// A certificate chain with its key.
type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Somebody who got at a CA's key, and signs what he likes.
fn forge(authority: &Path, change: impl FnOnce(&mut CertificateParams)) -> Certified {
    let pem = std::fs::read(authority).expect("the CA's file");
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().expect("PEM");
    let keys: Vec<_> = PrivateKeyDer::pem_slice_iter(&pem).collect::<Result<_, _>>().expect("PEM");
    let issuer_key = KeyPair::try_from(&keys[1]).expect("the intermediate's key");
    let issuer = Issuer::from_ca_cert_der(&certificates[1], &issuer_key).expect("an issuer");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/ghost")];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = OffsetDateTime::now_utc() - HOUR;
    params.not_after = OffsetDateTime::now_utc() + HOUR;
    change(&mut params);
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, &issuer).expect("signed").into();
    (vec![leaf, certificates[1].clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// Each fault of a certificate with the reason that it must be refused for.
fn faults(ours: &Path, theirs: &Path) -> Vec<(&'static str, Certified)> {
    let now = OffsetDateTime::now_utc();
    vec![
        ("expired", forge(ours, |params| params.not_after = now - Duration::from_secs(60))),
        ("not_yet_valid", forge(ours, |params| params.not_before = now + HOUR / 2)),
        ("unknown_issuer", forge(theirs, |_| {})),
        (
            "wrong_trust_domain",
            forge(ours, |params| {
                params.subject_alt_names = vec![uri("spiffe://other.example/ns/shop/sa/ghost")]
            }),
        ),
        ("no_spiffe_id", forge(ours, |params| params.subject_alt_names.clear())),
        (
            "bad_certificate",
            forge(ours, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
        ),
    ]
}

/// Believes anybody: it is the other side's judgement that is tested.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client_config(certified: Option<Certified>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match certified {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("they match"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"weft/1".to_vec()];
    Arc::new(config)
}

fn server_config((chain, key): Certified) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they match");
    config.alpn_protocols = vec![b"weft/1".to_vec()];
    Arc::new(config)
}

/// Shakes hands with a pod's agent; true when it is still content a moment later.
fn is_accepted(to: SocketAddr, config: Arc<ClientConfig>) -> bool {
    let mut socket = TcpStream::connect(to).expect("the agent accepts");
    socket.set_read_timeout(Some(Duration::from_millis(400))).expect("a socket");
    let name = ServerName::IpAddress(to.ip().into());
    let mut connection = ClientConnection::new(config, name).expect("a connection");
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    // The server judges the client after the client's handshake is over; then it says nothing, or goodbye.
    stream.read_exact(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn whoever_dials_a_tunnel_with_a_bad_certificate_is_refused_with_its_own_reason() {
    let (lab, foreign) = (Lab::up(&world()), Lab::up(&World::new().meshed("shop").pod("shop/web", "node-1")));
    let far = lab.probe("shop/far");
    let server = far.serve(8080, Serve::Greet);
    let to = lab.v4("shop/far", 15008);
    let authority = |lab: &Lab| lab.dir().join("control-state/authority.pem");
    let mut cases: Vec<_> = faults(&authority(&lab), &authority(&foreign))
        .into_iter()
        .map(|(reason, certified)| (reason, Some(certified)))
        .collect();
    cases.push(("no_certificate", None));
    for (reason, certified) in cases {
        let accepted = lab.in_pod("outside/plain", || is_accepted(to, client_config(certified)));
        assert!(!accepted, "{reason}");
        let record = lab.record("node-2", reason, |record| record["reason"] == reason);
        assert_eq!(record["ending"], "tls_failed", "{record}");
        assert_eq!(record["path"], "tunnel", "{record}");
        assert_eq!(record["source"].get("identity"), None, "nothing was verified: {record}");
        let labels = [("role", "server"), ("result", reason)];
        lab.metric_reaches("node-2", "weft_tunnel_handshakes_total", &labels, 1.0);
        let log = std::fs::read_to_string(&lab.agent("node-2").log).unwrap();
        assert!(log.lines().any(|line| line.contains("tunnel refused") && line.contains(reason)), "{reason}");
    }
    assert!(server.served().is_empty(), "no byte of them reached the application");
    // The other direction: what has no fault is accepted.
    let good = forge(&authority(&lab), |_| {});
    assert!(lab.in_pod("outside/plain", || is_accepted(to, client_config(Some(good)))), "a good certificate");
}

#[test]
fn whoever_answers_for_a_pod_with_a_bad_certificate_is_refused_with_its_own_reason() {
    let (lab, foreign) = (Lab::up(&world()), Lab::up(&World::new().meshed("shop").pod("shop/web", "node-1")));
    let authority = |lab: &Lab| lab.dir().join("control-state/authority.pem");
    // A pod that the mesh believes to be enrolled, at an address where the test itself answers.
    let ghost = lab.node("node-2").ips[0];
    lab.apply(
        "ghost.yaml",
        &format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: ghost, namespace: shop}}\n---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: ghost, namespace: shop}}\nspec: {{nodeName: node-2, serviceAccountName: ghost}}\n\
             status: {{podIP: {ghost}}}\n"
        ),
    );
    let listener = lab.in_node("node-2", || TcpListener::bind((ghost, 15008)).expect("the port is free"));
    let web = lab.probe("shop/web");
    let mut cases: Vec<_> = faults(&authority(&lab), &authority(&foreign))
        .into_iter()
        .map(|(reason, certified)| (("tls_failed", Some(reason)), certified))
        .collect();
    let named = |id: &str| forge(&authority(&lab), |params| params.subject_alt_names = vec![uri(id)]);
    cases.push((("identity_mismatch", None), named("spiffe://cluster.local/ns/shop/sa/far")));
    // The right identity is believed; that the stranger then says nothing is another matter.
    cases.push((("tunnel_failed", None), named("spiffe://cluster.local/ns/shop/sa/ghost")));
    for ((ending, reason), certified) in cases {
        let marks = lab.access_records("node-1").len();
        let config = server_config(certified);
        let heard = std::thread::scope(|scope| {
            let answering = scope.spawn(|| answer_once(&listener, config));
            let refusal = web.connect(SocketAddr::new(ghost, 8080)).and_then(|conn| {
                conn.send("a secret")?;
                conn.receive()
            });
            refusal.expect_err("nobody is there who could answer");
            answering.join().unwrap()
        });
        let record = eventually("a record", || lab.access_records("node-1").get(marks).cloned());
        assert_eq!(record["ending"], ending, "{reason:?}: {record}");
        if let Some(reason) = reason {
            assert_eq!(record["reason"], reason, "{record}");
        }
        if ending != "tunnel_failed" {
            assert!(heard.is_empty(), "{ending} {reason:?}: a stranger heard {} bytes", heard.len());
            let labels = [("role", "client"), ("result", ending)];
            lab.metric_reaches("node-1", "weft_tunnel_handshakes_total", &labels, 1.0);
        }
    }
    // Somebody who does not speak TLS at all.
    let marks = lab.access_records("node-1").len();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.9\r\n");
            let _ = socket.read_exact(&mut [0; 1]);
        });
        web.call(SocketAddr::new(ghost, 8080)).expect_err("no tunnel, no connection");
    });
    let record = eventually("a record", || lab.access_records("node-1").get(marks).cloned());
    assert_eq!(record["ending"], "tls_failed", "{record}");
}

/// Accepts one tunnel, shakes hands, and gives what the client said afterwards, decrypted.
fn answer_once(listener: &TcpListener, config: Arc<ServerConfig>) -> Vec<u8> {
    let (mut socket, _) = listener.accept().expect("the agent dials");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut connection = ServerConnection::new(config).expect("a connection");
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    let mut heard = [0; 1024];
    let count = stream.read(&mut heard).unwrap_or(0);
    heard[..count].to_vec()
}

#[test]
fn a_node_gets_no_certificate_for_accounts_that_run_elsewhere() {
    let mut lab = Lab::up(&world());
    let (web, far) = (lab.probe("shop/web"), lab.probe("shop/far"));
    let _server = far.serve(8080, Serve::Greet);
    let target = lab.v4("shop/far", 8080);
    web.call(target).expect("all is well");
    let nodes = lab.nodes().len();
    eventually("every node has told control what is in its kernel", || {
        let (_, page) = seen::get(&lab.control().admin, "/metrics").ok()?;
        (Metrics::parse(&page).sum("weft_control_nodes_reporting", &[]) == nodes as f64).then_some(())
    });
    lab.kill_agent("node-2");
    // Somebody with node-1's token asks for the accounts of node-2.
    let stolen = lab.dir().join("tokens/node-1");
    let (impostor, _log) = lab.impostor("node-2", &[("--join-token-file", &stolen.to_string_lossy())]);
    let refused = eventually("control refuses", || {
        let log = std::fs::read_to_string(&lab.control().log).unwrap();
        log.lines().find(|line| line.contains("certificate refused")).map(str::to_owned)
    });
    assert!(refused.contains("node-1"), "it knows who asks: {refused}");
    assert!(refused.contains("shop/far"), "and for what: {refused}");
    let issued =
        |log: &str| log.lines().any(|line| line.contains("certificate issued") && line.contains("sa/web"));
    assert!(issued(&std::fs::read_to_string(&lab.control().log).unwrap()), "its own accounts node-1 did get");
    web.call(target).expect_err("without its certificate the pod cannot be reached");
    drop(impostor);
    lab.restart_agent("node-2");
    eventually("the true node-2 gets it", || web.call(target).ok());
}

#[test]
fn certificates_and_roots_change_under_traffic_without_a_failure() {
    let short = "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec:\n  certificates: {ttl: 4s}\n";
    let mut lab = Lab::up(&world().file("mesh.yaml", short));
    let (near, far) = (lab.probe("shop/near"), lab.probe("shop/far"));
    let _served = [&near, &far].map(|probe| probe.serve(8080, Serve::Greet));
    let (web, back) = (lab.probe("shop/web"), lab.probe("shop/far"));
    let (there, here) = (lab.v4("shop/far", 8080), lab.v4("shop/near", 8080));
    let loads = [web.load(&[there, here], 3000), back.load(&[here], 3000)];
    let held = web.connect(there).expect("all is well");
    held.receive().expect("it is greeted");

    // Several generations of leaves.
    let renewed =
        |node: &str| lab.metrics(node).sum("weft_certificate_renewals_total", &[("result", "success")]);
    let start = ["node-1", "node-2"].map(renewed);
    wait::within(Duration::from_secs(15), "two renewals for each account of both nodes", || {
        (renewed("node-1") >= start[0] + 4.0 && renewed("node-2") >= start[1] + 2.0).then_some(())
    });
    // Another root, stage by stage; what the operator's manual says to wait for, the test waits for.
    let state = lab.dir().join("control-state").to_string_lossy().into_owned();
    let rotate = |stage: &str, patience: &[&str]| {
        let words =
            [&["control", "rotate-root", stage, "--state-dir", &state, "--certificate-ttl", "4s"], patience]
                .concat();
        lab.mesh_agent(&words)
    };
    let roots = || std::fs::read_to_string(lab.dir().join("roots.pem")).unwrap();
    let old_root = roots();
    assert!(!rotate("switch", &["--now"]).status.success(), "no switch before begin");
    assert!(rotate("begin", &[]).status.success());
    eventually("two roots are published", || {
        (roots().matches("BEGIN CERTIFICATE").count() == 2).then_some(())
    });
    // One renewal later every agent has read the bundle.
    let seen = ["node-1", "node-2"].map(renewed);
    eventually("renewals go on", || {
        (renewed("node-1") >= seen[0] + 2.0 && renewed("node-2") >= seen[1] + 1.0).then_some(())
    });
    assert!(rotate("switch", &["--now"]).status.success());
    assert!(!rotate("finish", &[]).status.success(), "certificates under the old root are still in use");
    wait::within(Duration::from_secs(10), "the old leaves have run out", || {
        rotate("finish", &[]).status.success().then_some(())
    });
    eventually("one root is left", || (roots().matches("BEGIN CERTIFICATE").count() == 1).then_some(()));
    assert_ne!(roots(), old_root, "and it is the new one");
    let seen = ["node-1", "node-2"].map(renewed);
    eventually("renewals go on under the new root", || {
        (renewed("node-1") >= seen[0] + 2.0 && renewed("node-2") >= seen[1] + 1.0).then_some(())
    });
    assert_eq!(held.exchange("all the time").as_deref(), Ok("all the time"), "what was open stayed open");
    for load in loads {
        let seen = load.stop();
        assert!(seen.good > 500, "{seen:?}");
        assert_eq!((seen.bad, &seen.faults), (0, &Vec::new()), "{seen:?}");
    }

    // Without control the last leaves run out: then nothing passes, and says why.
    lab.kill(lab.control());
    let refused = wait::within(Duration::from_secs(10), "the certificates expire", || web.call(there).err());
    assert!(refused.0.contains("ECONNRESET"), "{refused}");
    lab.record("node-1", "a connection without a certificate", |record| {
        ["no_certificate", "tls_failed"].iter().any(|ending| record["ending"] == *ending)
    });
    lab.restart_control();
    wait::within(Duration::from_secs(15), "with control back, all goes on", || web.call(there).ok());
}
