//! The certificate authority: a root, an intermediate, and the leaves that it signs.
//!
//! The root signs intermediates only; the intermediate signs leaves. Both are ECDSA P-256. Every file holds what belongs
//! together, so each change of state is one rename: [`store`] says how files are written, [`rotation`] how one root
//! follows another, and this file what is in a certificate.
//!
//! No certificate carries name constraints: for URI names they speak of the host part only (RFC 5280 section 4.2.1.10)
//! and verifiers disagree about them. The agents bind a root to its trust domain by the bundle file instead.

pub mod rotation;
pub mod store;

pub use rotation::{Phase, Stage, StageRefused, rotate};
pub use store::Authority;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::Error;
use crate::identity::tls;
use crate::lifecycle::clock;
use crate::model::{SpiffeId, TrustDomain};

/// How far back NotBefore is dated, for clocks that differ between nodes. The only place where skew is forgiven.
pub const BACKDATE: Duration = Duration::from_secs(20);

const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Lifetime of the control plane's own serving certificate.
pub const SERVING_LIFETIME: Duration = DAY;

/// Length of an uncompressed P-256 point (SEC 1 section 2.3.3).
const P256_POINT_LEN: usize = 65;

/// A key with its certificate.
pub struct Signer {
    /// The private key.
    pub(super) key: KeyPair,
    /// Its certificate.
    pub(super) certificate: CertificateDer<'static>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key)
    }
}

/// A fresh root. Its name carries part of its serial number: two roots of the same name in one bundle would make
/// verifiers try both and report the wrong fault.
pub(super) fn new_root(trust_domain: &TrustDomain) -> Result<Signer, Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let params = authority_params(
        "root",
        trust_domain,
        BasicConstraints::Unconstrained,
        clock::wall() + ROOT_LIFETIME,
    )?;
    let certificate = params.self_signed(&key)?.into();
    Ok(Signer { key, certificate })
}

/// A fresh intermediate under a root.
pub(super) fn new_intermediate(trust_domain: &TrustDomain, root: &Signer) -> Result<Signer, Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let not_after = (clock::wall() + INTERMEDIATE_LIFETIME).min(store::validity(&root.certificate).1);
    let mut params =
        authority_params("intermediate", trust_domain, BasicConstraints::Constrained(0), not_after)?;
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &root.issuer()?)?.into();
    Ok(Signer { key, certificate })
}

fn authority_params(
    role: &str,
    trust_domain: &TrustDomain,
    constraints: BasicConstraints,
    not_after: SystemTime,
) -> Result<CertificateParams, Error> {
    let serial = serial_number();
    let tag: String = serial.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut params = dated(not_after);
    params.serial_number = Some(serial);
    params.distinguished_name.push(DnType::OrganizationName, "Weft");
    params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} {role} {tag}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Parameters with dates, a serial number and an empty subject; everything else is left to the caller.
fn dated(not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (clock::wall() - BACKDATE).into();
    params.not_after = not_after.into();
    params.serial_number = Some(serial_number());
    params.distinguished_name = DistinguishedName::new();
    params
}

/// 159 random bits: RFC 5280 section 4.1.2.2 allows 20 octets and wants a positive number.
fn serial_number() -> SerialNumber {
    let mut bytes = [0_u8; 20];
    tls::provider().secure_random.fill(&mut bytes).expect("the system's random source works");
    // The top bit is the sign; the next one keeps the encoding at 20 octets, so that the tag above is always there.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from(bytes.to_vec())
}

/// A signing request, reduced to the only thing that is believed about it.
#[derive(Debug)]
pub struct RequestedKey(rcgen::PublicKey);

/// Why a signing request is no use.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    /// It does not parse, or its signature is not by its own key.
    #[error("the signing request is malformed or not signed by its own key: {0}")]
    Malformed(rcgen::Error),
    /// Its key is of another kind.
    #[error("the signing request's key is not ECDSA P-256")]
    OtherKey,
}

impl RequestedKey {
    /// Reads a PKCS #10 request (PEM) and checks that whoever made it holds the key.
    ///
    /// # Errors
    /// It is malformed, its signature does not fit, or its key is not ECDSA P-256.
    pub fn from_pem(csr: &str) -> Result<Self, BadRequest> {
        let key = CertificateSigningRequestParams::from_pem(csr).map_err(BadRequest::Malformed)?.public_key;
        let is_p256 =
            *key.algorithm() == rcgen::PKCS_ECDSA_P256_SHA256 && key.der_bytes().len() == P256_POINT_LEN;
        if is_p256 { Ok(Self(key)) } else { Err(BadRequest::OtherKey) }
    }
}

impl Authority {
    /// Signs an SVID: the id as the only name, good for both ends of a connection, from 20 s ago for `lifetime` (or
    /// until the intermediate ends).
    ///
    /// # Errors
    /// The signature cannot be made.
    pub fn sign_svid(
        &self,
        id: &SpiffeId,
        key: &RequestedKey,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, Error> {
        let not_after = (clock::wall() + lifetime).min(store::validity(&self.intermediate.certificate).1);
        self.sign(vec![SanType::URI(id.as_str().try_into()?)], &key.0, not_after)
    }

    /// A fresh key and certificate for the certificate service itself; it names hosts and addresses and so can never
    /// pass for a workload.
    ///
    /// # Errors
    /// A name is not one, or the signature cannot be made.
    pub fn serving(
        &self,
        names: &[String],
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let name = |text: &String| match text.parse::<IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => text.as_str().try_into().map(SanType::DnsName),
        };
        let names = names.iter().map(name).collect::<Result<Vec<_>, _>>()?;
        let leaf = self.sign(names, &key, clock::wall() + SERVING_LIFETIME)?;
        let chain = vec![leaf, self.intermediate.certificate.clone()];
        Ok((chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key))))
    }

    fn sign(
        &self,
        names: Vec<SanType>,
        key: &impl PublicKeyData,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, Error> {
        let mut params = dated(not_after);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate: Certificate = params.signed_by(key, &self.intermediate.issuer()?)?;
        Ok(certificate.into())
    }
}
