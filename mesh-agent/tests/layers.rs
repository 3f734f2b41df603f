//! The rooms keep to their layers: reads the table in `src/lib.rs` and every path in `src`, and fails on an import that the
//! table does not allow, a file without module docs, and a file that no module declares.
//!
//! Reading order: the rules over the real tree, then the reader of paths, then tests of the checker itself on made-up
//! input, so that it cannot rot into one that always passes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A source tree: path below `src` to text.
type Tree = BTreeMap<String, String>;

#[test]
fn rooms_keep_to_their_layers() {
    let tree = read_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(tree.len() > 30, "found only {} files: is this the right directory?", tree.len());
    let violations = violations(&tree);
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

fn read_tree(src: &Path) -> Tree {
    fn add(dir: &Path, src: &Path, tree: &mut Tree) {
        for entry in fs::read_dir(dir).expect("a readable source directory") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                add(&path, src, tree);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name =
                    path.strip_prefix(src).expect("below src").to_str().expect("UTF-8 name").to_owned();
                tree.insert(name, fs::read_to_string(&path).expect("a readable source file"));
            }
        }
    }
    let mut tree = Tree::new();
    add(src, src, &mut tree);
    tree
}

/// Everything that is wrong with the tree, one line each.
fn violations(tree: &Tree) -> Vec<String> {
    let table = match Table::read(&tree["lib.rs"]) {
        Ok(table) => table,
        Err(fault) => return vec![fault],
    };
    let mut found = table.faults();
    for (file, text) in tree {
        if !text.starts_with("//!") {
            found.push(format!("{file}: does not begin with module docs (//!)"));
        }
        if file == "lib.rs" || file.starts_with("bin/") {
            continue;
        }
        found.extend(undeclared(tree, file));
        let modules: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
        let room = modules[0];
        if !table.rooms.contains_key(room) {
            found.push(format!("{file}: room `{room}` is not in the table of lib.rs"));
            continue;
        }
        for used in rooms_used(text, modules.len()) {
            if !table.allows(room, &used) {
                found.push(format!("{file}: room `{room}` may not use `{used}`"));
            }
        }
    }
    found
}

/// A file is part of the crate only if the module above it declares it.
fn undeclared(tree: &Tree, file: &str) -> Option<String> {
    let (parent, module) = match file.trim_end_matches(".rs").rsplit_once('/') {
        Some((parent, module)) => (format!("{parent}.rs"), module),
        None => ("lib.rs".to_owned(), file.trim_end_matches(".rs")),
    };
    let declared = tree.get(&parent).is_some_and(|text| {
        tokens(&code_only(text)).windows(3).any(|w| w[0] == "mod" && w[1] == module && w[2] == ";")
    });
    (!declared).then(|| format!("{file}: {parent} does not declare `mod {module};`"))
}

/// The table: each room's layer and what it may use.
struct Table {
    rooms: BTreeMap<String, (u32, Uses)>,
}

enum Uses {
    All,
    These(BTreeSet<String>),
}

impl Table {
    fn read(lib: &str) -> Result<Self, String> {
        let mut rooms = BTreeMap::new();
        for line in lib.lines().filter_map(|line| line.strip_prefix("//! |")) {
            let cells: Vec<&str> = line.trim_end().trim_end_matches('|').split('|').map(str::trim).collect();
            let [layer, room, uses] = cells[..] else {
                return Err(format!("lib.rs: table row has {} cells: {line}", cells.len()));
            };
            let Ok(layer) = layer.parse::<u32>() else { continue };
            let uses = match uses {
                "all" => Uses::All,
                "-" => Uses::These(BTreeSet::new()),
                list => Uses::These(list.split(',').map(|name| name.trim().to_owned()).collect()),
            };
            if rooms.insert(room.to_owned(), (layer, uses)).is_some() {
                return Err(format!("lib.rs: room `{room}` is in the table twice"));
            }
        }
        if rooms.is_empty() { Err("lib.rs: no table of rooms".to_owned()) } else { Ok(Self { rooms }) }
    }

    /// The table must itself point downward only.
    fn faults(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (room, (layer, uses)) in &self.rooms {
            let Uses::These(names) = uses else { continue };
            for name in names {
                match self.rooms.get(name) {
                    None => {
                        found.push(format!("lib.rs: room `{room}` lists `{name}`, which is not in the table"))
                    }
                    Some((other, _)) if other > layer => {
                        found.push(format!(
                            "lib.rs: room `{room}` of layer {layer} lists `{name}` of layer {other}"
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        found
    }

    fn allows(&self, room: &str, used: &str) -> bool {
        room == used
            || match self.rooms.get(room) {
                Some((_, Uses::All)) => true,
                Some((_, Uses::These(names))) => names.contains(used),
                None => false,
            }
    }
}

/// First segments below the crate root of every path in the text: through `crate::`, and through as many `super::` as
/// lead to the root. `depth` is the number of modules that the file itself is deep.
fn rooms_used(text: &str, depth: usize) -> BTreeSet<String> {
    let code = code_only(text);
    let tokens = tokens(&code);
    let mut found = BTreeSet::new();
    // For each open brace, whether it opens an inline module, which is one level deeper.
    let mut braces: Vec<bool> = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        match tokens[index] {
            "{" => braces.push(index >= 2 && tokens[index - 2] == "mod"),
            "}" => drop(braces.pop()),
            "crate" if tokens.get(index + 1) == Some(&"::") => {
                first_segments(&tokens[index + 2..], &mut found)
            }
            "super" => {
                let inline = braces.iter().filter(|is_module| **is_module).count();
                let mut ups = 0;
                while tokens.get(index) == Some(&"super") && tokens.get(index + 1) == Some(&"::") {
                    ups += 1;
                    index += 2;
                }
                if ups == depth + inline {
                    first_segments(&tokens[index..], &mut found);
                }
                // The token after the last `::` has not been looked at, unless there was no `::` at all.
                if ups > 0 {
                    continue;
                }
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// The names that a path, or a group in braces, begins with.
fn first_segments(rest: &[&str], found: &mut BTreeSet<String>) {
    if rest.first() != Some(&"{") {
        found.extend(rest.first().map(|name| (*name).to_owned()));
        return;
    }
    let mut depth = 0;
    let mut at_start = false;
    for token in rest {
        match *token {
            "{" => {
                depth += 1;
                at_start = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return;
                }
            }
            "," => at_start = depth == 1,
            name if at_start => {
                found.insert(name.to_owned());
                at_start = false;
            }
            _ => {}
        }
    }
}

/// Identifiers, `::` and single other characters.
fn tokens(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let len = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, tail) = rest.split_at(len);
        found.push(token);
        rest = tail.trim_start();
    }
    found
}

/// The text without comments, strings and character literals.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = comment_len(rest).or_else(|| {
            // `r` and `b` begin a literal only where no identifier goes on.
            let inside_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if inside_word { quoted_len(rest) } else { literal_len(rest) }
        });
        match skipped {
            Some(len) => {
                code.push(' ');
                rest = &rest[len..];
            }
            None => {
                code.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    code
}

fn comment_len(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    Some(rest.len())
}

/// Length of a string or character literal, with its prefix.
fn literal_len(rest: &str) -> Option<usize> {
    let prefix = rest.find(|c| !matches!(c, 'b' | 'c' | 'r')).filter(|len| *len <= 2)?;
    let body = &rest[prefix..];
    if rest[..prefix].contains('r') {
        let hashes = body.find(|c| c != '#')?;
        if body[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let inner = &body[hashes + 1..];
            return Some(prefix + hashes + 1 + inner.find(&end).map_or(inner.len(), |at| at + end.len()));
        }
        return None;
    }
    quoted_len(body).map(|len| prefix + len)
}

/// Length of a plain string or character literal; a lifetime is neither.
fn quoted_len(rest: &str) -> Option<usize> {
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut chars = rest.char_indices();
    chars.next();
    if quote == '\'' && !rest[1..].starts_with('\\') {
        chars.next()?;
        return chars.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

// The checker, on made-up input.

const LIB: &str = "//! A crate.\n//!\n//! | layer | room | may use |\n//! |---|---|---|\n//! | 0 | model | - |\n\
                   //! | 2 | registry | model |\n//! | 2 | policy | model |\n//! | 5 | proxy | model, registry |\n\
                   //! | 8 | agent | all |\n\npub mod model;\npub mod registry;\npub mod policy;\npub mod proxy;\n\
                   pub mod agent;\n";

/// What is wrong with a tree of these files beside `LIB`.
#[track_caller]
fn check(files: &[(&str, &str)], expected: &[&str]) {
    let mut tree = Tree::from([("lib.rs".to_owned(), LIB.to_owned())]);
    tree.extend(files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())));
    assert_eq!(violations(&tree), expected);
}

#[test]
fn imports_that_go_down_are_allowed() {
    check(
        &[
            ("model.rs", "//! Nouns.\n"),
            ("registry.rs", "//! Now.\nuse crate::model::Pod;\nuse crate::registry::inner;\nmod inner;\n"),
            ("registry/inner.rs", "//! In.\nuse super::X;\nuse crate::{model::{self, Pod}, registry::X};\n"),
            ("agent.rs", "//! All.\nuse crate::{model, policy, proxy::{a, registry}};\n"),
            ("bin/x.rs", "//! Bin.\nuse mesh_agent::proxy;\n"),
        ],
        &[],
    );
}

#[test]
fn imports_that_go_up_or_sideways_are_refused() {
    check(
        &[("model.rs", "//! N.\nuse crate::registry::X;\n")],
        &["model.rs: room `model` may not use `registry`"],
    );
    check(
        &[("policy.rs", "//! P.\nuse crate::registry::X;\n")],
        &["policy.rs: room `policy` may not use `registry`"],
    );
    check(
        &[("proxy.rs", "//! P.\nfn f() { crate::policy::g() }\n")],
        &["proxy.rs: room `proxy` may not use `policy`"],
    );
    check(
        &[(
            "proxy.rs",
            "//! P.\nuse crate::{\n    model::{a, b::{c, d}},\n    agent,\n    policy::X as Y,\n};\n",
        )],
        &["proxy.rs: room `proxy` may not use `agent`", "proxy.rs: room `proxy` may not use `policy`"],
    );
    check(
        &[("policy.rs", "//! P.\nuse crate::nowhere::X;\n")],
        &["policy.rs: room `policy` may not use `nowhere`"],
    );
}

#[test]
fn climbing_with_super_is_seen_through() {
    let refused = &["policy.rs: room `policy` may not use `proxy`"];
    check(&[("policy.rs", "//! P.\nuse super::proxy::X;\n")], refused);
    check(&[("policy.rs", "//! P.\nmod tests { use super::super::proxy::X; }\n")], refused);
    check(&[("policy.rs", "//! P.\nmod tests { fn f() { } use super::proxy::X; }\n")], &[]);
    check(&[("policy.rs", "//! P.\nmod tests { }\nuse super::{model, proxy};\n")], refused);
    check(
        &[
            ("policy.rs", "//! P.\nmod a;\n"),
            ("policy/a.rs", "//! A.\nuse super::proxy::X;\nuse super::super::{model::Y, registry::Z};\n"),
        ],
        &["policy/a.rs: room `policy` may not use `registry`"],
    );
}

#[test]
fn comments_strings_and_lifetimes_are_not_code() {
    let text = r##"//! P. See [`crate::proxy`].
/* crate::proxy /* crate::agent */ crate::proxy */
const A: &str = "crate::proxy \" crate::agent";
const B: &str = r#"crate::proxy " crate::agent"#;
const C: &[u8] = b"crate::proxy";
const D: (char, char, u8) = ('"', '\'', b'"');
fn f<'a>(x: &'a str) -> &'a str { x } // crate::proxy
fn bar() { let r = var"crate::agent"; }
"##;
    check(&[("policy.rs", text)], &[]);
    // And what stands after each of them is seen.
    let text = format!("{text}use crate::proxy;\n");
    check(&[("policy.rs", &text)], &["policy.rs: room `policy` may not use `proxy`"]);
}

#[test]
fn files_without_docs_or_declaration_are_found() {
    check(&[("model.rs", "use std::fmt;\n")], &["model.rs: does not begin with module docs (//!)"]);
    check(
        &[
            ("model.rs", "//! N.\n// mod lost;\nmod kept;\n"),
            ("model/kept.rs", "//! K.\n"),
            ("model/lost.rs", "//! L.\n"),
        ],
        &["model/lost.rs: model.rs does not declare `mod lost;`"],
    );
    check(&[("model/deep/x.rs", "//! X.\n")], &["model/deep/x.rs: model/deep.rs does not declare `mod x;`"]);
    check(
        &[("other.rs", "//! O.\n")],
        &[
            "other.rs: lib.rs does not declare `mod other;`",
            "other.rs: room `other` is not in the table of lib.rs",
        ],
    );
}

#[test]
fn the_table_itself_must_point_down() {
    let faults = |rows: &str| match Table::read(rows) {
        Ok(table) => table.faults(),
        Err(fault) => vec![fault],
    };
    assert_eq!(
        faults("//! | 0 | model | proxy |\n//! | 5 | proxy | model |\n"),
        ["lib.rs: room `model` of layer 0 lists `proxy` of layer 5"]
    );
    assert_eq!(
        faults("//! | 0 | model | gone |\n"),
        ["lib.rs: room `model` lists `gone`, which is not in the table"]
    );
    assert_eq!(
        faults("//! | 0 | model | - |\n//! | 1 | model | - |\n"),
        ["lib.rs: room `model` is in the table twice"]
    );
    assert_eq!(faults("//! no table\n"), ["lib.rs: no table of rooms"]);
}
