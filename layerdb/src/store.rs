//! The store: one directory, one process, everything in it reached through [`Store`].
//!
//! The on-disk tree is drawn at the top of the crate. Locks, in the order they are taken: `scrubbing`, an ingest's turn for
//! a diff-id, a chain's turn to be built, `damage`, `pinning`, `roots` of the metadata, the table of claims, RocksDB's
//! handle. But for turns and `scrubbing`, none is held while contents are read or written.

pub(crate) mod claims;
pub(crate) mod db;
mod format;
mod names;
mod snapshot_dirs;
mod trees;
mod turns;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::chain::Chains;
use crate::digest::DiffId;
use crate::disk::{self, Appender, Disk, RealDisk};
use crate::error::{Error, Result};
use crate::limits::Limits;
use claims::Claims;
pub use claims::Hold;
pub use db::{Batch, Db, Family, Row};
pub(crate) use format::Format;
pub(crate) use snapshot_dirs::{REMOVED_DEEP, is_removed};
pub(crate) use trees::Trees;
pub(crate) use turns::Turns;

pub(crate) const DIRECTORIES: [&str; 9] =
    ["meta", "objects", "layers", "layers/sha256", "chains", "chains/sha256", "snapshots", "quarantine", "tmp"];
const LOCK: &str = "lock";

/// How a store is opened.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Compare the digest of a tree file with the recorded one each time it is opened.
    pub verify_trees: bool,
    /// What layers and images may cost. They must pass [`Limits::check`].
    pub limits: Limits,
    /// What writes to the root go through; the real disk if `None`.
    pub disk: Option<Arc<dyn Disk>>,
    /// Objects of one layer that are published together; 16,384 if `None`.
    pub batch_objects: Option<usize>,
}

/// An open store. Shared by all threads of the one process that has it.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    objects_path: PathBuf,
    options: StoreOptions,
    disk: Arc<dyn Disk>,
    format: Format,
    db: Db,
    pub(crate) claims: Arc<Claims>,
    pub(crate) names: names::Names,
    pub(crate) trees: Trees,
    pub(crate) chains: Chains,
    pub(crate) ingesting: Turns<DiffId>,
    /// Held while a file is taken out of use, and while marks of damage are compared with files.
    pub(crate) damage: Mutex<()>,
    /// Held while a layer is added to the row of a pin.
    pub(crate) pinning: Mutex<()>,
    /// Held by the scrub that goes on where the last one stopped.
    pub(crate) scrubbing: Mutex<()>,
    next_temporary: AtomicU64,
    /// A sync failed: the kernel may have dropped what was written, so nothing may be acknowledged any more.
    broken: AtomicBool,
    /// Holds the advisory lock. Dropped last, so that RocksDB is closed before another process may come.
    _lock: Lock,
}

impl Store {
    /// Opens the store at `root`, or makes a new one if the directory is missing or empty.
    ///
    /// Errors: [`Error::NewerFormat`] if a newer program wrote it (nothing is touched), [`Error::Locked`] if a
    /// process has it open, [`Error::NotAStore`] if the directory holds something else.
    pub fn open(root: &Path) -> Result<Arc<Store>> {
        Store::open_with(root, StoreOptions::default())
    }

    /// [`Store::open`] with options.
    pub fn open_with(root: &Path, options: StoreOptions) -> Result<Arc<Store>> {
        let shown = root.display();
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o711);
        builder.create(root).map_err(Error::io(format!("create {shown}")))?;
        let root = std::fs::canonicalize(root).map_err(Error::io(format!("resolve {shown}")))?;
        let disk: Arc<dyn Disk> = match &options.disk {
            Some(disk) => Arc::clone(disk),
            None => Arc::new(RealDisk::open(&root).map_err(Error::io(format!("open {shown}")))?),
        };
        let known = Format::read(&*disk, &root)?;
        if known.is_none() {
            require_empty(&*disk, &root)?;
        }
        let lock = lock(&*disk, &root)?;
        let format = if let Some(format) = Format::read(&*disk, &root)? {
            format.upgrade(&*disk, &root)?
        } else {
            sync_ancestors(&root);
            Format::create(&*disk, &root)?
        };
        lay_out(&*disk, &root)?;
        empty_temporaries(&*disk).map_err(Error::io(format!("empty {}", root.join("tmp").display())))?;
        Ok(Arc::new(Store {
            objects_path: root.join("objects"),
            db: Db::open(&root.join("meta"))?,
            root,
            options,
            disk,
            format,
            claims: Arc::default(),
            names: names::Names::default(),
            trees: Trees::default(),
            chains: Chains::default(),
            ingesting: Turns::default(),
            damage: Mutex::default(),
            pinning: Mutex::default(),
            scrubbing: Mutex::default(),
            next_temporary: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            _lock: lock,
        }))
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of objects, absolute.
    pub fn objects_path(&self) -> &Path {
        &self.objects_path
    }

    /// The store's identity, which it keeps for ever.
    pub fn uuid(&self) -> &str {
        &self.format.uuid
    }

    /// The store's metadata.
    pub fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub(crate) fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// A path below `tmp/` that nothing has.
    pub(crate) fn new_temporary(&self) -> PathBuf {
        Path::new("tmp").join(self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// An unnamed file, gone when closed.
    pub(crate) fn scratch(&self) -> Result<File> {
        let action = || format!("create a file in {}", self.root.join("tmp").display());
        self.disk.scratch(Path::new("tmp")).map_err(Error::io(action()))
    }

    /// A file that the disk made, as a stream.
    pub(crate) fn appender(&self, file: File) -> Appender {
        Appender::new(Arc::clone(&self.disk), file)
    }

    /// Refuses once a sync has failed: see [`Error::Broken`].
    pub(crate) fn require_writable(&self) -> Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(Error::Broken { root: self.root.clone() });
        }
        Ok(())
    }

    pub(crate) fn sync_all(&self) -> Result<()> {
        let synced = self.disk.sync_all();
        self.synced(synced, || format!("sync the filesystem of {}", self.root.display()))
    }

    pub(crate) fn sync_file(&self, file: &File) -> Result<()> {
        let synced = self.disk.sync(file);
        self.synced(synced, || format!("sync a file in {}", self.root.display()))
    }

    pub(crate) fn sync_dir(&self, path: &Path) -> Result<()> {
        let synced = self.disk.sync_dir(path);
        self.synced(synced, || format!("sync {}", self.root.join(path).display()))
    }

    fn synced(&self, synced: io::Result<()>, action: impl FnOnce() -> String) -> Result<()> {
        if synced.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        // Another thread's failed sync may have taken the error that our bytes caused.
        synced.map_err(Error::io(action())).and_then(|()| self.require_writable())
    }
}

/// A directory without `FORMAT` becomes a store only if it holds nothing of anybody's.
fn require_empty(disk: &dyn Disk, root: &Path) -> Result<()> {
    let names = disk::list(disk, Path::new(".")).map_err(Error::io(format!("read {}", root.display())))?;
    let foreign = names.iter().find(|name| *name != LOCK && *name != "lost+found" && !Format::is_leftover(name));
    match foreign {
        None => Ok(()),
        Some(name) => Err(Error::NotAStore {
            root: root.to_path_buf(),
            reason: format!("it has no FORMAT file, and holds {}", name.display()),
        }),
    }
}

/// The store is ours. Given up by name, not by closing: a child that is just being started has a copy of the descriptor
/// until it has replaced its image.
#[derive(Debug)]
struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        // The kernel gives it up with the last descriptor otherwise.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock(disk: &dyn Disk, root: &Path) -> Result<Lock> {
    let action = || format!("lock {}", root.join(LOCK).display());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(disk.root(), LOCK, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Error::io(action())(error.into()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked { root: root.to_path_buf() }),
        Err(error) => Err(Error::io(action())(error.into())),
    }
}

/// Makes the name of the root durable, and those above, which may be new too. One that can't be opened or synced was
/// not made by this user.
fn sync_ancestors(root: &Path) {
    for directory in root.ancestors().skip(1) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(directory) = rustix::fs::openat(rustix::fs::CWD, directory, flags, Mode::empty()) {
            let _ = rustix::fs::fsync(directory);
        }
    }
}

/// Makes the directories that are missing, and checks that a rename between them can't cross filesystems.
fn lay_out(disk: &dyn Disk, root: &Path) -> Result<()> {
    for directory in DIRECTORIES {
        match disk.create_dir(Path::new(directory)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io(format!("create {}", root.join(directory).display()))(error));
            }
            _ => {}
        }
    }
    // Those that were there may be the work of a process that was killed before it came to this.
    for directory in [".", "layers", "chains"] {
        disk.sync_dir(Path::new(directory)).map_err(Error::io(format!("sync {}", root.join(directory).display())))?;
    }
    let device = |path: &str| {
        rustix::fs::statat(disk.root(), path, rustix::fs::AtFlags::empty())
            .map(|stat| stat.st_dev)
            .map_err(|error| Error::io(format!("stat {}", root.join(path).display()))(error.into()))
    };
    let expected = device(".")?;
    for directory in DIRECTORIES {
        if device(directory)? != expected {
            return Err(Error::SplitStore { root: root.to_path_buf(), directory: directory.into() });
        }
    }
    Ok(())
}

/// True for the names below `tmp/` that work in flight gives.
pub(crate) fn is_temporary(name: &std::ffi::OsStr) -> bool {
    let text = name.as_encoded_bytes();
    let number = text.strip_prefix(b"scratch-").unwrap_or(text);
    name == "scratch" || snapshot_dirs::is_removed(name) || number.iter().all(u8::is_ascii_digit)
}

/// Removes what work in flight left. Removed snapshots stay for garbage collection: they may be large, and opening
/// must not wait for them.
fn empty_temporaries(disk: &dyn Disk) -> io::Result<()> {
    for name in disk::list(disk, Path::new("tmp"))? {
        if !is_removed(&name) {
            disk::remove_tree(disk, &Path::new("tmp").join(name))?;
        }
    }
    Ok(())
}
