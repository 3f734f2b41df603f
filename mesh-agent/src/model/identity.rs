//! Who a workload is: trust domain and SPIFFE id (SPIFFE-ID specification section 2).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is not a trust domain or SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// It does not start with `spiffe://`.
    #[error("{0:?} does not start with spiffe://")]
    Scheme(String),
    /// The trust domain is empty, longer than 255 bytes or holds other than `[a-z0-9._-]`.
    #[error("{0:?} is not a trust domain: use 1 to 255 of a-z, 0-9, '.', '_' and '-'")]
    TrustDomain(String),
    /// The path is empty, has an empty, `.` or `..` segment, a trailing slash or a forbidden character.
    #[error("{0:?} has no valid SPIFFE path")]
    Path(String),
}

/// The name under which one certificate authority vouches, for example `cluster.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidSpiffeId;
    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        let valid = (1..=255).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
        if valid { Ok(Self(text.into())) } else { Err(InvalidSpiffeId::TrustDomain(text.to_owned())) }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE id. Workloads of the mesh carry `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`;
/// other shapes are valid ids of foreign workloads, with no namespace or service account of ours.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// The id of a service account.
    pub fn of_service_account(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Self {
        Self(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").into())
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain part.
    pub fn trust_domain(&self) -> &str {
        self.parts().0
    }

    /// Namespace and service account, when the path has our shape.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let mut segments = self.parts().1.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }

    fn parts(&self) -> (&str, &str) {
        let rest = &self.0["spiffe://".len()..];
        rest.split_once('/').unwrap_or((rest, ""))
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;
    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| InvalidSpiffeId::Scheme(text.to_owned()))?;
        let (trust_domain, path) =
            rest.split_once('/').ok_or_else(|| InvalidSpiffeId::Path(text.to_owned()))?;
        trust_domain.parse::<TrustDomain>()?;
        let segment_is_valid = |s: &str| {
            !matches!(s, "" | "." | "..")
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if text.len() > 2048 || !path.split('/').all(segment_is_valid) {
            return Err(InvalidSpiffeId::Path(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_account_id_reads_back() {
        let id = SpiffeId::of_service_account(&"cluster.local".parse().unwrap(), "shop", "web");
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(id.as_str().parse::<SpiffeId>().unwrap(), id);
        assert_eq!(id.service_account(), Some(("shop", "web")));
        assert_eq!(id.trust_domain(), "cluster.local");
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in [
            "http://td/ns/a",
            "spiffe://",
            "spiffe:///x",
            "spiffe://TD/x",
            "spiffe://td",
            "spiffe://td/",
            "spiffe://td/a//b",
            "spiffe://td/a/../b",
            "spiffe://td/a?b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
