//! A disk that remembers every change, and shows what a power cut at any instant could leave of them.
//!
//! [`CrashDisk`] is the real disk with a [`Recorder`] beside it. A recorder also takes changes from elsewhere, so
//! that a test which watches RocksDB's system calls gets one record of everything below the root, in the order in
//! which it happened. [`Recorder::finish`] gives the [`Recording`], whose [`Recording::states`] walks through the crash
//! states that the contract of [`Disk`] allows; each is an [`Image`] that can be put into a directory and opened.
//!
//! What is known of the disk's past is a set of changes that are *settled* by a sync, and a list of those that are
//! *pending*. After a power cut everything settled is there, and of the pending ones anything. Which of these many
//! possibilities are tried is said at [`Variant`].

mod model;
mod recorder;
mod states;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

pub use model::Image;
pub use recorder::{Change, FileNumber, Recorder, Recording};
pub use states::{CrashState, Effort, Variant};

use super::{Disk, RealDisk};

/// The real disk, whose changes a [`Recorder`] remembers.
#[derive(Debug)]
pub struct CrashDisk {
    disk: RealDisk,
    recorder: Arc<Recorder>,
}

impl CrashDisk {
    /// Records the changes to a directory as it is now.
    pub fn new(disk: RealDisk, recorder: Arc<Recorder>) -> CrashDisk {
        CrashDisk { disk, recorder }
    }
}

impl Disk for CrashDisk {
    fn root(&self) -> BorrowedFd<'_> {
        self.disk.root()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.recorder.observe_dir(path, || self.disk.create_dir(path))
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.recorder.observe(|| {
            self.disk.set_mode(path, mode)?;
            Ok(((), Change::SetMode { path: path.to_path_buf(), mode }))
        })
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.recorder.observe_new(path, || {
            let file = self.disk.create(path)?;
            let stat = rustix::fs::fstat(&file)?;
            Ok((file, stat))
        })
    }

    /// Nothing of a file without a name survives, so it is not recorded.
    fn scratch(&self, directory: &Path) -> io::Result<File> {
        self.disk.scratch(directory)
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        let at = rustix::fs::tell(file)?;
        self.recorder.observe_file(file.as_fd(), |number| {
            self.disk.write(file, bytes)?;
            Ok(((), number.map(|file| Change::Write { file, at, bytes: bytes.to_vec() })))
        })
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.recorder.observe_file(file.as_fd(), |number| {
            self.disk.sync(file)?;
            Ok(((), number.map(|file| Change::Sync { file })))
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.recorder.observe(|| {
            self.disk.sync_dir(path)?;
            Ok(((), Change::SyncDir { path: path.to_path_buf() }))
        })
    }

    fn sync_all(&self) -> io::Result<()> {
        self.recorder.observe(|| {
            self.disk.sync_all()?;
            Ok(((), Change::SyncAll))
        })
    }

    fn publish(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.recorder.observe(|| {
            self.disk.publish(from, to)?;
            Ok(((), Change::Rename { from: from.to_path_buf(), to: to.to_path_buf() }))
        })
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.recorder.observe(|| {
            self.disk.replace(from, to)?;
            Ok(((), Change::Rename { from: from.to_path_buf(), to: to.to_path_buf() }))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.recorder.observe(|| {
            self.disk.remove(path)?;
            Ok(((), Change::Remove { path: path.to_path_buf() }))
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.recorder.observe(|| {
            self.disk.remove_dir(path)?;
            Ok(((), Change::Remove { path: path.to_path_buf() }))
        })
    }
}
