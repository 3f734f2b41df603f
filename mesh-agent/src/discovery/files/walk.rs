//! Which files there are.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells that a file has changed, short of reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change of content, then of the inode.
    times: [i64; 4],
}

/// The files of a directory, and the parts of it that could not be listed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: BTreeMap<PathBuf, Stamp>,
    pub(super) unreadable: Vec<(PathBuf, io::Error)>,
}

/// Lists the tree below `dir`. Names that begin with a dot are passed over (editors' drafts, the hidden halves of
/// mounted ConfigMaps); links to files are followed, links to directories are not, so there are no loops.
///
/// # Errors
/// `dir` itself cannot be listed.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    add(dir, &mut listing)?;
    Ok(listing)
}

fn add(dir: &Path, listing: &mut Listing) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            if let Err(error) = add(&path, listing) {
                listing.unreadable.push((path, error));
            }
        } else if is_object_file(&path) {
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => drop(listing.files.insert(path, Stamp::of(&metadata))),
                Ok(_) => {}
                // Gone between listing and looking, or a link to nothing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => listing.unreadable.push((path, error)),
            }
        }
    }
    Ok(())
}

fn is_object_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            times: [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()],
        }
    }
}
