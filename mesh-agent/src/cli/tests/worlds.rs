//! The example worlds and the page that shows them: worlds have no mistakes but those that are meant, every YAML on the
//! page stands in a world, and what the page prints is what is printed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::shop_with;
use crate::discovery::{self, Loaded};
use crate::lifecycle::Readiness;

const PAGE: &str = include_str!("../../../../docs/routes.md");

/// The world that shows mistakes.
const MISTAKEN: &str = "routes-status";

fn worlds() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/worlds");
    let entries = fs::read_dir(dir).expect("the worlds").map(|entry| entry.expect("an entry").path());
    let mut worlds: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    worlds.sort();
    worlds
}

fn load(world: &Path) -> Loaded {
    discovery::load(world).unwrap_or_else(|error| panic!("{}: {error}", world.display()))
}

/// The blocks of the page with this info string.
fn blocks(info: &str) -> Vec<&'static str> {
    let fence = format!("\n```{info}\n");
    let blocks = PAGE.split(&fence).skip(1);
    blocks.map(|block| block.split("```").next().expect("there is a first part")).collect()
}

#[test]
fn example_worlds_have_only_the_mistakes_that_they_show() {
    let worlds = worlds();
    assert!(worlds.len() >= 5, "{worlds:?}");
    for world in worlds.iter().filter(|world| !world.ends_with(MISTAKEN)) {
        let problems: Vec<_> = load(world).problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, Vec::<String>::new(), "{}", world.display());
    }
}

#[test]
fn every_route_on_the_page_stands_in_a_world() {
    let files = worlds().into_iter().flat_map(|world| fs::read_dir(world).expect("a world"));
    let texts: Vec<_> =
        files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text")).collect();
    let examples = blocks("yaml");
    assert!(examples.len() >= 4, "{examples:?}");
    for example in examples {
        assert!(texts.iter().any(|text| text.contains(example)), "in no world:\n{example}");
    }
}

#[test]
fn the_page_shows_what_is_printed_of_mistaken_routes() {
    let world = worlds().into_iter().find(|world| world.ends_with(MISTAKEN)).expect("the world");
    let loaded = load(&world);
    let (routes, problems) = (json!(loaded.route_statuses), loaded.problems);
    let problems: Value = problems
        .iter()
        .map(|problem| {
            let file = problem.file.as_ref().and_then(|file| file.file_name()).expect("a file");
            let (line, column) = (problem.line.expect("a line"), problem.column.expect("a column"));
            let field = problem.field.as_ref().expect("a field");
            json!({
                "location": format!("{}:{line}:{column}", file.display()),
                "object": problem.object,
                "message": format!("{field}: {}", problem.message),
            })
        })
        .collect();
    let shop = shop_with(Readiness::default(), |windows| {
        windows.view("/routes", move || routes.clone()).view("/problems", move || problems.clone())
    });
    let printed = format!(
        "$ meshctl routes\n{}$ meshctl problems\n{}",
        shop.ask(&["routes"]).out,
        shop.ask(&["problems"]).out
    );
    assert_eq!(blocks("console"), [printed.as_str()], "what is printed:\n{printed}");
}
