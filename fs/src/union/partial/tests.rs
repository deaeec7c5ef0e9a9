#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::Config;
use rustix::fs::{CWD, Mode, OFlags};
use tempfile::TempDir;

use super::*;
use crate::inode::Timestamp;

/// The lower's bytes: none of them zero, so that a zero is never taken for one of them.
fn below(size: usize) -> Vec<u8> {
    (0..size).map(|at| 1 + (at / 7 % 250) as u8).collect()
}

/// A file of the lower, its part in the upper, and its map.
struct Place {
    dir: TempDir,
    record: Record,
}

impl Place {
    fn new(size: usize) -> Place {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("maps")).unwrap();
        fs::write(dir.path().join("lower"), below(size)).unwrap();
        fs::File::create(dir.path().join("upper")).unwrap().set_len(size as u64).unwrap();
        let place = Place::at(dir, 0, size as u64);
        let (map, _) = Map::create(&place.maps(), size as u64).unwrap();
        let place = Place { record: Record { map, ..place.record.clone() }, ..place };
        place.put_record(&place.record.encode());
        place
    }

    fn at(dir: TempDir, map: u64, size: u64) -> Place {
        let mtime = Timestamp { secs: 0, nanos: 0 };
        Place {
            dir,
            record: Record { valid: size, map, map_is_durable: false, host: 0, size, mtime, path: b"/lower".to_vec() },
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn maps(&self) -> Arc<OwnedFd> {
        Arc::new(rustix::fs::openat(CWD, self.path("maps"), OFlags::DIRECTORY, Mode::empty()).unwrap())
    }

    fn map(&self) -> PathBuf {
        self.path(&format!("maps/{:016x}", self.record.map))
    }

    fn put_record(&self, record: &[u8]) {
        rustix::fs::setxattr(self.path("upper"), "user.mica.blocks", record, XattrFlags::empty()).unwrap();
    }

    /// The record as it is on the disk; `None` once the file is whole.
    fn record(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 200];
        let read = rustix::fs::getxattr(self.path("upper"), "user.mica.blocks", &mut bytes).ok()?;
        bytes.truncate(read);
        Some(bytes)
    }

    fn open(&self) -> Partial {
        let record = Record::decode(&self.record().unwrap()).unwrap();
        let open = |name: &str| fs::OpenOptions::new().read(true).write(true).open(self.path(name)).unwrap();
        let lower = LowerFile::File { file: Arc::new(open("lower")), sealed: false };
        let map = Map::open(&self.maps(), &record).unwrap().unwrap();
        Partial::open(Arc::new(open("upper")), lower, (map, self.maps()), record, Format::User).unwrap()
    }

    /// What a machine whose power was cut finds: `record` may be an older one; nothing of this boot's live bits counts.
    fn after_power_cut(&self, record: &[u8]) -> Place {
        let dir = TempDir::new().unwrap();
        let copy = Place { dir, record: self.record.clone() };
        fs::create_dir(copy.path("maps")).unwrap();
        fs::copy(self.path("upper"), copy.path("upper")).unwrap();
        fs::copy(self.path("lower"), copy.path("lower")).unwrap();
        fs::copy(self.map(), copy.map()).unwrap();
        let map = fs::OpenOptions::new().write(true).open(copy.map()).unwrap();
        map.write_all_at(b"another boot....", 8).unwrap();
        copy.put_record(record);
        copy
    }
}

fn all_of(partial: &Partial) -> Vec<u8> {
    let mut bytes = vec![0; rustix::fs::fstat(&*partial.upper).unwrap().st_size as usize + 100];
    let read = partial.read(0, &mut bytes).unwrap();
    bytes.truncate(read);
    bytes
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize),
    Truncate(usize),
    Clear(usize, usize),
    Space(usize, usize),
    Step,
    Persist,
    Killed,
}

fn op(size: usize) -> impl Strategy<Value = Op> {
    let at = move || prop_oneof![0..size + 9000, (0..size / 4096 + 2).prop_map(|block| block * 4096)];
    prop_oneof![
        6 => (at(), 1..12_000usize).prop_map(|(at, length)| Op::Write(at, length)),
        2 => at().prop_map(Op::Truncate),
        2 => (at(), 1..12_000usize).prop_map(|(at, length)| Op::Clear(at, length)),
        1 => (at(), 1..12_000usize).prop_map(|(at, length)| Op::Space(at, length)),
        2 => Just(Op::Step),
        1 => Just(Op::Persist),
        2 => Just(Op::Killed),
    ]
}

/// Changes `bytes` as the file; returns the file, which may have been opened anew.
fn apply(op: &Op, place: &Place, partial: Partial, bytes: &mut Vec<u8>, stamp: u8) -> Partial {
    let keep = FallocateFlags::KEEP_SIZE;
    match *op {
        Op::Write(at, length) => {
            let data = vec![stamp; length];
            assert_eq!(partial.write(at as u64, &data).unwrap(), length);
            if bytes.len() < at + length {
                bytes.resize(at + length, 0);
            }
            bytes[at..at + length].fill(stamp);
        }
        Op::Truncate(size) => {
            partial.truncate(size as u64).unwrap();
            bytes.resize(size, 0);
        }
        Op::Clear(at, length) => {
            partial.fallocate(FallocateFlags::PUNCH_HOLE | keep, at as u64, length as u64).unwrap();
            let end = bytes.len().min(at + length);
            if at < end {
                bytes[at..end].fill(0);
            }
        }
        Op::Space(at, length) => {
            partial.fallocate(FallocateFlags::empty(), at as u64, length as u64).unwrap();
            bytes.resize(bytes.len().max(at + length), 0);
        }
        Op::Step => {
            let times = |partial: &Partial| {
                let stat = rustix::fs::fstat(&*partial.upper).unwrap();
                (stat.st_mtime, stat.st_mtime_nsec)
            };
            let before = times(&partial);
            partial.step(&mut 0).unwrap();
            assert_eq!(times(&partial), before);
        }
        Op::Persist => partial.persist(true).unwrap(),
        Op::Killed if partial.is_whole() => {}
        Op::Killed => {
            drop(partial);
            return place.open();
        }
    }
    partial
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn partly_copied_file_is_a_file(size in 1..60_000usize, ops in prop::collection::vec(op(60_000), 1..40)) {
        let place = Place::new(size);
        let (mut partial, mut bytes) = (place.open(), below(size));
        for (stamp, op) in (0u8..).zip(&ops) {
            partial = apply(op, &place, partial, &mut bytes, 251 + stamp % 5);
            prop_assert!(all_of(&partial) == bytes, "after {op:?}");
        }
        if !partial.is_whole() {
            drop(partial);
            partial = place.open();
            prop_assert!(all_of(&partial) == bytes);
            partial.finish().unwrap();
        }
        prop_assert!(fs::read(place.path("upper")).unwrap() == bytes);
        prop_assert!(place.record().is_none() && !place.map().exists());
    }

    /// Rule 100: After a power cut each block of such a file is what it was when the file was synced last, or what was
    /// written since.
    ///
    /// After a power cut there is, in every block, what it was when it was synced last or something that was written since;
    /// never a zero that nobody wrote.
    #[test]
    fn power_cut_leaves_each_byte_as_it_was_synced_or_written_since(
        size in 1..60_000usize,
        ops in prop::collection::vec(op(60_000), 1..25),
    ) {
        let place = Place::new(size);
        let (mut partial, mut bytes) = (place.open(), below(size));
        let (mut since, mut synced) = (vec![bytes.clone()], place.record().unwrap());
        for (stamp, op) in (0u8..).zip(&ops) {
            partial = apply(op, &place, partial, &mut bytes, 251 + stamp % 5);
            if let Op::Persist = op {
                since.clear();
            }
            since.push(bytes.clone());
            let Some(record) = place.record() else { break };
            // The record is as old as the last sync of the file, unless a change since needed it.
            if !partial.was_cut.load(Ordering::Acquire) {
                synced = record.clone();
            }
            for record in [&record, &synced] {
                let found = all_of(&place.after_power_cut(record).open());
                prop_assert_eq!(found.len(), bytes.len());
                for (at, byte) in found.iter().enumerate() {
                    let known = since.iter().any(|state| state.get(at).copied().unwrap_or(0) == *byte);
                    prop_assert!(known, "byte {at} is {byte} after {op:?}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_durable_after_a_failed_sync() {
    let place = Place::new(20_000);
    let partial = place.open();
    partial.write(0, b"written").unwrap();
    partial.disk.lock().has_failed = true;
    assert_eq!(partial.persist(true).unwrap_err().errno(), Errno::IO);
    assert_eq!(partial.finish().unwrap_err().errno(), Errno::IO);
    assert!(place.record().is_some() && !partial.is_whole());
    assert_eq!(&all_of(&partial)[..7], b"written");
    let found = all_of(&place.after_power_cut(&place.record().unwrap()).open());
    assert!(found == below(20_000));
}

#[test]
fn process_killed_while_it_copies_leaves_the_times_to_the_next() {
    let place = Place::new(20_000);
    let times = Timestamps {
        last_access: Timespec { tv_sec: 1, tv_nsec: 2 },
        last_modification: Timespec { tv_sec: -3, tv_nsec: 4 },
    };
    place.open().map.guard(Some(&times)).unwrap();
    drop(place.open());
    let metadata = fs::metadata(place.path("upper")).unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec(), metadata.atime()), (-3, 4, 1));
    assert!(place.open().map.guarded().unwrap().is_none());
}

#[test]
fn readers_and_writers_and_the_copy_at_once_lose_nothing() {
    const SIZE: usize = 4 << 20;
    let place = Place::new(SIZE);
    let partial = place.open();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let partial = &partial;
            scope.spawn(move || {
                // Each thread has every fourth stretch of 1000 bytes, so that blocks are shared.
                for at in (thread * 1000..SIZE - 1000).step_by(4000) {
                    partial.write(at as u64, &vec![251 + thread as u8; 1000]).unwrap();
                    let mut byte = [0];
                    partial.read(at as u64 + 500, &mut byte).unwrap();
                    assert_eq!(byte[0], 251 + thread as u8);
                }
            });
        }
        scope.spawn(|| {
            let mut cursor = 0;
            while partial.step(&mut cursor).unwrap() != Step::Whole {}
        });
    });
    let mut expected = below(SIZE);
    for thread in 0..4usize {
        for at in (thread * 1000..SIZE - 1000).step_by(4000) {
            expected[at..at + 1000].fill(251 + thread as u8);
        }
    }
    assert!(fs::read(place.path("upper")).unwrap() == expected);
}

#[test]
fn record_of_another_version_is_not_read() {
    let place = Place::new(5000);
    let mut bytes = place.record.encode();
    assert_eq!(Record::decode(&bytes), Some(place.record.clone()));
    bytes[0] = 2;
    assert_eq!(Record::decode(&bytes), None);
    assert_eq!(Record::decode(&place.record.encode()[..40]), None);
}

#[test]
fn holes_of_the_lower_stay_holes_and_are_found() {
    let place = Place::new(1 << 20);
    let lower = fs::OpenOptions::new().write(true).open(place.path("lower")).unwrap();
    rustix::fs::fallocate(&lower, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 512 << 10).unwrap();
    let partial = place.open();
    partial.write(100 << 10, &[251; 4096]).unwrap();
    let find = |partial: &Partial| {
        let at = |at, data| partial.seek(at, data).unwrap();
        [at(0, true), at(0, false), at(100 << 10, false), at(105 << 10, true), at(512 << 10, false)]
    };
    let found = find(&partial);
    assert_eq!(found, [100 << 10, 0, 104 << 10, 512 << 10, 1 << 20]);
    assert_eq!(partial.seek(1 << 20, true).unwrap_err().errno(), Errno::NXIO);
    partial.finish().unwrap();
    assert_eq!(find(&partial), found);
    assert!(fs::metadata(place.path("upper")).unwrap().blocks() < 1100);
}
