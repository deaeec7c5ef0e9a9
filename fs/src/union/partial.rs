//! A file of which a part is copied: reads and writes while its blocks are in two places, and how it becomes whole.
//!
//! The orders are those without which a crash could show zeros where the lower has data, or lose what was synced:
//!
//! * *write*: the block's data, then its live bit. A block that is written in part is filled from the lower first;
//! * *persist*: the live bits are noted, the data is synced, then those bits become durable and are synced themselves;
//! * *truncate*: the size, then the record's valid length; an opened file believes the smaller. Before it grows again,
//!   both are synced;
//! * *end*: all bits durable, everything synced, then the marks go, then that is synced, then the map goes.
//!
//! After a failed sync nothing is made durable any more: what the kernel dropped nobody knows. The file stays
//! readable, and after the next start it is what it was when it was synced last.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{FallocateFlags, SeekFrom, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::open::write_at;
use crate::error::Result;
use crate::lower::LowerFile;
use crate::upper::blocks::{BLOCK, Map, Record, read_merged, run};
use crate::upper::{Format, Mark, write_full};

/// Bytes copied by one step towards the whole file; while it is written, who uses the file waits.
const STEP: u64 = 256 << 10;

/// An open file that is partly in the lower.
#[derive(Debug)]
pub(super) struct Partial {
    upper: Arc<File>,
    lower: LowerFile,
    map: Map,
    /// The directory of the map.
    maps: Arc<OwnedFd>,
    format: Format,
    /// The valid length. Never grows; 0 once the file is whole.
    valid: AtomicU64,
    /// Shared by reads and writes, exclusive for what concerns the whole file and for steps towards the whole.
    whole: RwLock<()>,
    /// Held while bits are set.
    filling: Mutex<()>,
    /// The record as it is meant to be, and what of it and of the bits is on the disk.
    disk: Mutex<Disk>,
    /// The valid length fell since the file was synced.
    was_cut: AtomicBool,
    /// Something was written since it was persisted.
    is_dirty: AtomicBool,
    /// Everything is in the upper file, and nothing says otherwise.
    is_whole: AtomicBool,
    persisted: Mutex<Instant>,
}

#[derive(Debug)]
struct Disk {
    record: Record,
    /// The file's attribute says something else.
    record_is_stale: bool,
    durable: Vec<u8>,
    /// A sync failed.
    has_failed: bool,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes were copied; there may be more.
    Copied(u64),
    /// The file is whole.
    Whole,
}

impl Partial {
    /// The file behind `upper`, whose record is `record`.
    pub(super) fn open(
        upper: Arc<File>,
        lower: LowerFile,
        (map, maps): (Map, Arc<OwnedFd>),
        mut record: Record,
        format: Format,
    ) -> Result<Partial> {
        let size = rustix::fs::fstat(&*upper)?.st_size as u64;
        // A crash between a truncation and its record.
        let was_cut = size < record.valid;
        record.valid = record.valid.min(size);
        if let Some(times) = map.guarded()? {
            rustix::fs::futimens(&*upper, &times)?;
            map.guard(None)?;
        }
        let durable = map.durable()?;
        Ok(Partial {
            upper,
            lower,
            maps,
            format,
            valid: AtomicU64::new(record.valid),
            whole: RwLock::default(),
            filling: Mutex::default(),
            was_cut: AtomicBool::new(was_cut),
            is_dirty: AtomicBool::new(durable != map.snapshot()),
            is_whole: AtomicBool::new(false),
            persisted: Mutex::new(Instant::now()),
            disk: Mutex::new(Disk { record, record_is_stale: was_cut, durable, has_failed: false }),
            map,
        })
    }

    /// The upper file.
    pub(super) fn upper(&self) -> &Arc<File> {
        &self.upper
    }

    /// Whether the upper file has everything.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Acquire)
    }

    /// The upper file's attributes, not in the middle of a step towards the whole.
    pub(super) fn stat(&self) -> Result<Stat, Errno> {
        let _whole = self.whole.read();
        rustix::fs::fstat(&*self.upper)
    }

    /// Whether no name is left, so that nothing has to be kept for later.
    pub(super) fn is_unlinked(&self) -> Result<bool, Errno> {
        Ok(rustix::fs::fstat(&*self.upper)?.st_nlink == 0)
    }

    /// When it was persisted last, if something changed since.
    pub(super) fn dirty_since(&self) -> Option<Instant> {
        self.is_dirty.load(Ordering::Acquire).then(|| *self.persisted.lock())
    }

    fn valid(&self) -> u64 {
        self.valid.load(Ordering::Acquire)
    }

    /// Reads; short only at the end of the file.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let _whole = self.whole.read();
        read_merged((&self.upper, &self.lower), (&self.map.live, self.valid()), offset, buffer)
    }

    /// Writes; short only when the disk is full.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::FBIG)?;
        let _whole = loop {
            self.settle_cut(end)?;
            let whole = self.whole.read();
            // Cut once more meanwhile.
            if end <= self.valid() || !self.was_cut.load(Ordering::Acquire) {
                break whole;
            }
        };
        self.is_dirty.store(true, Ordering::Release);
        let valid = self.valid();
        if offset >= valid || self.map.live.has_all(offset / BLOCK..end.min(valid).div_ceil(BLOCK)) {
            return Ok(write_at(&self.upper, offset, data)?);
        }
        let _filling = self.filling.lock();
        // Blocks that are written in part, the last of the lower's own as far as that has it.
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        self.fill_edge(first * BLOCK..offset)?;
        self.fill_edge(end..((last + 1) * BLOCK).min(valid).max(end))?;
        let written = write_at(&self.upper, offset, data)?;
        let reached = offset + written as u64;
        // Of a short write the last block counts only if it is there to the end.
        let covered = if reached == end { last + 1 } else { reached / BLOCK };
        self.map.set(first..covered.min(valid.div_ceil(BLOCK)))?;
        if reached == end || reached >= valid || self.map.live.has(reached / BLOCK) {
            return Ok(written);
        }
        match (covered * BLOCK).checked_sub(offset) {
            Some(shown) if shown > 0 => Ok(shown as usize),
            _ => Err(Errno::NOSPC.into()),
        }
    }

    /// Copies a part of a block that is not copied yet, so that the rest of it can be written. The caller holds `filling`.
    fn fill_edge(&self, range: Range<u64>) -> Result<()> {
        let end = range.end.min(self.valid());
        if range.start >= end || self.map.live.has(range.start / BLOCK) {
            return Ok(());
        }
        let mut buffer = vec![0; (end - range.start) as usize];
        self.read_lower(range.start, &mut buffer)?;
        Ok(write_full(&self.upper, range.start, &buffer)?)
    }

    fn read_lower(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if self.lower.read_at(offset, buffer)? < buffer.len() {
            // Shorter than it was: damage.
            return Err(Errno::IO.into());
        }
        Ok(())
    }

    /// Syncs a truncation before what follows makes the file longer than it left it.
    fn settle_cut(&self, end: u64) -> Result<()> {
        if end > self.valid() && self.was_cut.load(Ordering::Acquire) {
            let _whole = self.whole.write();
            self.settle_cut_locked()?;
        }
        Ok(())
    }

    fn settle_cut_locked(&self) -> Result<()> {
        if self.was_cut.load(Ordering::Acquire) && !self.is_whole() {
            let mut disk = self.disk.lock();
            self.write_record(&mut disk)?;
            self.sync(&mut disk, false)?;
            self.was_cut.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Sets the length.
    pub(super) fn truncate(&self, size: u64) -> Result<()> {
        let _whole = self.whole.write();
        self.is_dirty.store(true, Ordering::Release);
        if size > self.valid() {
            self.settle_cut_locked()?;
        }
        rustix::fs::ftruncate(&*self.upper, size)?;
        if size < self.valid() && !self.is_whole() {
            self.valid.store(size, Ordering::Release);
            self.was_cut.store(true, Ordering::Release);
            let mut disk = self.disk.lock();
            disk.record.valid = size;
            disk.record_is_stale = true;
            // If it fails the next that makes the file longer tries again, and fails if it can't.
            if let Err(error) = self.write_record(&mut disk) {
                tracing::warn!(%error, "the valid length of a file is not recorded yet");
            }
        }
        Ok(())
    }

    fn write_record(&self, disk: &mut Disk) -> Result<()> {
        if disk.record_is_stale {
            let name = self.format.name(Mark::Blocks);
            rustix::fs::fsetxattr(&*self.upper, name, &disk.record.encode(), XattrFlags::empty())?;
            disk.record_is_stale = false;
        }
        Ok(())
    }

    /// fallocate(2), but for the modes that move data, which need the whole file.
    pub(super) fn fallocate(&self, mode: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        let end = offset.checked_add(length).filter(|_| length > 0).ok_or(Errno::INVAL)?;
        let _whole = self.whole.write();
        if end > self.valid() {
            self.settle_cut_locked()?;
        }
        self.is_dirty.store(true, Ordering::Release);
        let valid = self.valid();
        let clears = mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
        if !clears || offset >= valid || self.is_whole() {
            // Space, and perhaps a size: no data.
            return Ok(rustix::fs::fallocate(&*self.upper, mode, offset, length)?);
        }
        let _filling = self.filling.lock();
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        self.fill_edge(first * BLOCK..offset)?;
        self.fill_edge(end..((last + 1) * BLOCK).min(valid).max(end))?;
        rustix::fs::fallocate(&*self.upper, mode, offset, length)?;
        // A block without data that is copied is one of zeros.
        Ok(self.map.set(first..(last + 1).min(valid.div_ceil(BLOCK)))?)
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    pub(super) fn seek(&self, at: u64, for_data: bool) -> Result<u64> {
        let _whole = self.whole.read();
        let (valid, size) = (self.valid(), rustix::fs::fstat(&*self.upper)?.st_size as u64);
        if at >= size {
            return Err(Errno::NXIO.into());
        }
        let to = |at| if for_data { SeekFrom::Data(at) } else { SeekFrom::Hole(at) };
        let mut at = at;
        while at < valid {
            let (is_copied, end) = run(&self.map.live, at, valid);
            let found = match &self.lower {
                _ if is_copied => rustix::fs::seek(&*self.upper, to(at)),
                LowerFile::File { file, .. } => rustix::fs::seek(&**file, to(at)),
                LowerFile::Inline { .. } => Ok(if for_data { at } else { end }),
            };
            match found {
                Ok(found) if found < end => return Ok(found.max(at)),
                Ok(_) | Err(Errno::NXIO) => at = end,
                Err(errno) => return Err(errno.into()),
            }
        }
        match rustix::fs::seek(&*self.upper, to(at)) {
            Err(Errno::NXIO) if !for_data => Ok(size),
            found => Ok(found?),
        }
    }

    /// Makes what was written durable: fsync(2), or fdatasync(2).
    pub(super) fn persist(&self, data_only: bool) -> Result<()> {
        if self.is_whole() {
            let sync = if data_only { rustix::fs::fdatasync(&*self.upper) } else { rustix::fs::fsync(&*self.upper) };
            return Ok(sync?);
        }
        let mut disk = self.disk.lock();
        self.is_dirty.store(false, Ordering::Release);
        let persisted = self.persist_locked(&mut disk, data_only);
        if persisted.is_err() {
            self.is_dirty.store(true, Ordering::Release);
        }
        *self.persisted.lock() = Instant::now();
        persisted
    }

    fn persist_locked(&self, disk: &mut Disk, data_only: bool) -> Result<()> {
        self.write_record(disk)?;
        // Each of these bits was set after its data had been written.
        let bits = self.map.snapshot();
        let fresh = !disk.record.map_is_durable && bits != disk.durable;
        self.sync(disk, data_only && !self.was_cut.load(Ordering::Acquire))?;
        let failed = |errno: Errno| {
            tracing::error!(%errno, "the map of a partly copied file can't be synced");
            errno
        };
        // What can't be written for lack of space can be written later; what can't be synced may be gone.
        if self.map.write_durable(&disk.durable, &bits)?
            && let Err(errno) = self.map.sync()
        {
            disk.has_failed = true;
            return Err(failed(errno).into());
        }
        disk.durable = bits;
        if fresh {
            self.map.settle(&self.maps).map_err(failed)?;
            disk.record.map_is_durable = true;
            disk.record_is_stale = true;
            self.write_record(disk)?;
        }
        Ok(())
    }

    /// Syncs the upper file, once for each time that it fails.
    fn sync(&self, disk: &mut Disk, data_only: bool) -> Result<()> {
        if disk.has_failed {
            return Err(Errno::IO.into());
        }
        let synced = if data_only { rustix::fs::fdatasync(&*self.upper) } else { rustix::fs::fsync(&*self.upper) };
        synced.map_err(|errno| {
            disk.has_failed = true;
            tracing::error!(%errno, "a partly copied file can't be synced");
            errno.into()
        })
    }

    /// Copies the next piece from `cursor` on, which moves; when nothing is left to copy, ends what is partial.
    pub(super) fn step(&self, cursor: &mut u64) -> Result<Step> {
        if self.is_whole() {
            return Ok(Step::Whole);
        }
        let valid = self.valid();
        while *cursor < valid {
            let (is_copied, end) = run(&self.map.live, *cursor, valid);
            if is_copied {
                *cursor = end;
                continue;
            }
            let end = self.end_of_kind(*cursor, end.min(*cursor + STEP));
            let copied = self.copy(*cursor..end)?;
            *cursor = end;
            return Ok(Step::Copied(copied));
        }
        if !self.map.live.has_all(0..valid.div_ceil(BLOCK)) {
            *cursor = 0;
            return Ok(Step::Copied(0));
        }
        self.end()?;
        Ok(Step::Whole)
    }

    /// Copies the blocks of a range that are not copied; returns the bytes written. The file's times stay.
    fn copy(&self, range: Range<u64>) -> Result<u64> {
        // What is a hole below is none to be written, unless the upper file has something there that counts for nothing.
        let mut data = Vec::new();
        if self.has_data_below(&range) {
            data.resize((range.end - range.start) as usize, 0);
            self.read_lower(range.start, &mut data)?;
        }
        let _whole = self.whole.write();
        let _filling = self.filling.lock();
        let end = range.end.min(self.valid());
        if data.is_empty() && self.has_data_above(&range) {
            data.resize((range.end - range.start) as usize, 0);
        }
        let stat = rustix::fs::fstat(&*self.upper)?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
            last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
        };
        let mut guarded = false;
        let (mut at, mut written) = (range.start, 0);
        while at < end {
            let (is_copied, next) = run(&self.map.live, at, end);
            if !is_copied {
                if !data.is_empty() {
                    if !guarded {
                        self.map.guard(Some(&times))?;
                        guarded = true;
                    }
                    write_full(&self.upper, at, &data[(at - range.start) as usize..(next - range.start) as usize])?;
                    written += next - at;
                }
                self.map.set(at / BLOCK..next.div_ceil(BLOCK))?;
            }
            at = next;
        }
        if guarded {
            rustix::fs::futimens(&*self.upper, &times)?;
            self.map.guard(None)?;
        }
        self.is_dirty.store(true, Ordering::Release);
        Ok(written)
    }

    /// Up to where the lower has data from `start` on, or a hole; in whole blocks, and at most to `end`.
    fn end_of_kind(&self, start: u64, end: u64) -> u64 {
        let LowerFile::File { file, .. } = &self.lower else { return end };
        let Ok(data) = rustix::fs::seek(&**file, SeekFrom::Data(start)) else { return end };
        // The disk's blocks may be smaller.
        let block = data / BLOCK * BLOCK;
        if block > start {
            return block.min(end);
        }
        let hole = rustix::fs::seek(&**file, SeekFrom::Hole(data)).unwrap_or(end);
        hole.max(start + 1).next_multiple_of(BLOCK).min(end)
    }

    fn has_data_below(&self, range: &Range<u64>) -> bool {
        match &self.lower {
            LowerFile::File { file, .. } => has_data(file, range),
            LowerFile::Inline { .. } => true,
        }
    }

    fn has_data_above(&self, range: &Range<u64>) -> bool {
        has_data(&self.upper, range)
    }

    /// Takes the marks and the map away from a file that has all its blocks.
    fn end(&self) -> Result<()> {
        // The long part first, while the file can be used.
        self.persist(false)?;
        {
            let _whole = self.whole.write();
            let mut disk = self.disk.lock();
            if self.is_whole() {
                return Ok(());
            }
            if !self.map.live.has_all(0..self.valid().div_ceil(BLOCK)) {
                return Err(Errno::AGAIN.into());
            }
            self.persist_locked(&mut disk, false)?;
            // As long as the record is there it counts.
            for mark in [Mark::Metacopy, Mark::Redirect, Mark::Blocks] {
                match rustix::fs::fremovexattr(&*self.upper, self.format.name(mark)) {
                    Err(Errno::NODATA) => {}
                    removed => removed?,
                }
            }
            self.valid.store(0, Ordering::Release);
            self.was_cut.store(false, Ordering::Release);
            self.is_whole.store(true, Ordering::Release);
        }
        rustix::fs::fsync(&*self.upper)?;
        let map = self.disk.lock().record.map;
        Ok(Map::remove(&self.maps, map)?)
    }

    /// Copies all that is left, at once.
    pub(super) fn finish(&self) -> Result<()> {
        let mut cursor = 0;
        while self.step(&mut cursor)? != Step::Whole {}
        Ok(())
    }
}

fn has_data(file: &File, range: &Range<u64>) -> bool {
    match rustix::fs::seek(file, SeekFrom::Data(range.start)) {
        Ok(at) => at < range.end,
        Err(Errno::NXIO) => false,
        // A disk that can't tell.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests;
