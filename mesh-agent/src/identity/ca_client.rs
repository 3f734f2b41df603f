//! Asks the CA for certificates: the Istio certificate service over gRPC over TLS 1.3.
//!
//! Works against our own control plane, istio-csr and istiod, which speak the same protocol. It makes the key, sends
//! the public half, and believes the answer only after checking it: right id, right key, verifies against our bundle.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::line::{Failure, Line};
use super::trust::Trust;
use super::verify::{Verifier, refusal_label};
use super::wire::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use super::{Error, IssuedFault, Settings, peer, tls};
use crate::model::SpiffeId;

/// A certificate that passed our checks, and its key. `Debug` shows no key.
pub struct Svid {
    /// Leaf first, roots left out: the peer has its own.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// A client of one CA.
#[derive(Debug)]
pub struct CaClient {
    line: Line,
    validity_seconds: i64,
    verifier: Arc<Verifier>,
}

impl CaClient {
    /// Takes the address apart; connects only when first asked for a certificate.
    ///
    /// # Errors
    /// The address or server name is malformed.
    pub fn new(settings: &Settings, trust: Arc<Trust>) -> Result<Self, Error> {
        Ok(Self {
            line: Line::new(settings, trust.clone())?,
            validity_seconds: i64::try_from(settings.certificate_ttl.as_secs()).unwrap_or(i64::MAX),
            verifier: Arc::new(Verifier::new(trust)),
        })
    }

    /// Makes a key and has it certified for `id`.
    ///
    /// Cancel safe: dropping this future forgets the key; the CA may have signed in vain.
    ///
    /// # Errors
    /// The token cannot be read, the CA is away or refuses, or its answer does not fit the question.
    pub async fn svid(&self, id: &SpiffeId) -> Result<Svid, Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let csr = signing_request(&key)?;
        let response = self.create_certificate(id, csr).await?;
        let chain = chain_of(&response);
        self.check(id, &key, &chain).map_err(|fault| Error::Issued { id: id.clone(), fault })?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        Ok(Svid { chain, key })
    }

    /// The bare call.
    ///
    /// # Errors
    /// The token cannot be read, the CA is away or refuses.
    pub async fn create_certificate(
        &self,
        id: &SpiffeId,
        csr_pem: String,
    ) -> Result<CertificateResponse, Error> {
        let message = CertificateRequest::impersonating(id.as_str(), csr_pem, self.validity_seconds);
        self.line.call(CREATE_CERTIFICATE, message).await.map_err(|failure| match failure {
            Failure::Unable(error) => error,
            Failure::Unreachable { address, message } => Error::CaUnreachable { address, message },
            Failure::Refused(status) => {
                let (code, message) = (status.code(), status.message().to_owned());
                Error::CaRefused { id: id.clone(), code, message }
            }
        })
    }

    fn check(
        &self,
        id: &SpiffeId,
        key: &KeyPair,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), IssuedFault> {
        let leaf = chain.first().ok_or(IssuedFault::NoChain)?;
        let named = peer::peer_identity(chain).map_err(|_malformed| IssuedFault::NoId)?;
        if named != *id {
            return Err(IssuedFault::WrongId(named));
        }
        let parsed = peer::parse(leaf).map_err(|_malformed| IssuedFault::NoChain)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(IssuedFault::OtherKey);
        }
        // While a root is being rotated the CA may be ahead of our bundle file. A certificate that our own peers
        // could not check is not taken; the old one stays in use, and the next try will find the new bundle.
        self.verifier
            .check(chain, tls::unix_now())
            .map_err(|error| IssuedFault::Untrusted(refusal_label(&error)))
    }
}

/// A request that says nothing but "certify this key": the CA takes nothing else from it.
fn signing_request(key: &KeyPair) -> Result<String, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.pem()?)
}

/// The certificates of the answer, without self-signed ones: a root that the peer does not have already is of no use
/// to it, and one that it has need not travel.
fn chain_of(response: &CertificateResponse) -> Vec<CertificateDer<'static>> {
    let elements = response.cert_chain.iter();
    let certificates = elements.flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()).flatten());
    certificates
        .enumerate()
        .filter(|(index, certificate)| *index == 0 || !is_self_issued(certificate))
        .map(|(_, certificate)| certificate.into_owned())
        .collect()
}

fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    peer::parse(certificate).is_ok_and(|parsed| parsed.issuer().as_raw() == parsed.subject().as_raw())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use rcgen::{BasicConstraints, IsCa, Issuer, SanType};

    const ID: &str = "spiffe://cluster.local/ns/shop/sa/orders";

    fn authority() -> (Issuer<'static, KeyPair>, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a root").pem();
        (Issuer::new(params, key), pem)
    }

    fn client(address: &str, roots: &str) -> Result<CaClient, Error> {
        let dir = tempfile::tempdir().expect("a directory");
        let ca_roots = dir.path().join("roots.pem");
        std::fs::write(&ca_roots, roots).expect("written");
        let trust_domain: crate::model::TrustDomain = "cluster.local".parse().expect("valid");
        let trust = Trust::load(vec![(trust_domain.clone(), ca_roots.clone())]).expect("roots");
        let settings = Settings {
            trust_domain,
            ca_address: address.to_owned(),
            ca_server_name: None,
            ca_roots,
            federated_roots: Vec::new(),
            token_file: dir.path().join("token"),
            certificate_ttl: Duration::from_secs(60),
        };
        CaClient::new(&settings, Arc::new(trust))
    }

    fn leaf(issuer: &Issuer<'_, KeyPair>, key: &KeyPair, names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        let uri = |name: &&str| SanType::URI((*name).try_into().expect("ASCII"));
        params.subject_alt_names = names.iter().map(uri).collect();
        params.signed_by(key, issuer).expect("signed").into()
    }

    #[tokio::test]
    async fn issued_certificate_must_fit_the_question() {
        let ((ours, roots), (foreign, _)) = (authority(), authority());
        let client = client("127.0.0.1:1", &roots).expect("an address");
        let (id, key) = (ID.parse().expect("an id"), KeyPair::generate().expect("a key"));
        let other_key = KeyPair::generate().expect("a key");
        let other = "spiffe://cluster.local/ns/shop/sa/payments";
        for (expected, chain) in [
            (None, vec![leaf(&ours, &key, &[ID])]),
            (Some("no certificate chain"), vec![]),
            (Some("names spiffe://cluster.local/ns/shop/sa/payments"), vec![leaf(&ours, &key, &[other])]),
            (Some("no single SPIFFE id"), vec![leaf(&ours, &key, &[ID, other])]),
            (Some("another key"), vec![leaf(&ours, &other_key, &[ID])]),
            (Some("(unknown_issuer)"), vec![leaf(&foreign, &key, &[ID])]),
        ] {
            let fault = client.check(&id, &key, &chain).err().map(|fault| fault.to_string());
            match expected {
                None => assert_eq!(fault, None),
                Some(words) => assert!(fault.as_ref().is_some_and(|said| said.contains(words)), "{fault:?}"),
            }
        }
    }

    #[tokio::test]
    async fn address_may_be_bare_or_a_url_and_must_have_a_port() {
        let (_, roots) = authority();
        for good in
            ["10.0.0.1:15012", "https://ca.example:15012", "[fd00::1]:15012", "https://[fd00::1]:15012"]
        {
            assert!(client(good, &roots).is_ok(), "{good}");
        }
        for bad in ["", "ca.example", "http://ca.example:15012", "ca.example:port", "https://:15012"] {
            assert!(matches!(client(bad, &roots), Err(Error::CaAddress(_))), "{bad}");
        }
    }
}
