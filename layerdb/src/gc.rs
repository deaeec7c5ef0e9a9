//! Collecting garbage: layers that neither an image nor a pin names, objects that no layer and no image names, chain
//! trees that nobody has use for, and removed snapshots. Ingests, imports and mounts go on meanwhile.
//!
//! # Why nothing in use goes
//!
//! 1. Before anything is read, the metadata is *watched* ([`Db::watch_roots`](crate::Db)): a pin or image that is
//!    written from then on leaves the layers it names with the watch before it becomes visible. And from then on no
//!    claim is forgotten (`store::claims`).
//! 2. Pins and images are read. Whatever a row names at any later moment was read, or the watch has it: a row that was
//!    not read was written after the watch began, even if it only moved what another row had.
//! 3. A layer that was not read as named goes if, under the lock that keeps pins and images as they are and under the
//!    one that keeps anybody from claiming, neither the watch nor a claim has it. Its row is deleted under these locks,
//!    so whoever looks for the layer to pin it (claim first, then look) finds it gone or is seen. Its files go after, each under
//!    the second lock and only while there is no row and no claim: an ingest of the same layer claims it before it
//!    makes its files.
//! 4. Then every layer that is left is *marked*: all objects that its tree or its recipe names. A layer whose row
//!    isn't read by that was committed after the collection began; its objects are claimed, since claims of work that ends
//!    meanwhile are kept.
//! 5. An object goes if it is not marked and, under the lock, not claimed.
//!
//! If a layer that stays can't be read, nobody knows its objects: no object goes then, and the report says which layer it
//! is. Layers, chain trees and snapshots go all the same.
//!
//! # Crashes, and ends before the end
//!
//! Every step leaves a state that the next collection understands. Rows go before files, durably, so a crash leaves files
//! without rows, which are collected too. Objects are swept shard by shard (a directory below `objects/`). Where that
//! stopped is remembered in a row; the next collection marks anew, since much may have changed, and sweeps in a circle from there.
//!
//! # Memory
//!
//! 8 MiB for marks, whatever the number of objects (`sorter`), and some 30 bytes for each layer that is named.

mod explain;
mod folders;
mod objects;
mod pace;
mod roots;
mod trees;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::DiffId;
use crate::disk;
use crate::error::{Error, Result};
use crate::store::claims::Collection;
use crate::store::db::WatchedRoots;
use crate::store::{Batch, Family, Store};
use crate::tally::Tally;
pub use explain::{Explained, Explanation, Keeper, ObjectUse};
pub(crate) use folders::measure;
pub use pace::Rate;
use pace::{Halt, Pace};
pub(crate) use roots::Roots;

/// Where the sweep of objects is to begin, if the last one did not come to its end.
pub(crate) const PROGRESS: &[u8] = b"gc-progress";

/// Things looked at or removed between two moments at which others may have a lock.
const STEP: usize = 64;

/// What a collection may do.
#[derive(Clone, Copy, Default)]
pub struct GcOptions<'a> {
    /// Remove nothing, only say what would go.
    pub dry_run: bool,
    /// How much may be removed in a second; as much as possible if `None`.
    pub rate: Option<Rate>,
    /// Asked between steps, at least every 50 ms: whether to end now. What was done stays done.
    pub stopped: Option<&'a (dyn Fn() -> bool + Sync)>,
}

impl fmt::Debug for GcOptions<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("GcOptions").field("dry_run", &self.dry_run).field("rate", &self.rate).finish_non_exhaustive()
    }
}

/// What a collection removed, or would have. What is in quarantine is not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Objects.
    pub objects: Tally,
    /// Layers, with their trees.
    pub layer_trees: Tally,
    /// Recipes of layers.
    pub recipes: Tally,
    /// Chain trees.
    pub chain_trees: Tally,
    /// Snapshots that were removed before: each with its directories and files.
    pub snapshots: Tally,
    /// Layers that stay and can't be read. If there are any, no object was removed.
    #[serde(default)]
    pub unreadable: Vec<UnreadableLayer>,
    /// An earlier sweep of the objects had ended early, and this one began in this shard, where that one stopped.
    #[serde(default)]
    pub resumed_at: Option<u8>,
    /// The collection was told to end before it was through; the next one goes on.
    #[serde(default)]
    pub stopped: bool,
}

impl GcReport {
    /// Everything together.
    pub fn total(&self) -> Tally {
        [self.objects, self.layer_trees, self.recipes, self.chain_trees, self.snapshots].into_iter().sum()
    }
}

/// A layer whose objects are not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableLayer {
    /// The layer.
    pub diff_id: DiffId,
    /// What is wrong with its tree or recipe.
    pub reason: String,
    /// Images that have it.
    pub images: Vec<String>,
}

impl Store {
    /// Collects garbage. Ingests and mounts go on meanwhile. [`Error::Collecting`] if another collection runs.
    pub fn gc(self: &Arc<Store>, options: GcOptions<'_>) -> Result<GcReport> {
        let collection = self.claims.collect().ok_or(Error::Collecting)?;
        if !options.dry_run {
            self.require_writable()?;
        }
        let watch = self.db().watch_roots();
        let roots = Roots::read(self)?;
        let pace = Pace::new(options.rate, options.stopped);
        let dry_run = options.dry_run;
        let mut gc =
            Gc { store: self, dry_run, pace, collection, watch, roots, report: GcReport::default(), failed: None };
        match gc.run() {
            Ok(()) => gc.failed.map_or(Ok(()), Err)?,
            Err(Halt::Stopped) => gc.report.stopped = true,
            Err(Halt::Failed(error)) => return Err(error),
        }
        Ok(gc.report)
    }
}

struct Gc<'a> {
    store: &'a Arc<Store>,
    dry_run: bool,
    pace: Pace<'a>,
    collection: Collection,
    watch: WatchedRoots<'a>,
    roots: Roots,
    report: GcReport,
    /// Something could not be removed; the rest was.
    failed: Option<Error>,
}

impl Gc<'_> {
    fn run(&mut self) -> Result<(), Halt> {
        self.pace.check()?;
        self.remove_snapshots()?;
        self.remove_chains()?;
        self.remove_layers()?;
        self.remove_strays()?;
        self.sweep_objects()
    }

    /// Removes a file, if this is no dry run, and says what it took. A missing one takes nothing.
    fn remove(&self, path: &Path) -> Result<Tally> {
        let action = || format!("remove {}", self.store.root().join(path).display());
        let Some(stat) = disk::stat(self.store.disk(), path).map_err(Error::io(action()))? else {
            return Ok(Tally::default());
        };
        if !self.dry_run {
            match self.store.disk().remove(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Tally::default()),
                removed => removed.map_err(Error::io(action()))?,
            }
        }
        Ok(Tally::of(&stat))
    }

    /// Remembers where the sweep of objects is to go on, or that it came to its end.
    fn remember(&self, shard: Option<u8>) -> Result<()> {
        let mut batch = Batch::new();
        match shard {
            Some(shard) => batch.put_json(Family::System, PROGRESS, &Progress { shard })?,
            None => batch.delete(Family::System, PROGRESS),
        }
        self.store.db().commit(batch)
    }

    fn remembered(&self) -> Result<Option<u8>> {
        Ok(self.store.db().get_json(Family::System, PROGRESS)?.map(|Progress { shard }| shard))
    }
}

#[derive(Serialize, Deserialize)]
struct Progress {
    shard: u8,
}
