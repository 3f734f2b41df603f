//! Is the peer's chain to be believed, and if not, what is that called?
//!
//! Both directions do the same: read the one SPIFFE id of the leaf, find the roots of its trust domain, and let webpki
//! check the chain, the dates and the key usage against those roots. Which id the peer *should* have is not decided
//! here: the proxy compares it with the registry (servers) and policy judges it (clients). The name in the handshake is
//! ignored, since an address says nothing about identity.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, InvalidMessage, OtherError, PeerIncompatible,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::trust::{Bundle, Trust};
use super::{Error, peer, tls};

/// A reason of ours, beside webpki's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the certificate carries no single SPIFFE id")]
    NoSpiffeId,
    #[error("no trust bundle for the peer's trust domain")]
    WrongTrustDomain,
}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Checks servers and clients alike against the current trust bundles.
#[derive(Debug)]
pub struct Verifier {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// A verifier that follows `trust`.
    pub fn new(trust: Arc<Trust>) -> Self {
        Self { trust, algorithms: tls::provider().signature_verification_algorithms }
    }

    fn bundle_for(&self, leaf: &CertificateDer<'_>) -> Result<Arc<Bundle>, rustls::Error> {
        let id = peer::peer_identity(std::slice::from_ref(leaf)).map_err(|error| match error {
            Error::Malformed => rustls::Error::InvalidCertificate(CertificateError::BadEncoding),
            _ => Refusal::NoSpiffeId.into(),
        })?;
        let bundles = self.trust.current();
        bundles.of(id.trust_domain()).cloned().ok_or_else(|| Refusal::WrongTrustDomain.into())
    }

    /// Checks a chain as a client would check a server's.
    ///
    /// # Errors
    /// What a handshake would have failed with.
    pub fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.check_chain(leaf, intermediates, now)
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let bundle = self.bundle_for(leaf)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &bundle.roots,
            intermediates,
            now,
            self.algorithms.all,
        )
        .map_err(chain_fault)
    }

    fn check_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
}

/// Two CAs may bear the same name (many call themselves after `cluster.local`). A certificate of the other one then
/// fails on our root's key, and not on its name; it is an unknown issuer all the same.
fn chain_fault(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        other => other,
    }
}

/// TLS 1.2 is not offered, so nobody can ask for this; if somebody did, the answer is no.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(PeerIncompatible::Tls12NotOffered.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check_chain(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// None: every agent has one certificate per workload and needs no hint, and the list would have to follow the
    /// bundle.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let bundle = self.bundle_for(end_entity)?;
        bundle.clients.verify_client_cert(end_entity, intermediates, now).map_err(chain_fault)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A stable name for why a handshake failed, for metrics and access records.
///
/// `expired`, `not_yet_valid`, `unknown_issuer`, `wrong_trust_domain`, `no_spiffe_id` and `bad_certificate` (anything
/// else that is wrong with it) speak of the peer's certificate; `no_certificate`: it has none; `not_tls`: its first
/// bytes are no TLS record; `refused_by_peer`: it refused us and sent an alert; `protocol`: everything else.
pub fn refusal_label(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(fault) => certificate_label(fault),
        rustls::Error::NoCertificatesPresented => "no_certificate",
        rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => "not_tls",
        rustls::Error::AlertReceived(_) => "refused_by_peer",
        _ => "protocol",
    }
}

fn certificate_label(fault: &CertificateError) -> &'static str {
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_yet_valid",
        CertificateError::UnknownIssuer => "unknown_issuer",
        CertificateError::Other(OtherError(cause)) => match cause.downcast_ref::<Refusal>() {
            Some(Refusal::NoSpiffeId) => "no_spiffe_id",
            Some(Refusal::WrongTrustDomain) => "wrong_trust_domain",
            None => "bad_certificate",
        },
        _ => "bad_certificate",
    }
}
