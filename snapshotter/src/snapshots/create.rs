//! Making active snapshots and views.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mica_layerdb::Batch;

use super::core::Core;
use super::labels::{self, TARGET};
use super::{Kind, Mount};
use crate::error::{Error, Result};
use crate::store::Record;

/// How long a mount that somebody else took away may take to end.
const GOING: Duration = Duration::from_secs(2);

impl Core {
    /// Makes folder and mount first and the record last: until the batch is written nobody sees the snapshot, and what a
    /// crash leaves of it has no record and goes at the next start.
    pub(super) fn create(
        self: &Arc<Self>,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<Vec<Mount>> {
        self.require_open()?;
        require_name("key", key)?;
        let labels = labels::accept(labels)?;
        let _turn = self.keys.lock(key)?;
        let _upon = if parent.is_empty() { None } else { Some(self.keys.build_upon(parent)?) };
        self.require_parent(key, parent)?;
        if kind == Kind::Active {
            self.refuse_existing_target(&labels, parent)?;
        }
        if self.rows.get(key)?.is_some() {
            return Err(Error::Exists { key: key.into() });
        }
        self.queue.check(parent)?;
        let mut record = Record::new(self.rows.allot(), kind, parent, labels);
        let made = self.make(key, &mut record);
        if made.is_err() {
            self.unmake(&record);
        }
        made?;
        Ok(self.answer(&record))
    }

    fn require_parent(&self, key: &str, parent: &str) -> Result<()> {
        if parent.is_empty() {
            return Ok(());
        }
        match self.rows.get(parent)? {
            None => Err(Error::NoParent { key: key.into(), parent: parent.into() }),
            Some(record) if record.kind != Kind::Committed => {
                Err(Error::ParentNotCommitted { key: key.into(), parent: parent.into() })
            }
            Some(_) => Ok(()),
        }
    }

    /// An engine that asks for an extraction names what it is to lead to. If that is there, with the label by which the
    /// engine will look for it, the engine is told so and fetches nothing.
    fn refuse_existing_target(&self, labels: &BTreeMap<String, String>, parent: &str) -> Result<()> {
        let Some(target) = labels.get(TARGET) else { return Ok(()) };
        match self.rows.get(target)? {
            Some(found) if found.is_settled() && found.parent == parent && found.labels.get(TARGET) == Some(target) => {
                Err(Error::Exists { key: target.clone() })
            }
            _ => Ok(()),
        }
    }

    fn make(self: &Arc<Self>, key: &str, record: &mut Record) -> Result<()> {
        if record.kind == Kind::Active {
            self.store.new_snapshot_dir(record.number)?;
        }
        self.mount(key, record)?;
        if record.kind == Kind::Active {
            record.root = Some(super::upper::root_of(&self.folder(record.number))?);
        }
        let mut batch = Batch::new();
        self.rows.put(&mut batch, key, record)?;
        self.rows.commit(batch)
    }

    fn unmake(self: &Arc<Self>, record: &Record) {
        let core = Arc::clone(self);
        let number = record.number;
        let folder = record.kind == Kind::Active;
        let unmounted = move || {
            if folder {
                core.remove_folder(number);
            }
        };
        if self.live.below(number).is_some() {
            self.live.end(number, unmounted);
        } else {
            unmounted();
        }
    }

    /// How to mount it; mounts it if it isn't, as after a reboot.
    pub(super) fn mounts(self: &Arc<Self>, key: &str) -> Result<Vec<Mount>> {
        self.require_open()?;
        let record = self.mountable(key)?;
        if !self.live.is_serving(record.number) {
            let _turn = self.keys.lock(key)?;
            let record = self.mountable(key)?;
            if !self.live.is_serving(record.number) {
                self.mount_anew(key, &record)?;
            }
        }
        Ok(self.answer(&record))
    }

    fn mount_anew(self: &Arc<Self>, key: &str, record: &Record) -> Result<()> {
        if !self.live.forget_gone(record.number, GOING) {
            let reason = "it was unmounted by somebody else, and programs still use it".to_owned();
            return Err(Error::Mount { number: record.number, reason });
        }
        self.live.mounter().discard(record.number)?;
        self.mount(key, record)
    }

    fn mountable(&self, key: &str) -> Result<Record> {
        let record = self.record(key)?;
        if record.kind == Kind::Committed {
            return Err(Error::NoMounts { key: key.into() });
        }
        self.queue.check(&record.parent)?;
        Ok(record)
    }
}

/// Engines always name what they make.
pub(super) fn require_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::Invalid { what: what.into(), reason: "it is empty".into() });
    }
    Ok(())
}
