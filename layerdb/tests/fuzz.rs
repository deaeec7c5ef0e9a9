//! The inputs that are kept for the fuzzers, each once through what the fuzzers do.
#![allow(
    clippy::pedantic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    dead_code
)]

#[path = "../../fuzz/src/compressed.rs"]
mod compressed;
#[path = "../../fuzz/src/layout.rs"]
mod layout;
#[path = "../../fuzz/src/recipe.rs"]
mod recipe;
#[path = "../../fuzz/src/replay.rs"]
mod replay;
#[path = "../../fuzz/src/store.rs"]
mod store;
#[path = "../../fuzz/src/tar.rs"]
mod tar;
#[path = "../../fuzz/src/tar_mutator.rs"]
mod tar_mutator;
#[path = "../../fuzz/src/tree.rs"]
mod tree;
#[path = "../../fuzz/src/walk.rs"]
mod walk;

/// Runs all inputs of a target, and ends what they have in common; returns how many.
fn replay(target: &str, run: fn(&[u8])) -> usize {
    let count = replay::replay(target, run);
    tar::close();
    count
}

#[test]
fn kept_tars_are_taken_in_or_refused() {
    assert!(replay("tar", tar::run) > 10);
}

#[test]
fn kept_compressed_layers_are_taken_in_or_refused() {
    assert!(replay("compressed", compressed::run) > 5);
}

#[test]
fn kept_trees_are_read_or_refused() {
    assert!(replay("tree", tree::run) > 2);
}

#[test]
fn kept_recipes_are_read_or_refused() {
    assert!(replay("recipe", recipe::run) > 2);
}

#[test]
fn kept_layouts_are_imported_or_refused() {
    assert!(replay("layout", layout::run) > 5);
}
