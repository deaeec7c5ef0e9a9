//! Upper files of which a part is copied: what the disk holds of them.
//!
//! The upper file has the blocks that were written or copied, at their places, and an attribute, the [`Record`]. Which blocks
//! these are says a *map* in the work directory, `blocks/<number>`:
//!
//! ```text
//! 0     "micablk1", the boot (16 bytes) whose kernel the live bits belong to, the times to be restored (see Guard)
//! 4096  durable bits: one per block, lowest first; set only after the block's data was synced
//! then, from the next multiple of 4096: live bits, likewise; set when the block's data is in the page cache
//! ```
//!
//! The live bits are what a process that takes over believes, as long as the kernel is the one that has the data. After a
//! power cut they mean nothing, and the durable ones count. The holes of the upper file are no map: disks fill holes
//! that nobody wrote to (a failed write, a longer file), and a zero there would hide what the lower has.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::write_full;
use crate::error::Result;
use crate::inode::{Attr, Timestamp};
use crate::lower::{LowerFile, read_full};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;

const VERSION: u8 = 1;
const MAGIC: &[u8; 8] = b"micablk1";
const BOOT_AT: u64 = 8;
const GUARD_AT: u64 = 24;
const BITS_AT: u64 = 4096;
/// Version, logarithm of the block, whether the map is durable, a zero; four zeros; then six numbers.
const RECORD: usize = 56;

/// What the upper file's attribute says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Below this byte, blocks that the map does not name are the lower's; from it on everything is the upper's. The
    /// smallest size the file ever had.
    pub(crate) valid: u64,
    /// The map's number.
    pub(crate) map: u64,
    /// Whether the map has been made durable, so that it can't be missing.
    pub(crate) map_is_durable: bool,
    /// The upper file's own number on its disk: of another file the record says nothing.
    pub(crate) host: u64,
    /// Size and time of change of the lower file.
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
    /// Where it is, from the lower's root.
    pub(crate) path: Vec<u8>,
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, BLOCK.trailing_zeros() as u8, u8::from(self.map_is_durable), 0, 0, 0, 0, 0];
        let (secs, nanos) = (self.mtime.secs as u64, u64::from(self.mtime.nanos));
        for number in [self.valid, self.map, self.host, self.size, secs, nanos] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.path);
        bytes
    }

    /// `None` for what no program of this version wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
        let (head, path) = bytes.split_at_checked(RECORD)?;
        if head[..2] != [VERSION, BLOCK.trailing_zeros() as u8] || !path.starts_with(b"/") {
            return None;
        }
        Some(Record {
            valid: word(head, 8),
            map: word(head, 16),
            map_is_durable: head[2] & 1 != 0,
            host: word(head, 24),
            size: word(head, 32),
            mtime: Timestamp { secs: word(head, 40) as i64, nanos: u32::try_from(word(head, 48)).ok()? },
            path: path.to_vec(),
        })
    }

    /// Whether the lower still has the file that was copied in part.
    pub(crate) fn is_of(&self, original: &Attr) -> bool {
        (self.size, self.mtime) == (original.size, original.mtime)
    }
}

/// One bit for each block.
#[derive(Debug)]
pub(crate) struct Bits(Vec<AtomicU8>);

impl Bits {
    pub(crate) fn has(&self, block: u64) -> bool {
        let byte = self.0.get((block / 8) as usize);
        byte.is_some_and(|byte| byte.load(Ordering::Acquire) & 1 << (block % 8) != 0)
    }

    /// Whether all of these blocks are set.
    pub(crate) fn has_all(&self, mut blocks: std::ops::Range<u64>) -> bool {
        blocks.all(|block| self.has(block))
    }

    fn byte(&self, at: usize) -> u8 {
        self.0[at].load(Ordering::Acquire)
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(|byte| byte.load(Ordering::Acquire)).collect()
    }
}

/// A map, open.
#[derive(Debug)]
pub(crate) struct Map {
    file: File,
    /// Bytes of each of the two regions.
    bytes: usize,
    /// Blocks whose data is in the upper file.
    pub(crate) live: Bits,
}

impl Map {
    /// A new map in `dir` for a file whose first `size` bytes are the lower's, with its number.
    pub(crate) fn create(dir: &OwnedFd, size: u64) -> Result<(u64, Map)> {
        let mut number = seed();
        let file = loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match rustix::fs::openat(dir, name(number), flags, Mode::RUSR | Mode::WUSR) {
                Err(Errno::EXIST) => number = number.wrapping_add(1),
                opened => break File::from(opened?),
            }
        };
        let bytes = length(size);
        let length = live_at(bytes) + bytes as u64;
        // Room for all that is to come, so that a disk that is full later keeps nobody from syncing.
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length) {
            Err(Errno::OPNOTSUPP) => rustix::fs::ftruncate(&file, length)?,
            Err(errno) => {
                Map::remove(dir, number)?;
                return Err(errno.into());
            }
            Ok(()) => {}
        }
        write_full(&file, 0, MAGIC)?;
        write_full(&file, BOOT_AT, &boot()?)?;
        Ok((number, Map { file, bytes, live: Bits((0..bytes).map(|_| AtomicU8::new(0)).collect()) }))
    }

    /// Opens a map for one who changes it; `None` if there is none. Live bits of an earlier boot are dropped.
    pub(crate) fn open(dir: &OwnedFd, record: &Record) -> Result<Option<Map>> {
        let Some((map, is_ours)) = Map::read(dir, record, OFlags::RDWR)? else { return Ok(None) };
        if !is_ours {
            // The bits first: they mean something once the boot is this one.
            write_full(&map.file, live_at(map.bytes), &map.live.bytes())?;
            write_full(&map.file, BOOT_AT, &boot()?)?;
        }
        Ok(Some(map))
    }

    /// What a map says, for one who changes nothing; `None` if there is none.
    pub(crate) fn look(dir: &OwnedFd, record: &Record) -> Result<Option<Bits>> {
        Ok(Map::read(dir, record, OFlags::RDONLY)?.map(|(map, _)| map.live))
    }

    fn read(dir: &OwnedFd, record: &Record, flags: OFlags) -> Result<Option<(Map, bool)>> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(dir, name(record.map), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => File::from(opened?),
        };
        let bytes = length(record.size);
        let mut head = [0; 24];
        if read_full(&file, 0, &mut head)? < head.len() {
            // Made, and cut off by a crash before anything in it counted.
            head.fill(0);
        }
        let is_ours = head[..8] == *MAGIC && head[8..24] == boot()?;
        let mut bits = vec![0; bytes];
        // What is behind the end was never written.
        read_full(&file, BITS_AT, &mut bits)?;
        if is_ours {
            let mut live = vec![0; bytes];
            read_full(&file, live_at(bytes), &mut live)?;
            for (bit, live) in bits.iter_mut().zip(live) {
                *bit |= live;
            }
        }
        let live = Bits(bits.into_iter().map(AtomicU8::new).collect());
        Ok(Some((Map { file, bytes, live }, is_ours)))
    }

    /// Removes a map; one that is gone is no error.
    pub(crate) fn remove(dir: &OwnedFd, number: u64) -> Result<(), Errno> {
        match rustix::fs::unlinkat(dir, name(number), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        }
    }

    /// The number that a map of this name has.
    pub(crate) fn number(name: &[u8]) -> Option<u64> {
        u64::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok()
    }

    /// Notes that these blocks are in the upper file. One thread at a time.
    pub(crate) fn set(&self, blocks: std::ops::Range<u64>) -> Result<(), Errno> {
        if blocks.is_empty() {
            return Ok(());
        }
        let (first, last) = ((blocks.start / 8) as usize, ((blocks.end - 1) / 8) as usize);
        let mut bytes: Vec<u8> = (first..=last).map(|at| self.live.byte(at)).collect();
        for block in blocks {
            bytes[(block / 8) as usize - first] |= 1 << (block % 8);
        }
        // For the next process before any reader of this one.
        write_full(&self.file, live_at(self.bytes) + first as u64, &bytes)?;
        for (at, byte) in (first..).zip(bytes) {
            self.live.0[at].store(byte, Ordering::Release);
        }
        Ok(())
    }

    /// The live bits at this moment, to be made durable once the data is.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.live.bytes()
    }

    /// What is durable, as far as the file says.
    pub(crate) fn durable(&self) -> Result<Vec<u8>> {
        let mut bits = vec![0; self.bytes];
        read_full(&self.file, BITS_AT, &mut bits)?;
        Ok(bits)
    }

    /// Writes bits that are to be durable, as their blocks' data is, `before` being those that are. False if there are no others.
    pub(crate) fn write_durable(&self, before: &[u8], bits: &[u8]) -> Result<bool, Errno> {
        let changed = |at: &usize| before[*at] != bits[*at];
        let (Some(first), Some(last)) = ((0..self.bytes).find(changed), (0..self.bytes).rfind(changed)) else {
            return Ok(false);
        };
        write_full(&self.file, BITS_AT + first as u64, &bits[first..=last])?;
        Ok(true)
    }

    /// Makes durable what was written.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fdatasync(&self.file)
    }

    /// Makes the map itself durable, with its name.
    pub(crate) fn settle(&self, dir: &OwnedFd) -> Result<(), Errno> {
        rustix::fs::fsync(&self.file)?;
        rustix::fs::fsync(dir)
    }

    /// Notes the times that a file is to have whatever becomes of this process, or that it has the right ones.
    pub(crate) fn guard(&self, times: Option<&Timestamps>) -> Result<(), Errno> {
        let mut bytes = [0; 40];
        if let Some(times) = times {
            let (read, changed) = (&times.last_access, &times.last_modification);
            for (at, number) in [1, read.tv_sec, read.tv_nsec, changed.tv_sec, changed.tv_nsec].into_iter().enumerate()
            {
                bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
            }
        }
        write_full(&self.file, GUARD_AT, &bytes)
    }

    /// The times that an earlier process owes its file.
    pub(crate) fn guarded(&self) -> Result<Option<Timestamps>> {
        let mut bytes = [0; 40];
        if read_full(&self.file, GUARD_AT, &mut bytes)? < bytes.len() || word(&bytes, 0) != 1 {
            return Ok(None);
        }
        let time = |at| Timespec { tv_sec: word(&bytes, at) as i64, tv_nsec: word(&bytes, at + 8) as i64 };
        Ok(Some(Timestamps { last_access: time(8), last_modification: time(24) }))
    }
}

/// Reads of a file whose blocks are in two; short only at its end.
pub(crate) fn read_merged(
    (upper, lower): (&File, &LowerFile),
    (bits, valid): (&Bits, u64),
    offset: u64,
    buffer: &mut [u8],
) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let at = offset + done as u64;
        if at >= valid {
            return Ok(done + read_full(upper, at, &mut buffer[done..])?);
        }
        let limit = valid.min(offset + buffer.len() as u64);
        let (is_copied, end) = run(bits, at, limit);
        let part = &mut buffer[done..done + (end - at) as usize];
        let read = if is_copied { read_full(upper, at, part)? } else { lower.read_at(at, part)? };
        if read < part.len() {
            // Both have at least the valid length.
            return Err(Errno::IO.into());
        }
        done += read;
    }
    Ok(done)
}

/// Whether the block at a byte is copied, and up to where, at most `limit`, those behind it are alike.
pub(crate) fn run(bits: &Bits, at: u64, limit: u64) -> (bool, u64) {
    let is_copied = bits.has(at / BLOCK);
    let mut end = (at / BLOCK + 1) * BLOCK;
    while end < limit && bits.has(end / BLOCK) == is_copied {
        end += BLOCK;
    }
    (is_copied, end.min(limit))
}

/// An upper file that is partly in the lower, for one who reads it from outside.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) upper: File,
    pub(crate) lower: LowerFile,
    pub(crate) bits: Option<Bits>,
    pub(crate) valid: u64,
}

impl Merged {
    /// Reads; short only at the end.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let none = Bits(Vec::new());
        let bits = self.bits.as_ref().unwrap_or(&none);
        read_merged((&self.upper, &self.lower), (bits, self.valid), offset, buffer)
    }
}

fn name(number: u64) -> Vec<u8> {
    format!("{number:016x}").into_bytes()
}

/// Bytes of the bits for so many bytes of data.
fn length(size: u64) -> usize {
    size.div_ceil(BLOCK).div_ceil(8) as usize
}

fn live_at(bytes: usize) -> u64 {
    BITS_AT + (bytes as u64).next_multiple_of(4096)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// A number that no map is likely to have.
fn seed() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// Which boot of the machine this is (random(4), `boot_id`).
fn boot() -> Result<[u8; 16]> {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    let mut digits = text.iter().filter_map(|byte| char::from(*byte).to_digit(16));
    let mut boot = [0; 16];
    for byte in &mut boot {
        let (Some(high), Some(low)) = (digits.next(), digits.next()) else { return Err(Errno::IO.into()) };
        *byte = (high << 4 | low) as u8;
    }
    Ok(boot)
}
