//! Files counted: how many, how long, and what the disk gives them.

use std::ops::AddAssign;

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

/// A number of files, or of things that each are a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Their lengths.
    pub bytes: u64,
    /// What they take on the disk (`st_blocks`): more than their length where the last block is not full, less where
    /// there are holes.
    pub disk_bytes: u64,
}

impl Tally {
    /// One file. Of a directory the length is not counted: it is no content.
    pub(crate) fn of(stat: &Stat) -> Tally {
        let is_directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        let bytes = if is_directory { 0 } else { stat.st_size as u64 };
        Tally { count: 1, bytes, disk_bytes: stat.st_blocks as u64 * 512 }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.count += other.count;
        self.bytes += other.bytes;
        self.disk_bytes += other.disk_bytes;
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Tally {
        tallies.fold(Tally::default(), |mut sum, tally| {
            sum += tally;
            sum
        })
    }
}
