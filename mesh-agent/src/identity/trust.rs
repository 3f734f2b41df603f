//! Which roots vouch for which trust domain, now?
//!
//! One PEM file per trust domain. A root vouches only for the domain whose file it stands in, so a federated domain
//! cannot speak for ours. The files are swapped in whole: verifiers read the current state at every handshake, so a root
//! rotation reaches configurations that were handed out long ago, and closes nothing.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{Error, tls};
use crate::model::TrustDomain;

/// What is wrong with a file of roots.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(std::io::Error),
    /// It is not PEM.
    #[error("is not PEM: {0}")]
    Pem(rustls_pki_types::pem::Error),
    /// It holds no certificate.
    #[error("holds no certificate")]
    Empty,
    /// One certificate is unusable as a root.
    #[error("certificate {position} cannot be used: {message}")]
    Certificate {
        /// Counted from 1.
        position: usize,
        /// Why.
        message: String,
    },
}

/// The roots of one trust domain.
#[derive(Debug)]
pub struct Bundle {
    /// For checking servers.
    pub roots: Arc<RootCertStore>,
    /// For checking clients.
    pub(super) clients: Arc<dyn ClientCertVerifier>,
    pem: Vec<u8>,
}

/// The bundles of every trust domain, at one time. Immutable.
#[derive(Debug)]
pub struct Bundles {
    /// Counts up by one per change.
    pub generation: u64,
    by_domain: HashMap<TrustDomain, Arc<Bundle>>,
}

/// The bundles as they are now, and the files that they come from. The first file is that of our own domain.
pub struct Trust {
    files: Vec<(TrustDomain, PathBuf)>,
    current: ArcSwap<Bundles>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Trust {
    /// Reads every file.
    ///
    /// # Errors
    /// A file is unusable; the error names it.
    pub fn load(files: Vec<(TrustDomain, PathBuf)>) -> Result<Self, Error> {
        let mut by_domain = HashMap::new();
        for (domain, path) in &files {
            by_domain.insert(domain.clone(), Arc::new(read_bundle(path)?));
        }
        Ok(Self { files, current: ArcSwap::from_pointee(Bundles { generation: 0, by_domain }) })
    }

    /// The current bundles.
    pub fn current(&self) -> Arc<Bundles> {
        self.current.load_full()
    }

    /// The files, for watching.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(_, path)| path.as_path())
    }

    /// The roots of our own trust domain, which also vouch for the CA's serving certificate.
    pub(super) fn own_roots(&self) -> Arc<RootCertStore> {
        let current = self.current.load();
        let own = self.files.first().and_then(|(domain, _)| current.by_domain.get(domain));
        own.map_or_else(|| Arc::new(RootCertStore::empty()), |bundle| bundle.roots.clone())
    }

    /// Reads the files again and takes into use what changed; true when anything did. Only one task may call this.
    ///
    /// # Errors
    /// A file is unusable; nothing changes then, the last good bundles stay in use.
    pub(super) fn reload(&self) -> Result<bool, Error> {
        let before = self.current();
        let mut by_domain = HashMap::new();
        let mut differs = false;
        for (domain, path) in &self.files {
            let old = before.by_domain.get(domain);
            let pem = read(path)?;
            let bundle = match old.filter(|old| old.pem == pem) {
                Some(same) => same.clone(),
                None => {
                    differs = true;
                    Arc::new(parse_bundle(path, pem)?)
                }
            };
            by_domain.insert(domain.clone(), bundle);
        }
        if differs {
            self.current.store(Arc::new(Bundles { generation: before.generation + 1, by_domain }));
        }
        Ok(differs)
    }
}

impl Bundles {
    /// The roots that vouch for a trust domain.
    pub fn of(&self, trust_domain: &str) -> Option<&Arc<Bundle>> {
        let trust_domain: TrustDomain = trust_domain.parse().ok()?;
        self.by_domain.get(&trust_domain)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|source| Error::TrustBundle { path: path.to_owned(), fault: Fault::Read(source) })
}

fn read_bundle(path: &Path) -> Result<Bundle, Error> {
    parse_bundle(path, read(path)?)
}

fn parse_bundle(path: &Path, pem: Vec<u8>) -> Result<Bundle, Error> {
    bundle_of(pem).map_err(|fault| Error::TrustBundle { path: path.to_owned(), fault })
}

fn bundle_of(pem: Vec<u8>) -> Result<Bundle, Fault> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let position = index + 1;
        let refused = |message: String| Fault::Certificate { position, message };
        let certificate = certificate.map_err(Fault::Pem)?;
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(Fault::Empty);
    }
    let roots = Arc::new(roots);
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), tls::provider())
        .build()
        .map_err(|error| Fault::Certificate { position: 1, message: error.to_string() })?;
    Ok(Bundle { roots, clients, pem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn root_pem() -> String {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem()
    }

    #[test]
    fn unusable_bundle_at_start_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("roots.pem");
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        let cases: [(&[u8], &str); 3] = [
            (b"", "holds no certificate"),
            (
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "certificate 1 cannot be used",
            ),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "is not PEM"),
        ];
        for (text, expected) in cases {
            std::fs::write(&path, text).expect("written");
            let said = Trust::load(vec![(domain.clone(), path.clone())]).expect_err("unusable").to_string();
            assert!(said.contains("roots.pem") && said.contains(expected), "{said}");
        }
        std::fs::remove_file(&path).expect("removed");
        let said = Trust::load(vec![(domain, path)]).expect_err("absent").to_string();
        assert!(said.contains("roots.pem") && said.contains("cannot be read"), "{said}");
    }

    #[test]
    fn unusable_bundle_at_reload_leaves_the_last_good_one_in_use() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("roots.pem");
        std::fs::write(&path, root_pem()).expect("written");
        let trust =
            Trust::load(vec![("cluster.local".parse().expect("valid"), path.clone())]).expect("usable");

        std::fs::write(&path, "gone").expect("written");
        assert!(trust.reload().is_err());
        assert_eq!(trust.current().generation, 0);
        assert_eq!(trust.own_roots().len(), 1);

        std::fs::write(&path, root_pem() + &root_pem()).expect("written");
        assert!(trust.reload().expect("usable"));
        assert!(!trust.reload().expect("usable"), "nothing changed since");
        assert_eq!(trust.current().generation, 1);
        assert_eq!(trust.own_roots().len(), 2);
        assert!(trust.current().of("cluster.local").is_some());
        assert!(trust.current().of("other.example").is_none());
    }
}
