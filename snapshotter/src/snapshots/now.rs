//! A snapshot as it is at this moment, without changing anything about it: what people compare and make images of.

use std::sync::Arc;

use mica_layerdb::{DiffId, Hold, Store};

use super::core::Core;
use super::{Kind, upper};
use crate::error::{Error, Result};
use crate::mounts::Unmounted;
use crate::store::Record;

/// Layers of a snapshot. Those that nothing names are spared by garbage collection as long as this is there.
#[derive(Debug)]
pub(crate) struct Now {
    /// The layers of its parent, bottom first.
    pub(crate) below: Vec<DiffId>,
    /// All its layers, bottom first.
    pub(crate) layers: Vec<DiffId>,
    /// How many of them are made of what was written into it.
    pub(crate) written: usize,
    /// The names of its parent, of that one's parent, and so on.
    pub(crate) ancestors: Vec<String>,
    _holds: Vec<Hold>,
}

impl Core {
    pub(super) fn now(&self, key: &str) -> Result<Now> {
        self.require_open()?;
        let record = self.record(key)?;
        let below = self.stack_of(&record.parent)?;
        let mut layers = match record.kind {
            Kind::Committed => self.stack_of(key)?,
            Kind::View | Kind::Active => [&below[..], &record.own].concat(),
        };
        let mut holds = vec![self.store.hold(&layers)?];
        let mut written = 0;
        if record.kind == Kind::Active && upper::has_changes(&self.folder(record.number), &record)? {
            let lower = self.store.chain(&layers)?;
            if let Some((diff_id, hold)) = self.ingest_changes(key, record.number, lower)? {
                layers.push(diff_id);
                holds.push(hold);
                written = 1;
            }
        }
        Ok(Now { below, layers, written, ancestors: self.ancestors(&record)?, _holds: holds })
    }

    fn ancestors(&self, record: &Record) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut next = record.parent.clone();
        while !next.is_empty() {
            let parent = self.record(&next)?.parent;
            names.push(std::mem::replace(&mut next, parent));
        }
        Ok(names)
    }

    /// Nobody settles anything here.
    fn require_settled(&self, key: &str, record: &Record) -> Result<()> {
        let committed = match record.kind {
            Kind::Committed => Some((key.to_owned(), record.clone())),
            _ if record.parent.is_empty() => None,
            _ => Some((record.parent.clone(), self.record(&record.parent)?)),
        };
        match committed {
            Some((name, record)) if !record.is_settled() => Err(Error::Unavailable {
                reason: format!(
                    "the changes of snapshot {name} are not a layer yet: start the daemon, which makes them one"
                ),
            }),
            _ => Ok(()),
        }
    }
}

impl Now {
    /// Of a snapshot in a store that no daemon serves.
    pub(crate) fn of_store(store: &Arc<Store>, key: &str) -> Result<Now> {
        let core = Core::new(Arc::clone(store), Arc::new(Unmounted::new(store)?))?;
        core.require_settled(key, &core.record(key)?)?;
        core.now(key)
    }
}
