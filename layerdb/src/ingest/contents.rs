//! The contents of files: small ones into the tree, the others to the object store.

use super::entry::{Entries, Entry, Piece};
use super::fault::{Fault, Result};
use crate::object::Staging;
use crate::tree::{Body, INLINE_MAX};

/// Reads the contents of the entry that was returned last.
pub(super) fn read(entry: &Entry, entries: &mut Entries<'_>, staging: &mut Staging) -> Result<Body> {
    if entry.size <= INLINE_MAX { inline(entry, entries) } else { object(entry, entries, staging) }
}

fn inline(entry: &Entry, entries: &mut Entries<'_>) -> Result<Body> {
    let mut bytes = Vec::with_capacity(entry.size as usize);
    entries.contents(entry, |piece| {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(data),
            Piece::Hole(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
        }
        Ok(())
    })?;
    Ok(Body::Inline(bytes))
}

fn object(entry: &Entry, entries: &mut Entries<'_>, staging: &mut Staging) -> Result<Body> {
    let mut writer = staging.begin()?;
    entries.contents(entry, |piece| {
        match piece {
            Piece::Data(data) => staging.write(&mut writer, data),
            Piece::Hole(zeros) => staging.skip(&mut writer, zeros),
        }
        .map_err(Fault::Store)
    })?;
    let (id, size) = staging.finish(writer)?;
    Ok(Body::Object { id, size })
}
