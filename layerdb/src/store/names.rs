//! Which names of objects a power cut can't take back.
//!
//! An object that is found under its name is not written again. But the name is visible from its rename on and durable
//! only when its directory was synced after it, so whoever relies on a name that somebody else gave has to sync too if
//! - another thread is between the two just now;
//! - or the name is *in doubt*: a sync failed, work ended between the two, or an earlier process may have been killed there.
//!
//! Doubt ends when everything was made durable with one syncfs(2).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The names of a store's objects.
#[derive(Debug)]
pub(crate) struct Names {
    /// How often names came in doubt. Those of earlier processes are the first.
    doubts: AtomicU64,
    /// As many of these doubts are over.
    settled: AtomicU64,
    /// Directories in which names are being given, and by how many.
    publishing: Mutex<HashMap<PathBuf, u32>>,
}

impl Default for Names {
    fn default() -> Names {
        Names { doubts: AtomicU64::new(1), settled: AtomicU64::new(0), publishing: Mutex::default() }
    }
}

impl Names {
    /// True if whoever found a name in `directory` has to sync that directory before relying on it.
    pub(crate) fn unsettled(&self, directory: &Path) -> bool {
        // In this order: doubt comes before the end of publishing.
        self.publishing.lock().contains_key(directory)
            || self.settled.load(Ordering::Acquire) < self.doubts.load(Ordering::Acquire)
    }

    /// To be called before the first name is given in `directory`, once by each piece of work.
    pub(crate) fn begin(&self, directory: &Path) {
        *self.publishing.lock().entry(directory.to_path_buf()).or_default() += 1;
    }

    /// The names given in these directories are durable.
    pub(crate) fn end(&self, directories: impl IntoIterator<Item = PathBuf>) {
        let mut publishing = self.publishing.lock();
        for directory in directories {
            if let Some(count) = publishing.get_mut(&directory) {
                *count -= 1;
                if *count == 0 {
                    publishing.remove(&directory);
                }
            }
        }
    }

    /// The names given in these directories may not be durable.
    pub(crate) fn give_up(&self, directories: impl IntoIterator<Item = PathBuf>) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
        self.end(directories);
    }

    /// The doubts so far, for [`Names::settle`].
    pub(crate) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    /// Everything was made durable after [`Names::doubts`] was asked.
    pub(crate) fn settle(&self, doubts: u64) {
        self.settled.fetch_max(doubts, Ordering::AcqRel);
    }
}
