//! More records than memory holds, in the order of their keys.
//!
//! A walk gives records in any order, again and again the same ones; [`Sorted`] gives them back shard by shard, each
//! once. Up to a limit they are simply kept. Beyond it they go, in sorted runs, to an unnamed file below `tmp/`:
//! memory is the limit and 1 KiB for each run. If the disk has no room for that, the walk is repeated instead, each
//! time for as many shards as fit the limit: collecting garbage must be possible on a full disk.
//!
//! A shard is what begins with the same byte, as the directories below `objects/` are; digests spread evenly over
//! them. A shard with more records than the limit comes in several parts.

use std::fs::File;
use std::mem;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use crate::digest::{Digest, ObjectId};
use crate::error::{Error, Kind, Result};
use crate::store::Store;

/// Shards there are.
pub(crate) const SHARDS: usize = 256;

/// Bytes of records that are kept in memory.
pub(crate) const MEMORY_BYTES: usize = 8 << 20;

/// Bytes read at a time from the file.
const PIECE_BYTES: usize = 64 << 10;

/// Something of a fixed size that begins with a [`short`] digest.
pub(crate) trait Record: Copy + Ord {
    /// Length of its encoded form.
    const BYTES: usize;
    /// The digest's first eight bytes, by which records are ordered first.
    fn key(self) -> u64;
    fn encode(self, out: &mut Vec<u8>);
    /// From exactly [`Record::BYTES`].
    fn decode(bytes: &[u8]) -> Self;
}

impl Record for u64 {
    const BYTES: usize = 8;

    fn key(self) -> u64 {
        self
    }

    fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

impl Record for (u64, u32) {
    const BYTES: usize = 12;

    fn key(self) -> u64 {
        self.0
    }

    fn encode(self, out: &mut Vec<u8>) {
        self.0.encode(out);
        out.extend_from_slice(&self.1.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> (u64, u32) {
        (u64::decode(&bytes[..8]), u64::decode(&bytes[8..]) as u32)
    }
}

/// The first eight bytes of a digest, in the digests' order. Two digests that share them are one to those who count
/// with these: of 10 million, any two do with a chance of one in 370,000.
pub(crate) fn short(digest: Digest) -> u64 {
    u64::decode(&digest.as_bytes()[..8])
}

/// [`short`] of an object's name.
pub(crate) fn short_object(id: ObjectId) -> u64 {
    short(id.0)
}

fn shard_of(key: u64) -> usize {
    (key >> 56) as usize
}

/// A walk over everything: calls its argument with each record.
type Walk<'a, R> = dyn FnMut(&mut dyn FnMut(R) -> Result<()>) -> Result<()> + 'a;

/// The records of a walk.
pub(crate) struct Sorted<'a, R> {
    walk: Box<Walk<'a, R>>,
    /// Records kept in memory at most, but for what a single part needs.
    limit: usize,
    place: Place<R>,
    /// The most records that were in memory at once.
    peak: usize,
}

enum Place<R> {
    /// All records of these shards are here, in order.
    Memory { shards: Range<usize>, records: Vec<R> },
    /// All records are in the file.
    Spilled { file: File, runs: Vec<Run> },
}

/// Records in order, in a file.
struct Run {
    /// Where the run begins.
    offset: u64,
    /// How many records come before each shard's, and in all.
    starts: Box<[u32; SHARDS + 1]>,
}

impl<'a, R: Record> Sorted<'a, R> {
    /// Walks. The walk must be able to be repeated.
    pub(crate) fn new(
        store: &Store,
        memory_bytes: usize,
        walk: impl FnMut(&mut dyn FnMut(R) -> Result<()>) -> Result<()> + 'a,
    ) -> Result<Sorted<'a, R>> {
        let limit = (memory_bytes / mem::size_of::<R>()).clamp(16, u32::MAX as usize);
        let place = Place::Memory { shards: 0..SHARDS, records: Vec::new() };
        let mut sorted = Sorted { walk: Box::new(walk), limit, place, peak: 0 };
        match sorted.spill(store) {
            Ok(place) => sorted.place = place,
            Err(error) if error.kind() == Kind::NoSpace => {
                tracing::info!(%error, "no room to sort in: trees are read several times instead");
                sorted.place = sorted.window(0)?;
            }
            Err(error) => return Err(error),
        }
        Ok(sorted)
    }

    fn spill(&mut self, store: &Store) -> Result<Place<R>> {
        let limit = self.limit;
        let mut held: Vec<R> = Vec::new();
        let mut spilled: Option<(File, Vec<Run>)> = None;
        let mut peak = 0;
        (self.walk)(&mut |record| {
            held.push(record);
            if held.len() < limit {
                return Ok(());
            }
            peak = limit;
            tidy(&mut held);
            if held.len() <= limit / 2 {
                return Ok(());
            }
            if spilled.is_none() {
                spilled = Some((store.scratch()?, Vec::new()));
            }
            if let Some((file, runs)) = &mut spilled {
                runs.push(write_run(store, file, runs.last(), &held)?);
            }
            held.clear();
            Ok(())
        })?;
        self.peak = self.peak.max(peak).max(held.len());
        tidy(&mut held);
        let Some((file, mut runs)) = spilled else {
            return Ok(Place::Memory { shards: 0..SHARDS, records: held });
        };
        runs.push(write_run(store, &file, runs.last(), &held)?);
        Ok(Place::Spilled { file, runs })
    }

    /// Walks for the records of as many shards from `first` on as fit.
    fn window(&mut self, first: usize) -> Result<Place<R>> {
        let limit = self.limit;
        let mut shards = first..SHARDS;
        let mut held: Vec<R> = Vec::new();
        let mut room = limit;
        let mut peak = 0;
        (self.walk)(&mut |record| {
            if !shards.contains(&shard_of(record.key())) {
                return Ok(());
            }
            held.push(record);
            if held.len() < room {
                return Ok(());
            }
            peak = peak.max(held.len());
            tidy(&mut held);
            while held.len() > limit / 2 && shards.len() > 1 {
                shards.end -= shards.len() / 2;
                held.truncate(held.partition_point(|record| shards.contains(&shard_of(record.key()))));
            }
            // One shard alone must fit, whatever it takes.
            room = limit.max(held.len() * 2);
            Ok(())
        })?;
        tidy(&mut held);
        self.peak = self.peak.max(peak).max(held.len());
        Ok(Place::Memory { shards, records: held })
    }

    /// In how many parts the shard comes.
    pub(crate) fn parts(&self, shard: usize) -> usize {
        match &self.place {
            Place::Memory { .. } => 1,
            Place::Spilled { runs, .. } => {
                let records: usize = runs.iter().map(|run| run.records(shard).len()).sum();
                records.div_ceil(self.limit).next_power_of_two()
            }
        }
    }

    /// The keys that belong to a part of a shard.
    pub(crate) fn keys(shard: usize, part: usize, parts: usize) -> impl Fn(u64) -> bool + use<R> {
        // Of the 56 bits behind the shard's eight, the first ones tell the part.
        let bits = parts.trailing_zeros();
        move |key| shard_of(key) == shard && (bits == 0 || ((key << 8) >> (64 - bits)) as usize == part)
    }

    /// The records of one part of a shard, each once, in order.
    pub(crate) fn part(&mut self, shard: usize, part: usize, parts: usize) -> Result<Vec<R>> {
        if let Place::Memory { shards, .. } = &self.place
            && !shards.contains(&shard)
        {
            // What was there goes first.
            self.place = Place::Memory { shards: 0..0, records: Vec::new() };
            self.place = self.window(shard)?;
        }
        match &self.place {
            Place::Memory { records, .. } => {
                let from = records.partition_point(|record| shard_of(record.key()) < shard);
                let to = records.partition_point(|record| shard_of(record.key()) <= shard);
                Ok(records[from..to].to_vec())
            }
            Place::Spilled { file, runs } => {
                let wanted = Self::keys(shard, part, parts);
                let mut found = Vec::new();
                let mut room = self.limit;
                for run in runs {
                    run.read(file, shard, |record: R| {
                        if wanted(record.key()) {
                            found.push(record);
                        }
                        if found.len() >= room {
                            tidy(&mut found);
                            room = self.limit.max(found.len() * 2);
                        }
                    })?;
                }
                self.peak = self.peak.max(found.len());
                tidy(&mut found);
                Ok(found)
            }
        }
    }

    #[cfg(test)]
    fn peak(&self) -> usize {
        self.peak
    }
}

impl Run {
    fn records(&self, shard: usize) -> Range<u32> {
        self.starts[shard]..self.starts[shard + 1]
    }

    fn read<R: Record>(&self, file: &File, shard: usize, mut visit: impl FnMut(R)) -> Result<()> {
        let records = self.records(shard);
        let mut offset = self.offset + u64::from(records.start) * R::BYTES as u64;
        let mut left = records.len() * R::BYTES;
        let mut piece = vec![0; (PIECE_BYTES / R::BYTES * R::BYTES).min(left)];
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE_BYTES / R::BYTES * R::BYTES)];
            file.read_exact_at(piece, offset).map_err(Error::io("read sorted records"))?;
            piece.chunks_exact(R::BYTES).for_each(|bytes| visit(R::decode(bytes)));
            offset += piece.len() as u64;
            left -= piece.len();
        }
        Ok(())
    }
}

fn write_run<R: Record>(store: &Store, file: &File, last: Option<&Run>, records: &[R]) -> Result<Run> {
    let offset = last.map_or(0, |run| run.offset + u64::from(run.starts[SHARDS]) * R::BYTES as u64);
    let mut starts = Box::new([0; SHARDS + 1]);
    for record in records {
        starts[shard_of(record.key()) + 1] += 1;
    }
    for shard in 0..SHARDS {
        starts[shard + 1] += starts[shard];
    }
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    for piece in records.chunks(PIECE_BYTES / R::BYTES) {
        bytes.clear();
        for record in piece {
            record.encode(&mut bytes);
        }
        store.disk().write(file, &bytes).map_err(Error::io("write records to be sorted"))?;
    }
    Ok(Run { offset, starts })
}

fn tidy<R: Record>(records: &mut Vec<R>) {
    records.sort_unstable();
    records.dedup();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::disk::{FaultyDisk, RealDisk};
    use crate::store::StoreOptions;

    /// Digests of the numbers below `distinct`, some of them several times, and not in order.
    fn walk(distinct: u64, times: u64) -> impl FnMut(&mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        move |visit| {
            for at in 0..distinct * times {
                let number = at.wrapping_mul(7919) % distinct;
                visit(short(Digest::of(&number.to_le_bytes())))?;
            }
            Ok(())
        }
    }

    fn all(sorted: &mut Sorted<'_, u64>) -> Vec<u64> {
        let mut found = Vec::new();
        for shard in 0..SHARDS {
            let parts = sorted.parts(shard);
            for part in 0..parts {
                let keys = Sorted::<u64>::keys(shard, part, parts);
                let records = sorted.part(shard, part, parts).unwrap();
                assert!(records.iter().all(|record| keys(*record)));
                found.extend(records);
            }
        }
        found
    }

    fn expected(distinct: u64) -> Vec<u64> {
        let mut expected: Vec<u64> = (0..distinct).map(|number| short(Digest::of(&number.to_le_bytes()))).collect();
        expected.sort_unstable();
        expected
    }

    #[test]
    fn records_of_any_number_come_back_once_in_order_and_memory_keeps_to_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        // Limits that hold everything, that need runs, and that need parts of shards.
        for (distinct, times, limit) in [(0, 1, 64), (50, 3, 64), (20_000, 3, 4096), (100_000, 2, 256)] {
            let mut sorted = Sorted::new(&store, limit * 8, walk(distinct, times)).unwrap();
            assert_eq!(all(&mut sorted), expected(distinct));
            assert!(sorted.peak() <= limit, "{distinct}: {} records in memory, {limit} allowed", sorted.peak());
        }
    }

    #[test]
    fn records_that_are_all_the_same_need_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut sorted = Sorted::new(&store, 64 * 8, walk(1, 100_000)).unwrap();
        assert!(matches!(sorted.place, Place::Memory { .. }));
        assert_eq!(all(&mut sorted), expected(1));
    }

    #[test]
    fn records_on_a_full_disk_are_walked_for_again_and_memory_keeps_to_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(FaultyDisk::new(RealDisk::open(directory.path()).unwrap()));
        let options = StoreOptions { disk: Some(disk.clone()), ..StoreOptions::default() };
        let store = Store::open_with(directory.path(), options).unwrap();
        disk.fail_at(0, u64::MAX, rustix::io::Errno::NOSPC);
        let limit = 4096;
        let mut sorted = Sorted::new(&store, limit * 8, walk(20_000, 3)).unwrap();
        assert_eq!(all(&mut sorted), expected(20_000));
        assert!(disk.heal().is_some(), "it was tried");
        assert!(sorted.peak() <= limit, "{} records in memory", sorted.peak());
    }

    #[test]
    fn pairs_are_ordered_by_key_then_value() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let pairs = [(3_u64 << 56, 2_u32), (3 << 56, 1), (1 << 56, 9), (3 << 56, 2)];
        for memory_bytes in [1 << 20, 0] {
            let walk =
                |visit: &mut dyn FnMut((u64, u32)) -> Result<()>| (0..20).flat_map(|_| pairs).try_for_each(&mut *visit);
            let mut sorted = Sorted::new(&store, memory_bytes, walk).unwrap();
            let parts = sorted.parts(3);
            assert_eq!(sorted.part(3, 0, parts).unwrap(), [(3 << 56, 1), (3 << 56, 2)]);
        }
    }
}
