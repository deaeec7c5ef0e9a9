//! What people ask of a store, whether a daemon has it open or the command line itself.

mod call;
mod compare;
mod images;
mod integrity;
mod layers;
mod pins;
mod report;

use std::io::Write;
use std::sync::Arc;

use mica_layerdb::{GcOptions, Progress, Store};
use serde::Serialize;
use serde_json::Value;

use crate::config::Verify;
use crate::error::{Error, Result};
use crate::snapshots::Snapshots;

pub use call::{Call, CommitOptions};
pub use compare::{Compared, DiffReport, HistoryLine, HistoryReport};
pub use integrity::{FsckCall, VerifyCall};
pub use layers::{LayerReport, LayerUsers};
pub use pins::{ImageLock, MountableImage};
pub(crate) use pins::{ended_mounts, forget_mount, prune};
pub use report::{ImageReport, SnapshotReport, SnapshotRow, StatusReport};

/// The daemon, as its administration sees it.
pub trait Daemon: Send + Sync {
    /// What it serves where.
    fn status(&self) -> StatusReport;

    /// When it compares contents with their digests.
    fn verify(&self) -> Verify;

    /// Asks it to end. Returns at once.
    fn end(&self);
}

/// Answers calls.
pub struct Admin {
    store: Arc<Store>,
    daemon: Option<(Arc<Snapshots>, Box<dyn Daemon>)>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Admin").field("root", &self.store.root()).finish_non_exhaustive()
    }
}

impl Admin {
    /// The administration of a store that nobody serves.
    pub fn of_store(store: Arc<Store>) -> Admin {
        Admin { store, daemon: None }
    }

    /// The administration of a daemon.
    pub fn of_daemon(snapshots: Arc<Snapshots>, daemon: Box<dyn Daemon>) -> Admin {
        Admin { store: Arc::clone(snapshots.store()), daemon: Some((snapshots, daemon)) }
    }

    /// [`Admin::stream`] for calls whose answer is all in its result.
    pub fn call(&self, call: Call, progress: &dyn Progress) -> Result<Value> {
        self.stream(call, progress, &mut std::io::sink())
    }

    /// Does what is asked, writes the bytes that were asked for to `out`, and returns the rest of the answer as JSON.
    pub fn stream(&self, call: Call, progress: &dyn Progress, out: &mut dyn Write) -> Result<Value> {
        match call {
            Call::ImageImport { source, options } => json(&self.import_image(&source, &options, progress)?),
            Call::ImageExport { reference, options } => json(&self.export_image(&reference, options, out, progress)?),
            Call::ImageTag { reference, name } => json(&self.tag_image(&reference, &name)?),
            Call::ImageHistory { reference, files } => json(&self.history(&reference, files, out)?),
            Call::Diff { before, after, times } => json(&self.diff(&before, &after, times, out)?),
            Call::ImageLs => json(&self.store.images()?),
            Call::ImageShow { reference } => json(&ImageReport::of(&self.store, self.image(&reference)?)?),
            Call::ImageRm { reference } => json(&self.store.remove_image(&reference)?),
            Call::ImageMount { reference, lock } => {
                let verify = self.daemon.as_ref().map(|(_, daemon)| daemon.verify()).unwrap_or_default();
                json(&pins::mountable(&self.store, self.image(&reference)?, &lock, verify)?)
            }
            Call::LayerLs => json(&self.store.layers()?),
            Call::LayerShow { digest } => json(&LayerReport::of(&self.store, self.layer(&digest)?)?),
            Call::LayerExport { digest } => json(&self.export_layer(&digest, out)?),
            Call::SnapshotLs => json(&match &self.daemon {
                Some((snapshots, _)) => SnapshotRow::all(snapshots)?,
                None => report::recorded(&self.store)?,
            }),
            Call::SnapshotShow { key } => json(&match (&self.daemon, self.key(&key)?) {
                (Some((snapshots, _)), key) => SnapshotReport::of(snapshots, &key)?,
                (None, key) => report::recorded_one(&self.store, &key)?,
            }),
            Call::SnapshotDiff { key, times } => json(&self.diff_snapshot(&key, times, out)?),
            Call::SnapshotCommit { key, options } => json(&self.commit_snapshot(&key, options)?),
            Call::Gc { dry_run, rate } => {
                pins::prune(&self.store)?;
                let stopped = || progress.is_abandoned() || self.is_ending();
                json(&self.store.gc(GcOptions { dry_run, rate, stopped: Some(&stopped) })?)
            }
            Call::GcExplain { digest } => {
                pins::prune(&self.store)?;
                json(&self.store.explain(&digest)?)
            }
            Call::Df => {
                pins::prune(&self.store)?;
                json(&self.store.df()?)
            }
            Call::Fsck(call) => json(&self.fsck(&call, progress)?),
            Call::LayerVerify(call) => json(&self.verify(call, progress)?),
            Call::Scrub { bytes_per_second, restart } => json(&self.scrub(bytes_per_second, restart, progress)?),
            Call::Status => json(&self.daemon()?.1.status()),
            Call::UmountAll => {
                let (snapshots, daemon) = self.daemon()?;
                let ended = snapshots.unmount_all();
                daemon.end();
                ended.and_then(|()| json(&()))
            }
            Call::Stop => {
                self.daemon()?.1.end();
                json(&())
            }
        }
    }

    /// Whether the daemon is about to end.
    fn is_ending(&self) -> bool {
        self.daemon.as_ref().is_some_and(|(snapshots, _)| snapshots.is_closed())
    }

    fn daemon(&self) -> Result<&(Arc<Snapshots>, Box<dyn Daemon>)> {
        self.daemon.as_ref().ok_or_else(|| Error::Unavailable {
            reason: format!("no daemon serves the store at {}", self.store.root().display()),
        })
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|error| Error::Invalid { what: "the answer".to_owned(), reason: error.to_string() })
}
