//! The narrow seam under every change the store makes to its directory.
//!
//! All paths are relative to the store's root, which is held as an open descriptor: renaming or over-mounting the
//! root's path while the store is open can't redirect a write. Reading needs no seam and goes through
//! [`Disk::root`]. Outside are RocksDB, which owns `meta/`, and the empty file `lock`.
//!
//! What a caller may rely on after a power cut:
//!
//! - The bytes of a file as of its last [`Disk::sync`], or of the last [`Disk::sync_all`]. What was written since is
//!   there, or not, or in parts, in any order; a file that was never synced may be empty, or full of zeros.
//! - The names in a directory, and its mode, as of its last [`Disk::sync_dir`], or of the last [`Disk::sync_all`]. Of
//!   what happened to them since, any part may have happened; the two halves of a move between two directories are
//!   separate changes, so a file may be found under both names, or under none. A directory's own name is in its parent.
//!   Within one directory changes of names happen in order, as all journaling filesystems have it; the store doesn't
//!   need that, but RocksDB does.
//! - Nothing else. In particular no order between changes, and nothing of a sync that returned an error: the kernel
//!   may have forgotten what it failed to write, so a later sync that succeeds proves nothing about it.
//!
//! After the death of the process alone, everything that returned has happened, but need not be durable.

mod appender;
pub mod crash;
pub(crate) mod direct;
mod fault;

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};

pub use appender::Appender;
pub use fault::{FaultyDisk, Operation};

/// Changes to the store's directory. Implementations are shared by all threads of the process.
pub trait Disk: fmt::Debug + Send + Sync {
    /// The root directory, for reading.
    fn root(&self) -> BorrowedFd<'_>;

    /// Makes a directory of mode 0700. An existing one is [`io::ErrorKind::AlreadyExists`].
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Sets the permissions of a file or directory. Durable with the file's [`Disk::sync`], the directory's
    /// [`Disk::sync_dir`].
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Makes a new file of mode 0400, open for reading and writing. The name must be free.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Makes a file without a name on the disk of a directory, open for reading and writing, gone when closed.
    fn scratch(&self, directory: &Path) -> io::Result<File>;

    /// Appends all of `bytes` at the file's position.
    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()>;

    /// Makes a file's bytes durable: fsync(2).
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Makes the names in a directory durable: fsync(2) of the directory.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes everything on the store's filesystem durable: syncfs(2).
    fn sync_all(&self) -> io::Result<()>;

    /// Moves a file or directory to a name that must be free: renameat2(2) with `RENAME_NOREPLACE`.
    /// An occupied name is [`io::ErrorKind::AlreadyExists`].
    fn publish(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Moves a file over whatever file has the name: rename(2).
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// The disk itself.
#[derive(Debug)]
pub struct RealDisk {
    root: OwnedFd,
}

impl RealDisk {
    /// Opens the root directory, which must exist.
    pub fn open(root: &Path) -> io::Result<RealDisk> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(RealDisk { root: rustix::fs::openat(CWD, root, flags, Mode::empty())? })
    }

    /// For filesystems without `O_TMPFILE`.
    fn scratch_by_name(&self, directory: &Path) -> io::Result<File> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = directory.join(format!("scratch-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let file = self.create(&path)?;
        self.remove(&path)?;
        Ok(file)
    }
}

impl Disk for RealDisk {
    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.root, path, Mode::RWXU)?)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::chmodat(&self.root, path, Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.root, path, flags, Mode::RUSR)?))
    }

    fn scratch(&self, directory: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.root, directory, flags, Mode::RUSR | Mode::WUSR) {
            Ok(descriptor) => Ok(File::from(descriptor)),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => self.scratch_by_name(directory),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.root, path, flags, Mode::empty())?;
        Ok(rustix::fs::fsync(directory)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    fn publish(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(&self.root, from, &self.root, to, RenameFlags::NOREPLACE)?)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.root, from, &self.root, to)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::empty())?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR)?)
    }
}

/// Opens a file below the root for reading. `None` if there is none.
pub(crate) fn open(disk: &dyn Disk, path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(disk.root(), path, flags, Mode::empty()) {
        Ok(descriptor) => Ok(Some(File::from(descriptor))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The attributes of a file or directory below the root. `None` if there is none.
pub(crate) fn stat(disk: &dyn Disk, path: &Path) -> io::Result<Option<rustix::fs::Stat>> {
    match rustix::fs::statat(disk.root(), path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The names in a directory below the root, in no particular order.
pub(crate) fn list(disk: &dyn Disk, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStringExt as _;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(disk.root(), path, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(std::ffi::OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// Removes a file, or a directory with all that is in it. A missing name is no error. Symbolic links are removed,
/// never followed.
pub(crate) fn remove_tree(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    // One open level per pass of the loop below would need descriptors without bound on a deep tree; a work list of
    // paths needs one at a time, and directories below `tmp/` are nobody else's.
    let mut pending = vec![(path.to_path_buf(), false)];
    while let Some((path, emptied)) = pending.pop() {
        if emptied {
            disk.remove_dir(&path)?;
            continue;
        }
        let Some(stat) = stat(disk, &path)? else { continue };
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            let names = list(disk, &path)?;
            pending.push((path.clone(), true));
            pending.extend(names.into_iter().map(|name| (path.join(name), false)));
        } else {
            disk.remove(&path)?;
        }
    }
    Ok(())
}
