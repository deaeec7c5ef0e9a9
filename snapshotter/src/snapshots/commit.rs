//! Making a committed snapshot of an active one.
//!
//! Engines commit inside a transaction of their own: nothing here waits for long, and nothing is walked or hashed. A
//! snapshot whose contents came as layers is complete at once. One whose contents were written through its mount is
//! committed as *settling*: its changes become a layer in the background, and mounts of its children wait for that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mica_layerdb::{Batch, DiffId};

use super::core::Core;
use super::create::require_name;
use super::{Kind, Usage, labels, upper};
use crate::error::{Error, Result};
use crate::store::{self, Record, Rows, Settling};

/// How long a commit waits for the disk. Changes that are not there by then are recorded as such.
const SYNC_PATIENCE: Duration = Duration::from_secs(1);

impl Core {
    pub(super) fn commit(
        self: &Arc<Self>,
        name: &str,
        key: &str,
        labels: BTreeMap<String, String>,
        parent: Option<&str>,
    ) -> Result<()> {
        self.require_open()?;
        require_name("name", name)?;
        require_name("key", key)?;
        let labels = labels::accept(labels)?;
        if name == key {
            self.record(key)?;
            return Err(Error::Exists { key: name.into() });
        }
        let _turns = self.keys.lock_both(name, key)?;
        if self.rows.get(name)?.is_some() {
            return Err(Error::Exists { key: name.into() });
        }
        let active = self.record(key)?;
        if active.kind != Kind::Active {
            return Err(Error::NotActive { key: key.into(), kind: active.kind.name() });
        }
        let wanted = parent.unwrap_or_default();
        let rebased = active.parent.is_empty() && !wanted.is_empty();
        if !wanted.is_empty() && !rebased && wanted != active.parent {
            let (key, parent) = (key.into(), active.parent);
            return Err(Error::ParentChange { key, parent, wanted: wanted.into() });
        }
        let _upon = if rebased { Some(self.keys.build_upon(wanted)?) } else { None };
        let parent = if rebased { wanted.to_owned() } else { active.parent.clone() };
        let beneath = self.stack_if_settled(key, &parent)?;
        let committed = self.committed(&active, &parent, labels, rebased, beneath.is_some())?;
        self.write_commit(name, key, &active, &committed, beneath)?;
        self.committed_now(name, &committed);
        Ok(())
    }

    /// The layers of the parent; `None` if they are not all known yet.
    fn stack_if_settled(&self, key: &str, parent: &str) -> Result<Option<Vec<DiffId>>> {
        if parent.is_empty() {
            return Ok(Some(Vec::new()));
        }
        match self.rows.get(parent)? {
            None => Err(Error::NoParent { key: key.into(), parent: parent.into() }),
            Some(record) if record.kind != Kind::Committed => {
                Err(Error::RebaseNotCommitted { key: key.into(), parent: parent.into() })
            }
            Some(record) if record.is_settled() => Ok(Some(self.rows.pinned(record.number)?)),
            Some(_) => Ok(None),
        }
    }

    fn committed(
        &self,
        active: &Record,
        parent: &str,
        labels: BTreeMap<String, String>,
        rebased: bool,
        parent_settled: bool,
    ) -> Result<Record> {
        let folder = self.folder(active.number);
        let changes = upper::has_changes(&folder, active)?;
        let mut record = Record::new(active.number, Kind::Committed, parent, labels);
        record.own.clone_from(&active.own);
        if changes || !parent_settled {
            let synced = !changes || upper::sync_within(&folder, SYNC_PATIENCE);
            record.settling = Some(Settling { changes, synced, rebased, boot: self.boot.clone() });
            record.created = store::now();
            record.updated = record.created;
        }
        Ok(record)
    }

    fn write_commit(
        &self,
        name: &str,
        key: &str,
        active: &Record,
        committed: &Record,
        beneath: Option<Vec<DiffId>>,
    ) -> Result<()> {
        let mut batch = Batch::new();
        Rows::delete(&mut batch, key, active);
        self.rows.put(&mut batch, name, committed)?;
        if let (Some(mut stack), true) = (beneath, committed.is_settled()) {
            stack.extend(&committed.own);
            Rows::pin(&mut batch, committed.number, &stack)?;
            Rows::put_usage(&mut batch, committed.number, self.usage_of_layers(&committed.own)?)?;
        }
        self.rows.commit(batch)
    }

    /// What follows once the engine may be told.
    fn committed_now(self: &Arc<Self>, name: &str, committed: &Record) {
        let number = committed.number;
        let core = Arc::clone(self);
        let changes = committed.settling.as_ref().is_some_and(|settling| settling.changes);
        self.live.end(number, move || {
            if !changes {
                core.remove_folder(number);
            }
        });
        if committed.is_settled() {
            self.counts.forget(number);
            self.ahead.add(name, number);
        } else {
            self.queue.add(name, committed);
        }
    }

    /// The files of layers, wherever else they are used.
    pub(super) fn usage_of_layers(&self, layers: &[DiffId]) -> Result<Usage> {
        let mut usage = Usage::default();
        for diff_id in layers {
            let layer = self.store.layer(*diff_id)?.ok_or(mica_layerdb::Error::NoLayer { diff_id: *diff_id })?;
            usage.size += layer.content_bytes;
            usage.inodes += layer.entries;
        }
        Ok(usage)
    }
}
