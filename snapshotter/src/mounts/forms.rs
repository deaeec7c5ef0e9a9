//! Which form a mount gets: Mica's own by FUSE, or the kernel's.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mica_fs::kernel::probe;
use mica_layerdb::Store;
use mica_layerdb::tree::Tree;

use super::kernel::{KernelMounter, mounted_in};
use super::{FuseMounter, Mounted, Mounter, Plan, Wish};
use crate::config::Form;
use crate::error::{Error, Result};

/// How long an engine may take from the end of one container of an image to the start of the next. What the kernel remembers of a
/// tree's names is lost when it is unmounted.
const LINGER: Duration = Duration::from_secs(30);

/// Mounts in both forms, below one state folder. A snapshot can change its form whenever it is mounted anew: its folder means the
/// same to both.
#[derive(Debug)]
pub struct FormMounter {
    fuse: FuseMounter,
    kernel: KernelMounter,
    /// Why the kernel's form can't be had.
    lacking: Option<String>,
    default: Form,
    /// What an earlier process left mounted by the kernel.
    left: HashSet<u64>,
}

impl FormMounter {
    /// Mounts below `state` as `default` says, if a snapshot says nothing else.
    pub fn new(state: &Path, store: &Store, fuse: FuseMounter, default: Form) -> Result<FormMounter> {
        FormMounter::with_linger(state, store, fuse, default, LINGER)
    }

    /// The same; trees that nobody uses stay mounted for so long.
    pub fn with_linger(
        state: &Path,
        store: &Store,
        fuse: FuseMounter,
        default: Form,
        linger: Duration,
    ) -> Result<FormMounter> {
        let mounts = state.join("mnt");
        let left =
            mounted_in(&fs::canonicalize(&mounts).map_err(Error::io(format!("look for {}", mounts.display())))?)?;
        let kernel = KernelMounter::new(state, store, linger)?;
        let lacking = if fuse.is_verifying() {
            Some("contents are to be compared with their digests, which the kernel does not do".to_owned())
        } else {
            try_kernel(store.root()).err()
        };
        match (default, &lacking) {
            (Form::Fuse, _) => {}
            (Form::Kernel, Some(reason)) => return Err(Error::Form { what: "mounts".into(), reason: reason.clone() }),
            (Form::Auto, Some(reason)) => {
                tracing::info!(reason, "mounts are served by FUSE: the kernel's form can't be had");
            }
            (Form::Kernel | Form::Auto, None) => tracing::info!("mounts are the kernel's: EROFS trees with overlayfs"),
        }
        Ok(FormMounter { fuse, kernel, lacking, default, left })
    }

    /// Mounts in the kernel's form, or says with `None` that this one is FUSE's.
    fn try_mount(&self, plan: &Plan) -> Result<Option<Box<dyn Mounted>>> {
        let number = plan.number;
        let form = match plan.wish {
            Wish::Fuse(reason) => {
                if self.default != Form::Fuse {
                    tracing::debug!(number, reason, "mounted by FUSE");
                }
                return Ok(None);
            }
            Wish::Form(form) => form,
            Wish::Default => self.default,
        };
        let mounted = match (form, &self.lacking) {
            (Form::Fuse, _) => return Ok(None),
            (_, None) => self.mount_by_kernel(plan),
            (_, Some(reason)) => Err(Error::Form { what: format!("snapshot {number}"), reason: reason.clone() }),
        };
        match mounted {
            Ok(mounted) => {
                tracing::info!(number, "mounted by the kernel");
                Ok(Some(mounted))
            }
            Err(error) if form == Form::Auto => {
                tracing::info!(number, reason = %error, "mounted by FUSE");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn mount_by_kernel(&self, plan: &Plan) -> Result<Box<dyn Mounted>> {
        let base = (plan.lower)()?;
        if let Some(folder) = &plan.writable {
            self.fuse.hand_over(Arc::clone(&base.tree), folder)?;
        }
        self.kernel.mount(plan, &base, &self.mountpoint(plan.number))
    }
}

/// Whether the kernel's form can be had on the disk of the store at `root`; if not, why.
pub fn try_kernel(root: &Path) -> std::result::Result<(), String> {
    let folder = root.join("tmp").join(format!("probe-{}", std::process::id()));
    fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let tried = probe(&folder).map_err(|error| error.to_string());
    tried.and(fs::remove_dir(&folder).map_err(|error| format!("{}: {error}", folder.display())))
}

impl Mounter for FormMounter {
    fn mountpoint(&self, number: u64) -> PathBuf {
        self.fuse.mountpoint(number)
    }

    fn mount(&self, plan: Plan) -> Result<Box<dyn Mounted>> {
        match self.try_mount(&plan)? {
            Some(mounted) => Ok(mounted),
            None => self.fuse.mount(plan),
        }
    }

    fn resume(&self, plan: Plan) -> Result<Box<dyn Mounted>> {
        if self.left.contains(&plan.number) {
            self.kernel.resume(&plan, &self.mountpoint(plan.number))
        } else {
            self.fuse.resume(plan)
        }
    }

    fn left(&self) -> Result<Vec<u64>> {
        let mut numbers = self.left.clone();
        numbers.extend(self.fuse.left()?);
        Ok(numbers.into_iter().collect())
    }

    fn recovered(&self) -> Result<()> {
        self.kernel.prune()
    }

    fn mountpoints(&self) -> Result<Vec<u64>> {
        self.fuse.mountpoints()
    }

    fn discard(&self, number: u64) -> Result<()> {
        self.fuse.discard(number)
    }

    fn finish(&self, lower: Arc<Tree>, folder: &Path) -> Result<()> {
        self.fuse.finish(lower, folder)
    }

    fn write_changes(&self, lower: Arc<Tree>, folder: &Path, out: &mut dyn Write) -> Result<u64> {
        self.fuse.write_changes(lower, folder, out)
    }

    fn write_layer(&self, layer: Arc<Tree>, out: &mut dyn Write) -> Result<()> {
        self.fuse.write_layer(layer, out)
    }

    fn stop(&self) -> Result<()> {
        self.kernel.prune()?;
        self.fuse.stop()
    }
}
