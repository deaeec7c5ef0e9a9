//! The inputs that are kept for the fuzzers, each once through what the fuzzers do.
#![allow(
    clippy::pedantic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations
)]

#[path = "../../fuzz/src/keeper.rs"]
mod keeper;
#[path = "../../fuzz/src/replay.rs"]
mod replay;
#[path = "../../fuzz/src/upper.rs"]
mod upper;

/// Where folders are made.
mod store {
    pub fn memory() -> std::path::PathBuf {
        std::env::temp_dir()
    }
}

use replay::replay;

#[test]
fn kept_packets_are_answered_or_refused() {
    assert!(replay("keeper", keeper::run) > 3);
}

#[test]
fn kept_marks_of_an_upper_are_read_or_refused() {
    assert!(replay("upper", upper::run) > 5);
}
