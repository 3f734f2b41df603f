//! The certificate authority: a root, an intermediate, and the leaves that it signs.
//!
//! The root signs intermediates only; the intermediate signs leaves. Both are ECDSA P-256. Every text holds what belongs
//! together, so each change of state is one step: [`pems`] says what the texts are, [`store`] how they are kept as files,
//! [`secret`] how in a Secret, [`rotation`] how one root follows another, [`issued`] what it is like when another
//! authority gives us the intermediate, and this file what is in a certificate.
//!
//! No certificate carries name constraints: for URI names they speak of the host part only (RFC 5280 section 4.2.1.10)
//! and verifiers disagree about them. The agents bind a root to its trust domain by the bundle file instead.

pub mod issued;
pub mod pems;
pub mod rotation;
pub mod secret;
pub mod store;

pub use pems::{Pems, Place};
pub use rotation::{Phase, Stage, StageRefused, advance, rotate};
pub use secret::{SecretRef, rotate_in_secret};

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

/// An intermediate with less than this left is replaced: a third of its year, far more than any leaf lives.
const INTERMEDIATE_LEFT_MIN: Duration = Duration::from_secs(120 * 24 * 3600);

/// The CA as it is now. Immutable; a change of its state makes a new one.
#[derive(Debug)]
pub struct Authority {
    intermediate: Signer,
    roots: Roots,
}

/// What stands above the intermediate.
#[derive(Debug)]
enum Roots {
    Own(Box<OwnRoots>),
    Foreign(ForeignRoots),
}

/// Roots that we make ourselves.
#[derive(Debug)]
struct OwnRoots {
    active: Signer,
    next: Option<Signer>,
    retired: Option<CertificateDer<'static>>,
}

/// Roots whose keys we never see.
#[derive(Debug)]
struct ForeignRoots {
    /// Between the intermediate and the root, upwards.
    above: Vec<CertificateDer<'static>>,
    /// The root of our chain.
    anchor: CertificateDer<'static>,
    /// Every root that is published.
    all: Vec<CertificateDer<'static>>,
}

/// A key with its certificate.
pub struct Signer {
    /// The private key.
    key: KeyPair,
    /// Its certificate.
    certificate: CertificateDer<'static>,
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
fn new_root(trust_domain: &TrustDomain) -> Result<Signer, Error> {
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
fn new_intermediate(trust_domain: &TrustDomain, root: &Signer) -> Result<Signer, Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let not_after = (clock::wall() + INTERMEDIATE_LIFETIME).min(pems::validity(&root.certificate).1);
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
    /// Every root that agents should trust now, PEM, the oldest first. The switch of a rotation does not change it.
    pub fn bundle_pem(&self) -> String {
        match &self.roots {
            Roots::Own(own) => {
                let next = own.next.as_ref().map(|next| &next.certificate);
                let roots = [own.retired.as_ref(), Some(&own.active.certificate), next];
                roots.into_iter().flatten().map(pems::certificate_pem).collect()
            }
            Roots::Foreign(foreign) => foreign.all.iter().map(pems::certificate_pem).collect(),
        }
    }

    /// What stands behind a leaf: the intermediate, what is above it, then the root, PEM each.
    pub fn chain_pem(&self) -> Vec<String> {
        let mut chain: Vec<_> = self.chain().map(pems::certificate_pem).collect();
        chain.push(self.root_pem());
        chain
    }

    /// The root under which leaves are signed now, PEM. Agents that do not have it refuse what is signed.
    pub fn root_pem(&self) -> String {
        pems::certificate_pem(match &self.roots {
            Roots::Own(own) => &own.active.certificate,
            Roots::Foreign(foreign) => &foreign.anchor,
        })
    }

    fn chain(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        let above: &[_] = match &self.roots {
            Roots::Own(_) => &[],
            Roots::Foreign(foreign) => &foreign.above,
        };
        std::iter::once(&self.intermediate.certificate).chain(above)
    }

    /// Whether the intermediate is ours to renew and has little time left.
    pub fn intermediate_is_due(&self) -> bool {
        matches!(self.roots, Roots::Own(_))
            && pems::validity(&self.intermediate.certificate).1 < clock::wall() + INTERMEDIATE_LEFT_MIN
    }

    /// When the intermediate ends, and with it all that it signed.
    pub fn ends(&self) -> SystemTime {
        pems::validity(&self.intermediate.certificate).1
    }

    /// Whether both sign with the same key and publish the same roots.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.intermediate.certificate == other.intermediate.certificate
            && self.bundle_pem() == other.bundle_pem()
    }

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
        let not_after = (clock::wall() + lifetime).min(pems::validity(&self.intermediate.certificate).1);
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
        let chain = std::iter::once(leaf).chain(self.chain().cloned()).collect();
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
