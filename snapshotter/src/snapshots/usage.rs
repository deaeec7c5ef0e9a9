//! What snapshots take.
//!
//! A committed snapshot takes what its layers' files take, whoever else has them: engines add these numbers up to the size
//! of an image. An active one takes what its upper takes. Uppers are counted when asked for, up to a number of entries; beyond
//! that the answer is the last complete count, and a new one is made in the background.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::core::Core;
use super::{Kind, Usage, upper};
use crate::error::Result;

/// Entries that are counted while a caller waits: some ten milliseconds.
const COUNTED_AT_ONCE: u64 = 4096;

/// What is known of uppers, and those to be counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<u64, Usage>,
    wanted: VecDeque<u64>,
    closed: bool,
}

impl Counts {
    pub(super) fn forget(&self, number: u64) {
        let mut state = self.state.lock();
        state.known.remove(&number);
        state.wanted.retain(|wanted| *wanted != number);
    }

    pub(super) fn clear(&self) {
        self.state.lock().known.clear();
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    fn want(&self, number: u64) {
        let mut state = self.state.lock();
        if !state.wanted.contains(&number) {
            state.wanted.push_back(number);
            self.changed.notify_all();
        }
    }

    /// Waits for an upper to be counted; `None` when there will be no more.
    fn next(&self) -> Option<u64> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(number) = state.wanted.pop_front() {
                return Some(number);
            }
            self.changed.wait(&mut state);
        }
    }
}

impl Core {
    pub(super) fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.record(key)?;
        if record.kind == Kind::View {
            return Ok(Usage::default());
        }
        if record.kind == Kind::Committed
            && let Some(usage) = self.rows.usage(record.number)?
        {
            return Ok(usage);
        }
        let layers = self.usage_of_layers(&record.own)?;
        let folder = self.folder(record.number);
        if record.is_settled() || !folder.exists() {
            return Ok(layers);
        }
        let counted = self.count_now(record.number, &folder)?;
        Ok(Usage { size: layers.size + counted.size, inodes: layers.inodes + counted.inodes })
    }

    fn count_now(&self, number: u64, folder: &Path) -> Result<Usage> {
        let mut counter = Counter { left: COUNTED_AT_ONCE, ..Counter::default() };
        let complete = counter.count(folder, &|| false)?;
        let mut state = self.counts.state.lock();
        if complete {
            state.known.insert(number, counter.usage);
            return Ok(counter.usage);
        }
        let known = state.known.get(&number).copied();
        drop(state);
        self.counts.want(number);
        Ok(known.unwrap_or(counter.usage))
    }

    /// The thread that counts large uppers.
    pub(super) fn count_wanted(&self) {
        while let Some(number) = self.counts.next() {
            let mut counter = Counter { left: u64::MAX, ..Counter::default() };
            match counter.count(&self.folder(number), &|| self.is_closed()) {
                Ok(true) => drop(self.counts.state.lock().known.insert(number, counter.usage)),
                Ok(false) => {}
                // Most likely it was removed meanwhile.
                Err(error) => tracing::debug!(number, %error, "an upper is not counted"),
            }
        }
    }
}

/// Counts like du(1): space of inodes, each once. Never follows a link.
#[derive(Debug, Default)]
struct Counter {
    usage: Usage,
    /// Entries that may still be looked at.
    left: u64,
    linked: HashSet<(u64, u64)>,
}

impl Counter {
    /// True if everything was counted.
    fn count(&mut self, folder: &Path, stop: &dyn Fn() -> bool) -> Result<bool> {
        let upper = upper::open(folder)?;
        let counted = rustix::fs::fstat(&upper).and_then(|stat| {
            self.add(&stat);
            self.count_below(upper, stop)
        });
        counted.map_err(|errno| crate::Error::io(format!("count {}", folder.display()))(errno.into()))
    }

    fn count_below(&mut self, root: OwnedFd, stop: &dyn Fn() -> bool) -> Result<bool, Errno> {
        // One descriptor per level.
        let mut open = vec![Dir::new(root)?];
        while let Some(directory) = open.last_mut() {
            let Some(entry) = directory.read() else {
                open.pop();
                continue;
            };
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if self.left == 0 || stop() {
                return Ok(false);
            }
            self.left -= 1;
            let fd = directory.fd()?;
            match rustix::fs::statat(fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    self.add(&stat);
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                        && let Some(below) = enter(fd.as_fd(), entry.file_name())?
                    {
                        open.push(below);
                    }
                }
                // Somebody works in there.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    fn add(&mut self, stat: &Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if stat.st_nlink > 1 && !directory && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.usage.size += stat.st_blocks as u64 * 512;
        self.usage.inodes += 1;
    }
}

fn enter(parent: rustix::fd::BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<Option<Dir>, Errno> {
    const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    match rustix::fs::openat(parent, name, FLAGS, Mode::empty()) {
        Ok(directory) => Dir::new(directory).map(Some),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn count_sees_each_inode_once_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let upper = folder.path().join("upper");
        fs::create_dir_all(upper.join("a/b/c")).unwrap();
        fs::write(upper.join("a/file"), vec![1; 10_000]).unwrap();
        fs::hard_link(upper.join("a/file"), upper.join("a/b/again")).unwrap();
        std::os::unix::fs::symlink("/usr", upper.join("link")).unwrap();
        let mut counter = Counter { left: 100, ..Counter::default() };
        assert!(counter.count(folder.path(), &|| false).unwrap());
        assert_eq!(counter.usage.inodes, 6);
        assert!((10_000..1_000_000).contains(&counter.usage.size), "{:?}", counter.usage);
        let mut counter = Counter { left: 3, ..Counter::default() };
        assert!(!counter.count(folder.path(), &|| false).unwrap());
        assert_eq!(counter.usage.inodes, 4);
        assert!(!Counter { left: 100, ..Counter::default() }.count(folder.path(), &|| true).unwrap());
    }
}
