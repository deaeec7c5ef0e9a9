//! A disk on which the n-th change fails.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Disk, direct};

/// The changes a [`Disk`] can make, as [`FaultyDisk`] counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Disk::create_dir`]
    CreateDir,
    /// [`Disk::set_mode`]
    SetMode,
    /// [`Disk::create`] and [`Disk::scratch`]
    Create,
    /// [`Disk::write`]
    Write,
    /// [`Disk::sync`], [`Disk::sync_dir`] and [`Disk::sync_all`]
    Sync,
    /// [`Disk::publish`] and [`Disk::replace`]
    Rename,
    /// [`Disk::remove`] and [`Disk::remove_dir`]
    Remove,
}

/// Another disk, but from a chosen operation on every change fails with a chosen error until the fault is lifted.
/// A failing write puts half of its bytes down first, as a full disk does.
pub struct FaultyDisk {
    disk: Box<dyn Disk>,
    /// Operations done since [`FaultyDisk::fail_at`].
    count: AtomicU64,
    /// The first operation that fails; `u64::MAX` for none.
    first: AtomicU64,
    /// How many operations fail.
    many: AtomicU64,
    errno: std::sync::atomic::AtomicI32,
    failed: parking_lot::Mutex<Option<Operation>>,
}

impl fmt::Debug for FaultyDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FaultyDisk")
            .field("count", &self.count)
            .field("first", &self.first)
            .finish_non_exhaustive()
    }
}

impl FaultyDisk {
    /// Wraps a disk; nothing fails yet.
    pub fn new(disk: impl Disk + 'static) -> FaultyDisk {
        FaultyDisk {
            disk: Box::new(disk),
            count: AtomicU64::new(0),
            first: AtomicU64::new(u64::MAX),
            many: AtomicU64::new(0),
            errno: std::sync::atomic::AtomicI32::new(0),
            failed: parking_lot::Mutex::new(None),
        }
    }

    /// Lets the `first`-th change from now on (counted from 0) and the `many - 1` after it fail with `errno`.
    pub fn fail_at(&self, first: u64, many: u64, errno: rustix::io::Errno) {
        self.errno.store(errno.raw_os_error(), Ordering::Relaxed);
        self.many.store(many, Ordering::Relaxed);
        self.first.store(first, Ordering::Relaxed);
        self.count.store(0, Ordering::Relaxed);
        *self.failed.lock() = None;
    }

    /// Changes since the last [`FaultyDisk::fail_at`], or the beginning.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Lets everything succeed again and returns the first operation that failed, if one did.
    pub fn heal(&self) -> Option<Operation> {
        self.first.store(u64::MAX, Ordering::Relaxed);
        self.failed.lock().take()
    }

    fn pass(&self, operation: Operation) -> io::Result<()> {
        let at = self.count.fetch_add(1, Ordering::Relaxed);
        let first = self.first.load(Ordering::Relaxed);
        if at < first || at - first >= self.many.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.failed.lock().get_or_insert(operation);
        Err(io::Error::from_raw_os_error(self.errno.load(Ordering::Relaxed)))
    }
}

impl Disk for FaultyDisk {
    fn root(&self) -> BorrowedFd<'_> {
        self.disk.root()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.pass(Operation::CreateDir)?;
        self.disk.create_dir(path)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.pass(Operation::SetMode)?;
        self.disk.set_mode(path, mode)
    }

    fn scratch(&self, directory: &Path) -> io::Result<File> {
        self.pass(Operation::Create)?;
        self.disk.scratch(directory)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.pass(Operation::Create)?;
        self.disk.create(path)
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.pass(Operation::Write) {
            // Whole blocks if there are any: the file may take no other length.
            let half = bytes.len() / 2;
            let half = if half < direct::BLOCK { half } else { half / direct::BLOCK * direct::BLOCK };
            self.disk.write(file, &bytes[..half])?;
            return Err(error);
        }
        self.disk.write(file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.pass(Operation::Sync)?;
        self.disk.sync(file)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pass(Operation::Sync)?;
        self.disk.sync_dir(path)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.pass(Operation::Sync)?;
        self.disk.sync_all()
    }

    fn publish(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass(Operation::Rename)?;
        self.disk.publish(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass(Operation::Rename)?;
        self.disk.replace(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass(Operation::Remove)?;
        self.disk.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.pass(Operation::Remove)?;
        self.disk.remove_dir(path)
    }
}
