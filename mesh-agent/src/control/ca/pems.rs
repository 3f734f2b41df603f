//! The CA's state as text, whoever keeps it: three PEM texts, read into an [`Authority`] and made of one.
//!
//! | text | holds |
//! |---|---|
//! | `authority.pem` | the active root and intermediate, each with its key |
//! | `next-root.pem` | during a rotation, until the switch: the coming root with its key |
//! | `retired-root.pem` | during a rotation, after the switch: the old root, without a key |

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Authority, Error, OwnRoots, Roots, Signer, new_intermediate, new_root};
use crate::model::TrustDomain;

pub(in crate::control) const AUTHORITY: &str = "authority.pem";
pub(in crate::control) const NEXT_ROOT: &str = "next-root.pem";
pub(in crate::control) const RETIRED_ROOT: &str = "retired-root.pem";

/// Where the texts are kept, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Files of this directory.
    Dir(PathBuf),
    /// Keys of this Secret.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Place {
    /// The name of one text.
    pub fn of(&self, key: &str) -> String {
        match self {
            Self::Dir(dir) => dir.join(key).display().to_string(),
            Self::Secret { namespace, name } => format!("Secret {namespace}/{name}, key {key},"),
        }
    }
}

/// The texts.
#[derive(Clone, PartialEq, Eq)]
pub struct Pems {
    /// See [`AUTHORITY`].
    pub authority: String,
    /// See [`NEXT_ROOT`].
    pub next_root: Option<String>,
    /// See [`RETIRED_ROOT`].
    pub retired_root: Option<String>,
}

/// Shows no key.
impl fmt::Debug for Pems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pems").finish_non_exhaustive()
    }
}

impl Pems {
    /// A new CA: one root, one intermediate.
    ///
    /// # Errors
    /// A key or certificate cannot be made.
    pub fn fresh(trust_domain: &TrustDomain) -> Result<Self, Error> {
        let root = new_root(trust_domain)?;
        let intermediate = new_intermediate(trust_domain, &root)?;
        Ok(Self { authority: authority_pem(&root, &intermediate), next_root: None, retired_root: None })
    }

    /// The same with a new intermediate under the active root.
    ///
    /// # Errors
    /// A text is unusable; a key or certificate cannot be made.
    pub fn with_new_intermediate(&self, place: &Place) -> Result<Self, Error> {
        let authority = Authority::parse(self, place)?;
        let trust_domain = authority.trust_domain(place)?;
        let root = authority.own(place)?;
        let intermediate = new_intermediate(&trust_domain, &root.active)?;
        Ok(Self { authority: authority_pem(&root.active, &intermediate), ..self.clone() })
    }
}

impl Authority {
    /// Reads the texts.
    ///
    /// # Errors
    /// A text is truncated or of parts that do not belong together; the error names it.
    pub fn parse(pems: &Pems, place: &Place) -> Result<Self, Error> {
        let at = place.of(AUTHORITY);
        let [root, intermediate]: [Signer; 2] = signers(&at, &pems.authority)?;
        let signed_by_root = parsed(&at, &intermediate.certificate)?
            .verify_signature(Some(parsed(&at, &root.certificate)?.public_key()));
        signed_by_root.map_err(|_mismatch| fault(&at, "the intermediate is not signed by the root"))?;
        let next =
            pems.next_root.as_ref().map(|text| signers::<1>(&place.of(NEXT_ROOT), text)).transpose()?;
        let retired = pems.retired_root.as_ref().map(|text| certificate(&place.of(RETIRED_ROOT), text));
        // A switch that was interrupted leaves a text whose root is the active one: it says nothing new.
        let next = next.map(|[next]| next).filter(|next| next.certificate != root.certificate);
        let retired = retired.transpose()?.filter(|retired| *retired != root.certificate);
        let roots = Roots::Own(Box::new(OwnRoots { active: root, next, retired }));
        Ok(Self { intermediate, roots })
    }

    /// Refuses keys of another trust domain.
    ///
    /// # Errors
    /// They are, or they name none.
    pub fn check_trust_domain(&self, place: &Place, expected: &TrustDomain) -> Result<(), Error> {
        let at = place.of(AUTHORITY);
        let found = trust_domain_of(&at, &self.own(place)?.active.certificate)?;
        if found == expected.as_str() {
            return Ok(());
        }
        Err(Error::OtherTrustDomain { place: at, found, expected: expected.clone() })
    }

    /// The trust domain that the root names.
    pub(super) fn trust_domain(&self, place: &Place) -> Result<TrustDomain, Error> {
        let at = place.of(AUTHORITY);
        let text = trust_domain_of(&at, &self.own(place)?.active.certificate)?;
        text.parse().map_err(|error| fault(&at, error))
    }

    /// Our own roots.
    ///
    /// # Errors
    /// The roots are another CA's.
    pub(super) fn own(&self, place: &Place) -> Result<&OwnRoots, Error> {
        match &self.roots {
            Roots::Own(own) => Ok(own),
            Roots::Foreign(_) => Err(fault(&place.of(AUTHORITY), "its roots are another authority's")),
        }
    }
}

fn trust_domain_of(at: &str, certificate: &CertificateDer<'_>) -> Result<String, Error> {
    let parsed = parsed(at, certificate)?;
    let extensions = parsed.extensions().iter().map(|extension| extension.parsed_extension());
    let names = extensions.filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let uri = names.flatten().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    });
    uri.map(str::to_owned).ok_or_else(|| fault(at, "the root names no trust domain"))
}

pub(super) fn fault(at: &str, what: impl ToString) -> Error {
    Error::Authority { place: at.to_owned(), fault: what.to_string() }
}

pub(super) fn parsed<'a>(at: &str, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|error| fault(at, error))
}

/// NotBefore and NotAfter of a certificate that has been parsed before.
pub(super) fn validity(der: &CertificateDer<'_>) -> (SystemTime, SystemTime) {
    let (_, parsed) = X509Certificate::from_der(der).expect("it was parsed when it was read or made");
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
    (time(parsed.validity().not_before.timestamp()), time(parsed.validity().not_after.timestamp()))
}

/// `N` certificates with their keys, in order.
fn signers<const N: usize>(at: &str, pem: &str) -> Result<[Signer; N], Error> {
    let certificates = certificates(at, pem.as_bytes())?;
    let keys = keys(at, pem.as_bytes())?;
    if certificates.len() != N || keys.len() != N {
        let (c, k) = (certificates.len(), keys.len());
        return Err(fault(at, format!("it holds {c} certificates and {k} keys, not {N} of each")));
    }
    let signers = certificates.into_iter().zip(&keys).map(|(certificate, key)| signer(at, certificate, key));
    let signers: Vec<Signer> = signers.collect::<Result<_, _>>()?;
    Ok(signers.try_into().unwrap_or_else(|_| unreachable!("counted above")))
}

pub(super) fn certificates(at: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| fault(at, error))
}

pub(super) fn keys(at: &str, pem: &[u8]) -> Result<Vec<PrivateKeyDer<'static>>, Error> {
    PrivateKeyDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| fault(at, error))
}

pub(super) fn signer(
    at: &str,
    certificate: CertificateDer<'static>,
    key: &PrivateKeyDer<'_>,
) -> Result<Signer, Error> {
    let key = KeyPair::try_from(key).map_err(|error| fault(at, error))?;
    if parsed(at, &certificate)?.public_key().raw != key.subject_public_key_info() {
        return Err(fault(at, "a certificate and its key do not belong together"));
    }
    Ok(Signer { key, certificate })
}

fn certificate(at: &str, pem: &str) -> Result<CertificateDer<'static>, Error> {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| fault(at, error))?;
    parsed(at, &certificate)?;
    Ok(certificate)
}

pub(super) fn authority_pem(root: &Signer, intermediate: &Signer) -> String {
    signer_pem(root) + &signer_pem(intermediate)
}

pub(super) fn signer_pem(signer: &Signer) -> String {
    certificate_pem(&signer.certificate) + &signer.key.serialize_pem()
}

/// PEM of a certificate, with line feeds whatever the platform.
pub(in crate::control) fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), config)
}
