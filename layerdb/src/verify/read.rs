//! Reading whole files for their digests.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::digest::{Digest, Hasher};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// What direct reads must be aligned to: no disk has larger sectors.
const ALIGN: usize = 4096;

/// Where bytes are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The page cache, which is filled by the way.
    Cache,
    /// The disk itself, if its filesystem can do that: the page cache may hold what the disk no longer gives.
    Disk,
}

/// How fast contents may be read; as fast as it goes by default.
#[derive(Debug, Default)]
pub struct Pace {
    bytes_per_second: Option<NonZeroU64>,
    /// When the bytes that were read so far are paid for.
    paid: Mutex<Option<Instant>>,
    /// Nothing more is to be read.
    stopped: AtomicBool,
}

impl Pace {
    /// At most so many bytes in a second; 0 is no limit.
    pub fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second: NonZeroU64::new(bytes_per_second), ..Pace::default() }
    }

    /// Lets whoever reads a file end at once, with [`io::ErrorKind::Interrupted`].
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Waits until so many bytes may have been read.
    fn spend(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let until = {
            let mut paid = self.paid.lock();
            // Time in which nothing was read is not saved up.
            let from = paid.filter(|paid| *paid > now).unwrap_or(now);
            *paid.insert(from + Duration::from_micros(bytes.saturating_mul(1_000_000) / rate))
        };
        thread::sleep(until.saturating_duration_since(now));
    }
}

/// The digest of a file from its beginning, and its length. `each` is told of the bytes as they are read.
pub(crate) fn digest_of(
    file: &File,
    source: Source,
    pace: &Pace,
    each: &mut dyn FnMut(u64),
) -> io::Result<(Digest, u64)> {
    let mut file = file;
    file.rewind()?;
    let mut direct = source == Source::Disk && set_direct(file, true);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(PIECE).clamp(1, PIECE).next_multiple_of(ALIGN);
    let mut space = vec![0; length + ALIGN];
    let start = space.as_ptr().align_offset(ALIGN).min(ALIGN);
    let buffer = &mut space[start..start + length];
    let (mut hasher, mut bytes) = (Hasher::new(), 0);
    loop {
        if pace.stopped.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match file.read(buffer) {
            Ok(0) => return Ok((hasher.finish(), bytes)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
                each(read as u64);
                pace.spend(read as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The filesystem took the flag and doesn't mean it, or the file ends within a sector.
            Err(error) if direct && error.kind() == io::ErrorKind::InvalidInput => {
                direct = false;
                set_direct(file, false);
            }
            Err(error) => return Err(error),
        }
    }
}

fn set_direct(file: &File, on: bool) -> bool {
    let Ok(mut flags) = rustix::fs::fcntl_getfl(file) else { return false };
    flags.set(OFlags::DIRECT, on);
    rustix::fs::fcntl_setfl(file, flags).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn digest_of_a_file_of_any_length_is_the_same_from_disk_and_cache() {
        let directory = tempfile::tempdir().unwrap();
        for length in [0, 1, 4095, 4096, 4097, PIECE, PIECE + 1, 3 * PIECE + 777] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let path = directory.path().join(length.to_string());
            std::fs::write(&path, &bytes).unwrap();
            for source in [Source::Cache, Source::Disk] {
                let mut told = 0;
                let file = File::open(&path).unwrap();
                let found = digest_of(&file, source, &Pace::default(), &mut |bytes| told += bytes).unwrap();
                assert_eq!(found, (Digest::of(&bytes), length as u64));
                assert_eq!(told, length as u64);
            }
        }
    }

    #[test]
    fn pace_makes_readers_wait_for_what_they_took() {
        let pace = Pace::new(1 << 20);
        let start = Instant::now();
        pace.spend(32 << 10);
        pace.spend(32 << 10);
        assert!(start.elapsed() >= Duration::from_millis(62));
    }
}
