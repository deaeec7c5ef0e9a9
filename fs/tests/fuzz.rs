//! The inputs that are kept for the fuzzers, each once through what the fuzzers do.
#![allow(clippy::pedantic, clippy::expect_used, clippy::unwrap_used, missing_docs, missing_debug_implementations)]

#[path = "../../fuzz/src/keeper.rs"]
mod keeper;
#[path = "../../fuzz/src/upper.rs"]
mod upper;

/// Where folders are made.
mod store {
    pub fn memory() -> std::path::PathBuf {
        std::env::temp_dir()
    }
}

use std::path::Path;

/// Runs all inputs of a target; returns how many.
fn replay(target: &str, run: fn(&[u8])) -> usize {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut count = 0;
    for kind in ["seeds", "regressions"] {
        let Ok(files) = std::fs::read_dir(fuzz.join(kind).join(target)) else { continue };
        for file in files {
            let input = std::fs::read(file.unwrap().path()).unwrap();
            run(&input);
            count += 1;
        }
    }
    count
}

#[test]
fn kept_packets_are_answered_or_refused() {
    assert!(replay("keeper", keeper::run) > 3);
}

#[test]
fn kept_marks_of_an_upper_are_read_or_refused() {
    assert!(replay("upper", upper::run) > 5);
}
