//! Taking up what an earlier process left.
//!
//! The rows of `ops` say what there should be; folders, mounts and connections that they don't name were left by a crash and
//! go. A snapshot that can't be taken up is reported and does not keep the others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::core::Core;
use crate::error::Result;
use crate::mounts::Wish;
use crate::mounts::live::in_parallel;
use crate::store::{Op, OpState};

impl Core {
    pub(super) fn recover(self: &Arc<Self>) -> Result<()> {
        let ops: HashMap<u64, Op> = self.rows.ops()?.into_iter().collect();
        for number in self.store.snapshot_dirs()? {
            if !ops.contains_key(&number) {
                self.remove_folder(number);
            }
        }
        self.recover_mounts(&ops);
        for op in ops.values().filter(|op| op.state == OpState::Settling) {
            match self.record(&op.key) {
                Ok(record) => self.queue.add(&op.key, &record),
                Err(error) => tracing::error!(name = op.key, %error, "a snapshot that was to become a layer is lost"),
            }
        }
        Ok(())
    }

    fn recover_mounts(self: &Arc<Self>, ops: &HashMap<u64, Op>) {
        let mounter = self.live.mounter();
        let listed = |what: &str, numbers: Result<Vec<u64>>| {
            numbers.unwrap_or_else(|error| {
                tracing::error!(%error, "{what} that an earlier process left are not known");
                Vec::new()
            })
        };
        let left: HashSet<u64> = listed("mounts", mounter.left()).into_iter().collect();
        let mut all = left.clone();
        all.extend(listed("mountpoints", mounter.mountpoints()));
        in_parallel(all.into_iter().collect(), |number| {
            let wanted = ops.get(&number).filter(|op| op.state == OpState::Mounted);
            let resumed = match wanted {
                Some(op) if left.contains(&number) => self.resume(number, op),
                // A dead one, or one of an earlier boot: made anew when asked for.
                _ => false,
            };
            if !resumed && let Err(error) = mounter.discard(number) {
                tracing::error!(number, %error, "a mount that an earlier process left stays");
            }
        });
        if let Err(error) = mounter.recovered() {
            tracing::error!(%error, "what earlier mounts needed stays mounted");
        }
    }

    fn resume(self: &Arc<Self>, number: u64, op: &Op) -> bool {
        let resumed = self.record(&op.key).and_then(|record| {
            // It is what it is.
            let (plan, below) = self.plan(&record, Wish::Default);
            below.touch();
            self.live.resume(plan, below)
        });
        if let Err(error) = &resumed {
            tracing::error!(key = op.key, number, %error, "a mount cannot be taken over; programs in it are cut off");
        }
        resumed.is_ok()
    }
}
