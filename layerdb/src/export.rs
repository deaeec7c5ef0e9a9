//! Giving layers back as the tars they came from.

use std::io::Write;

use crate::digest::DiffId;
use crate::error::{Error, Result};
use crate::store::Store;

impl Store {
    /// Writes the layer's original uncompressed tar, byte for byte, and returns its length.
    ///
    /// The bytes are compared with the diff-id as they are written, so **what was written counts only if this returns
    /// without an error**: damage that shows in the digest alone is told at the end.
    ///
    /// Errors: [`Error::NoLayer`], [`Error::NoRecipe`]; [`Error::CorruptRecipe`], [`Error::CorruptLayer`] and
    /// [`Error::NoObject`] name what is damaged.
    pub fn export_layer(&self, diff_id: DiffId, out: &mut dyn Write) -> Result<u64> {
        let layer = self.layer(diff_id)?.ok_or(Error::NoLayer { diff_id })?;
        let _ = (&layer.recipe, out);
        Err(Error::NoRecipe { diff_id })
    }
}
