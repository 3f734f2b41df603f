//! An intermediate that another authority has issued to us and renews: a Secret as cert-manager writes it.
//!
//! | key | holds |
//! |---|---|
//! | `tls.crt` | our intermediate, then what stands between it and a root |
//! | `tls.key` | its key |
//! | `ca.crt` | the roots that agents are to trust |
//!
//! There is no root key of ours then, and no rotation by `rotate-root`: the roots are those of `ca.crt`.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use rustls_pki_types::CertificateDer;

use super::pems::{Place, certificates, fault, keys, parsed, signer, validity};
use super::{Authority, Error, ForeignRoots, Roots};
use crate::lifecycle::clock;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";

impl Authority {
    /// Reads such a Secret's data.
    ///
    /// # Errors
    /// A key of the Secret is missing or unusable, or its parts do not belong together; the error names it.
    pub fn issued(data: &BTreeMap<String, ByteString>, place: &Place) -> Result<Self, Error> {
        let text = |key: &str| {
            data.get(key)
                .map(|bytes| bytes.0.as_slice())
                .ok_or_else(|| fault(&place.of(key), "it is missing"))
        };
        let (at, at_key, at_roots) = (place.of(CERTIFICATE), place.of(KEY), place.of(ROOTS));
        let mut chain = certificates(&at, text(CERTIFICATE)?)?.into_iter();
        let own = chain.next().ok_or_else(|| fault(&at, "it holds no certificate"))?;
        let [key] = <[_; 1]>::try_from(keys(&at_key, text(KEY)?)?)
            .map_err(|keys| fault(&at_key, format!("it holds {} keys, not one", keys.len())))?;
        let intermediate = signer(&at, own, &key)?;
        check_may_sign(&at, &intermediate.certificate)?;
        let all = certificates(&at_roots, text(ROOTS)?)?;
        if all.is_empty() {
            return Err(fault(&at_roots, "it holds no certificate"));
        }
        let above: Vec<_> = chain.filter(|certificate| !all.contains(certificate)).collect();
        let anchor = anchor(&at, &at_roots, &intermediate.certificate, &above, &all)?;
        Ok(Self { intermediate, roots: Roots::Foreign(ForeignRoots { above, anchor, all }) })
    }
}

/// Agents would refuse what it signs, each by itself and without saying why here.
fn check_may_sign(at: &str, der: &CertificateDer<'_>) -> Result<(), Error> {
    let certificate = parsed(at, der)?;
    if !certificate.is_ca() {
        return Err(fault(at, "its certificate is not a CA's (write isCA: true)"));
    }
    let usage = certificate.key_usage().map_err(|error| fault(at, error))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(fault(at, "its certificate may not sign others (add the usage \"cert sign\")"));
    }
    let (from, until) = validity(der);
    let now = clock::wall();
    match now {
        _ if now >= until => Err(fault(at, "its certificate has expired")),
        _ if now < from => Err(fault(at, "its certificate is not valid yet")),
        _ => Ok(()),
    }
}

/// The root at the chain's end; each link must be signed by the next.
fn anchor(
    at: &str,
    at_roots: &str,
    own: &CertificateDer<'static>,
    above: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Result<CertificateDer<'static>, Error> {
    let links: Vec<_> = std::iter::once(own).chain(above).collect();
    for pair in links.windows(2) {
        let issuer = parsed(at, pair[1])?;
        let signed = parsed(at, pair[0])?.verify_signature(Some(issuer.public_key()));
        signed.map_err(|_mismatch| fault(at, "its certificates are not a chain"))?;
    }
    let last = parsed(at, links[links.len() - 1])?;
    for root in roots {
        let candidate = parsed(at_roots, root)?;
        let is_issuer = last.issuer() == candidate.subject();
        if is_issuer && last.verify_signature(Some(candidate.public_key())).is_ok() {
            return Ok(root.clone());
        }
    }
    Err(fault(at, "its chain ends at none of the roots of ca.crt"))
}
