//! `URLRewrite`, and the change of a path that it shares with `RequestRedirect`.

use crate::model::{PathEdit, Rewrite};

/// The path and query that the backend is asked for. `path_and_query` has its path in the normal form, and `prefix` is
/// what the rule matched of it (`Matched::prefix`). The query stays.
pub fn rewrite(rewrite: &Rewrite, prefix: Option<&str>, path_and_query: &str) -> String {
    match &rewrite.path {
        Some(edit) => edit_path(edit, prefix, path_and_query),
        None => path_and_query.to_owned(),
    }
}

/// Changes a path and leaves its query.
///
/// A prefix edit joins with exactly one slash, however many replacement and rest bring, and what would be empty is `/`. A
/// path that began with two could be read as one that names a host. Where the rule matched no prefix there is none to replace and the path stays; routes that ask for that are not
/// accepted in the first place.
pub fn edit_path(edit: &PathEdit, prefix: Option<&str>, path_and_query: &str) -> String {
    let (path, query) = match path_and_query.find('?') {
        Some(at) => path_and_query.split_at(at),
        None => (path_and_query, ""),
    };
    let edited = match edit {
        PathEdit::Full(full) => rooted(full, ""),
        PathEdit::Prefix(new) => match rest_of(path, prefix) {
            Some(rest) => rooted(new.trim_end_matches('/'), rest),
            None => path.to_owned(),
        },
    };
    edited + query
}

/// What follows the prefix: nothing, or something that begins with a slash.
fn rest_of<'a>(path: &'a str, prefix: Option<&str>) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix?.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// `head` and `rest` joined, with one slash at the beginning and one between them.
fn rooted(head: &str, rest: &str) -> String {
    let head = head.trim_start_matches('/');
    match rest.strip_prefix('/') {
        None => format!("/{head}"),
        Some(rest) if head.is_empty() => format!("/{}", rest.trim_start_matches('/')),
        Some(rest) => format!("/{head}/{}", rest.trim_start_matches('/')),
    }
}
