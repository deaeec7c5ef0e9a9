//! What lies below a mount.

use std::sync::{Arc, Weak};

use mica_layerdb::{ChainId, DiffId};
use parking_lot::Mutex;

use super::core::Core;
use crate::error::{Error, Result};
use crate::mounts::{Base, Resolve};
use crate::store::Record;

/// What the lower of a mount is made of: the stack of a parent, and layers applied to the snapshot itself.
#[derive(Debug)]
pub(super) struct Below {
    parent: String,
    pub(super) state: Mutex<BelowState>,
}

#[derive(Debug)]
pub(super) struct BelowState {
    pub(super) applied: Vec<DiffId>,
    /// Somebody has looked into the mount, so that its lower can't be changed any more.
    pub(super) touched: bool,
}

impl Below {
    pub(super) fn new(record: &Record) -> Below {
        let state = BelowState { applied: record.own.clone(), touched: false };
        Below { parent: record.parent.clone(), state: Mutex::new(state) }
    }

    pub(super) fn is_touched(&self) -> bool {
        self.state.lock().touched
    }

    /// An earlier process may have shown it to somebody.
    pub(super) fn touch(&self) {
        self.state.lock().touched = true;
    }
}

impl Core {
    /// Finds the lower of a mount when somebody needs it, and waits for its parent to settle.
    pub(super) fn resolver(self: &Arc<Self>, below: &Arc<Below>) -> Resolve {
        let core: Weak<Core> = Arc::downgrade(self);
        let below = Arc::clone(below);
        Arc::new(move || match core.upgrade() {
            Some(core) => core.lower(&below),
            None => Err(Error::Unavailable { reason: "the daemon is stopping".into() }),
        })
    }

    fn lower(&self, below: &Below) -> Result<Base> {
        let applied = {
            let mut state = below.state.lock();
            state.touched = true;
            state.applied.clone()
        };
        let mut stack = self.stack_of(&below.parent)?;
        stack.extend(applied);
        let tree = self.store.chain(&stack)?;
        Ok(Base { tree, file: ChainId::of(&stack).map(|chain| self.store.chain_path(chain)) })
    }

    /// The layers of a committed snapshot, bottom first, once they are all known; none for no snapshot.
    pub(super) fn stack_of(&self, name: &str) -> Result<Vec<DiffId>> {
        if name.is_empty() {
            return Ok(Vec::new());
        }
        loop {
            self.queue.wait(name)?;
            let record = self.record(name)?;
            if record.is_settled() {
                return self.rows.pinned(record.number);
            }
            self.require_open()?;
            // It was committed just now.
            self.queue.add(name, &record);
        }
    }
}
