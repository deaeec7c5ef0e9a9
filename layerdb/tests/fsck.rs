//! Every defect of a store is found, alone, and put right where that leaves no choice.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "fsck/world.rs"]
mod world;

#[path = "fsck/layers.rs"]
mod layers;
#[path = "fsck/metadata.rs"]
mod metadata;
#[path = "fsck/objects.rs"]
mod objects;
#[path = "fsck/online.rs"]
mod online;
#[path = "fsck/verify.rs"]
mod verify;

/// A variant without a test would go unnoticed when its check stops working.
#[test]
fn every_issue_has_a_negative_test_and_a_line_in_the_document() {
    let source = include_str!("../src/fsck/issue.rs");
    let tests = [
        include_str!("fsck/layers.rs"),
        include_str!("fsck/metadata.rs"),
        include_str!("fsck/objects.rs"),
        include_str!("fsck/verify.rs"),
    ]
    .concat();
    let document = include_str!("../../docs/FSCK.md");
    let variants = source.split("pub enum Issue {").nth(1).unwrap().split("\n}\n").next().unwrap();
    let names: Vec<String> = variants
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.strip_suffix(" {"))
        .filter(|name| name.starts_with(|first: char| first.is_ascii_uppercase()))
        .map(kebab)
        .collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("\"{name}\"")), "no test of {name}");
        assert!(document.contains(&format!("| `{name}` |")), "{name} is not documented");
    }
}

fn kebab(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}
