//! What the room's tests stand on: a certificate authority, pods without namespaces, sockets on 127.0.0.1.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};

use super::carrier::Carrier;
use super::tls;
use super::tunnel::{ALPN, Role};
use crate::identity::tls::{certified, client_config, server_config};
use crate::identity::trust::Trust;
use crate::identity::verify::Verifier;
use crate::model::SpiffeId;

/// A CA for `cluster.local`.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    verifier: Arc<Verifier>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("roots.pem");
        std::fs::write(&path, root.pem()).unwrap();
        let trust = Trust::load(vec![("cluster.local".parse().unwrap(), path)]).unwrap();
        Self { issuer: Issuer::new(params, key), verifier: Arc::new(Verifier::new(Arc::new(trust))) }
    }

    /// Configurations that speak as `id`.
    pub(crate) fn issue(&self, id: &SpiffeId) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let certified = certified(vec![leaf.der().clone()], key).unwrap();
        (
            client_config(certified.clone(), self.verifier.clone()).unwrap(),
            server_config(certified, self.verifier.clone()).unwrap(),
        )
    }
}

/// `spiffe://cluster.local/ns/default/sa/NAME`.
pub(crate) fn id(name: &str) -> SpiffeId {
    SpiffeId::of_service_account(&"cluster.local".parse().unwrap(), "default", name)
}

/// Two ends of one TCP connection.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// Two ends of one tunnel, after the handshake.
pub(crate) async fn tunnel_pair(ca: &TestCa) -> (Carrier, Carrier) {
    let (near, far) = tcp_pair().await;
    let (client, _) = ca.issue(&id("client"));
    let (_, server) = ca.issue(&id("server"));
    let name = rustls::pki_types::ServerName::IpAddress(far.local_addr().unwrap().ip().into());
    let (near_tls, far_tls) = tokio::join!(
        async {
            let mut established = tls::connect(&near, client, name, ALPN).await.unwrap();
            // The last flight normally travels with the first frame.
            let unsent = std::mem::take(&mut established.unsent);
            assert_eq!(near.try_write(&unsent).unwrap(), unsent.len());
            established
        },
        async { tls::accept(&far, server, ALPN).await.unwrap() }
    );
    (Carrier::new(near, near_tls, Role::Opener), Carrier::new(far, far_tls, Role::Acceptor))
}
