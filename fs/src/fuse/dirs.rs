//! Directories being read.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{Errno as FuseErrno, FileHandle, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use fuser::{ReplyOpen, Request};
use rustix::fs::OFlags;

use super::translate::{ABSENT, errno, file_type};
use super::{Result, Serving};
use crate::inode::{DirEntry, Fh, Ino};
use crate::session::ledger::{Entry, RESENT, Via};

impl Serving {
    pub(super) fn opendir(&self, request: &Request, ino: Ino, reply: ReplyOpen) {
        if self.read_only {
            return reply.error(FuseErrno::ENOSYS);
        }
        match self.opened_dir(request.unique().0, ino) {
            // The kernel drops the listing when something is changed in the directory, by itself.
            Ok(number) if self.union.is_constant() => {
                reply.opened(FileHandle(number), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
            }
            Ok(number) => reply.opened(FileHandle(number), FopenFlags::empty()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn opened_dir(&self, unique: u64, ino: Ino) -> Result<u64> {
        if let Some(earlier) = self.handles.made_by(unique) {
            self.releasedir(FileHandle(earlier));
        }
        let fh = self.union.opendir(ino)?;
        let entry = Entry { ino, unique: unique & !RESENT, flags: OFlags::DIRECTORY, via: Via::Directory };
        self.handles.insert(entry, fh).inspect_err(|_| self.union.releasedir(fh))
    }

    pub(super) fn releasedir(&self, fh: FileHandle) {
        if let Some(handle) = self.handles.remove(fh.0)
            && let Some(fh) = handle.opened()
        {
            self.union.releasedir(fh);
        }
    }

    pub(super) fn readdir(&self, ino: Ino, fh: FileHandle, after: u64, mut reply: ReplyDirectory) {
        let listed = self.list(ino, fh, after, false, &mut |entry| {
            !reply.add(INodeNo(entry.ino.0), entry.cookie, file_type(entry.kind), OsStr::from_bytes(entry.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    pub(super) fn readdirplus(&self, ino: Ino, fh: FileHandle, after: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.list(ino, fh, after, true, &mut |entry| {
            let number = INodeNo(entry.ino.0);
            let (attr, ttl) = match &entry.attr {
                Some(attr) => (self.attributes(attr), self.ttl(entry.ino)),
                // "." and "..", of which the kernel takes a number and a type; and what can't be looked up, which it
                // does by itself if somebody wants more.
                None => (fuser::FileAttr { ino: number, kind: file_type(entry.kind), ..ABSENT }, Duration::ZERO),
            };
            !reply.add(number, entry.cookie, OsStr::from_bytes(entry.name), &ttl, &attr, Generation(0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn list(
        &self,
        ino: Ino,
        fh: FileHandle,
        after: u64,
        plus: bool,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        if self.read_only {
            let kept = self.kept_dir(ino)?;
            return self.union.readdir(kept.fh, after, plus, each);
        }
        let fh: Fh = self.handle(fh)?.fh(&*self.union)?;
        self.union.readdir(fh, after, plus, each)
    }

    pub(super) fn fsyncdir(&self, ino: Ino, fh: FileHandle, data_only: bool) -> Result<()> {
        if self.read_only || self.shown.volatile {
            return Ok(());
        }
        self.union.fsyncdir(self.fh(ino, fh)?, data_only)
    }
}
