//! Recipes: how a layer's tar is rebuilt, byte for byte, from its tree and objects.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What the store knows about a layer's recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeRecord {
    /// Length of its file.
    pub bytes: u64,
    /// Digest of its file.
    pub digest: Digest,
    /// Objects that it names because the tree doesn't: contents that a later entry of the same tar replaced.
    pub objects: u64,
}
