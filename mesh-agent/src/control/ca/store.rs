//! The CA on disk: which files there are, how they are read, and how they are replaced without ever being half written.
//!
//! | file | holds |
//! |---|---|
//! | `authority.pem` | the active root and intermediate, each with its key |
//! | `next-root.pem` | during a rotation, until the switch: the coming root with its key |
//! | `retired-root.pem` | during a rotation, after the switch: the old root, without a key |
//! | `lock` | nothing; held by whoever changes the others |
//!
//! The directory has mode 0700, the files 0600. A file that others can read is refused and not repaired: its key may
//! have been copied.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Error, Signer, new_intermediate, new_root};
use crate::lifecycle::clock;
use crate::model::TrustDomain;

pub(super) const AUTHORITY: &str = "authority.pem";
pub(super) const NEXT_ROOT: &str = "next-root.pem";
pub(super) const RETIRED_ROOT: &str = "retired-root.pem";
const LOCK: &str = "lock";

/// Mode of what only we may read.
pub(super) const SECRET: u32 = 0o600;
/// Mode of what everybody may read.
pub(in crate::control) const PUBLIC: u32 = 0o644;

/// An intermediate with less than this left is replaced: a third of its year, far more than any leaf lives.
const INTERMEDIATE_LEFT_MIN: Duration = Duration::from_secs(120 * 24 * 3600);

/// The CA as it is now. Immutable; a change of files makes a new one.
#[derive(Debug)]
pub struct Authority {
    pub(super) root: Signer,
    pub(super) intermediate: Signer,
    pub(super) next: Option<Signer>,
    pub(super) retired: Option<CertificateDer<'static>>,
}

impl Authority {
    /// Opens the state directory; makes it, a root and an intermediate where there are none yet.
    ///
    /// # Errors
    /// A file is open to others, truncated, or of parts that do not belong together, belongs to another trust domain, or
    /// cannot be written; the error names it.
    pub fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, Error> {
        make_dir(dir)?;
        let _lock = lock(dir)?;
        if !exists(&dir.join(AUTHORITY))? {
            let root = new_root(trust_domain)?;
            let intermediate = new_intermediate(trust_domain, &root)?;
            write_authority(dir, &root, &intermediate)?;
        }
        let authority = Self::read(dir)?;
        authority.check_trust_domain(dir, trust_domain)?;
        if authority.intermediate_is_due() {
            let intermediate = new_intermediate(trust_domain, &authority.root)?;
            write_authority(dir, &authority.root, &intermediate)?;
            return Self::read(dir);
        }
        Ok(authority)
    }

    /// Reads what is there, changing nothing.
    ///
    /// # Errors
    /// As [`Authority::open`].
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(AUTHORITY);
        let [root, intermediate]: [Signer; 2] = read_signers(&path)?;
        let signed_by_root = parsed(&path, &intermediate.certificate)?
            .verify_signature(Some(parsed(&path, &root.certificate)?.public_key()));
        signed_by_root.map_err(|_mismatch| fault(&path, "the intermediate is not signed by the root"))?;
        let next = dir.join(NEXT_ROOT);
        let next = if exists(&next)? { Some(read_signers::<1>(&next)?) } else { None };
        let retired = dir.join(RETIRED_ROOT);
        let retired = if exists(&retired)? { Some(read_certificate(&retired)?) } else { None };
        // A switch that was interrupted leaves a file whose root is the active one: it says nothing new.
        let next = next.map(|[next]| next).filter(|next| next.certificate != root.certificate);
        let retired = retired.filter(|retired| *retired != root.certificate);
        Ok(Self { root, intermediate, next, retired })
    }

    /// Every root that agents should trust now, PEM, the oldest first. The switch of a rotation does not change it.
    pub fn bundle_pem(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.certificate);
        let roots = [self.retired.as_ref(), Some(&self.root.certificate), next];
        roots.into_iter().flatten().map(certificate_pem).collect()
    }

    /// What stands behind a leaf: the intermediate, then the root, PEM each.
    pub fn chain_pem(&self) -> [String; 2] {
        [certificate_pem(&self.intermediate.certificate), certificate_pem(&self.root.certificate)]
    }

    /// Whether the intermediate has so little time left that [`Authority::open`] would replace it.
    pub fn intermediate_is_due(&self) -> bool {
        validity(&self.intermediate.certificate).1 < clock::wall() + INTERMEDIATE_LEFT_MIN
    }

    /// Whether both sign with the same key and publish the same roots.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.intermediate.certificate == other.intermediate.certificate
            && self.bundle_pem() == other.bundle_pem()
    }

    fn check_trust_domain(&self, dir: &Path, expected: &TrustDomain) -> Result<(), Error> {
        let path = dir.join(AUTHORITY);
        let found = trust_domain_of(&path, &self.root.certificate)?;
        if found == expected.as_str() {
            return Ok(());
        }
        Err(Error::OtherTrustDomain { path, found, expected: expected.clone() })
    }

    /// The trust domain that the root names.
    pub(super) fn trust_domain(&self, dir: &Path) -> Result<TrustDomain, Error> {
        let path = dir.join(AUTHORITY);
        let text = trust_domain_of(&path, &self.root.certificate)?;
        text.parse().map_err(|error| fault(&path, error))
    }
}

fn trust_domain_of(path: &Path, certificate: &CertificateDer<'_>) -> Result<String, Error> {
    let parsed = parsed(path, certificate)?;
    let extensions = parsed.extensions().iter().map(|extension| extension.parsed_extension());
    let names = extensions.filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let uri = names.flatten().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    });
    uri.map(str::to_owned).ok_or_else(|| fault(path, "the root names no trust domain"))
}

fn fault(path: &Path, what: impl ToString) -> Error {
    Error::Authority { path: path.to_owned(), fault: what.to_string() }
}

fn parsed<'a>(path: &Path, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|error| fault(path, error))
}

/// NotBefore and NotAfter of a certificate that has been parsed before.
pub(super) fn validity(der: &CertificateDer<'_>) -> (SystemTime, SystemTime) {
    let (_, parsed) = X509Certificate::from_der(der).expect("it was parsed when it was read or made");
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
    (time(parsed.validity().not_before.timestamp()), time(parsed.validity().not_after.timestamp()))
}

/// Reads `N` certificates with their keys, in order.
fn read_signers<const N: usize>(path: &Path) -> Result<[Signer; N], Error> {
    let pem = read_secret(path)?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| fault(path, error))?;
    let keys: Vec<_> =
        PrivateKeyDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| fault(path, error))?;
    if certificates.len() != N || keys.len() != N {
        let (c, k) = (certificates.len(), keys.len());
        return Err(fault(path, format!("it holds {c} certificates and {k} keys, not {N} of each")));
    }
    let signers =
        certificates.into_iter().zip(&keys).map(|(certificate, key)| signer(path, certificate, key));
    let signers: Vec<Signer> = signers.collect::<Result<_, _>>()?;
    Ok(signers.try_into().unwrap_or_else(|_| unreachable!("counted above")))
}

fn signer(
    path: &Path,
    certificate: CertificateDer<'static>,
    key: &PrivateKeyDer<'_>,
) -> Result<Signer, Error> {
    let key = KeyPair::try_from(key).map_err(|error| fault(path, error))?;
    if parsed(path, &certificate)?.public_key().raw != key.subject_public_key_info() {
        return Err(fault(path, "a certificate and its key do not belong together"));
    }
    Ok(Signer { key, certificate })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, Error> {
    let certificate =
        CertificateDer::from_pem_slice(&read_secret(path)?).map_err(|error| fault(path, error))?;
    parsed(path, &certificate)?;
    Ok(certificate)
}

fn read_secret(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        let mut file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok((mode, bytes))
    };
    let (mode, bytes) = read().map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if mode & 0o077 != 0 {
        return Err(Error::LoosePermissions { path: path.to_owned(), mode });
    }
    Ok(bytes)
}

pub(super) fn write_authority(dir: &Path, root: &Signer, intermediate: &Signer) -> Result<(), Error> {
    let text = signer_pem(root) + &signer_pem(intermediate);
    write_whole(&dir.join(AUTHORITY), text.as_bytes(), SECRET)
}

pub(super) fn signer_pem(signer: &Signer) -> String {
    certificate_pem(&signer.certificate) + &signer.key.serialize_pem()
}

/// PEM of a certificate, with line feeds whatever the platform.
pub(in crate::control) fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), config)
}

/// Makes the directory, or closes it to others: what is in it is checked file by file.
fn make_dir(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let mode = std::fs::metadata(dir).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// Keeps others from changing the state until the returned file is dropped. Blocks while another holds it, which is for
/// a few writes at most.
pub(super) fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    let open = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(SECRET).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|source| Error::Write { path: path.clone(), source })
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Replaces a file by writing a new one beside it, syncing, and renaming: a reader sees the old or the new, whole.
///
/// # Errors
/// The disk is full or the directory not writable; the file is as it was and nothing is left beside it.
pub(in crate::control) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let beside = beside(path);
    let write = || {
        remove_if_there(&beside)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        fill(&file, bytes, mode)?;
        std::fs::rename(&beside, path)?;
        sync_dir(path)
    };
    write().map_err(|source| {
        // The first error is the one to tell; a leftover would be replaced by the next attempt anyway.
        let _ = remove_if_there(&beside);
        Error::Write { path: path.to_owned(), source }
    })
}

fn fill(mut file: &File, bytes: &[u8], mode: u32) -> io::Result<()> {
    // The umask may have taken more away than wanted.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let remove = || remove_if_there(path).and_then(|()| sync_dir(path));
    remove().map_err(|source| Error::Write { path: path.to_owned(), source })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(dir)?.sync_all()
}
