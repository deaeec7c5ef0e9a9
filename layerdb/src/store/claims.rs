//! What is in use without being recorded yet, so that garbage collection spares it.
//!
//! An ingest finds an object in the store and will name it in a layer that it commits later; a collection that
//! started before that commit doesn't see the layer and would sweep the object away. Therefore:
//!
//! - An ingest *claims* an object or layer first and looks for it under the same lock. The sweeper checks for claims
//!   and removes under that lock too. So either the sweeper sees the claim, or the ingest sees the object gone and
//!   writes it again.
//! - Claims are dropped after the commit that makes them superfluous. While a collection runs they are not forgotten
//!   but set aside until it ends, since its marking may be older than the commit.
//!
//! The sweeper asks for every object it is about to remove. What is set aside is therefore one set, however much work
//! ended since the collection began, and holds without objects (of containers that start, say) are passed over.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::digest::{DiffId, ObjectId};
use crate::sorter::short_object;

/// The table of claims of one store.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    active: HashMap<u64, Claimed>,
    collecting: bool,
    /// Everything whose hold was dropped since the collection began.
    set_aside: Claimed,
}

#[derive(Debug, Default)]
struct Claimed {
    /// The first eight bytes of each object's digest: a collision merely spares one object more.
    objects: HashSet<u64>,
    layers: HashSet<DiffId>,
}

impl Claimed {
    fn absorb(&mut self, mut other: Claimed) {
        if other.objects.len() > self.objects.len() {
            std::mem::swap(&mut self.objects, &mut other.objects);
        }
        self.objects.extend(other.objects);
        self.layers.extend(other.layers);
    }
}

/// Claims of one piece of work, dropped with it.
#[derive(Debug)]
pub struct Hold {
    claims: Arc<Claims>,
    id: u64,
}

impl Claims {
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        let mut table = self.table.lock();
        let id = table.next;
        table.next += 1;
        table.active.insert(id, Claimed::default());
        Hold { claims: Arc::clone(self), id }
    }

    /// A hold with the claims of another.
    pub(crate) fn continue_hold(self: &Arc<Self>, earlier: &Hold) -> Hold {
        let hold = self.hold();
        let mut table = self.table.lock();
        let claimed = table.active.get_mut(&earlier.id).map(std::mem::take);
        if let Some(claimed) = claimed {
            table.active.insert(hold.id, claimed);
        }
        drop(table);
        hold
    }

    /// Begins a collection. `None` while another one runs.
    pub(crate) fn collect(self: &Arc<Self>) -> Option<Collection> {
        let mut table = self.table.lock();
        if table.collecting {
            return None;
        }
        table.collecting = true;
        Some(Collection { claims: Arc::clone(self) })
    }

    /// Whether a collection runs.
    pub(crate) fn is_collecting(&self) -> bool {
        self.table.lock().collecting
    }

    /// Keeps anybody from claiming until the guard is dropped.
    pub(crate) fn lock(&self) -> Unclaimed<'_> {
        Unclaimed { table: self.table.lock() }
    }
}

impl Hold {
    /// Claims an object, and looks for it while it can't be swept.
    pub(crate) fn object<R>(&self, id: ObjectId, look: impl FnOnce() -> R) -> R {
        let mut table = self.claims.table.lock();
        if let Some(claimed) = table.active.get_mut(&self.id) {
            claimed.objects.insert(short_object(id));
        }
        look()
    }

    /// Claims a layer, and looks for it while it can't be swept.
    pub(crate) fn layer<R>(&self, diff_id: DiffId, look: impl FnOnce() -> R) -> R {
        let mut table = self.claims.table.lock();
        if let Some(claimed) = table.active.get_mut(&self.id) {
            claimed.layers.insert(diff_id);
        }
        look()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut table = self.claims.table.lock();
        let claimed = table.active.remove(&self.id);
        if let Some(claimed) = claimed.filter(|_| table.collecting) {
            table.set_aside.absorb(claimed);
        }
    }
}

/// A running collection.
#[derive(Debug)]
pub(crate) struct Collection {
    claims: Arc<Claims>,
}

impl Collection {
    /// Keeps anybody from claiming until the guard is dropped.
    pub(crate) fn lock(&self) -> Unclaimed<'_> {
        self.claims.lock()
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        let mut table = self.claims.table.lock();
        table.collecting = false;
        table.set_aside = Claimed::default();
    }
}

/// The view of a sweeper that holds the lock.
pub(crate) struct Unclaimed<'a> {
    table: MutexGuard<'a, Table>,
}

impl Unclaimed<'_> {
    fn any(&self, test: impl Fn(&Claimed) -> bool) -> bool {
        self.table.active.values().chain([&self.table.set_aside]).any(test)
    }

    /// True if the object may go.
    pub(crate) fn object(&self, id: ObjectId) -> bool {
        !self.any(|claimed| !claimed.objects.is_empty() && claimed.objects.contains(&short_object(id)))
    }

    /// True if the layer may go.
    pub(crate) fn layer(&self, diff_id: DiffId) -> bool {
        !self.any(|claimed| claimed.layers.contains(&diff_id))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn claim_lasts_as_long_as_its_hold() {
        let claims = Arc::new(Claims::default());
        let id = ObjectId(Digest::of(b"x"));
        let layer = DiffId(Digest::of(b"y"));
        let hold = claims.hold();
        hold.object(id, || ());
        hold.layer(layer, || ());
        let collection = claims.collect().unwrap();
        assert!(!collection.lock().object(id) && !collection.lock().layer(layer));
        drop(collection);
        drop(hold);
        let collection = claims.collect().unwrap();
        assert!(collection.lock().object(id) && collection.lock().layer(layer));
    }

    #[test]
    fn claim_dropped_during_a_collection_is_spared_until_it_ends() {
        let claims = Arc::new(Claims::default());
        let id = ObjectId(Digest::of(b"x"));
        let hold = claims.hold();
        let collection = claims.collect().unwrap();
        hold.object(id, || ());
        drop(hold);
        assert!(!collection.lock().object(id));
        assert!(claims.collect().is_none(), "one collection at a time");
        drop(collection);
        assert!(claims.collect().unwrap().lock().object(id));
    }

    #[test]
    fn claims_of_many_that_end_during_a_collection_are_all_spared() {
        let claims = Arc::new(Claims::default());
        let collection = claims.collect().unwrap();
        let ids: Vec<ObjectId> = (0..100_u32).map(|at| ObjectId(Digest::of(&at.to_le_bytes()))).collect();
        for some in ids.chunks(7) {
            let hold = claims.hold();
            for id in some {
                hold.object(*id, || ());
            }
            hold.layer(DiffId(some[0].0), || ());
        }
        let unclaimed = collection.lock();
        assert!(ids.iter().all(|id| !unclaimed.object(*id)));
        assert!(ids.chunks(7).all(|some| !unclaimed.layer(DiffId(some[0].0))));
        assert!(unclaimed.layer(DiffId(ids[1].0)) && unclaimed.object(ObjectId(Digest::of(b"x"))));
    }
}
