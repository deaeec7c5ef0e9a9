//! One connection being served: the union, and what its kernel side needs remembered.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::FileHandle;
use lru::LruCache;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::handles::{Handle, Handles};
use super::translate::FOREVER;
use crate::error::{Error, Result};
use crate::inode::{Fh, Ino};
use crate::passthrough::Passthrough;
use crate::session::ledger::Ledger;
use crate::session::notify;
use crate::union::Union;

/// Files, and directories, that a read-only mount keeps open: the kernel tells it of no open and no close.
const KEPT_OPEN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// All state of a served connection.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) union: Arc<Union>,
    pub(crate) table: Passthrough,
    pub(crate) handles: Handles,
    pub(super) device: OwnedFd,
    pub(super) read_only: bool,
    passthrough: bool,
    /// Held for reading while a request is served, and for writing, for ever, by a server that leaves.
    gate: RwLock<()>,
    files: Mutex<LruCache<Ino, Arc<Kept>>>,
    dirs: Mutex<LruCache<Ino, Arc<Kept>>>,
}

/// A handle of the union that a read-only mount shares among all programs.
#[derive(Debug)]
pub(super) struct Kept {
    union: Arc<Union>,
    pub(super) fh: Fh,
    dir: bool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.dir { self.union.releasedir(self.fh) } else { self.union.release(self.fh) }
    }
}

impl Serving {
    /// Serves `union` on the connection of `device`. What `ledger` tells of an earlier server is taken over.
    pub(crate) fn new(
        union: Arc<Union>,
        device: &OwnedFd,
        ledger: OwnedFd,
        read_only: bool,
        passthrough: bool,
    ) -> Result<Serving> {
        let table = Passthrough::new(device.try_clone()?);
        let handles = Handles::recover(Ledger::open(ledger)?, &table)?;
        Ok(Serving {
            union,
            table,
            handles,
            device: device.try_clone()?,
            read_only,
            passthrough,
            gate: RwLock::default(),
            files: Mutex::new(LruCache::new(KEPT_OPEN)),
            dirs: Mutex::new(LruCache::new(KEPT_OPEN)),
        })
    }

    /// Whether files are to be passed through where possible. A read-only mount has no opens to say so.
    pub(super) fn passes_through(&self) -> bool {
        self.passthrough && !self.read_only
    }

    /// To be held while a request is served.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// Waits until no request is being served, and serves none any more: what is read from now on stays unanswered,
    /// and comes again to the next server.
    pub(crate) fn leave(&self) {
        std::mem::forget(self.gate.write());
    }

    /// How long attributes hold. A store into a shared mapping of a file that is passed through changes its times
    /// without a message, so they do not hold while somebody can do that.
    pub(super) fn ttl(&self, ino: Ino) -> Duration {
        if self.table.is_written_directly(ino) { Duration::ZERO } else { FOREVER }
    }

    /// Makes the kernel ask for an inode's attributes again.
    pub(super) fn forget_attributes(&self, ino: Ino) {
        if let Err(errno) = notify::invalidate_attributes(&self.device, ino) {
            tracing::debug!(%errno, %ino, "invalidating attributes");
        }
    }

    pub(super) fn handle(&self, fh: FileHandle) -> Result<Arc<Handle>> {
        self.handles.get(fh.0)
    }

    /// The union's handle for one of the kernel's.
    pub(super) fn fh(&self, ino: Ino, fh: FileHandle) -> Result<Fh> {
        if self.read_only {
            // Only `read` and `readdir` have a use for the shared handles, which may be closed at any time.
            tracing::debug!(%ino, "an operation on a file that is not open");
            return Err(Error::Refused(Errno::ROFS));
        }
        self.handle(fh)?.fh(&self.union)
    }

    /// The same, if there is one; attributes can be had without.
    pub(super) fn opened(&self, fh: FileHandle) -> Option<Fh> {
        if self.read_only { None } else { self.handle(fh).ok()?.fh(&self.union).ok() }
    }

    /// The shared handle of a file of a read-only mount.
    pub(super) fn kept_file(&self, ino: Ino) -> Result<Arc<Kept>> {
        self.kept(&self.files, ino, false)
    }

    /// The shared handle of a directory of a read-only mount.
    pub(super) fn kept_dir(&self, ino: Ino) -> Result<Arc<Kept>> {
        self.kept(&self.dirs, ino, true)
    }

    fn kept(&self, kept: &Mutex<LruCache<Ino, Arc<Kept>>>, ino: Ino, dir: bool) -> Result<Arc<Kept>> {
        if let Some(kept) = kept.lock().get(&ino) {
            return Ok(kept.clone());
        }
        let fh = if dir { self.union.opendir(ino)? } else { self.union.open(ino, OFlags::RDONLY)? };
        let opened = Arc::new(Kept { union: self.union.clone(), fh, dir });
        // What falls out is closed when the last request that uses it is done, and not under the lock.
        let evicted = kept.lock().push(ino, opened.clone());
        drop(evicted);
        Ok(opened)
    }
}
