//! What must outlive the server of a connection and is not on a disk: open handles, and changes in flight.
//!
//! A memory file that the keeper holds as well. Written with `pwrite(2)` and never synced: it survives a killed
//! process, and when the machine goes down so do the handles. All numbers are little-endian.
//!
//! | at | what |
//! |---|---|
//! | 0 | `mica ledger 1`, zeros up to 64 |
//! | 64 | 1024 intents of 32 bytes: unique, inode of the source's name, inode of the target's name (0: none), 1 |
//! | 65536 | handles of 32 bytes: inode, unique of the OPEN, open flags, backing id, generation, kind |
//!
//! A handle's number as the kernel knows it is its place here with the generation above it, so a place that is used
//! again has another number. An entry is written before the kernel is told of the handle and cleared before it is told
//! that the handle is gone; a request that comes again after a takeover finds what the first attempt left.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::{Errno, pread, pwrite};

use crate::inode::Ino;

const MAGIC: &[u8; 13] = b"mica ledger 1";
const RECORD: u64 = 32;
const INTENTS: u64 = 64;
const INTENT_COUNT: u64 = 1024;
const HANDLES: u64 = 65536;

const _: () = assert!(INTENTS + INTENT_COUNT * RECORD <= HANDLES);

/// Set in the number of a request that the kernel sends again.
pub(crate) const RESENT: u64 = 1 << 63;

/// The kernel's `__FMODE_EXEC`: it opens a program in order to run it, and keeps it open until that ends.
pub(crate) const EXEC: OFlags = OFlags::from_bits_retain(0x20);

/// Who serves the data of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// The server, by way of the mount's page cache.
    Cache,
    /// The kernel, from a file of the upper.
    Upper(u32),
    /// The kernel, from a file of the lower.
    Lower(u32),
    /// A directory's: nobody.
    Directory,
}

/// An open handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) ino: Ino,
    /// The number of the request that opened it.
    pub(crate) unique: u64,
    pub(crate) flags: OFlags,
    pub(crate) via: Via,
}

/// The file.
#[derive(Debug)]
pub(crate) struct Ledger(OwnedFd);

impl Ledger {
    /// Uses `file`, which is empty or was written by an earlier server.
    pub(crate) fn open(file: OwnedFd) -> Result<Ledger, Errno> {
        let mut head = [0; MAGIC.len()];
        match pread(&file, &mut head, 0)? {
            0 => drop(pwrite(&file, MAGIC, 0)?),
            _ if head == *MAGIC => {}
            _ => return Err(Errno::PROTO),
        }
        Ok(Ledger(file))
    }

    /// Records a change before it is made: what the two names it concerns mean at this moment.
    pub(crate) fn intend(&self, unique: u64, source: u64, target: u64) -> Result<(), Errno> {
        let mut record = [0; RECORD as usize];
        record[0..8].copy_from_slice(&(unique & !RESENT).to_le_bytes());
        record[8..16].copy_from_slice(&source.to_le_bytes());
        record[16..24].copy_from_slice(&target.to_le_bytes());
        record[24] = 1;
        pwrite(&self.0, &record, intent_at(unique)).map(drop)
    }

    /// What was recorded for a request that comes again.
    pub(crate) fn intended(&self, unique: u64) -> Option<(u64, u64)> {
        let mut record = [0; RECORD as usize];
        let read = pread(&self.0, &mut record, intent_at(unique)).ok()?;
        let known = read == record.len() && record[24] == 1 && word(&record, 0) == unique & !RESENT;
        known.then(|| (word(&record, 8), word(&record, 16)))
    }

    /// Records the handle at a place; `None` clears it, the generation stays.
    pub(crate) fn write(&self, place: u32, generation: u32, entry: Option<&Entry>) -> Result<(), Errno> {
        let mut record = [0; RECORD as usize];
        record[24..28].copy_from_slice(&generation.to_le_bytes());
        if let Some(entry) = entry {
            let (kind, backing) = match entry.via {
                Via::Cache => (1u32, 0),
                Via::Upper(id) => (2, id),
                Via::Lower(id) => (3, id),
                Via::Directory => (4, 0),
            };
            record[0..8].copy_from_slice(&entry.ino.0.to_le_bytes());
            record[8..16].copy_from_slice(&(entry.unique & !RESENT).to_le_bytes());
            record[16..20].copy_from_slice(&entry.flags.bits().to_le_bytes());
            record[20..24].copy_from_slice(&backing.to_le_bytes());
            record[28..32].copy_from_slice(&kind.to_le_bytes());
        }
        pwrite(&self.0, &record, HANDLES + u64::from(place) * RECORD).map(drop)
    }

    /// All places that were ever used, in order: generation and, if it is in use, the handle.
    pub(crate) fn entries(&self) -> Result<Vec<(u32, Option<Entry>)>, Errno> {
        let mut entries = Vec::new();
        let mut record = [0; RECORD as usize];
        while pread(&self.0, &mut record, HANDLES + entries.len() as u64 * RECORD)? == record.len() {
            let via = match half(&record, 28) {
                1 => Some(Via::Cache),
                2 => Some(Via::Upper(half(&record, 20))),
                3 => Some(Via::Lower(half(&record, 20))),
                4 => Some(Via::Directory),
                _ => None,
            };
            let entry = via.map(|via| Entry {
                ino: Ino(word(&record, 0)),
                unique: word(&record, 8),
                flags: OFlags::from_bits_retain(half(&record, 16)),
                via,
            });
            entries.push((half(&record, 24), entry));
        }
        Ok(entries)
    }
}

fn intent_at(unique: u64) -> u64 {
    // Numbers of requests are even.
    INTENTS + ((unique & !RESENT) >> 1) % INTENT_COUNT * RECORD
}

fn word(record: &[u8; RECORD as usize], at: usize) -> u64 {
    u64::from(half(record, at)) | u64::from(half(record, at + 4)) << 32
}

fn half(record: &[u8; RECORD as usize], at: usize) -> u32 {
    u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ledger() -> (Ledger, OwnedFd) {
        let file = rustix::fs::memfd_create("ledger", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let copy = file.try_clone().unwrap();
        (Ledger::open(file).unwrap(), copy)
    }

    #[test]
    fn handles_of_an_earlier_server_are_found_with_their_generation() {
        let (ledger, copy) = ledger();
        let entry = Entry { ino: Ino(1 << 50), unique: 12, flags: OFlags::RDWR, via: Via::Lower(7) };
        ledger.write(0, 3, Some(&entry)).unwrap();
        ledger.write(1, 9, Some(&Entry { via: Via::Directory, ..entry })).unwrap();
        ledger.write(1, 9, None).unwrap();
        let later = Ledger::open(copy).unwrap();
        assert_eq!(later.entries().unwrap(), vec![(3, Some(entry)), (9, None)]);
    }

    #[test]
    fn an_intent_is_found_under_the_number_of_the_resent_request() {
        let (ledger, _) = ledger();
        let number = 0x28;
        ledger.intend(number, 5, 6).unwrap();
        assert_eq!(ledger.intended(number | RESENT), Some((5, 6)));
        assert_eq!(ledger.intended((number + 2) | RESENT), None);
        // Another request that has the same place.
        assert_eq!(ledger.intended((number + 2 * INTENT_COUNT) | RESENT), None);
    }
}
