//! What the fuzzers do with the bytes they are given: one module for each target, with a function `run` that panics if
//! something is wrong. `tests/fuzz` runs the same functions on the inputs that are kept.

pub mod admin;
pub mod compressed;
pub mod filter;
pub mod keeper;
pub mod layout;
pub mod options;
pub mod recipe;
pub mod store;
pub mod tar;
pub mod tar_mutator;
pub mod tree;
pub mod upper;
pub mod walk;
