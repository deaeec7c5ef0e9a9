//! Recipes: how a layer's tar is rebuilt, byte for byte, from its tree and objects.
//!
//! ```text
//! header    magic, version, diff-id, length of the tar
//! objects   contents that only the recipe names: a later entry of the same tar replaced them
//! literals  zstd: every byte of the tar that is no file's contents (headers, padding, what lies behind the end)
//! steps     zstd: what comes next, from the tar's first byte to its last
//! ```
//!
//! An ingest doesn't know the numbers that inodes will have in the tree. So a [`Recorder`] compresses literals as they
//! come and notes the steps with the numbers of the tree's builder; both go to unnamed files. When the tree is written
//! the steps are translated, and the parts put together. Memory is bounded whatever the tar.
//!
//! A recipe is read by [`Reader`], which trusts nothing in it. `docs/FORMAT.md` is the contract of the bytes.

mod format;
mod read;
mod record;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub use format::VERSION;
pub use read::{Reader, Source, Step};
pub(crate) use record::{Recorded, Recorder};

/// What the store knows about a layer's recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeRecord {
    /// Length of its file.
    pub bytes: u64,
    /// Digest of its file.
    pub digest: Digest,
    /// Objects that it lists: contents that a later entry of the same tar replaced.
    pub objects: u64,
}
