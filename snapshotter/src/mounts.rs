//! The seam to the filesystem: how a snapshot becomes a mount.

mod forms;
mod fuse;
mod kernel;
pub(crate) mod live;
mod place;
mod trees;
mod watch;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_layerdb::tree::Tree;

use crate::config::Form;
use crate::error::{Error, Result};
pub use forms::{FormMounter, try_kernel};
pub use fuse::FuseMounter;
pub(crate) use fuse::Unmounted;

/// What lies below a mount.
#[derive(Clone, Debug)]
pub struct Base {
    /// The merged tree.
    pub tree: Arc<Tree>,
    /// The file that it is in; the tree of no layers is in none.
    pub file: Option<PathBuf>,
}

/// Finds what lies below a mount. Called when somebody first needs it, which may be never; may wait, and may be called
/// again after an error.
pub type Resolve = Arc<dyn Fn() -> Result<Base> + Send + Sync>;

/// How a snapshot is to be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// As the daemon was told.
    Default,
    /// In this form.
    Form(Form),
    /// By FUSE, whatever anybody wants, for this reason.
    Fuse(&'static str),
}

/// What is to be mounted.
#[derive(Clone)]
pub struct Plan {
    /// The snapshot's number, which is never used for another.
    pub number: u64,
    /// In which form.
    pub wish: Wish,
    /// The tree below.
    pub lower: Resolve,
    /// The folder that holds `upper` and `work`; a mount without is read-only.
    pub writable: Option<PathBuf>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Plan")
            .field("number", &self.number)
            .field("wish", &self.wish)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

/// Makes mounts of snapshots. Called from many threads; a call for one snapshot must not wait for another's.
pub trait Mounter: fmt::Debug + Send + Sync {
    /// Where the snapshot of this number is mounted, or would be.
    fn mountpoint(&self, number: u64) -> PathBuf;

    /// Mounts; the mount answers when this returns. After an error nothing of it is left.
    fn mount(&self, plan: Plan) -> Result<Box<dyn Mounted>>;

    /// Takes over a mount that an earlier process left. After an error it is as before.
    fn resume(&self, plan: Plan) -> Result<Box<dyn Mounted>>;

    /// The numbers of the mounts that an earlier process left, and that can be taken over.
    fn left(&self) -> Result<Vec<u64>>;

    /// Everything that was left has been taken over or discarded.
    fn recovered(&self) -> Result<()> {
        Ok(())
    }

    /// The numbers for which there is a mountpoint, whatever its state.
    fn mountpoints(&self) -> Result<Vec<u64>>;

    /// Ends what is left of a mount that nobody serves, and removes its mountpoint.
    fn discard(&self, number: u64) -> Result<()>;

    /// Completes what an earlier process left half done in a writable folder that is not mounted.
    fn finish(&self, lower: Arc<Tree>, folder: &Path) -> Result<()> {
        let _ = (lower, folder);
        Ok(())
    }

    /// Writes what a writable folder changes in `lower` as a layer's tar and returns the number of entries. The folder may
    /// be mounted.
    fn write_changes(&self, lower: Arc<Tree>, folder: &Path, out: &mut dyn Write) -> Result<u64>;

    /// Writes the layer that a tree is of as a tar.
    fn write_layer(&self, layer: Arc<Tree>, out: &mut dyn Write) -> Result<()> {
        let _ = (layer, out);
        Err(Error::Unavailable { reason: "layers are not told here".into() })
    }

    /// Lets go of what outlives this process, once nothing is mounted.
    fn stop(&self) -> Result<()>;
}

/// A mount that is being served.
pub trait Mounted: fmt::Debug + Send + Sync {
    /// Whether it is mounted still: somebody else may have unmounted it.
    fn is_live(&self) -> bool;

    /// Whether nobody uses it any more, here or in another namespace.
    fn has_ended(&self) -> bool {
        !self.is_live()
    }

    /// Takes the mount away and removes the mountpoint; returns when the last program has let go of it.
    fn unmount(self: Box<Self>) -> Result<()>;

    /// Stops serving. The mount stays and waits for the next process.
    fn leave(self: Box<Self>);
}
