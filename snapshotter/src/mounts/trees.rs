//! Merged trees that the kernel has mounted, each once, for all containers of its image.
//!
//! A tree is mounted at `<state>/trees/<name of its file>-<inode of its file>`: a file that was built anew, because the one before was
//! damaged, is another tree. Overlays have mounts of it to themselves, so the mountpoint may go before they do; it is there for
//! those to come. For a while it stays when the last one has gone: what the kernel remembers of names and attributes goes with it,
//! and the next container of the image may be about to start.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use mica_fs::kernel::mount_tree;
use parking_lot::Mutex;

use super::fuse::fs_error;
use super::place::{detach, is_mountpoint, make_folder, remove_mountpoint};
use crate::error::{Error, Result};

/// The trees of one state folder.
#[derive(Debug)]
pub(super) struct Trees {
    folder: PathBuf,
    /// How long one stays that nobody uses.
    linger: Duration,
    known: Mutex<HashMap<OsString, Arc<Mutex<Uses>>>>,
    /// Whether a thread unmounts those that have stayed long enough.
    reaping: Mutex<bool>,
}

#[derive(Debug, Default)]
struct Uses {
    number: usize,
    /// When the last one ended, if the tree is mounted still.
    unused: Option<Instant>,
}

/// One use of a mounted tree.
#[derive(Debug)]
pub(super) struct TreeUse {
    trees: Arc<Trees>,
    name: OsString,
    left: bool,
}

impl Trees {
    /// Those in `folder`, which is made when it is needed.
    pub(super) fn new(folder: PathBuf, linger: Duration) -> Arc<Trees> {
        Arc::new(Trees { folder, linger, known: Mutex::default(), reaping: Mutex::new(false) })
    }

    /// Mounts the tree in `file`, unless it is mounted, also by an earlier process.
    pub(super) fn of(self: &Arc<Self>, file: &Path) -> Result<TreeUse> {
        let inode = fs::metadata(file).map_err(Error::io(format!("look at {}", file.display())))?.ino();
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!("-{inode:x}"));
        let uses = self.uses(&name);
        let mut uses = uses.lock();
        let mountpoint = self.folder.join(&name);
        if !is_mountpoint(&mountpoint) {
            make_folder(&mountpoint)?;
            if let Err(error) = mount_tree(file, &mountpoint) {
                remove_mountpoint(&mountpoint)?;
                return Err(fs_error("mount a tree")(error));
            }
        }
        uses.number += 1;
        uses.unused = None;
        Ok(TreeUse { trees: Arc::clone(self), name, left: false })
    }

    /// Unmounts those that nobody uses, also of an earlier process. Nobody takes one meanwhile.
    pub(super) fn prune(&self) -> Result<()> {
        let action = || format!("read {}", self.folder.display());
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io(action()))?,
        };
        let mut used = false;
        for entry in entries {
            let name = entry.map_err(Error::io(action()))?.file_name();
            let uses = self.uses(&name);
            let mut uses = uses.lock();
            if uses.number == 0 {
                uses.unused = None;
                self.unmount(&name)?;
            }
            used |= uses.number > 0;
        }
        if used { Ok(()) } else { remove_mountpoint(&self.folder) }
    }

    fn uses(&self, name: &OsStr) -> Arc<Mutex<Uses>> {
        Arc::clone(self.known.lock().entry(name.to_owned()).or_default())
    }

    fn unmount(&self, name: &OsStr) -> Result<()> {
        let mountpoint = self.folder.join(name);
        detach(&mountpoint)?;
        remove_mountpoint(&mountpoint)
    }

    /// Unmounts those that have stayed long enough; when to look again, if others are still to.
    fn reap(&self) -> Option<Instant> {
        let known: Vec<_> = self.known.lock().iter().map(|(name, uses)| (name.clone(), Arc::clone(uses))).collect();
        let mut next = None;
        for (name, uses) in known {
            let mut uses = uses.lock();
            let Some(due) = uses.unused.map(|since| since + self.linger) else { continue };
            if due > Instant::now() {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
                continue;
            }
            uses.unused = None;
            if let Err(error) = self.unmount(&name) {
                tracing::warn!(%error, "a tree that nobody uses stays mounted until the daemon starts anew");
            }
        }
        next
    }

    /// Sees to it that those which nobody uses are unmounted in time.
    fn reap_later(self: &Arc<Self>) {
        let mut reaping = self.reaping.lock();
        if *reaping {
            return;
        }
        let trees = Arc::downgrade(self);
        let linger = self.linger;
        let spawned = thread::Builder::new().name("mica-trees".into()).spawn(move || reap_all(&trees, linger));
        match spawned {
            Ok(_) => *reaping = true,
            Err(error) => {
                tracing::error!(%error, "trees that nobody uses stay mounted");
            }
        }
    }
}

/// Unmounts trees until all are used or gone.
fn reap_all(trees: &Weak<Trees>, linger: Duration) {
    let mut pause = linger;
    loop {
        thread::sleep(pause);
        let Some(trees) = trees.upgrade() else { return };
        let mut reaping = trees.reaping.lock();
        let Some(next) = trees.reap() else {
            *reaping = false;
            return;
        };
        pause = next.saturating_duration_since(Instant::now());
    }
}

impl TreeUse {
    pub(super) fn mountpoint(&self) -> PathBuf {
        self.trees.folder.join(&self.name)
    }

    /// Leaves the tree mounted for the next process.
    pub(super) fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for TreeUse {
    fn drop(&mut self) {
        let uses = self.trees.uses(&self.name);
        let mut uses = uses.lock();
        uses.number -= 1;
        if uses.number == 0 && !self.left {
            uses.unused = Some(Instant::now());
            drop(uses);
            self.trees.reap_later();
        }
    }
}
