//! The CA on disk: how its texts ([`super::pems`]) are kept as files, and how they are replaced without ever being half
//! written. A file `lock` beside them is held by whoever changes them.
//!
//! The directory has mode 0700, the files 0600. A file that others can read is refused and not repaired: its key may
//! have been copied.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::pems::{AUTHORITY, NEXT_ROOT, Pems, Place, RETIRED_ROOT};
use super::{Authority, Error};
use crate::model::TrustDomain;

const LOCK: &str = "lock";

/// Mode of what only we may read.
const SECRET: u32 = 0o600;
/// Mode of what everybody may read.
pub(in crate::control) const PUBLIC: u32 = 0o644;

impl Authority {
    /// Opens the state directory; makes it, a root and an intermediate where there are none yet.
    ///
    /// # Errors
    /// A file is open to others, truncated, or of parts that do not belong together, belongs to another trust domain, or
    /// cannot be written; the error names it.
    pub fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, Error> {
        make_dir(dir)?;
        let _lock = lock(dir)?;
        let place = Place::Dir(dir.to_owned());
        if !exists(&dir.join(AUTHORITY))? {
            save(dir, &Pems::fresh(trust_domain)?)?;
        }
        let pems = read_pems(dir)?;
        let authority = Self::parse(&pems, &place)?;
        authority.check_trust_domain(&place, trust_domain)?;
        if authority.intermediate_is_due() {
            save(dir, &pems.with_new_intermediate(&place)?)?;
            return Self::read(dir);
        }
        Ok(authority)
    }

    /// Reads what is there, changing nothing.
    ///
    /// # Errors
    /// As [`Authority::open`].
    pub fn read(dir: &Path) -> Result<Self, Error> {
        Self::parse(&read_pems(dir)?, &Place::Dir(dir.to_owned()))
    }
}

/// The texts as they are in the directory.
pub(super) fn read_pems(dir: &Path) -> Result<Pems, Error> {
    let optional = |name: &str| {
        let path = dir.join(name);
        if exists(&path)? { read_secret(&path).map(Some) } else { Ok(None) }
    };
    Ok(Pems {
        authority: read_secret(&dir.join(AUTHORITY))?,
        next_root: optional(NEXT_ROOT)?,
        retired_root: optional(RETIRED_ROOT)?,
    })
}

/// Writes what differs. The order is that of a switch: the old root is noted first; then comes the rename that is the
/// switch (before it the retired root is the active one and is not counted twice, after it the next root is); then what
/// is over is removed.
pub(super) fn save(dir: &Path, pems: &Pems) -> Result<(), Error> {
    let optional = [(RETIRED_ROOT, &pems.retired_root), (NEXT_ROOT, &pems.next_root)];
    let differs =
        |path: &Path, text: &str| std::fs::read(path).map_or(true, |found| found != text.as_bytes());
    let written = optional.iter().filter_map(|(name, text)| text.as_ref().map(|text| (*name, text)));
    for (name, text) in written.chain([(AUTHORITY, &pems.authority)]) {
        let path = dir.join(name);
        if differs(&path, text) {
            write_whole(&path, text.as_bytes(), SECRET)?;
        }
    }
    for (name, _) in optional.iter().filter(|(_, text)| text.is_none()) {
        remove(&dir.join(name))?;
    }
    Ok(())
}

fn read_secret(path: &Path) -> Result<String, Error> {
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
    String::from_utf8(bytes)
        .map_err(|_binary| super::pems::fault(&path.display().to_string(), "it is not text"))
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

fn remove(path: &Path) -> Result<(), Error> {
    if !exists(path)? {
        return Ok(());
    }
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
