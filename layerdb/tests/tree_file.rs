//! Tree files against their oracles: the kernel's erofs driver, erofs-utils, golden bytes and a model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::unnecessary_debug_formatting, missing_docs)]

#[path = "tree_file/diff.rs"]
mod diff;
#[path = "tree_file/erofs_utils.rs"]
mod erofs_utils;
#[path = "tree_file/golden.rs"]
mod golden;
#[path = "tree_file/hostile.rs"]
mod hostile;
#[path = "tree_file/kernel.rs"]
mod kernel;
#[path = "tree_file/merge.rs"]
mod merge;
#[path = "tree_file/reader.rs"]
mod reader;
#[path = "tree_file/sample.rs"]
mod sample;
