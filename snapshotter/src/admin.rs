//! What people ask of a store, whether a daemon has it open or the command line itself.

mod pins;
mod report;

use std::path::PathBuf;
use std::sync::Arc;

use mica_layerdb::{GcOptions, Image, ImportSource, Layer, Progress, Store};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::snapshots::Snapshots;

pub(crate) use pins::prune;
pub use pins::{ImageLock, MountableImage};
pub use report::{ImageReport, SnapshotReport, SnapshotRow, StatusReport};

/// What can be asked. As JSON: `{"verb": "image-show", "arguments": {"reference": "app:1"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", content = "arguments", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Call {
    /// Import images; answers the list of them.
    ImageImport {
        /// A folder or file on the machine of the store, absolute.
        source: PathBuf,
        /// Name to give to the image.
        name: Option<String>,
    },
    /// All images.
    ImageLs,
    /// One image: [`ImageReport`].
    ImageShow {
        /// Name, digest or unique prefix of a digest.
        reference: String,
    },
    /// Take an image's name away; answers the image.
    ImageRm {
        /// Name, digest or unique prefix of a digest.
        reference: String,
    },
    /// What it takes to mount an image: [`MountableImage`].
    ImageMount {
        /// Name, digest or unique prefix of a digest.
        reference: String,
        /// The lock ([`ImageLock`]) that keeps the image's layers.
        lock: String,
    },
    /// All layers.
    LayerLs,
    /// All snapshots: a list of [`SnapshotRow`].
    SnapshotLs,
    /// One snapshot: [`SnapshotReport`].
    SnapshotShow {
        /// The engine's key.
        key: String,
    },
    /// Collect garbage: [`mica_layerdb::GcReport`].
    Gc {
        /// Remove nothing.
        dry_run: bool,
    },
    /// What takes space: [`mica_layerdb::df::Df`].
    Df,
    /// Who serves what: [`StatusReport`].
    Status,
    /// End every mount, and then the daemon. It ends also if programs hold on to their mounts, which is an error.
    UmountAll,
    /// End the daemon. Mounts stay.
    Stop,
}

/// The daemon, as its administration sees it.
pub trait Daemon: Send + Sync {
    /// What it serves where.
    fn status(&self) -> StatusReport;

    /// Asks it to end. Returns at once.
    fn end(&self);
}

/// Answers calls.
pub struct Admin {
    store: Arc<Store>,
    daemon: Option<(Arc<Snapshots>, Box<dyn Daemon>)>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Admin").field("root", &self.store.root()).finish_non_exhaustive()
    }
}

impl Admin {
    /// The administration of a store that nobody serves.
    pub fn of_store(store: Arc<Store>) -> Admin {
        Admin { store, daemon: None }
    }

    /// The administration of a daemon.
    pub fn of_daemon(snapshots: Arc<Snapshots>, daemon: Box<dyn Daemon>) -> Admin {
        Admin { store: Arc::clone(snapshots.store()), daemon: Some((snapshots, daemon)) }
    }

    /// Does what is asked and returns the answer as JSON.
    pub fn call(&self, call: Call, progress: &dyn Progress) -> Result<Value> {
        match call {
            Call::ImageImport { source, name } => json(&self.import(source, name.as_deref(), progress)?),
            Call::ImageLs => json(&self.store.images()?),
            Call::ImageShow { reference } => json(&ImageReport::of(&self.store, self.image(&reference)?)?),
            Call::ImageRm { reference } => json(&self.store.remove_image(&reference)?),
            Call::ImageMount { reference, lock } => {
                json(&pins::mountable(&self.store, self.image(&reference)?, &lock)?)
            }
            Call::LayerLs => json::<Vec<Layer>>(&self.store.layers()?),
            Call::SnapshotLs => json(&match &self.daemon {
                Some((snapshots, _)) => SnapshotRow::all(snapshots)?,
                None => report::recorded(&self.store)?,
            }),
            Call::SnapshotShow { key } => json(&match &self.daemon {
                Some((snapshots, _)) => SnapshotReport::of(snapshots, &key)?,
                None => report::recorded_one(&self.store, &key)?,
            }),
            Call::Gc { dry_run } => {
                pins::prune(&self.store)?;
                json(&self.store.gc(GcOptions { dry_run })?)
            }
            Call::Df => {
                pins::prune(&self.store)?;
                json(&self.store.df()?)
            }
            Call::Status => json(&self.daemon()?.1.status()),
            Call::UmountAll => {
                let (snapshots, daemon) = self.daemon()?;
                let ended = snapshots.unmount_all();
                daemon.end();
                ended.and_then(|()| json(&()))
            }
            Call::Stop => {
                self.daemon()?.1.end();
                json(&())
            }
        }
    }

    fn import(&self, source: PathBuf, name: Option<&str>, progress: &dyn Progress) -> Result<Vec<Image>> {
        if !source.is_absolute() {
            let reason = "the path of an image must be absolute".to_owned();
            return Err(Error::Invalid { what: source.display().to_string(), reason });
        }
        Ok(self.store.import(&ImportSource::Detect(source), name, progress)?)
    }

    fn image(&self, reference: &str) -> Result<Image> {
        let image = self.store.image(reference)?;
        image.ok_or_else(|| Error::Store(mica_layerdb::Error::NoImage { name: reference.to_owned() }))
    }

    fn daemon(&self) -> Result<&(Arc<Snapshots>, Box<dyn Daemon>)> {
        self.daemon.as_ref().ok_or_else(|| Error::Unavailable {
            reason: format!("no daemon serves the store at {}", self.store.root().display()),
        })
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|error| Error::Invalid { what: "the answer".to_owned(), reason: error.to_string() })
}
