//! What the pages say of tests is true: every test and file they name is there.
#![allow(clippy::disallowed_methods)] // tests look at real files

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::files_below;

fn root() -> PathBuf {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    parent.expect("node/ is in the project").to_path_buf()
}

fn sources() -> Vec<PathBuf> {
    let folders = ["node", "client", "jepsen", "benches", "proto"].map(|folder| root().join(folder));
    let files = folders.iter().flat_map(|folder| files_below(folder));
    let is_source = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "rs");
    files.filter(is_source).collect()
}

/// Names of all functions.
fn functions(sources: &[PathBuf]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source).expect("a source file");
        for after in text.split("fn ").skip(1) {
            names.insert(after.chars().take_while(|c| is_of_name(*c)).collect());
        }
    }
    names
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The column of a fault's tests, of every row.
fn tests_named(page: &str) -> impl Iterator<Item = &str> {
    let rows = page.lines().filter(|line| line.starts_with("| "));
    rows.filter_map(|row| row.split(" | ").nth(3))
}

#[test]
fn every_test_that_the_fault_model_names_is_there() {
    let page = std::fs::read_to_string(root().join("node/docs/fault-model.md")).expect("the page");
    let sources = sources();
    let functions = functions(&sources);
    let (mut tests, mut files) = (0, 0);
    for name in tests_named(&page).flat_map(quoted) {
        if name.ends_with(".rs") {
            let is_it = |source: &PathBuf| source.ends_with(name);
            assert!(sources.iter().any(is_it), "no file is called {name}");
            files += 1;
        } else if name.matches('_').count() > 2 && name.chars().all(is_of_name) {
            assert!(functions.contains(name), "no test is called {name}");
            tests += 1;
        }
    }
    assert!(
        tests > 50 && files > 50,
        "{tests} tests and {files} files are named"
    );
}
