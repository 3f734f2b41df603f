//! The source of standalone mode: a directory of Kubernetes objects in YAML or JSON.
//!
//! For each object it keeps the last version that was good. A document that is broken but still names its object leaves
//! that object as it was; one that cannot even be named leaves everything that its file said before and does not say
//! now; only what is cleanly gone is removed.
//!
//! Reading order: this file, `document` (one document: split, read, find a field's line), `walk` (which files).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Error;
use super::compile::Finding;
use super::objects::{Key, Kind, Object, Objects};
use super::problem::{FieldPath, Problem};
use document::{Document, Format, Reading, Spot};
use walk::{Listing, Stamp};

mod document;
#[cfg(test)]
mod tests;
mod walk;

/// The directory and what it said when it was last read.
#[derive(Debug)]
pub struct Source {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    objects: Objects,
    /// Where each object in force was written.
    origins: BTreeMap<Key, (PathBuf, Kept)>,
    duplicates: Vec<Problem>,
    unreadable: Vec<Problem>,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    content: Vec<u8>,
    kept: BTreeMap<Key, Kept>,
    problems: Vec<Problem>,
    ignored: BTreeMap<String, usize>,
}

/// One object of a file.
#[derive(Clone, Debug)]
struct Kept {
    object: Arc<Object>,
    /// Where it was written, to find the lines of its fields.
    document: Arc<Document>,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// As the file says now.
    Fresh,
    /// The file's present version is bad; this is the last good one.
    LastGood,
    /// There never was a good version; this refuses in its place.
    StandIn,
}

impl Source {
    /// A directory that has not been read yet.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
            objects: Objects::default(),
            origins: BTreeMap::new(),
            duplicates: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The problem with a `MeshConfig` that has no good version, if there is one.
    pub fn unusable_mesh_config(&self) -> Option<Problem> {
        let (key, _) = self
            .objects
            .of_kind(Kind::MeshConfig)
            .find(|(_, e)| matches!(*e.object, Object::UnusableMeshConfig))?;
        let name = key.to_string();
        let mut problems = self.files.values().flat_map(|file| &file.problems);
        problems.find(|problem| problem.object.as_ref() == Some(&name)).cloned()
    }

    /// Looks for changes and says whether there are any. Without `reread`, a file whose size, inode and times are as
    /// before is taken for unchanged.
    ///
    /// # Errors
    /// The directory itself cannot be read. What it said before stays in force.
    pub fn refresh(&mut self, reread: bool) -> Result<bool, Error> {
        let listing =
            walk::list(&self.dir).map_err(|source| Error::Directory { path: self.dir.clone(), source })?;
        let unreadable = listing.unreadable.iter().map(|(path, error)| unreadable(path, error)).collect();
        let mut changed = self.unreadable != unreadable;
        self.unreadable = unreadable;
        changed |= self.forget_gone(&listing);
        for (path, stamp) in listing.files {
            changed |= self.read_file(path, stamp, reread);
        }
        if changed {
            self.merge();
        }
        Ok(changed)
    }

    /// A file below a directory that cannot be listed at the moment is not gone.
    fn forget_gone(&mut self, listing: &Listing) -> bool {
        let before = self.files.len();
        self.files.retain(|path, _| {
            listing.files.contains_key(path)
                || listing.unreadable.iter().any(|(dir, _)| path.starts_with(dir))
        });
        self.files.len() != before
    }

    fn read_file(&mut self, path: PathBuf, stamp: Stamp, reread: bool) -> bool {
        let known = self.files.get(&path);
        if !reread && known.is_some_and(|file| file.stamp.as_ref() == Some(&stamp)) {
            return false;
        }
        let mut file = match fs::read(&path) {
            Ok(content) if known.is_some_and(|file| file.stamp.is_some() && file.content == content) => {
                self.files.entry(path).and_modify(|file| file.stamp = Some(stamp));
                return false;
            }
            Ok(content) => self.interpret(&path, content),
            // Gone between listing and reading: the next look will see it so.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(error) => {
                let problems = vec![unreadable(&path, &error)];
                if known.is_some_and(|file| file.problems == problems) {
                    return false;
                }
                let mut file = File { problems, ..File::default() };
                self.keep_all(&path, &mut file, &BTreeSet::new());
                self.files.insert(path, file);
                return true;
            }
        };
        file.stamp = Some(stamp);
        self.files.insert(path, file);
        true
    }

    /// Reads every document of a file and fills the gaps that bad ones leave.
    fn interpret(&self, path: &Path, content: Vec<u8>) -> File {
        let mut file = File::default();
        let mut bad_keys = BTreeSet::new();
        let mut nameless = false;
        match std::str::from_utf8(&content) {
            Ok(text) => {
                for document in document::split(text, Format::of(path)) {
                    nameless |= self.interpret_document(path, document, &mut file, &mut bad_keys);
                }
            }
            Err(error) => {
                nameless = true;
                let line = content[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
                let spot = Spot { line: Some(line), column: None };
                file.problems.push(problem(path, spot, None, None, "not UTF-8 text".to_owned()));
            }
        }
        if nameless {
            self.keep_all(path, &mut file, &bad_keys);
        }
        file.content = content;
        file
    }

    /// Returns true when the document is bad and does not say which object it is.
    fn interpret_document(
        &self,
        path: &Path,
        document: Document,
        file: &mut File,
        bad_keys: &mut BTreeSet<Key>,
    ) -> bool {
        let document = Arc::new(document);
        let reading = document.read();
        match reading {
            Reading::Empty => {}
            Reading::Ignored(kind) => *file.ignored.entry(kind).or_default() += 1,
            Reading::Good { key, object, fault } => {
                file.problems.extend(fault.map(|fault| fault.into_problem(path, Some(&key))));
                if let Some(first) = file.kept.get(&key).filter(|kept| kept.standing == Standing::Fresh) {
                    file.problems.push(duplicate(&key, (path, &document), (path, &first.document)));
                } else {
                    let kept = Kept { object: Arc::new(object), document, standing: Standing::Fresh };
                    file.kept.insert(key, kept);
                }
            }
            Reading::Bad { key, fault, stand_in } => {
                file.problems.push(fault.into_problem(path, key.as_ref()));
                let Some(key) = key else { return true };
                bad_keys.insert(key.clone());
                if !file.kept.contains_key(&key) {
                    let stand_in = stand_in.map(|object| Kept {
                        object: Arc::new(object),
                        document,
                        standing: Standing::StandIn,
                    });
                    file.kept.extend(self.last_good(path, &key).or(stand_in).map(|kept| (key, kept)));
                }
            }
        }
        false
    }

    /// The last good version: of this file, or of the file that the object came from.
    fn last_good(&self, path: &Path, key: &Key) -> Option<Kept> {
        let here = self.files.get(path).and_then(|file| file.kept.get(key));
        let anywhere = self.origins.get(key).map(|(_, kept)| kept);
        let good = |kept: &&Kept| kept.standing != Standing::StandIn;
        let kept = here.filter(good).or_else(|| anywhere.filter(good))?;
        Some(Kept { standing: Standing::LastGood, ..kept.clone() })
    }

    /// Keeps what the file said before and does not say now.
    fn keep_all(&self, path: &Path, file: &mut File, bad_keys: &BTreeSet<Key>) {
        for (key, kept) in self.files.get(path).iter().flat_map(|old| &old.kept) {
            if file.kept.contains_key(key) || bad_keys.contains(key) {
                continue;
            }
            let standing = match kept.standing {
                Standing::StandIn => Standing::StandIn,
                Standing::Fresh | Standing::LastGood => Standing::LastGood,
            };
            file.kept.insert(key.clone(), Kept { standing, ..kept.clone() });
        }
    }

    /// One object per name: what some file says now comes before what is only remembered, then files in order of path.
    fn merge(&mut self) {
        self.duplicates.clear();
        let mut origins: BTreeMap<Key, (PathBuf, Kept)> = BTreeMap::new();
        for pass in [Standing::Fresh, Standing::LastGood, Standing::StandIn] {
            for (path, file) in &self.files {
                for (key, kept) in file.kept.iter().filter(|(_, kept)| kept.standing == pass) {
                    match origins.get(key) {
                        None => drop(origins.insert(key.clone(), (path.clone(), kept.clone()))),
                        Some((first_path, first)) if pass == Standing::Fresh => self
                            .duplicates
                            .push(duplicate(key, (path, &kept.document), (first_path, &first.document))),
                        Some(_) => {}
                    }
                }
            }
        }
        self.objects.retain(|key| origins.contains_key(key));
        let places: BTreeMap<&PathBuf, u64> = self.files.keys().zip(0..).collect();
        for (key, (path, kept)) in &origins {
            let line =
                u64::try_from(kept.document.content_line()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
            self.objects.insert(key.clone(), (places[path] << 32) | line, kept.object.clone());
        }
        self.origins = origins;
    }

    fn locate(&self, finding: &Finding) -> Problem {
        let field = (!finding.fault.field.is_root()).then_some(&finding.fault.field);
        let object = Some(&finding.key);
        let message = finding.fault.message.clone();
        match self.origins.get(&finding.key) {
            Some((path, kept)) => {
                problem(path, kept.document.locate(&finding.fault.field), object, field, message)
            }
            None => Problem {
                file: None,
                line: None,
                column: None,
                object: object.map(ToString::to_string),
                field: field.map(ToString::to_string),
                message,
            },
        }
    }
}

impl super::Source for Source {
    fn take_changed(&mut self) -> BTreeSet<Key> {
        self.objects.take_changed()
    }

    fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Every publication follows a file that was read anew, and lines may have moved in it.
    fn take_problems_changed(&mut self) -> bool {
        true
    }

    fn ignored(&self) -> BTreeMap<String, usize> {
        let mut sum = BTreeMap::new();
        for (kind, count) in self.files.values().flat_map(|file| &file.ignored) {
            *sum.entry(kind.clone()).or_default() += count;
        }
        sum
    }

    /// By file and line.
    fn problems(&self, findings: &[Finding]) -> Vec<Problem> {
        let found = findings.iter().map(|finding| self.locate(finding));
        let of_files = self.files.values().flat_map(|file| &file.problems);
        let mut all: Vec<Problem> =
            self.unreadable.iter().chain(&self.duplicates).chain(of_files).cloned().chain(found).collect();
        all.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        all
    }
}

fn problem(
    path: &Path,
    spot: Spot,
    key: Option<&Key>,
    field: Option<&FieldPath>,
    message: String,
) -> Problem {
    Problem {
        file: Some(path.to_owned()),
        line: spot.line,
        column: spot.column,
        object: key.map(ToString::to_string),
        field: field.map(ToString::to_string),
        message,
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let spot = Spot { line: None, column: None };
    problem(path, spot, None, None, format!("cannot be read, so what it said before stays in force: {error}"))
}

fn duplicate(key: &Key, second: (&Path, &Document), first: (&Path, &Document)) -> Problem {
    let message = format!(
        "is written twice; {}:{} was first and stays in force",
        first.0.display(),
        first.1.content_line()
    );
    problem(second.0, second.1.locate(&FieldPath::default()), Some(key), None, message)
}
