//! Marking and sweeping objects.

use std::cell::{Cell, RefCell};

use super::{Gc, Halt, STEP, UnreadableLayer};
use crate::damage;
use crate::digest::{DiffId, ObjectId};
use crate::error::Result;
use crate::image::Image;
use crate::layer::Layer;
use crate::object;
use crate::sorter::{MEMORY_BYTES, SHARDS, Sorted, short_object};
use crate::store::{Batch, Family, Store};
use crate::tally::Tally;

/// Objects looked at between two moments at which the progress is written down.
const REMEMBER: u64 = 1 << 17;

/// What the walk over all layers found out besides marks.
#[derive(Default)]
struct Found {
    unreadable: RefCell<Vec<UnreadableLayer>>,
    stopped: Cell<bool>,
}

impl Found {
    /// True if every object that is needed is marked.
    fn is_complete(&self) -> Result<bool, Halt> {
        if self.stopped.get() { Err(Halt::Stopped) } else { Ok(self.unreadable.borrow().is_empty()) }
    }
}

impl Gc<'_> {
    pub(super) fn sweep_objects(&mut self) -> Result<(), Halt> {
        let store = self.store;
        let found = Found::default();
        // Two gc's of one store never run at once, so what the walk asks of this one does not change meanwhile.
        let gc = &*self;
        let would_be_gone = |diff_id| gc.would_be_gone(diff_id);
        let mut gone = Vec::new();
        if gc.dry_run {
            store.db().each_json(Family::Layers, |_, layer: Layer| {
                if would_be_gone(layer.diff_id) {
                    gone.push(crate::sorter::short(layer.diff_id.0));
                }
                Ok(())
            })?;
            gone.sort_unstable();
        }
        let stopped = self.pace.stopped();
        let is_gone = |diff_id: DiffId| gone.binary_search(&crate::sorter::short(diff_id.0)).is_ok();
        let walk = |visit: &mut dyn FnMut(u64) -> Result<()>| {
            mark(store, &is_gone, &|| stopped.is_some_and(|stopped| stopped()), &found, visit)
        };
        let mut marks = Sorted::new(store, MEMORY_BYTES, walk)?;
        let swept = if found.is_complete()? { self.sweep(&mut marks, &found) } else { Ok(()) };
        drop(marks);
        self.report.unreadable = found.unreadable.into_inner();
        name_images(store, &mut self.report.unreadable)?;
        swept
    }

    fn sweep(&mut self, marks: &mut Sorted<'_, u64>, found: &Found) -> Result<(), Halt> {
        let begin = if self.dry_run { None } else { self.remembered()? };
        self.report.resumed_at = begin;
        let mut remembered = begin.is_some();
        let mut looked = 0;
        for step in 0..SHARDS {
            let shard = (usize::from(begin.unwrap_or(0)) + step) % SHARDS;
            let swept = self.sweep_shard(shard, marks, found, &mut looked);
            let ended = !matches!(swept, Ok(true));
            if !self.dry_run && (ended || looked >= REMEMBER) {
                looked = 0;
                let next = if ended { shard } else { (shard + 1) % SHARDS };
                remembered = true;
                if let Err(error) = self.remember(Some(next as u8)) {
                    // It costs the next collection some time.
                    tracing::warn!(%error, "the progress of a collection is not remembered");
                }
            }
            if !swept? {
                return Ok(());
            }
        }
        if remembered && !self.dry_run {
            self.remember(None)?;
        }
        Ok(())
    }

    /// False if marks turned out not to be complete.
    fn sweep_shard(
        &mut self,
        shard: usize,
        marks: &mut Sorted<'_, u64>,
        found: &Found,
        looked: &mut u64,
    ) -> Result<bool, Halt> {
        let store = self.store;
        let parts = marks.parts(shard);
        for part in 0..parts {
            self.pace.check()?;
            let marked = marks.part(shard, part, parts)?;
            if !found.is_complete()? {
                return Ok(false);
            }
            let keys = Sorted::<u64>::keys(shard, part, parts);
            let is_garbage = |id: ObjectId| {
                let key = short_object(id);
                keys(key) && marked.binary_search(&key).is_err()
            };
            let mut some = Vec::with_capacity(STEP);
            for id in object::stored_in(store, shard as u8)? {
                let id = id?;
                *looked += 1;
                if is_garbage(id) {
                    some.push(id);
                }
                if some.len() == STEP {
                    self.remove_objects(&some)?;
                    some.clear();
                }
            }
            self.remove_objects(&some)?;
            self.forget_damage(is_garbage)?;
        }
        Ok(true)
    }

    fn remove_objects(&mut self, garbage: &[ObjectId]) -> Result<(), Halt> {
        let mut removed = Tally::default();
        let unclaimed = self.collection.lock();
        for id in garbage.iter().filter(|id| unclaimed.object(**id)) {
            removed += self.remove(&object::path(*id))?;
        }
        drop(unclaimed);
        self.report.objects += removed;
        self.pace.spend(removed)
    }

    /// Nobody misses an object that nothing names.
    fn forget_damage(&self, is_garbage: impl Fn(ObjectId) -> bool) -> Result<()> {
        let mut batch = Batch::new();
        if !self.dry_run && self.store.has_damage()? {
            let unclaimed = self.collection.lock();
            let damaged = self.store.damaged_objects()?;
            for object in damaged.iter().filter(|object| is_garbage(object.id) && unclaimed.object(object.id)) {
                batch.delete(Family::System, damage::object_key(object.id).as_bytes());
            }
        }
        self.store.db().commit(batch)
    }
}

/// Visits every object that images and layers name.
fn mark(
    store: &Store,
    is_gone: &dyn Fn(DiffId) -> bool,
    stopped: &dyn Fn() -> bool,
    found: &Found,
    visit: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    store.db().each_json(Family::Images, |_, image: Image| {
        image.objects().into_iter().try_for_each(|id| visit(short_object(id)))
    })?;
    store.db().each_json(Family::Layers, |_, layer: Layer| {
        if found.stopped.get() || stopped() {
            found.stopped.set(true);
            return Ok(());
        }
        if is_gone(layer.diff_id) {
            return Ok(());
        }
        let mut visited = Ok(());
        let walked = store.each_layer_object(&layer, |id, _| {
            if visited.is_ok() {
                visited = visit(short_object(id));
            }
        });
        visited?;
        if let Err(error) = walked {
            let mut unreadable = found.unreadable.borrow_mut();
            if unreadable.iter().all(|known| known.diff_id != layer.diff_id) {
                tracing::error!(layer = %layer.diff_id, %error, "a layer can't be read: no objects are collected");
                let reason = error.to_string();
                unreadable.push(UnreadableLayer { diff_id: layer.diff_id, reason, images: Vec::new() });
            }
        }
        Ok(())
    })
}

fn name_images(store: &Store, layers: &mut [UnreadableLayer]) -> Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    store.db().each_json(Family::Images, |_, image: Image| {
        for layer in layers.iter_mut().filter(|layer| image.layers.contains(&layer.diff_id)) {
            layer.images.push(image.name.clone());
        }
        Ok(())
    })
}
