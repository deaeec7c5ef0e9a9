//! The contents of files: small ones into the tree, the others to the object store.

use super::entry::{Entries, Entry, Piece};
use super::fault::{Fault, Result};
use crate::digest::{Digest, ObjectId};
use crate::object::Staging;
use crate::tree::{Body, INLINE_MAX};

/// Contents up to this size are gathered before they are stored, so that nothing is written if the store has them.
const GATHER_MAX: u64 = 1 << 20;

/// Reads the contents of the entry that was returned last.
pub(super) fn read(entry: &Entry, entries: &mut Entries, staging: &mut Staging) -> Result<Body> {
    if entry.size > GATHER_MAX {
        return stream(entry, entries, staging);
    }
    let mut bytes = Vec::with_capacity(entry.size as usize);
    entries.contents(entry, |piece| {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(data),
            Piece::Hole(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
        }
        Ok(())
    })?;
    if entry.size <= INLINE_MAX {
        return Ok(Body::Inline(bytes));
    }
    let id = ObjectId(Digest::of(&bytes));
    staging.add(id, &bytes)?;
    Ok(Body::Object { id, size: entry.size })
}

fn stream(entry: &Entry, entries: &mut Entries, staging: &mut Staging) -> Result<Body> {
    let mut writer = staging.begin()?;
    entries.contents(entry, |piece| {
        match piece {
            Piece::Data(data) => staging.write(&mut writer, data),
            Piece::Hole(zeros) => Staging::skip(&mut writer, zeros),
        }
        .map_err(Fault::Store)
    })?;
    let (id, size) = staging.finish(writer)?;
    Ok(Body::Object { id, size })
}
