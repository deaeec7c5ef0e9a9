//! One connection being served: the union, and what its kernel side needs remembered.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, FileHandle, Request};
use lru::LruCache;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::handles::{Handle, Handles};
use super::translate::{FOREVER, attributes, caller};
use crate::cache::cache_of;
use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::inode::{Attr, Caller, Fh, Ino};
use crate::passthrough::Passthrough;
use crate::served::Served;
use crate::session::ledger::Ledger;
use crate::session::{MountOptions, notify};

/// Files, and directories, that a read-only mount keeps open: the kernel tells it of no open and no close.
const KEPT_OPEN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// What programs are shown, where that differs from what the layers have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Owners.
    pub ids: Ids,
    /// Every directory has one link, which says that its number of subdirectories isn't known.
    pub static_nlink: bool,
    /// There are no extended attributes.
    pub no_xattrs: bool,
    /// There are no ACLs.
    pub no_acls: bool,
    /// The mount may be mapped to other owners (mount_setattr(2)). The kernel then says only of whoever makes something
    /// who it is, so that a truncation takes privileges off a file whoever does it.
    pub idmapped: bool,
    /// Nothing that programs sync is synced: the mount is thrown away when the machine goes down.
    pub volatile: bool,
}

/// All state of a served connection.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) union: Arc<dyn Served>,
    pub(crate) table: Passthrough,
    pub(crate) handles: Handles,
    pub(super) device: OwnedFd,
    pub(super) read_only: bool,
    passthrough: bool,
    pub(super) shown: Shown,
    /// Held for reading while a request is served, and for writing, for ever, by a server that leaves.
    gate: RwLock<()>,
    files: Mutex<LruCache<Ino, Arc<Kept>>>,
    dirs: Mutex<LruCache<Ino, Arc<Kept>>>,
}

/// A handle of the union that a read-only mount shares among all programs.
#[derive(Debug)]
pub(super) struct Kept {
    union: Arc<dyn Served>,
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
        union: Arc<dyn Served>,
        device: &OwnedFd,
        ledger: OwnedFd,
        read_only: bool,
        options: &MountOptions,
    ) -> Result<Serving> {
        let table = Passthrough::new(device.try_clone()?);
        let handles = Handles::recover(Ledger::open(ledger)?, &table)?;
        Ok(Serving {
            union,
            table,
            handles,
            device: device.try_clone()?,
            read_only,
            passthrough: options.passthrough,
            shown: options.shown.clone(),
            gate: RwLock::default(),
            files: Mutex::new(cache_of(KEPT_OPEN)),
            dirs: Mutex::new(cache_of(KEPT_OPEN)),
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
        if self.table.is_written_directly(ino) { Duration::ZERO } else { self.lasting() }
    }

    /// How long names hold, also those that stand for nothing.
    pub(super) fn lasting(&self) -> Duration {
        if self.union.is_constant() { FOREVER } else { Duration::ZERO }
    }

    /// An inode's attributes in the kernel's terms, as programs are to see them.
    pub(super) fn attributes(&self, attr: &Attr) -> FileAttr {
        let (uid, gid) = self.shown.ids.show(attr.uid, attr.gid);
        let mut attributes = FileAttr { uid, gid, ..attributes(attr) };
        if self.shown.static_nlink && attr.is_dir() {
            attributes.nlink = 1;
        }
        attributes
    }

    /// Who asks, as the disk is to know them.
    pub(super) fn caller(&self, request: &Request, umask: u32) -> Result<Caller> {
        let caller = caller(request, umask);
        if caller.uid == u32::MAX || caller.gid == u32::MAX {
            return Err(Error::Refused(Errno::OVERFLOW));
        }
        // The kernel says so in a user namespace that doesn't map its own caller.
        let nobody = |_| Error::Refused(Errno::OVERFLOW);
        let uid = self.shown.ids.stored_user(caller.uid).map_err(nobody)?;
        let gid = self.shown.ids.stored_group(caller.gid).map_err(nobody)?;
        Ok(Caller { uid, gid, ..caller })
    }

    /// Makes the kernel ask for an inode's attributes again.
    pub(super) fn forget_attributes(&self, ino: Ino) {
        if let Err(errno) = notify::invalidate_attributes(&self.device, ino) {
            tracing::debug!(%errno, %ino, "invalidating attributes");
        }
    }

    /// Makes the kernel forget a name.
    pub(crate) fn forget_name(&self, parent: Ino, name: &[u8]) {
        if let Err(errno) = notify::invalidate_entry(&self.device, parent, name) {
            tracing::debug!(%errno, %parent, "invalidating a name");
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
        self.handle(fh)?.fh(&*self.union)
    }

    /// The same, if there is one; attributes can be had without.
    pub(super) fn opened(&self, fh: FileHandle) -> Option<Fh> {
        if self.read_only { None } else { self.handle(fh).ok()?.fh(&*self.union).ok() }
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
