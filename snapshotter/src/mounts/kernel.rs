//! Mounts by the kernel: a merged tree as EROFS, overlayfs upon it, the objects as its data. Nobody serves them, so a daemon that
//! ends leaves them as they are, and the next one knows them by their mountpoints.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mica_fs::kernel::{self, Departure, Departures, Overlay, SOURCE};
use mica_fs::mountinfo::listed;
use mica_layerdb::Store;
use rustix::mount::MountAttrFlags;

use super::fuse::fs_error;
use super::place::{detach, is_mountpoint, make_folder, remove_mountpoint};
use super::trees::{TreeUse, Trees};
use super::{Base, Mounted, Plan};
use crate::error::{Error, Result};

/// Mounts by the kernel, below one state folder.
#[derive(Debug)]
pub(super) struct KernelMounter {
    objects: PathBuf,
    trees: Arc<Trees>,
    departures: Arc<Departures>,
}

impl KernelMounter {
    /// Mounts below `state`. Trees that nobody uses stay mounted for so long.
    pub(super) fn new(state: &Path, store: &Store, linger: Duration) -> Result<KernelMounter> {
        Ok(KernelMounter {
            objects: store.objects_path().to_path_buf(),
            trees: Trees::new(state.join("trees"), linger),
            departures: Departures::new().map_err(fs_error("watch mounts"))?,
        })
    }

    /// Mounts what lies below with the plan's folder, which holds nothing that overlayfs does not understand.
    pub(super) fn mount(&self, plan: &Plan, base: &Base, mountpoint: &Path) -> Result<Box<dyn Mounted>> {
        let file = base.file.as_deref().ok_or_else(|| failed(plan.number, "nothing lies below it"))?;
        let tree = self.trees.of(file)?;
        make_folder(mountpoint)?;
        let overlay = Overlay {
            source: SOURCE,
            tree: &tree.mountpoint(),
            objects: &self.objects,
            writable: plan.writable.as_deref(),
            attributes: MountAttrFlags::empty(),
        };
        if let Err(error) = kernel::mount_overlay(&overlay, mountpoint) {
            remove_mountpoint(mountpoint)?;
            return Err(failed(plan.number, &error.to_string()));
        }
        match self.departures.of(mountpoint) {
            Ok(departure) => {
                Ok(Box::new(KernelMount { mountpoint: mountpoint.to_path_buf(), tree: Some(tree), departure }))
            }
            Err(error) => {
                detach(mountpoint)?;
                remove_mountpoint(mountpoint)?;
                Err(failed(plan.number, &format!("it can't be watched: {error}")))
            }
        }
    }

    /// Takes over a mount that an earlier process made. It goes on, whatever is wrong with what lies below it.
    pub(super) fn resume(&self, plan: &Plan, mountpoint: &Path) -> Result<Box<dyn Mounted>> {
        let departure = self
            .departures
            .of(mountpoint)
            .map_err(|error| failed(plan.number, &format!("it can't be watched: {error}")))?;
        let tree = (plan.lower)().and_then(|base| base.file.as_deref().map(|file| self.trees.of(file)).transpose());
        let tree = tree.unwrap_or_else(|error| {
            tracing::warn!(number = plan.number, %error, "the tree of a mount is not kept for others");
            None
        });
        Ok(Box::new(KernelMount { mountpoint: mountpoint.to_path_buf(), tree, departure }))
    }

    /// Unmounts trees that nobody uses.
    pub(super) fn prune(&self) -> Result<()> {
        self.trees.prune()
    }
}

/// The mounts of the kernel's in `folder`, by number.
pub(super) fn mounted_in(folder: &Path) -> Result<HashSet<u64>> {
    let listed = listed().map_err(Error::io("read the list of mounts"))?;
    let ours = listed.iter().filter(|mount| mount.kind == b"overlay" && mount.place.parent() == Some(folder));
    Ok(ours.filter_map(|mount| mount.place.file_name()?.to_str()?.parse().ok()).collect())
}

fn failed(number: u64, reason: &str) -> Error {
    Error::Mount { number, reason: reason.to_owned() }
}

#[derive(Debug)]
struct KernelMount {
    mountpoint: PathBuf,
    tree: Option<TreeUse>,
    departure: Departure,
}

impl Mounted for KernelMount {
    fn is_live(&self) -> bool {
        !self.departure.has_come() && is_mountpoint(&self.mountpoint)
    }

    fn has_ended(&self) -> bool {
        self.departure.has_come()
    }

    fn unmount(self: Box<Self>) -> Result<()> {
        let KernelMount { mountpoint, tree, departure } = *self;
        detach(&mountpoint)?;
        remove_mountpoint(&mountpoint)?;
        drop(tree);
        departure.wait();
        Ok(())
    }

    fn leave(self: Box<Self>) {
        if let Some(tree) = self.tree {
            tree.leave();
        }
    }
}
