//! Mounts of images that the command line makes: what keeps garbage collection from their layers.
//!
//! The process that serves such a mount reads the sealed files of the store directly, and holds a lock on a file below
//! `<root>/mounts/`. A row of [`Family::Pins`] of the same name lists the layers. When the process ends, however it
//! ends, the lock is gone; the row goes with the next collection of garbage. Neither the store nor a daemon has to be
//! there when a mount ends.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mica_layerdb::{Batch, ChainId, Family, Image, Store};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::config::Verify;
use crate::error::{Error, Result};

const FOLDER: &str = "mounts";
const PREFIX: &str = "mount/";

/// What it takes to mount an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountableImage {
    /// The image.
    pub image: Image,
    /// The file of its merged tree.
    pub tree: PathBuf,
    /// The folder of objects.
    pub objects: PathBuf,
    /// When the store's daemon compares contents with their digests; without one it is the default.
    pub verify: Verify,
}

/// A lock that keeps the layers of one mount.
#[derive(Debug)]
pub struct ImageLock {
    path: PathBuf,
    id: String,
    _held: OwnedFd,
}

impl ImageLock {
    /// A new lock in the store at `root`, which need not be open.
    pub fn take(root: &Path) -> io::Result<ImageLock> {
        let folder = root.join(FOLDER);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos());
        let id = format!("{now}-{}", std::process::id());
        let path = folder.join(&id);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive)?;
        Ok(ImageLock { path, id, _held: held })
    }

    /// Its name, for [`crate::admin::Call::ImageMount`].
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a lock that nobody holds stays until the next collection");
        }
    }
}

/// Pins the layers of an image under a lock that the caller holds, and builds its merged tree.
pub(super) fn mountable(store: &Arc<Store>, image: Image, lock: &str, verify: Verify) -> Result<MountableImage> {
    let invalid = |reason: &str| Error::Invalid { what: format!("lock {lock:?}"), reason: reason.to_owned() };
    if lock.is_empty() || !lock.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        return Err(invalid("it is no name of a lock"));
    }
    if !is_held(&store.root().join(FOLDER).join(lock))? {
        return Err(invalid("nobody holds it"));
    }
    let Some(chain) = ChainId::of(&image.layers) else {
        return Err(Error::Invalid { what: format!("image {}", image.name), reason: "it has no layers".to_owned() });
    };
    let hold = store.hold(&image.layers)?;
    let mut batch = Batch::new();
    batch.put_json(Family::Pins, format!("{PREFIX}{lock}").as_bytes(), &image.layers)?;
    store.db().commit(batch)?;
    drop(hold);
    store.chain(&image.layers)?;
    Ok(MountableImage { tree: store.chain_path(chain), objects: store.objects_path().to_path_buf(), verify, image })
}

/// Removes the rows and files of mounts that have ended.
pub(crate) fn prune(store: &Store) -> Result<()> {
    let folder = store.root().join(FOLDER);
    let mut batch = Batch::new();
    for (key, _) in store.db().scan_json::<serde_json::Value>(Family::Pins, PREFIX.as_bytes())? {
        let name = String::from_utf8_lossy(&key[PREFIX.len()..]).into_owned();
        let path = folder.join(&name);
        if is_held(&path)? {
            continue;
        }
        batch.delete(Family::Pins, &key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", path.display()))(error));
            }
            _ => {}
        }
    }
    if !batch.is_empty() {
        store.db().commit(batch)?;
    }
    Ok(())
}

/// The locks and pins of mounts that have ended.
pub(crate) fn ended_mounts(store: &Store) -> Result<BTreeSet<String>> {
    /// A lock is made before it is held, and held before it is pinned.
    const SETTLED: Duration = Duration::from_secs(10);
    let folder = store.root().join(FOLDER);
    let mut names = BTreeSet::new();
    for (key, _) in store.db().scan(Family::Pins, PREFIX.as_bytes())? {
        names.insert(String::from_utf8_lossy(&key[PREFIX.len()..]).into_owned());
    }
    let listed = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        listed => Some(listed.map_err(Error::io(format!("read {}", folder.display())))?),
    };
    for entry in listed.into_iter().flatten().flatten() {
        let made = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        if made.and_then(|made| made.elapsed().ok()).is_some_and(|age| age > SETTLED) {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    let mut ended = BTreeSet::new();
    for name in names {
        if !is_held(&folder.join(&name))? {
            ended.insert(name);
        }
    }
    Ok(ended)
}

/// Removes what is left of one mount that has ended.
pub(crate) fn forget_mount(store: &Store, name: &str) -> Result<()> {
    let path = store.root().join(FOLDER).join(name);
    if is_held(&path)? {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.delete(Family::Pins, format!("{PREFIX}{name}").as_bytes());
    store.db().commit(batch)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Whether a process has the lock. A missing file is nobody's.
fn is_held(path: &Path) -> Result<bool> {
    let action = || format!("look at the lock {}", path.display());
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(Error::io(action())(errno.into())),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(Error::io(action())(errno.into())),
    }
}
