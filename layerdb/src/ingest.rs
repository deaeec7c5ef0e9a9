//! Taking in a layer: a tar stream becomes objects, a tree file and a record.
//!
//! ```text
//! input -> feeding thread: blob's digest -> pieces -> decompressing thread -> chunks
//!       -> this thread: diff-id -> entries -> tree, recipe
//!                                          -> contents -> delivering thread: objects (staged in tmp/)
//! then: sync, rename, sync, metadata batch
//! ```
//!
//! Contents are read once and never held whole: memory is bounded by the chunks in flight, by files of up to 1 MiB
//! that are gathered, and by the tree's metadata, which has a limit of its own. A zstd frame may ask for a window of
//! up to [`Limits::zstd_window_log`](crate::Limits::zstd_window_log).
//!
//! Whatever goes wrong, the temporary directory is removed and no record is written. Objects that were published
//! before the failure stay until garbage collection; nothing names them.

mod contents;
mod decompress;
mod delivery;
mod entry;
mod fault;
mod feed;
pub(crate) mod header;
pub(crate) mod pax;
mod plant;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use crossbeam_channel::bounded;
use parking_lot::MutexGuard;

use crate::digest::{BlobDigest, DiffId, Digest};
use crate::error::{Error, Result};
use crate::layer::{self, Layer};
use crate::limits::Limits;
use crate::object::Staging;
use crate::recipe::{Recorded, Recorder};
use crate::store::{Batch, Family, Hold, Store};
use crate::tree::{Builder, Written};
use decompress::{Outlet, Pumped, pump};
use delivery::{DELIVERIES_QUEUED, Deliveries, deliver};
use entry::Entries;
use fault::Fault;
use feed::{Fed, PIECES_QUEUED, Pieces, feed};
use plant::Plant;
use stream::{CHUNKS_QUEUED, Stream};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Whatever its first bytes say: gzip, zstd or none.
    #[default]
    Detect,
    /// A plain tar.
    None,
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// One or more zstd frames (RFC 8878), skippable ones included.
    Zstd,
}

/// How a layer is to be taken in.
#[derive(Clone, Debug, Default)]
pub struct IngestOptions {
    /// How it is compressed.
    pub compression: Compression,
    /// The digest that the uncompressed stream must have. If the store has that layer already, nothing is read.
    pub expect_diff_id: Option<DiffId>,
    /// The digest that the input must have.
    pub expect_blob: Option<BlobDigest>,
    /// What to call the layer in errors and progress.
    pub name: String,
    /// What it may cost; the store's limits if `None`.
    pub limits: Option<Limits>,
    /// Key of a row of [`Family::Pins`] to which the layer is added in the commit that makes it visible.
    pub pin: Option<Vec<u8>>,
}

/// Told how work goes on, by several threads.
pub trait Progress: Send + Sync {
    /// Work on `name` begins; its input has so many bytes, if that is known.
    fn begin(&self, name: &str, total_bytes: Option<u64>) {
        let _ = (name, total_bytes);
    }

    /// So many more bytes of `name`'s input are read.
    fn read(&self, name: &str, bytes: u64) {
        let _ = (name, bytes);
    }

    /// Work on `name` has ended; `known` if the store had it already.
    fn end(&self, name: &str, known: bool) {
        let _ = (name, known);
    }

    /// Whether whoever asked doesn't wait for the work any more. What can end early and keep what it has done, does.
    fn is_abandoned(&self) -> bool {
        false
    }
}

/// Nobody wants to know.
impl Progress for () {}

impl Store {
    /// Takes in one layer and returns its record. It is durable then.
    ///
    /// Errors: [`Error::BadLayer`] and [`Error::DigestMismatch`] if the input is to blame; nothing of it is visible.
    pub fn ingest(
        self: &Arc<Store>,
        input: &mut (dyn Read + Send),
        options: &IngestOptions,
        progress: &dyn Progress,
    ) -> Result<Layer> {
        self.ingest_held(input, options, progress).map(|(layer, _hold)| layer)
    }

    /// [`Store::ingest`], and a hold that keeps garbage collection from the layer until something names it.
    pub fn ingest_held(
        self: &Arc<Store>,
        input: &mut (dyn Read + Send),
        options: &IngestOptions,
        progress: &dyn Progress,
    ) -> Result<(Layer, Hold)> {
        self.require_writable()?;
        let hold = self.claims.hold();
        let _turn = options.expect_diff_id.map(|diff_id| self.ingesting.take(diff_id));
        if let Some(diff_id) = options.expect_diff_id
            && let Some(layer) = self.known(diff_id, &hold, options)?
        {
            progress.end(&options.name, true);
            return Ok((layer, hold));
        }
        let ingested = Ingest { store: self, options, progress }.run(input, hold)?;
        progress.end(&options.name, false);
        Ok(ingested)
    }

    /// The layer, if the store has it whole; pinned.
    fn known(&self, diff_id: DiffId, hold: &Hold, options: &IngestOptions) -> Result<Option<Layer>> {
        let Some(layer) = hold.layer(diff_id, || self.layer(diff_id))? else { return Ok(None) };
        if let Err(error) = self.layer_tree(diff_id) {
            tracing::warn!(layer = %diff_id, %error, "a damaged layer is taken in anew");
            return Ok(None);
        }
        if !self.is_whole(diff_id)? {
            tracing::warn!(layer = %diff_id, "a layer that lacks something is taken in anew");
            return Ok(None);
        }
        let Some(recipe) = &layer.recipe else { return Ok(None) };
        if let Err(error) = self.open_recipe(&layer, recipe) {
            tracing::warn!(layer = %diff_id, %error, "a layer with a damaged recipe is taken in anew");
            return Ok(None);
        }
        let mut batch = Batch::new();
        let _pinning = self.pin(&mut batch, options.pin.as_deref(), diff_id)?;
        self.db().commit(batch)?;
        Ok(Some(layer))
    }

    /// Adds the layer to the pin's row. The guard is to be kept until the batch is committed, or another layer that is
    /// added to the row meanwhile would be lost.
    fn pin(&self, batch: &mut Batch, pin: Option<&[u8]>, diff_id: DiffId) -> Result<Option<MutexGuard<'_, ()>>> {
        let Some(pin) = pin else { return Ok(None) };
        let pinning = self.pinning.lock();
        let mut pinned: Vec<DiffId> = self.db().get_json(Family::Pins, pin)?.unwrap_or_default();
        if !pinned.contains(&diff_id) {
            pinned.push(diff_id);
            batch.put_json(Family::Pins, pin, &pinned)?;
        }
        Ok(Some(pinning))
    }
}

struct Ingest<'a> {
    store: &'a Arc<Store>,
    options: &'a IngestOptions,
    progress: &'a dyn Progress,
}

/// What the threads found.
struct Grown {
    diff_id: DiffId,
    builder: Builder,
    recorded: Recorded,
    entries: u64,
    content_bytes: u64,
}

impl Ingest<'_> {
    fn run(&self, input: &mut (dyn Read + Send), hold: Hold) -> Result<(Layer, Hold)> {
        let mut staging = Staging::new(self.store, hold)?;
        let scratch = || Ok(self.store.appender(self.store.scratch()?));
        let (spool, recorder) = (scratch()?, Recorder::new(scratch()?, scratch()?)?);
        let (grown, pumped, fed) = self.read(input, &mut staging, Builder::new(spool)?, recorder)?;
        let diff_id = grown.diff_id;
        self.compare(diff_id, fed.digest)?;
        // Claimed before its file appears, or a collection could take the file of an older record with it.
        staging.hold().layer(diff_id, || ());
        let mut file = self.store.appender(staging.create(layer::path(diff_id))?);
        let mut recipe_file = self.store.appender(staging.create(layer::recipe_path(diff_id))?);
        let (Written { digest, bytes, .. }, recipe) = grown.builder.write_then(&mut file, |placement| {
            grown.recorded.write(placement, diff_id, pumped.tar_bytes, &mut recipe_file)
        })?;
        drop((file, recipe_file));
        staging.publish()?;
        let layer = Layer {
            diff_id,
            tar_bytes: pumped.tar_bytes,
            blob: self.options.expect_blob,
            blob_bytes: fed.bytes,
            entries: grown.entries,
            content_bytes: grown.content_bytes,
            new_bytes: staging.new_bytes(),
            tree_bytes: bytes,
            tree_digest: digest,
            blob_compression: pumped.compression,
            recipe: Some(recipe),
            created: unix_seconds(),
        };
        let mut batch = Batch::new();
        batch.put_json(Family::Layers, layer::key(diff_id).as_bytes(), &layer)?;
        let pinning = self.store.pin(&mut batch, self.options.pin.as_deref(), diff_id)?;
        self.store.db().commit(batch)?;
        drop(pinning);
        self.store.forget_layer_tree(diff_id);
        // What was damaged may be whole now, and what was found in the store may have been taken out of use since.
        if !self.store.is_whole(diff_id)? {
            tracing::warn!(layer = %diff_id, "an object of the layer was taken out of use meanwhile");
        }
        self.store.settle_damage()?;
        Ok((layer, staging.into_hold()))
    }

    fn limits(&self) -> &Limits {
        self.options.limits.as_ref().unwrap_or(&self.store.options().limits)
    }

    /// Runs the threads.
    fn read(
        &self,
        input: &mut (dyn Read + Send),
        staging: &mut Staging,
        builder: Builder,
        recorder: Recorder,
    ) -> Result<(Grown, Pumped, Fed)> {
        let (options, limits, progress) = (self.options, self.limits(), self.progress);
        let (pieces_to, pieces_from) = bounded(PIECES_QUEUED);
        let (spare_pieces_to, spare_pieces_from) = bounded(PIECES_QUEUED);
        let (chunks_to, chunks_from) = bounded(CHUNKS_QUEUED);
        let (spare_chunks_to, spare_chunks_from) = bounded(CHUNKS_QUEUED);
        thread::scope(|scope| {
            let feeding = scope.spawn(move || {
                feed(input, options.expect_blob.is_some(), &options.name, progress, &pieces_to, &spare_pieces_from)
            });
            let pumping = scope.spawn(move || {
                let outlet = Outlet { to: chunks_to, spare: spare_chunks_from };
                pump(Pieces::new(pieces_from, spare_pieces_to), options.compression, limits, &outlet)
            });
            let (deliveries_to, deliveries_from) = bounded(DELIVERIES_QUEUED);
            let spare = spare_chunks_to.clone();
            let delivering = scope.spawn(move || deliver(staging, &deliveries_from, &spare));
            let stream = Stream::new(chunks_from, spare_chunks_to, recorder);
            let grown = self.grow(Entries::new(stream, limits), Deliveries::new(deliveries_to), builder);
            join(delivering.join())??;
            let pumped = join(pumping.join())?;
            let fed = join(feeding.join())?;
            let grown = grown.map_err(|fault| fault.into_error(&options.name))?;
            Ok((grown, pumped, fed))
        })
    }

    fn grow(&self, mut entries: Entries<'_>, mut objects: Deliveries, builder: Builder) -> Result<Grown, Fault> {
        let mut plant = Plant::new(builder, self.limits());
        while let Some(entry) = entries.next()? {
            plant.add(entry, &mut entries, &mut objects)?;
        }
        objects.end()?;
        let count = entries.count();
        let (recorder, diff_id) = entries.finish()?;
        let recorded = recorder.finish()?;
        if let Some(first) = &plant.dropped_xattr {
            tracing::warn!(layer = %self.options.name, first, "extended attributes that Linux doesn't know are left out");
        }
        let content_bytes = plant.content_bytes;
        Ok(Grown { diff_id, builder: plant.finish()?, recorded, entries: count, content_bytes })
    }

    fn compare(&self, diff_id: DiffId, blob: Option<Digest>) -> Result<()> {
        let mismatch = |what: &str, expected: Digest, actual: Digest| Error::DigestMismatch {
            what: format!("{what} of layer {}", self.options.name),
            expected,
            actual,
        };
        if let (Some(expected), Some(actual)) = (self.options.expect_blob, blob)
            && expected.0 != actual
        {
            return Err(mismatch("blob", expected.0, actual));
        }
        match self.options.expect_diff_id {
            Some(expected) if expected != diff_id => Err(mismatch("diff-id", expected.0, diff_id.0)),
            _ => Ok(()),
        }
    }
}

fn join<T>(result: thread::Result<T>) -> Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
