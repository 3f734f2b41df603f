//! Which node is asking, in standalone mode? Join tokens, one file per node.
//!
//! The file's name is the node's name, its content the token. Files may be added, changed and removed while we run.
//! A token that a second file repeats names no node at all.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq as _;

use super::Error;

/// Shortest token, in bytes. 16 random bytes as hex are 32; anything under 16 characters was made up by a person and can
/// be guessed.
pub const TOKEN_LEN_MIN: usize = 16;

/// What is wrong with a token file.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Group or others may read or write it.
    #[error("has mode {0:04o}: it must not be open to group or others (chmod 600)")]
    LoosePermissions(u32),
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(std::io::Error),
    /// It holds less than [`TOKEN_LEN_MIN`] characters, or other than printable ASCII.
    #[error("holds no token: one line of at least {TOKEN_LEN_MIN} printable ASCII characters is needed")]
    Malformed,
    /// Another node has the same token.
    #[error("holds the same token as that of node {0}")]
    Repeated(Arc<str>),
}

struct Token {
    node: Arc<str>,
    secret: Vec<u8>,
}

/// All join tokens. `Debug` shows the directory only.
pub struct JoinTokens {
    dir: PathBuf,
    current: ArcSwap<Vec<Token>>,
}

impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinTokens").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl JoinTokens {
    /// Reads the directory at start.
    ///
    /// # Errors
    /// The directory cannot be read, or any file in it cannot be used: a security setting that is present but unusable
    /// stops the start.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let (tokens, faults) = read(dir)?;
        match faults.into_iter().next() {
            Some((path, fault)) => Err(Error::JoinToken { path, fault }),
            None => Ok(Self { dir: dir.to_owned(), current: ArcSwap::from_pointee(tokens) }),
        }
    }

    /// Reads the directory again. Files that cannot be used are left out (their nodes are refused) and returned.
    ///
    /// # Errors
    /// The directory cannot be read; the tokens stay as they were.
    pub fn reload(&self) -> Result<Vec<Error>, Error> {
        let (tokens, faults) = read(&self.dir)?;
        self.current.store(Arc::new(tokens));
        Ok(faults.into_iter().map(|(path, fault)| Error::JoinToken { path, fault }).collect())
    }

    /// The node whose token this is. Takes the same time for every token of the same length: all are compared, each in
    /// constant time.
    pub fn node_of(&self, presented: &str) -> Option<Arc<str>> {
        let tokens = self.current.load();
        let mut found = None;
        for token in tokens.iter() {
            if bool::from(token.secret.ct_eq(presented.as_bytes())) {
                found = Some(token.node.clone());
            }
        }
        found
    }
}

type Faults = Vec<(PathBuf, Fault)>;

fn read(dir: &Path) -> Result<(Vec<Token>, Faults), Error> {
    let unreadable = |source| Error::Read { path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    let (mut tokens, mut faults): (Vec<Token>, Faults) = (Vec::new(), Vec::new());
    for path in paths {
        let Some(node) = node_name(&path) else { continue };
        match read_token(&path) {
            Ok(secret) => tokens.push(Token { node, secret }),
            Err(fault) => faults.push((path, fault)),
        }
    }
    let repeated: Vec<_> = tokens.iter().filter_map(|token| repeats(token, &tokens, dir)).collect();
    tokens.retain(|token| !repeated.iter().any(|(path, _)| *path == dir.join(&*token.node)));
    faults.extend(repeated);
    Ok((tokens, faults))
}

/// Names with a leading dot belong to Kubernetes' volume plumbing and to editors; directories are none of ours.
fn node_name(path: &Path) -> Option<Arc<str>> {
    let name = path.file_name()?.to_str()?;
    (!name.starts_with('.') && !path.is_dir()).then(|| name.into())
}

fn read_token(path: &Path) -> Result<Vec<u8>, Fault> {
    let mode = std::fs::metadata(path).map_err(Fault::Read)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Fault::LoosePermissions(mode));
    }
    let text = std::fs::read_to_string(path).map_err(Fault::Read)?;
    let token = text.trim();
    let well_formed = token.len() >= TOKEN_LEN_MIN && token.bytes().all(|byte| byte.is_ascii_graphic());
    if well_formed { Ok(token.as_bytes().to_vec()) } else { Err(Fault::Malformed) }
}

fn repeats(token: &Token, all: &[Token], dir: &Path) -> Option<(PathBuf, Fault)> {
    let twin = all.iter().find(|other| other.node != token.node && other.secret == token.secret)?;
    Some((dir.join(&*token.node), Fault::Repeated(twin.node.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, node: &str, token: &str, mode: u32) {
        let path = dir.join(node);
        std::fs::write(&path, token).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode set");
    }

    #[test]
    fn token_names_its_node_and_follows_the_files() {
        let dir = tempfile::tempdir().expect("a directory");
        put(dir.path(), "node-1", "0123456789abcdef-one\n", 0o600);
        put(dir.path(), ".hidden", "not read at all here", 0o644);
        let tokens = JoinTokens::load(dir.path()).expect("usable");
        assert_eq!(tokens.node_of("0123456789abcdef-one").as_deref(), Some("node-1"));
        for wrong in ["", "0123456789abcdef-on", "0123456789abcdef-onf", "not read at all here"] {
            assert_eq!(tokens.node_of(wrong), None, "{wrong:?}");
        }
        put(dir.path(), "node-1", "0123456789abcdef-new", 0o600);
        put(dir.path(), "node-2", "0123456789abcdef-two", 0o400);
        assert!(tokens.reload().expect("readable").is_empty());
        assert_eq!(tokens.node_of("0123456789abcdef-one"), None);
        assert_eq!(tokens.node_of("0123456789abcdef-new").as_deref(), Some("node-1"));
        assert_eq!(tokens.node_of("0123456789abcdef-two").as_deref(), Some("node-2"));
    }

    #[test]
    fn unusable_token_stops_the_start_and_later_is_left_out() {
        let token = "0123456789abcdef-one";
        for (text, mode, expected) in [
            (token, 0o640, "has mode 0640"),
            (token, 0o604, "has mode 0604"),
            ("short", 0o600, "holds no token"),
            ("", 0o600, "holds no token"),
            ("0123456789 abcdef two words", 0o600, "holds no token"),
            ("0123456789abcdef-two", 0o600, "same token as that of node node-2"),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            put(dir.path(), "node-2", "0123456789abcdef-two", 0o600);
            let tokens = JoinTokens::load(dir.path()).expect("usable");
            put(dir.path(), "node-1", text, mode);
            let said = JoinTokens::load(dir.path()).expect_err("unusable").to_string();
            assert!(said.contains("node-1") && said.contains(expected), "{said}");
            let left_out = tokens.reload().expect("readable");
            assert!(left_out[0].to_string().contains("node-1"), "{left_out:?}");
            assert_eq!(tokens.node_of(text), None);
        }
    }
}
