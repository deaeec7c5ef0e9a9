//! What the calls of [`Snapshots`](super::Snapshots) and the work in the background share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mica_layerdb::{Rate, Store};
use parking_lot::Mutex;

use super::ahead::Ahead;
use super::keys::Keys;
use super::settle::Queue;
use super::stack::Below;
use super::usage::Counts;
use super::{Kind, Mount};
use crate::error::{Error, Result};
use crate::mounts::live::Live;
use crate::mounts::{Mounter, Plan, Wish};
use crate::store::{Record, Rows};

#[derive(Debug)]
pub(super) struct Core {
    pub(super) store: Arc<Store>,
    pub(super) rows: Rows,
    pub(super) keys: Keys,
    pub(super) live: Arc<Live<Below>>,
    pub(super) queue: Queue,
    pub(super) ahead: Ahead,
    pub(super) counts: Counts,
    /// Names this boot of the machine.
    pub(super) boot: String,
    /// See [`Snapshots::limit_cleanup`](super::Snapshots::limit_cleanup).
    pub(super) cleanup_rate: Mutex<Option<Rate>>,
    closed: AtomicBool,
}

impl Core {
    pub(super) fn new(store: Arc<Store>, mounter: Arc<dyn Mounter>) -> Result<Core> {
        const BOOT: &str = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(BOOT).map_err(Error::io(format!("read {BOOT}")))?;
        Ok(Core {
            rows: Rows::open(Arc::clone(&store))?,
            store,
            keys: Keys::default(),
            live: Arc::new(Live::new(mounter)),
            queue: Queue::default(),
            ahead: Ahead::default(),
            counts: Counts::default(),
            boot: boot.trim().to_owned(),
            cleanup_rate: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.queue.close();
        self.ahead.close();
        self.counts.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn require_open(&self) -> Result<()> {
        if self.is_closed() {
            return Err(Error::Unavailable { reason: "the daemon is stopping".into() });
        }
        Ok(())
    }

    /// The record of a snapshot that must exist.
    pub(super) fn record(&self, key: &str) -> Result<Record> {
        self.rows.get(key)?.ok_or_else(|| Error::NoSnapshot { key: key.into() })
    }

    /// The writable folder of an active snapshot, which is also that of a settling one.
    pub(super) fn folder(&self, number: u64) -> PathBuf {
        self.store.snapshot_dir(number)
    }

    /// Mounts a snapshot. The caller has its turn.
    pub(super) fn mount(self: &Arc<Self>, key: &str, record: &Record) -> Result<()> {
        let (plan, below) = self.plan(record, self.wish(key, record)?);
        self.live.mount(plan, below)
    }

    pub(super) fn plan(self: &Arc<Self>, record: &Record, wish: Wish) -> (Plan, Arc<Below>) {
        let below = Arc::new(Below::new(record));
        let writable = (record.kind == Kind::Active).then(|| self.folder(record.number));
        (Plan { number: record.number, wish, lower: self.resolver(&below), writable }, below)
    }

    /// What to tell engines about a mount of ours.
    pub(super) fn answer(&self, record: &Record) -> Vec<Mount> {
        let mode = if record.kind == Kind::Active { "rw" } else { "ro" };
        vec![Mount {
            kind: "bind".into(),
            source: self.live.mounter().mountpoint(record.number).display().to_string(),
            target: String::new(),
            options: vec!["rbind".into(), mode.into()],
        }]
    }

    /// Takes a folder away. A failure is not the caller's: the folder goes when the store is opened next.
    pub(super) fn remove_folder(&self, number: u64) {
        if let Err(error) = self.store.remove_snapshot_dir(number) {
            tracing::warn!(number, %error, "the folder of a snapshot stays until the daemon starts anew");
        }
    }
}
