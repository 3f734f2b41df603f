//! Which SPIFFE id does a certificate chain carry?
//!
//! Pure: bytes in, id out. It says nothing about whether the chain is to be believed; that is [`super::verify`], which
//! has run before anybody calls this on a live connection.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Error;
use crate::model::SpiffeId;

/// The id of the first certificate (the leaf) of a chain.
///
/// X.509-SVID specification section 2: an SVID carries exactly one URI name, and it is a SPIFFE id.
///
/// # Errors
/// [`Error::NoCertificate`] for an empty chain, [`Error::Malformed`] for one that does not parse,
/// [`Error::NoSpiffeId`] for none or several URI names, or one that is not a SPIFFE id with a path.
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Result<SpiffeId, Error> {
    let leaf = parse(certs.first().ok_or(Error::NoCertificate)?)?;
    let mut uris = Vec::new();
    for extension in leaf.extensions() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            uris.extend(names.general_names.iter().filter_map(uri));
        }
    }
    let [only] = uris[..] else { return Err(Error::NoSpiffeId { found: uris.len() }) };
    only.parse().map_err(|_invalid| Error::NoSpiffeId { found: 1 })
}

fn uri<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::URI(uri) => Some(uri),
        _ => None,
    }
}

/// Parses one DER certificate; trailing bytes are an error.
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(Error::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn carrying(names: &[SanType]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").into()
    }

    fn uri_name(text: &str) -> SanType {
        SanType::URI(text.try_into().expect("ASCII"))
    }

    fn check(names: &[SanType], expected: Result<&str, usize>) {
        let found = match peer_identity(&[carrying(names)]) {
            Ok(id) => Ok(id.as_str().to_owned()),
            Err(Error::NoSpiffeId { found }) => Err(found),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(found, expected.map(str::to_owned));
    }

    #[test]
    fn exactly_one_spiffe_uri_is_an_identity() {
        let id = "spiffe://cluster.local/ns/shop/sa/orders";
        let dns = SanType::DnsName("orders.shop".try_into().expect("ASCII"));
        check(&[uri_name(id)], Ok(id));
        check(&[dns.clone(), uri_name(id)], Ok(id));
        check(&[], Err(0));
        check(&[dns], Err(0));
        check(&[uri_name(id), uri_name(id)], Err(2));
        check(&[uri_name(id), uri_name("https://example.com/")], Err(2));
        check(&[uri_name("https://example.com/")], Err(1));
        check(&[uri_name("spiffe://cluster.local")], Err(1));
        check(&[uri_name("spiffe://Cluster.Local/ns/shop/sa/orders")], Err(1));
    }

    #[test]
    fn empty_and_malformed_chains_are_told_apart() {
        assert!(matches!(peer_identity(&[]), Err(Error::NoCertificate)));
        assert!(matches!(peer_identity(&[CertificateDer::from(vec![1, 2, 3])]), Err(Error::Malformed)));
        let mut trailing = carrying(&[]).to_vec();
        trailing.push(0);
        assert!(matches!(peer_identity(&[trailing.into()]), Err(Error::Malformed)));
    }
}
