//! What is wrong with an object, and where its author finds it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// One thing to mend. The last good state of the object stays in force meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Problem {
    /// The file; absent when the object does not come from files.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// Column in the line, from 1.
    pub column: Option<usize>,
    /// The object, for example `Pod shop/web`; absent when its name cannot be read.
    pub object: Option<String>,
    /// The field, for example `spec.rules[0].sources[1].cidr`.
    pub field: Option<String>,
    /// What is wrong and what to write.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            for number in [self.line, self.column].into_iter().flatten() {
                write!(f, ":{number}")?;
            }
            f.write_str(": ")?;
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// A fault in one object, before it is known where the object was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field; empty when the object as a whole is at fault.
    pub field: FieldPath,
    /// What is wrong and what to write.
    pub message: String,
}

impl Fault {
    /// About one field.
    pub fn at(field: FieldPath, message: impl Into<String>) -> Self {
        Self { field, message: message.into() }
    }

    /// About the object as a whole.
    pub fn whole(message: impl Into<String>) -> Self {
        Self::at(FieldPath::default(), message)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_root() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// The way from an object's root to one of its fields.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FieldPath(pub Vec<Segment>);

/// One step of a [`FieldPath`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Into a mapping.
    Key(String),
    /// Into a list, from 0.
    Index(usize),
}

impl FieldPath {
    /// A path of plain keys, written with dots.
    pub fn of(dotted: &str) -> Self {
        Self(dotted.split('.').map(|key| Segment::Key(key.to_owned())).collect())
    }

    /// One mapping key deeper. The key may hold dots.
    pub fn key(&self, key: &str) -> Self {
        self.then(Segment::Key(key.to_owned()))
    }

    /// One list entry deeper.
    pub fn index(&self, index: usize) -> Self {
        self.then(Segment::Index(index))
    }

    /// Further along another path.
    pub fn join(&self, rest: &Self) -> Self {
        Self(self.0.iter().chain(&rest.0).cloned().collect())
    }

    fn then(&self, segment: Segment) -> Self {
        let mut path = self.0.clone();
        path.push(segment);
        Self(path)
    }

    /// True for the object as a whole.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if key.contains(['.', '/']) => write!(f, "[{key}]")?,
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

impl From<&serde_path_to_error::Path> for FieldPath {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment as Step;
        Self(
            path.iter()
                .filter_map(|step| match step {
                    Step::Seq { index } => Some(Segment::Index(*index)),
                    Step::Map { key } => Some(Segment::Key(key.clone())),
                    Step::Enum { variant } => Some(Segment::Key(variant.clone())),
                    Step::Unknown => None,
                })
                .collect(),
        )
    }
}
