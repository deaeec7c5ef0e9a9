//! Merged trees that the kernel has mounted, each once, for all containers of its image.
//!
//! A tree is mounted at `<state>/trees/<name of its file>-<inode of its file>`: a file that was built anew, because the one before was
//! damaged, is another tree. Overlays have mounts of it to themselves, so the mountpoint may go before they do; it is there for
//! those to come.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_fs::kernel::mount_tree;
use parking_lot::Mutex;

use super::fuse::fs_error;
use super::place::{detach, is_mountpoint, make_folder, remove_mountpoint};
use crate::error::{Error, Result};

/// The trees of one state folder.
#[derive(Debug)]
pub(super) struct Trees {
    folder: PathBuf,
    uses: Mutex<HashMap<OsString, Arc<Mutex<usize>>>>,
}

/// One use of a mounted tree. The last one that is dropped unmounts it.
#[derive(Debug)]
pub(super) struct TreeUse {
    trees: Arc<Trees>,
    name: OsString,
    kept: bool,
}

impl Trees {
    /// Those in `folder`, which is made when it is needed.
    pub(super) fn new(folder: PathBuf) -> Arc<Trees> {
        Arc::new(Trees { folder, uses: Mutex::default() })
    }

    /// Mounts the tree in `file`, unless it is mounted, also by an earlier process.
    pub(super) fn of(self: &Arc<Self>, file: &Path) -> Result<TreeUse> {
        let inode = fs::metadata(file).map_err(Error::io(format!("look at {}", file.display())))?.ino();
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!("-{inode:x}"));
        let count = Arc::clone(self.uses.lock().entry(name.clone()).or_default());
        let mut uses = count.lock();
        let mountpoint = self.folder.join(&name);
        if !is_mountpoint(&mountpoint) {
            make_folder(&mountpoint)?;
            if let Err(error) = mount_tree(file, &mountpoint) {
                remove_mountpoint(&mountpoint)?;
                return Err(fs_error("mount a tree")(error));
            }
        }
        *uses += 1;
        Ok(TreeUse { trees: Arc::clone(self), name, kept: false })
    }

    /// Unmounts those that an earlier process left and that nobody uses. Nobody takes one meanwhile.
    pub(super) fn prune(&self) -> Result<()> {
        let action = || format!("read {}", self.folder.display());
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io(action()))?,
        };
        let mut used = false;
        for entry in entries {
            let name = entry.map_err(Error::io(action()))?.file_name();
            let count = Arc::clone(self.uses.lock().entry(name.clone()).or_default());
            let uses = count.lock();
            if *uses == 0 {
                self.unmount(&name)?;
            }
            used |= *uses > 0;
        }
        if used { Ok(()) } else { remove_mountpoint(&self.folder) }
    }

    fn unmount(&self, name: &OsString) -> Result<()> {
        let mountpoint = self.folder.join(name);
        detach(&mountpoint)?;
        remove_mountpoint(&mountpoint)
    }
}

impl TreeUse {
    pub(super) fn mountpoint(&self) -> PathBuf {
        self.trees.folder.join(&self.name)
    }

    /// Leaves the tree mounted for the next process.
    pub(super) fn leave(mut self) {
        self.kept = true;
    }
}

impl Drop for TreeUse {
    fn drop(&mut self) {
        let Some(count) = self.trees.uses.lock().get(&self.name).map(Arc::clone) else { return };
        let mut uses = count.lock();
        *uses -= 1;
        if *uses == 0
            && !self.kept
            && let Err(error) = self.trees.unmount(&self.name)
        {
            tracing::warn!(%error, "a tree that nobody uses stays mounted until the daemon starts anew");
        }
    }
}
