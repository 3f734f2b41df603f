//! The TLS configurations: what is offered, what is demanded, what is left out.
//!
//! TLS 1.3 only. No resumption and no tickets: tunnels are reused one application connection after the other, so
//! handshakes are rare, a ticket key would be one more secret, and every handshake proves the identity afresh. No SNI:
//! the peer is an address, and its certificate names a workload, not a host.

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::Error;
use super::verify::Verifier;
use crate::lifecycle::clock;

/// The tunnel protocol's name in the handshake (`docs/tunnel.md`).
pub const ALPN_TUNNEL: &[u8] = b"weft/1";

/// HTTP/2, for the certificate service.
pub(crate) const ALPN_HTTP2: &[u8] = b"h2";

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        // The hybrid first: what is recorded today must not be readable once large quantum computers exist.
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The one provider of the process: aws-lc-rs, with our suites and groups.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// The clock of rustls is our clock.
#[derive(Debug)]
pub(crate) struct WallTime;

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_now())
    }
}

/// Now, as webpki counts it.
pub(crate) fn unix_now() -> UnixTime {
    UnixTime::since_unix_epoch(clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default())
}

/// Joins a chain with its key.
///
/// # Errors
/// The key cannot be used, or does not belong to the leaf.
pub fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, Error> {
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &PROVIDER)?))
}

/// For dialling with an identity.
///
/// # Errors
/// The provider does not do TLS 1.3 (ours does).
pub fn client_config(
    certified: Arc<CertifiedKey>,
    verifier: Arc<Verifier>,
) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(WallTime))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    // Tunnels protect records in place, with rustls' traffic keys (`proxy/tls.rs`).
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// For accepting with an identity; the client must show a certificate.
///
/// # Errors
/// The provider does not do TLS 1.3 (ours does).
pub fn server_config(
    certified: Arc<CertifiedKey>,
    verifier: Arc<Verifier>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(WallTime))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// For talking to the certificate service: it is known by its host name, we by a token.
pub(super) fn ca_config(roots: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(WallTime))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For serving the certificate service: no client certificate, callers prove themselves by token.
pub(crate) fn ca_server_config(certified: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(WallTime))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}
