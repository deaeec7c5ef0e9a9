//! The contents of files: small ones into the tree, the others to the object store.

use super::delivery::{Deliveries, Order};
use super::entry::{Entries, Entry, Piece};
use super::fault::Result;
use crate::digest::{Hasher, ObjectId};
use crate::tree::{Body, INLINE_MAX};

/// Reads the contents of the entry that was returned last.
pub(super) fn read(entry: &Entry, entries: &mut Entries<'_>, objects: &mut Deliveries) -> Result<Body> {
    if entry.size <= INLINE_MAX { inline(entry, entries) } else { object(entry, entries, objects) }
}

fn inline(entry: &Entry, entries: &mut Entries<'_>) -> Result<Body> {
    let mut bytes = Vec::with_capacity(entry.size as usize);
    entries.contents(entry, None, |piece| {
        match piece {
            Piece::Data(span) => bytes.extend_from_slice(&span),
            Piece::Hole(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
        }
        Ok(())
    })?;
    Ok(Body::Inline(bytes))
}

fn object(entry: &Entry, entries: &mut Entries<'_>, objects: &mut Deliveries) -> Result<Body> {
    let mut digest = Hasher::new();
    entries.contents(entry, Some(&mut digest), |piece| {
        objects.give(match piece {
            Piece::Data(span) => Order::Data(span),
            Piece::Hole(zeros) => Order::Hole(zeros),
        })
    })?;
    let id = ObjectId(digest.finish());
    objects.give(Order::End(id))?;
    Ok(Body::Object { id, size: entry.size })
}
