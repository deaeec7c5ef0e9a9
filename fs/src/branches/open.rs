//! Open files, and what is done with a handle. All handles of an inode share its file and follow it to another branch.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::readdir::OpenDir;
use super::{Branches, Stack};
use crate::error::{Error, Result};
use crate::inode::{Fh, Ino};
use crate::union::Backing;
use crate::union::copy_up::Keep;
use crate::union::open::{seek_to, write_at};
use crate::upper::Spot;

/// The file of an open inode.
#[derive(Debug)]
pub(super) struct OpenFile {
    ino: Ino,
    contents: RwLock<Contents>,
}

#[derive(Clone, Debug)]
struct Contents {
    file: Arc<File>,
    /// Which branch it is of, and whether that can be written to.
    branch: u16,
    is_writable: bool,
}

/// Open inodes.
#[derive(Debug, Default)]
pub(super) struct Opens(HashMap<Ino, Open>);

#[derive(Debug)]
struct Open {
    file: Arc<OpenFile>,
    handles: usize,
    /// Those of them that may write.
    writers: usize,
}

/// What handles stand for.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: u64,
    table: HashMap<Fh, Handle>,
}

#[derive(Clone, Debug)]
enum Handle {
    File { file: Arc<OpenFile>, writes: bool },
    Dir(Arc<OpenDir>),
}

/// Who keeps a branch from being changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Users {
    /// Whoever has something of it open.
    All,
    /// Whoever may write to it.
    Writers,
}

impl Branches {
    /// Opens a regular file. One that is to be written and can't be where it is is copied first; with `O_TRUNC` without its
    /// contents.
    pub fn open(&self, ino: Ino, flags: OFlags) -> Result<Fh> {
        let truncate = flags.contains(OFlags::TRUNC);
        let writes = truncate || flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        if writes {
            self.copy_up(ino, if truncate { Keep::Nothing } else { Keep::Contents })?;
        }
        let file = {
            // A branch that becomes read-only looks for writers with this held exclusively.
            let stack = self.stack.read();
            let file = self.open_inode(&stack, ino, writes)?;
            if writes && !file.contents.read().is_writable {
                self.close(ino, writes);
                return Err(Errno::ROFS.into());
            }
            file
        };
        let fh = self.insert(Handle::File { file: Arc::clone(&file), writes });
        if truncate {
            let file = Arc::clone(&file.contents.read().file);
            rustix::fs::ftruncate(&*file, 0).inspect_err(|_| self.release(fh))?;
        }
        Ok(fh)
    }

    /// A handle for a file that was just made.
    pub(super) fn open_new(&self, stack: &Stack, ino: Ino, file: File) -> Result<Fh> {
        let branch = self.part(stack, ino)?.branch;
        let contents = Contents { file: Arc::new(file), branch, is_writable: true };
        let file = self.count(ino, contents, true);
        Ok(self.insert(Handle::File { file, writes: true }))
    }

    fn open_inode(&self, stack: &Stack, ino: Ino, writes: bool) -> Result<Arc<OpenFile>> {
        if let Some(open) = self.opens.lock().0.get_mut(&ino) {
            open.handles += 1;
            open.writers += usize::from(writes);
            return Ok(Arc::clone(&open.file));
        }
        let contents = self.contents(stack, ino)?;
        Ok(self.count(ino, contents, writes))
    }

    /// Counts a handle; `contents` are for the first.
    fn count(&self, ino: Ino, contents: Contents, writes: bool) -> Arc<OpenFile> {
        let mut opens = self.opens.lock();
        let open = opens.0.entry(ino).or_insert_with(|| {
            let file = Arc::new(OpenFile { ino, contents: RwLock::new(contents) });
            Open { file, handles: 0, writers: 0 }
        });
        open.handles += 1;
        open.writers += usize::from(writes);
        Arc::clone(&open.file)
    }

    fn contents(&self, stack: &Stack, ino: Ino) -> Result<Contents> {
        let part = self.part(stack, ino)?;
        let at = stack.position(part.branch).ok_or(Error::Stale { ino })?;
        let is_writable = stack.branches[at].is_writable();
        let spot = Spot::Fd(part.fd);
        let file = match spot.open(if is_writable { OFlags::RDWR } else { OFlags::RDONLY }) {
            // Immutable and append-only files, read-only disks: readable all the same.
            Err(Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::TXTBSY) => spot.open(OFlags::RDONLY)?,
            opened => opened?,
        };
        Ok(Contents { file: Arc::new(file.into()), branch: part.branch, is_writable })
    }

    /// Lets the handles of an inode go on with what it is now.
    pub(super) fn follow(&self, stack: &Stack, ino: Ino) -> Result<()> {
        let Some(file) = self.opens.lock().0.get(&ino).map(|open| Arc::clone(&open.file)) else { return Ok(()) };
        let contents = self.contents(stack, ino)?;
        *file.contents.write() = contents;
        Ok(())
    }

    /// The open files of a branch.
    pub(super) fn open_on(&self, branch: u16, users: Users) -> Vec<Ino> {
        let opens = self.opens.lock();
        let is_used =
            |open: &Open| open.file.contents.read().branch == branch && (users == Users::All || open.writers > 0);
        opens.0.iter().filter(|(_, open)| is_used(open)).map(|(ino, _)| *ino).collect()
    }

    /// The open directories.
    pub(super) fn open_dirs(&self) -> Vec<Ino> {
        let handles = self.handles.read();
        let dir = |handle: &Handle| match handle {
            Handle::Dir(dir) => Some(dir.ino),
            Handle::File { .. } => None,
        };
        handles.table.values().filter_map(dir).collect()
    }

    fn insert(&self, handle: Handle) -> Fh {
        let mut handles = self.handles.write();
        handles.next += 1;
        let fh = Fh(handles.next);
        handles.table.insert(fh, handle);
        fh
    }

    pub(super) fn insert_dir(&self, dir: OpenDir) -> Fh {
        self.insert(Handle::Dir(Arc::new(dir)))
    }

    pub(super) fn remove_dir(&self, fh: Fh) {
        self.handles.write().table.remove(&fh);
    }

    pub(super) fn dir(&self, fh: Fh) -> Result<Arc<OpenDir>> {
        match self.handles.read().table.get(&fh) {
            Some(Handle::Dir(dir)) => Ok(Arc::clone(dir)),
            _ => Err(Errno::BADF.into()),
        }
    }

    fn contents_of(&self, fh: Fh) -> Result<Contents> {
        match self.handles.read().table.get(&fh) {
            Some(Handle::File { file, .. }) => Ok(file.contents.read().clone()),
            _ => Err(Errno::BADF.into()),
        }
    }

    pub(super) fn writable_file(&self, fh: Fh) -> Result<Arc<File>> {
        let contents = self.contents_of(fh)?;
        if contents.is_writable { Ok(contents.file) } else { Err(Errno::BADF.into()) }
    }

    /// Ends a handle.
    pub fn release(&self, fh: Fh) {
        let removed = self.handles.write().table.remove(&fh);
        if let Some(Handle::File { file, writes }) = removed {
            self.close(file.ino, writes);
        }
    }

    fn close(&self, ino: Ino, writes: bool) {
        let mut opens = self.opens.lock();
        let Some(open) = opens.0.get_mut(&ino) else { return };
        open.handles -= 1;
        open.writers -= usize::from(writes);
        if open.handles == 0 {
            opens.0.remove(&ino);
        }
    }

    /// Reads into `buffer`; short only at the end of the file.
    pub fn read(&self, fh: Fh, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        crate::lower::read_full(&self.contents_of(fh)?.file, offset, buffer)
    }

    /// Writes; short only when the disk is.
    pub fn write(&self, fh: Fh, offset: u64, data: &[u8]) -> Result<usize> {
        Ok(write_at(&*self.writable_file(fh)?, offset, data)?)
    }

    /// What close(2) waits for: nothing, since nothing is held back here.
    pub fn flush(&self, fh: Fh) -> Result<()> {
        self.contents_of(fh).map(drop)
    }

    /// Makes a file's contents (and attributes, unless `data_only`) durable.
    pub fn fsync(&self, fh: Fh, data_only: bool) -> Result<()> {
        match self.contents_of(fh)? {
            Contents { is_writable: false, .. } => Ok(()),
            Contents { file, .. } if data_only => Ok(rustix::fs::fdatasync(&*file)?),
            Contents { file, .. } => Ok(rustix::fs::fsync(&*file)?),
        }
    }

    /// fallocate(2), with its mode bits.
    pub fn fallocate(&self, fh: Fh, mode: i32, offset: u64, length: u64) -> Result<()> {
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        Ok(rustix::fs::fallocate(&*self.writable_file(fh)?, flags, offset, length)?)
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE; the kernel does the others itself.
    pub fn lseek(&self, fh: Fh, offset: i64, whence: i32) -> Result<u64> {
        let (_, to) = seek_to(offset, whence)?;
        Ok(rustix::fs::seek(&*self.contents_of(fh)?.file, to)?)
    }

    /// copy_file_range(2); returns the number of bytes copied.
    pub fn copy_file_range(&self, from: Fh, from_offset: u64, to: Fh, to_offset: u64, length: u64) -> Result<u64> {
        let (source, target) = (self.contents_of(from)?.file, self.writable_file(to)?);
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        let (mut read_at, mut write_at) = (from_offset, to_offset);
        let copied = rustix::fs::copy_file_range(&*source, Some(&mut read_at), &*target, Some(&mut write_at), wanted)?;
        Ok(copied as u64)
    }

    /// Nothing is passed through: a file may come to be another branch's.
    pub fn backing(&self, fh: Fh) -> Result<Option<Backing>> {
        self.contents_of(fh).map(|_| None)
    }
}
