//! Open files and directories, and what is done with a handle.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::IoSlice;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Union;
use super::copy_up::Keep;
use super::nodes::Place;
use super::partial::Partial;
use super::readdir::OpenDir;
use crate::error::{Error, Result};
use crate::inode::{Fh, Ino};
use crate::lower::LowerFile;
use crate::upper::Spot;

/// What serves a file's data, for passthrough.
#[derive(Clone, Debug)]
pub struct Backing {
    /// The file.
    pub file: Arc<File>,
    /// Where it is.
    pub place: BackingPlace,
    /// Whether it is a program or library: executable by somebody, or an ELF file.
    pub program: bool,
}

/// Where a [`Backing`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingPlace {
    /// In the upper: programs may write to it.
    Upper,
    /// In the lower. Nothing can write to it through the descriptor if it is `sealed`, the kernel included.
    Lower {
        /// Whether it is.
        sealed: bool,
    },
}

/// The contents of an open inode; all its handles share them and follow them to the upper.
#[derive(Debug)]
pub(super) struct OpenFile {
    ino: Ino,
    contents: RwLock<Contents>,
}

#[derive(Clone)]
enum Contents {
    Lower(LowerFile),
    Upper(Arc<File>),
    Partial(Arc<Partial>),
}

impl fmt::Debug for Contents {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Contents::Lower(file) => file.fmt(out),
            Contents::Upper(file) => file.fmt(out),
            Contents::Partial(partial) => partial.fmt(out),
        }
    }
}

/// Open inodes and their number of handles.
#[derive(Debug, Default)]
pub(super) struct Opens(HashMap<Ino, (Arc<OpenFile>, usize)>);

/// What handles stand for.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: u64,
    table: HashMap<Fh, Handle>,
}

#[derive(Clone, Debug)]
enum Handle {
    File(Arc<OpenFile>),
    Dir(Arc<OpenDir>),
}

impl Union {
    /// Opens a regular file. To be written it is copied up first; with `O_TRUNC` without its contents.
    pub fn open(&self, ino: Ino, flags: OFlags) -> Result<Fh> {
        let truncate = flags.contains(OFlags::TRUNC);
        if truncate || flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            self.upper()?;
            let keep = if truncate { Keep::Nothing } else { Keep::Contents };
            self.copy_up(ino, keep)?;
            self.complete(ino, keep)?;
        }
        let file = self.open_inode(ino)?;
        let fh = self.insert(Handle::File(Arc::clone(&file)));
        if truncate {
            let contents = file.contents.read().clone();
            let cut = match contents {
                Contents::Upper(file) => rustix::fs::ftruncate(&*file, 0).map_err(Error::from),
                Contents::Partial(partial) => partial.truncate(0),
                Contents::Lower(_) => Ok(()),
            };
            cut.inspect_err(|_| self.release(fh))?;
        }
        Ok(fh)
    }

    /// A handle for a file that was just made.
    pub(super) fn open_new(&self, ino: Ino, file: File) -> Fh {
        let mut opens = self.opens.lock();
        let (open, count) = opens.0.entry(ino).or_insert_with(|| {
            let contents = RwLock::new(Contents::Upper(Arc::new(file)));
            (Arc::new(OpenFile { ino, contents }), 0)
        });
        *count += 1;
        let open = Arc::clone(open);
        drop(opens);
        self.insert(Handle::File(open))
    }

    fn open_inode(&self, ino: Ino) -> Result<Arc<OpenFile>> {
        if let Some((open, count)) = self.opens.lock().0.get_mut(&ino) {
            *count += 1;
            return Ok(Arc::clone(open));
        }
        if let Some(original) = self.original_of(ino)? {
            self.lower()?.prepare(original)?;
        }
        let contents = RwLock::new(self.contents(ino)?);
        let open = {
            let mut opens = self.opens.lock();
            let (open, count) = opens.0.entry(ino).or_insert_with(|| (Arc::new(OpenFile { ino, contents }), 0));
            *count += 1;
            Arc::clone(open)
        };
        // A copy-up that ended in between found no open inode to tell; one that ends from now on does.
        let is_lower = matches!(*open.contents.read(), Contents::Lower(_));
        if is_lower && !self.has_contents_below(ino) {
            self.follow_copy_up(ino).inspect_err(|_| self.close(ino))?;
        }
        Ok(open)
    }

    fn contents(&self, ino: Ino) -> Result<Contents> {
        let _names = self.names.read();
        let Some(spot) = self.locate(ino)? else { return Ok(Contents::Lower(self.lower()?.open(ino)?)) };
        if let Some(partial) = self.partial_at(ino, &spot)? {
            return Ok(Contents::Partial(partial));
        }
        if let Some(original) = self.original_at(ino, &spot)? {
            // Of the lower's own size, so that nothing is to be cut off.
            return Ok(Contents::Lower(self.lower()?.open(original)?));
        }
        let file = match spot.open(OFlags::RDWR) {
            // Immutable and append-only files, read-only disks: readable all the same.
            Err(Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::TXTBSY) => spot.open(OFlags::RDONLY)?,
            opened => opened?,
        };
        let host = rustix::fs::fstat(&file)?.st_ino;
        if self.nodes.lock().get(ino).is_none_or(|node| node.host != host) {
            return Err(Error::Stale { ino });
        }
        if self.is_partial(ino)
            && !self.upper()?.format.marks(&spot)?.is_partial()
            && let Some(node) = self.nodes.lock().get_mut(ino)
        {
            // What it lacked was copied in the background.
            node.partial = false;
        }
        Ok(Contents::Upper(Arc::new(file.into())))
    }

    /// Lets the handles of a file that was copied up go on with the copy.
    pub(super) fn follow_copy_up(&self, ino: Ino) -> Result<()> {
        let Some((open, _)) = self.opens.lock().0.get(&ino).cloned() else { return Ok(()) };
        let contents = self.contents(ino)?;
        *open.contents.write() = contents;
        Ok(())
    }

    pub(super) fn is_open(&self, ino: Ino) -> bool {
        self.opens.lock().0.contains_key(&ino)
    }

    /// Makes attributes durable of what has its contents in the lower.
    fn fsync_attributes(&self, ino: Ino) -> Result<()> {
        let _names = self.names.read();
        match self.locate(ino)? {
            Some(spot) => Ok(rustix::fs::fsync(spot.open(OFlags::RDONLY)?)?),
            None => Ok(()),
        }
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

    fn file(&self, fh: Fh) -> Result<Arc<OpenFile>> {
        match self.handles.read().table.get(&fh) {
            Some(Handle::File(open)) => Ok(Arc::clone(open)),
            _ => Err(Errno::BADF.into()),
        }
    }

    pub(super) fn dir(&self, fh: Fh) -> Result<Arc<OpenDir>> {
        match self.handles.read().table.get(&fh) {
            Some(Handle::Dir(open)) => Ok(Arc::clone(open)),
            _ => Err(Errno::BADF.into()),
        }
    }

    fn contents_of(&self, fh: Fh) -> Result<Contents> {
        Ok(self.file(fh)?.contents.read().clone())
    }

    /// The contents of a handle that may be written to.
    fn writable(&self, fh: Fh) -> Result<Contents> {
        match self.contents_of(fh)? {
            Contents::Lower(_) => Err(Errno::BADF.into()),
            contents => Ok(contents),
        }
    }

    /// Sets the length of a file that is in the upper. The caller holds `names`.
    pub(super) fn set_size(&self, ino: Ino, fh: Option<Fh>, spot: &Spot, size: u64) -> Result<()> {
        match fh.map(|fh| self.writable(fh)).transpose().unwrap_or_default() {
            Some(Contents::Upper(file)) => Ok(rustix::fs::ftruncate(&*file, size)?),
            Some(Contents::Partial(partial)) => partial.truncate(size),
            _ => match self.partial_at(ino, spot)? {
                Some(partial) => partial.truncate(size),
                None => Ok(spot.truncate(size)?),
            },
        }
    }

    /// Ends a handle.
    pub fn release(&self, fh: Fh) {
        let removed = self.handles.write().table.remove(&fh);
        if let Some(Handle::File(open)) = removed {
            self.close(open.ino);
        }
    }

    fn close(&self, ino: Ino) {
        let mut opens = self.opens.lock();
        let Some((_, count)) = opens.0.get_mut(&ino) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        opens.0.remove(&ino);
        drop(opens);
        let mut nodes = self.nodes.lock();
        if let Some(Place::Orphan(_, name)) = nodes.get(ino).map(|node| node.place.clone())
            && nodes.get(ino).is_some_and(|node| node.lookups == 0)
        {
            self.delete_orphan(&name);
            nodes.remove(ino);
        }
    }

    /// Reads into `buffer`; short only at the end of the file.
    pub fn read(&self, fh: Fh, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        match self.contents_of(fh)? {
            Contents::Lower(file) => file.read_at(offset, buffer),
            Contents::Upper(file) => crate::lower::read_full(&file, offset, buffer),
            Contents::Partial(partial) => partial.read(offset, buffer),
        }
    }

    /// Writes; short only when the disk is.
    pub fn write(&self, fh: Fh, offset: u64, data: &[u8]) -> Result<usize> {
        match self.writable(fh)? {
            Contents::Partial(partial) => partial.write(offset, data),
            Contents::Upper(file) => Ok(write_at(&file, offset, data)?),
            Contents::Lower(_) => Err(Errno::BADF.into()),
        }
    }

    /// What close(2) waits for: nothing, since nothing is held back here.
    pub fn flush(&self, fh: Fh) -> Result<()> {
        self.file(fh).map(drop)
    }

    /// Makes a file's contents (and attributes, unless `data_only`) durable.
    pub fn fsync(&self, fh: Fh, data_only: bool) -> Result<()> {
        match self.contents_of(fh)? {
            Contents::Lower(_) => self.fsync_attributes(self.file(fh)?.ino),
            Contents::Partial(partial) => partial.persist(data_only),
            Contents::Upper(file) if data_only => Ok(rustix::fs::fdatasync(&*file)?),
            Contents::Upper(file) => Ok(rustix::fs::fsync(&*file)?),
        }
    }

    /// fallocate(2), with its mode bits.
    pub fn fallocate(&self, fh: Fh, mode: i32, offset: u64, length: u64) -> Result<()> {
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        let file = match self.writable(fh)? {
            Contents::Partial(partial) => {
                let moves =
                    FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE | FallocateFlags::UNSHARE_RANGE;
                if !flags.intersects(moves) {
                    return partial.fallocate(flags, offset, length);
                }
                partial.finish()?;
                Arc::clone(partial.upper())
            }
            Contents::Upper(file) => file,
            Contents::Lower(_) => return Err(Errno::BADF.into()),
        };
        Ok(rustix::fs::fallocate(&*file, flags, offset, length)?)
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE; the kernel does the others itself.
    pub fn lseek(&self, fh: Fh, offset: i64, whence: i32) -> Result<u64> {
        let (at, to) = seek_to(offset, whence)?;
        match self.contents_of(fh)? {
            Contents::Partial(partial) => partial.seek(at, whence == libc::SEEK_DATA),
            Contents::Upper(file) | Contents::Lower(LowerFile::File { file, .. }) => Ok(rustix::fs::seek(&*file, to)?),
            Contents::Lower(LowerFile::Inline { .. }) => {
                let size = self.getattr(self.file(fh)?.ino, None)?.size;
                match whence {
                    _ if at >= size => Err(Errno::NXIO.into()),
                    libc::SEEK_HOLE => Ok(size),
                    _ => Ok(at),
                }
            }
        }
    }

    /// copy_file_range(2); returns the number of bytes copied.
    pub fn copy_file_range(&self, from: Fh, from_offset: u64, to: Fh, to_offset: u64, length: u64) -> Result<u64> {
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        let (mut read_at, mut write_at) = (from_offset, to_offset);
        let (source, target) = (self.contents_of(from)?, self.writable(to)?);
        let (Contents::Upper(source) | Contents::Lower(LowerFile::File { file: source, .. }), Contents::Upper(target)) =
            (source, target)
        else {
            // One of them is no file of a disk, or is two.
            let mut buffer = vec![0; wanted.min(1 << 20)];
            let read = self.read(from, from_offset, &mut buffer)?;
            return Ok(self.write(to, to_offset, &buffer[..read])? as u64);
        };
        let copied = rustix::fs::copy_file_range(&*source, Some(&mut read_at), &*target, Some(&mut write_at), wanted)?;
        Ok(copied as u64)
    }

    /// The file that serves a handle's data; `None` for contents inside a tree.
    pub fn backing(&self, fh: Fh) -> Result<Option<Backing>> {
        let open = self.file(fh)?;
        let contents = open.contents.read().clone();
        match contents {
            Contents::Upper(file) => Ok(Some(Backing { file, place: BackingPlace::Upper, program: false })),
            Contents::Partial(partial) => Ok(partial.is_whole().then(|| Backing {
                file: Arc::clone(partial.upper()),
                place: BackingPlace::Upper,
                program: false,
            })),
            Contents::Lower(LowerFile::File { file, sealed }) => {
                let attr =
                    if self.is_lower(open.ino) { self.lower()?.attr(open.ino) } else { self.getattr(open.ino, None) };
                let program = attr?.mode & 0o111 != 0 || is_elf(&file)?;
                Ok(Some(Backing { file, place: BackingPlace::Lower { sealed }, program }))
            }
            Contents::Lower(LowerFile::Inline { .. }) => Ok(None),
        }
    }
}

/// Writes at `offset`; short only when the disk is.
pub(crate) fn write_at(file: &File, offset: u64, data: &[u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::pwritev(file, &[IoSlice::new(data)], offset) {
            Err(Errno::INTR) => {}
            written => return written,
        }
    }
}

/// Where lseek(2) with SEEK_DATA or SEEK_HOLE begins to look, and for what.
pub(crate) fn seek_to(offset: i64, whence: i32) -> Result<(u64, SeekFrom), Errno> {
    let at = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
    match whence {
        libc::SEEK_DATA => Ok((at, SeekFrom::Data(at))),
        libc::SEEK_HOLE => Ok((at, SeekFrom::Hole(at))),
        _ => Err(Errno::INVAL),
    }
}

fn is_elf(file: &File) -> Result<bool> {
    let mut magic = [0; 4];
    Ok(crate::lower::read_full(file, 0, &mut magic)? == 4 && magic == *b"\x7fELF")
}
