//! Snapshots: what an engine prepares, commits, views and removes.
//!
//! One file per family of calls: `create` (prepare, view, mounts; `form` says in which), `commit`, `remove` (and cleanup), `labels` (update),
//! `look` (stat, list), `usage`, `apply`, `changes` (diff). In the background: `settle` makes layers of what was written through
//! mounts, `ahead` merges stacks before their first container, `usage` counts large uppers. `recover` takes up what an earlier
//! process left; `stack` says what lies below a mount; `keys` whose turn it is.
//!
//! Locks, in order: a snapshot's turn (`keys`), the lower of one mount (`stack`), the tables of `keys`, jobs, counts and live
//! mounts, which are never held over I/O.

mod ahead;
mod apply;
mod changes;
mod commit;
mod core;
mod create;
mod form;
mod keys;
mod labels;
mod look;
mod now;
mod recover;
mod remove;
mod settle;
mod stack;
mod upper;
mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use mica_layerdb::{BlobDigest, DiffId, Rate, Store};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::core::Core;
use crate::error::{Error, Result};
use crate::mounts::Mounter;
pub(crate) use now::Now;

/// How long a stop waits for mounts that are ending.
const ENDING: Duration = Duration::from_secs(5);
/// Threads that make layers of changes.
const SETTLERS: usize = 2;

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A read-only mount of a committed snapshot.
    View,
    /// A writable mount, which can be committed.
    Active,
    /// A stack of layers, which others can build upon.
    Committed,
}

impl Kind {
    /// The name by which filters know it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }
    }
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// What it is.
    pub kind: Kind,
    /// Its name: the key of an active snapshot or a view, the name of a committed one.
    pub name: String,
    /// The name of the snapshot it builds upon; empty for none.
    pub parent: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it became what it is.
    pub created: SystemTime,
    /// When it or its labels last changed.
    pub updated: SystemTime,
}

/// What a snapshot itself takes, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// How to mount a snapshot (`containerd.types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Type.
    pub kind: String,
    /// What to mount.
    pub source: String,
    /// Where below the root to mount it; empty for the root itself.
    pub target: String,
    /// Options as for mount(8).
    pub options: Vec<String>,
}

/// A layer that is to be applied.
pub struct Incoming {
    /// The layer's blob.
    pub reader: Box<dyn Read + Send>,
    /// Its media type.
    pub media_type: String,
    /// The digest that the blob must have.
    pub blob: Option<BlobDigest>,
    /// Length of the blob.
    pub size: u64,
    /// The digest that the uncompressed tar must have.
    pub diff_id: Option<DiffId>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Incoming")
            .field("media_type", &self.media_type)
            .field("blob", &self.blob)
            .field("size", &self.size)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// A layer that has been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Length of the uncompressed tar.
    pub size: u64,
}

/// All snapshots of a store. Calls may block on the disk; none waits for another snapshot's.
#[derive(Debug)]
pub struct Snapshots {
    core: Arc<Core>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Snapshots {
    /// Takes up the snapshots of a store: mounts that an earlier process left are taken over, those of an earlier boot
    /// are made anew when asked for. A snapshot that can't be taken up is reported and does not keep the others.
    pub fn open(store: Arc<Store>, mounts: Arc<dyn Mounter>) -> Result<Arc<Snapshots>> {
        let core = Arc::new(Core::new(store, mounts)?);
        core.recover()?;
        let snapshots = Snapshots { core, workers: Mutex::default() };
        for _ in 0..SETTLERS {
            snapshots.work("mica-settle", Core::settle_queued)?;
        }
        snapshots.work("mica-ahead", Core::merge_ahead)?;
        snapshots.work("mica-count", Core::count_wanted)?;
        Ok(Arc::new(snapshots))
    }

    fn work(&self, name: &str, work: fn(&Core)) -> Result<()> {
        let core = Arc::clone(&self.core);
        let worker = thread::Builder::new().name(name.into()).spawn(move || work(&core));
        self.workers.lock().push(worker.map_err(Error::io(format!("start thread {name}")))?);
        Ok(())
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.core.store
    }

    /// What is known of a snapshot.
    pub fn stat(&self, key: &str) -> Result<Info> {
        self.core.stat(key)
    }

    /// Changes labels. Without field paths, or with `labels`, all of them; with `labels.<name>` that one, which goes if
    /// `info` has no or an empty value for it. Nothing else can be changed.
    pub fn update(&self, info: &Info, fieldpaths: &[String]) -> Result<Info> {
        self.core.update(info, fieldpaths)
    }

    /// What a snapshot itself takes.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        self.core.usage(key)
    }

    /// How to mount an active snapshot or a view.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.core.mounts(key)
    }

    /// Makes an active snapshot upon a committed one, or upon nothing.
    pub fn prepare(&self, key: &str, parent: &str, labels: BTreeMap<String, String>) -> Result<Vec<Mount>> {
        self.core.create(Kind::Active, key, parent, labels)
    }

    /// Makes a view of a committed snapshot, or of nothing.
    pub fn view(&self, key: &str, parent: &str, labels: BTreeMap<String, String>) -> Result<Vec<Mount>> {
        self.core.create(Kind::View, key, parent, labels)
    }

    /// Makes a committed snapshot of an active one. `parent` gives a parent to one that was prepared without.
    pub fn commit(&self, name: &str, key: &str, labels: BTreeMap<String, String>, parent: Option<&str>) -> Result<()> {
        self.core.commit(name, key, labels, parent)
    }

    /// Removes a snapshot that nothing builds upon. Its space comes back with [`Snapshots::cleanup`].
    pub fn remove(&self, key: &str) -> Result<()> {
        self.core.remove(key)
    }

    /// The snapshots that one of the filters chooses; all if there are none.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Info>> {
        self.core.list(filters)
    }

    /// How much a cleanup may remove in a second; as much as possible if `None`.
    pub fn limit_cleanup(&self, rate: Option<Rate>) {
        *self.core.cleanup_rate.lock() = rate;
    }

    /// Whether it takes no more calls.
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    /// Brings back the space of what was removed.
    pub fn cleanup(&self) -> Result<()> {
        self.core.cleanup()
    }

    /// Waits until a committed snapshot's changes are a layer. An error if they could not be made one so far.
    pub fn settle(&self, name: &str) -> Result<()> {
        self.core.wait_settled(name)
    }

    /// The layers that a snapshot would have if it were committed now; it stays as it is.
    pub(crate) fn now(&self, key: &str) -> Result<Now> {
        self.core.now(key)
    }

    /// Forgets what was counted, so that usage is counted anew.
    pub fn clear(&self) {
        self.core.counts.clear();
    }

    /// Stops serving. Mounts stay, and wait for the next process. Further calls are refused.
    pub fn close(&self) -> Result<()> {
        if self.core.is_closed() {
            return Ok(());
        }
        self.core.close();
        let workers = std::mem::take(&mut *self.workers.lock());
        for worker in workers {
            if let Err(panic) = worker.join() {
                tracing::error!(?panic, "a background thread ended badly");
            }
        }
        self.core.live.leave_all(ENDING);
        Ok(())
    }

    /// Ends every mount, and what keeps mounts alive between processes. Programs that still use one keep it until they let go.
    pub fn unmount_all(&self) -> Result<()> {
        self.core.unmount_all(ENDING)
    }

    /// The key of the snapshot that `mounts` are of. `None` if they are not of one.
    pub fn key_of(&self, mounts: &[Mount]) -> Result<Option<String>> {
        Ok(self.core.snapshot_of(mounts)?.map(|(key, _)| key))
    }

    /// Takes in a layer as the contents of the active snapshot that `mounts` are of. `None` if they are not of one, or
    /// if the layer has to go through the mount.
    pub fn apply(&self, mounts: &[Mount], layer: Incoming) -> Result<Option<Applied>> {
        self.core.apply(mounts, layer)
    }

    /// Writes what `upper` has changed in `lower` as an uncompressed layer. `None` if that can't be told without
    /// looking through both.
    pub fn diff(&self, lower: &[Mount], upper: &[Mount], out: &mut dyn Write) -> Result<Option<()>> {
        self.core.diff(lower, upper, out)
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "snapshots are not closed well");
        }
    }
}
