//! The pages are true as far as a program can tell: files that ARCHITECTURE.md names exist, tests that SPECIFICATION.md
//! names exist and every promise names one or admits that it has none, and relative links in every page lead somewhere.
//!
//! Reading order: the rules over the real tree, the rules themselves, then tests of the rules on made-up pages, so that they
//! cannot rot into ones that always pass.

use std::fs;
use std::path::{Path, PathBuf};

/// What a promise without a test or bench says, in any capitalisation.
const ADMISSIONS: [&str; 3] = ["no test yet", "no bench yet", "held by the compiler"];

#[test]
fn pages_name_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let pages = pages_below(root);
    assert!(pages.len() > 10, "found only {} pages: is this the right directory?", pages.len());
    let mut wrong = Vec::new();
    for page in &pages {
        let text = read(page);
        let dir = page.parent().expect("a page stands in a directory");
        let mut found = dead_links(&text, &|target| dir.join(target).exists());
        match page.strip_prefix(root).expect("below the root").to_str() {
            Some("ARCHITECTURE.md") => {
                found.extend(missing_files(&text, &top_level(root), &|path| root.join(path).exists()))
            }
            Some("SPECIFICATION.md") => found.extend(missing_tests(&text, &|file| test_source(root, file))),
            _ => {}
        }
        wrong.extend(found.into_iter().map(|what| format!("{}: {what}", page.display())));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every page but those of build products and hidden directories; `.github` counts.
fn pages_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a readable directory") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name == ".github" || !(name.starts_with('.') || name == "target") {
                found.extend(pages_below(&path));
            }
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    found
}

fn top_level(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).expect("a readable directory");
    entries.filter_map(|entry| entry.expect("a readable entry").file_name().into_string().ok()).collect()
}

/// A test's source: below `mesh-agent/src`, or named from the top.
fn test_source(root: &Path, file: &str) -> Option<String> {
    let candidates = [root.join("mesh-agent/src").join(file), root.join(file)];
    candidates.iter().find(|path| path.is_file()).map(|path| read(path))
}

/// Texts between single backticks, outside of code blocks.
fn code_spans(text: &str) -> Vec<&str> {
    without_blocks(text).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Lines outside of fenced blocks.
fn without_blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// Paths in code spans that begin with something of the top level and are not there.
fn missing_files(text: &str, top: &[String], exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let is_path = |span: &&str| {
        span.split_once('/').is_some_and(|(first, _)| top.iter().any(|name| name == first))
            && !span.contains(['*', ' ', '{'])
    };
    let missing = code_spans(text).into_iter().filter(is_path).filter(|path| !exists(path));
    missing.map(|path| format!("there is no {path}")).collect()
}

/// Tests that are named and not there, and promises (paragraphs that begin with a number like `1.2`) that name nothing.
fn missing_tests(text: &str, source: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for promise in text.split("\n\n").filter(|paragraph| is_promise(paragraph)) {
        let number = promise.split(' ').next().unwrap_or_default();
        let spans = code_spans(promise);
        let tests: Vec<_> = spans.iter().filter_map(|span| span.split_once(".rs::")).collect();
        let benches: Vec<_> = spans.iter().filter_map(|span| span.strip_prefix("bench ")).collect();
        let admits = ADMISSIONS.iter().any(|words| promise.to_lowercase().contains(words));
        if tests.is_empty() && benches.is_empty() && !admits {
            found.push(format!("promise {number} names no test and does not admit it"));
        }
        for bench in benches {
            if source(&format!("xtask/src/bench/{bench}.rs")).is_none() {
                found.push(format!("promise {number}: there is no bench {bench}"));
            }
        }
        for (file, test) in tests {
            let file = format!("{file}.rs");
            match source(&file) {
                None => found.push(format!("promise {number}: there is no {file}")),
                Some(text) if !text.contains(&format!("fn {test}(")) => {
                    found.push(format!("promise {number}: {file} has no test {test}"));
                }
                Some(_) => {}
            }
        }
    }
    found
}

fn is_promise(paragraph: &str) -> bool {
    let number = paragraph.trim_start().split(' ').next().unwrap_or_default();
    let (section, rest) = number.split_once('.').unwrap_or_default();
    !section.is_empty() && !rest.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// Relative links whose file is not there.
fn dead_links(text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for line in without_blocks(text) {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split(['#', ' ']).next().unwrap_or_default();
            let is_relative = !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:");
            if is_relative && !exists(file) {
                found.push(format!("the link to {target} leads nowhere"));
            }
        }
    }
    found
}

// The rules, on made-up pages.

#[test]
fn files_that_are_not_there_are_named() {
    let top = ["src".to_owned(), "docs".to_owned()];
    let exists = |path: &str| path == "src/here.rs";
    let page = "Read `src/here.rs`, not `src/gone.rs`; `other/x.rs` and `src/*.rs` are no paths of ours.\n\
                ```\n`src/in_a_block.rs`\n```\n";
    assert_eq!(missing_files(page, &top, &exists), ["there is no src/gone.rs"]);
}

#[test]
fn promises_must_name_tests_that_exist_or_admit_it() {
    let source = |file: &str| {
        ["a.rs", "xtask/src/bench/splice.rs"].contains(&file).then(|| "fn holds() {}".to_owned())
    };
    let check = |promise: &str| missing_tests(promise, &source);
    assert!(check("1.1 Held. `a.rs::holds`").is_empty());
    assert!(check("1.1 Not yet. **No test yet.**").is_empty());
    assert!(check("1.1 Measured. `bench splice`").is_empty());
    assert!(check("## 1. A heading\n\nAn introduction, 1.5 times as long as it should be.").is_empty());
    assert_eq!(check("1.1 Silent."), ["promise 1.1 names no test and does not admit it"]);
    assert_eq!(check("2.10 Wrong. `a.rs::hold`"), ["promise 2.10: a.rs has no test hold"]);
    assert_eq!(check("3.1 Wrong. `bench splits`"), ["promise 3.1: there is no bench splits"]);
    assert_eq!(check("1.1 Wrong. `b.rs::holds`"), ["promise 1.1: there is no b.rs"]);
}

#[test]
fn dead_links_are_found_and_others_left_alone() {
    let exists = |target: &str| target == "here.md";
    let page = "[a](here.md) [b](here.md#part) [c](#part) [d](https://example.com/x.md) [e](gone.md#x)\n```\n[f](no.md)\n```";
    assert_eq!(dead_links(page, &exists), ["the link to gone.md#x leads nowhere"]);
}
