//! Removing snapshots, and bringing back their space.

use std::sync::Arc;
use std::time::Duration;

use mica_layerdb::{Batch, GcOptions};

use super::core::Core;
use crate::error::{Error, Result};
use crate::store::Rows;

impl Core {
    /// One batch of deletions, which a full disk does not refuse, and one rename.
    pub(super) fn remove(self: &Arc<Self>, key: &str) -> Result<()> {
        let _turn = self.keys.lock(key)?;
        let record = self.record(key)?;
        let has_children = |child: &str| Error::HasChildren { key: key.into(), child: child.into() };
        let Some(_leaving) = self.keys.retire(key) else { return Err(has_children("one that is being made")) };
        if let Some(child) = self.rows.any_child(key)? {
            return Err(has_children(&child));
        }
        let mut batch = Batch::new();
        Rows::delete(&mut batch, key, &record);
        Rows::delete_number(&mut batch, record.number);
        self.rows.commit(batch)?;
        self.queue.forget(key, record.number);
        self.counts.forget(record.number);
        if !record.is_settled() {
            self.remove_folder(record.number);
            self.live.end(record.number, || ());
        }
        Ok(())
    }

    pub(super) fn cleanup(&self) -> Result<()> {
        self.require_open()?;
        let rate = *self.cleanup_rate.lock();
        let options = GcOptions { dry_run: false, rate, stopped: Some(&|| self.is_closed()) };
        match self.store.gc(options) {
            Ok(report) => {
                let total = report.total();
                tracing::info!(
                    objects = report.objects.count,
                    layers = report.layer_trees.count,
                    chains = report.chain_trees.count,
                    snapshots = report.snapshots.count,
                    bytes = total.disk_bytes,
                    stopped = report.stopped,
                    unreadable = report.unreadable.len(),
                    "garbage is collected"
                );
                Ok(())
            }
            // Whoever does it does it for this caller too.
            Err(mica_layerdb::Error::Collecting) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn unmount_all(self: &Arc<Self>, patience: Duration) -> Result<()> {
        let mounter = self.live.mounter();
        let ended = self.live.end_all(patience);
        for number in mounter.mountpoints()? {
            mounter.discard(number)?;
        }
        if !ended {
            return Err(Error::Unavailable { reason: "programs still use mounts that were taken away".into() });
        }
        mounter.stop()
    }
}
