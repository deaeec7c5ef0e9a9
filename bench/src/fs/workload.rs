//! What is done.

mod copy_up;
mod data;
mod depth;
mod many_files;
mod mounts;
mod names;
mod postgres;
mod programs;
mod shared;

use mica_tests::Result;

pub use depth::DEPTHS;

use super::row::Row;
use super::stage::Stage;

/// Rows of the table that are measured together.
pub struct Workload {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub rows: &'static [Row],
    /// Measures all of it once, on one subject. An error is the reason why the rows have no sample.
    pub run: fn(&Stage<'_>) -> Result,
}

/// All of them, in the order of the table.
pub const ALL: &[Workload] = &[
    data::DATA,
    names::WARM,
    names::COLD,
    names::CHANGE,
    depth::DEPTH,
    copy_up::LARGE,
    copy_up::SMALL,
    copy_up::RENAME,
    shared::SHARED,
    mounts::MOUNTS,
    programs::PROGRAMS,
    programs::GIT,
    many_files::MANY_FILES,
    postgres::POSTGRES,
];
