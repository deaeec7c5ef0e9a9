//! Open files.

use std::cell::RefCell;

use fuser::{Errno as FuseErrno, FileHandle, ReplyData, ReplyOpen, Request};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::translate::{errno, fopen, open_flags, writes};
use super::{Error, LARGEST, Result, Serving};
use crate::inode::{Fh, Ino, SetAttr};
use crate::session::ledger::{Entry, RESENT, Via};
use crate::sys;

thread_local! {
    /// What is read goes through here on its way to the kernel.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A handle that was entered.
pub(super) struct OpenedFile {
    pub(super) number: u64,
    pub(super) via: Via,
}

impl Serving {
    pub(super) fn open(&self, request: &Request, ino: Ino, flags: i32, reply: ReplyOpen) {
        if self.read_only {
            // "Needs no opening": from now on the kernel reads without asking, and keeps what it has read.
            return reply.error(FuseErrno::ENOSYS);
        }
        let flags = open_flags(flags);
        match self.opened_file(request, ino, flags) {
            Ok(OpenedFile { number, via }) => {
                let (fh, fopen) = (FileHandle(number), fopen(flags, via));
                match via {
                    Via::Upper(id) | Via::Lower(id) => sys::reply_opened(reply, fh, fopen, id),
                    _ => reply.opened(fh, fopen),
                }
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn opened_file(&self, request: &Request, ino: Ino, flags: OFlags) -> Result<OpenedFile> {
        let unique = request.unique().0;
        if let Some(earlier) = self.handles.made_by(unique) {
            self.release(FileHandle(earlier));
        }
        // The kernel finds out itself that a running program is not to be written to; but of an open for reading that
        // truncates, only after it was answered.
        if flags & (OFlags::RWMODE | OFlags::TRUNC) == OFlags::TRUNC && self.table.is_running(ino) {
            return Err(Error::Refused(Errno::TXTBSY));
        }
        let change =
            if writes(flags) { Some(self.table.change(ino).ok_or(Error::Refused(Errno::TXTBSY))?) } else { None };
        let fh = self.union.open(ino, flags)?;
        if flags.contains(OFlags::TRUNC) && request.uid() != 0 {
            self.kill_privileges(ino, fh)?;
        }
        let opened = self.enter_file(unique, ino, flags, fh)?;
        drop(change);
        if opened.via != Via::Cache && writes(flags) {
            // From now on attributes may change without a message, those that the kernel has already included.
            self.forget_attributes(ino);
        }
        Ok(opened)
    }

    /// Decides who serves a file that the union has opened, and numbers the handle.
    pub(super) fn enter_file(&self, unique: u64, ino: Ino, flags: OFlags, fh: Fh) -> Result<OpenedFile> {
        let entered = self.union.backing(fh).and_then(|backing| {
            let via = self.table.attach(ino, flags, backing.as_ref());
            let entry = Entry { ino, unique: unique & !RESENT, flags, via };
            match self.handles.insert(entry, fh) {
                Ok(number) => Ok(OpenedFile { number, via }),
                Err(error) => {
                    self.table.detach(&entry);
                    Err(error)
                }
            }
        });
        if entered.is_err() {
            self.union.release(fh);
        }
        entered
    }

    pub(super) fn release(&self, fh: FileHandle) {
        let Some(handle) = self.handles.remove(fh.0) else { return };
        self.table.detach(&handle.entry);
        if let Some(fh) = handle.opened() {
            self.union.release(fh);
        }
    }

    pub(super) fn read(&self, ino: Ino, fh: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size.min(LARGEST) as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let read = if self.read_only {
                self.kept_file(ino).and_then(|kept| self.union.read(kept.fh, offset, &mut buffer[..size]))
            } else {
                self.fh(ino, fh).and_then(|fh| self.union.read(fh, offset, &mut buffer[..size]))
            };
            match read {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    pub(super) fn write(&self, ino: Ino, fh: FileHandle, offset: u64, data: &[u8], kill: bool) -> Result<usize> {
        let fh = self.fh(ino, fh)?;
        if kill {
            self.kill_privileges(ino, fh)?;
        }
        self.union.write(fh, offset, data)
    }

    pub(super) fn flush(&self, fh: FileHandle) -> Result<()> {
        // What an earlier server opened and nobody wrote to since has nothing to flush.
        match self.handle(fh)?.opened() {
            Some(fh) => self.union.flush(fh),
            None => Ok(()),
        }
    }

    pub(super) fn fsync(&self, fh: FileHandle, data_only: bool) -> Result<()> {
        if self.read_only || self.shown.volatile {
            return Ok(());
        }
        self.union.fsync(self.handle(fh)?.fh(&*self.union)?, data_only)
    }

    pub(super) fn lseek(&self, ino: Ino, fh: FileHandle, offset: i64, whence: i32) -> Result<u64> {
        if self.read_only {
            let kept = self.kept_file(ino)?;
            return self.union.lseek(kept.fh, offset, whence);
        }
        self.union.lseek(self.fh(ino, fh)?, offset, whence)
    }

    pub(super) fn copy_file_range(
        &self,
        (from, from_fh, from_offset): (Ino, FileHandle, u64),
        (to, to_fh, to_offset): (Ino, FileHandle, u64),
        length: u64,
    ) -> Result<u64> {
        // The answer has 32 bits; a short copy is continued.
        let length = length.min(1 << 30);
        self.union.copy_file_range(self.fh(from, from_fh)?, from_offset, self.fh(to, to_fh)?, to_offset, length)
    }

    fn kill_privileges(&self, ino: Ino, fh: Fh) -> Result<()> {
        let set = SetAttr { kill_privileges: true, ..SetAttr::default() };
        self.union.setattr(ino, Some(fh), &set).map(drop)
    }
}
