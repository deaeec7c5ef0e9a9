//! Snapshots: what an engine prepares, commits, views and removes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use mica_layerdb::{BlobDigest, DiffId, Store};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::mounts::Mounter;

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A read-only mount of a committed snapshot.
    View,
    /// A writable mount, which can be committed.
    Active,
    /// A stack of layers, which others can build upon.
    Committed,
}

impl Kind {
    /// The name by which filters know it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }
    }
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// What it is.
    pub kind: Kind,
    /// Its name: the key of an active snapshot or a view, the name of a committed one.
    pub name: String,
    /// The name of the snapshot it builds upon; empty for none.
    pub parent: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it became what it is.
    pub created: SystemTime,
    /// When it or its labels last changed.
    pub updated: SystemTime,
}

/// What a snapshot itself takes, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// How to mount a snapshot (`containerd.types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Type.
    pub kind: String,
    /// What to mount.
    pub source: String,
    /// Where below the root to mount it; empty for the root itself.
    pub target: String,
    /// Options as for mount(8).
    pub options: Vec<String>,
}

/// A layer that is to be applied.
pub struct Incoming {
    /// The layer's blob.
    pub reader: Box<dyn Read + Send>,
    /// Its media type.
    pub media_type: String,
    /// The digest that the blob must have.
    pub blob: Option<BlobDigest>,
    /// Length of the blob.
    pub size: u64,
    /// The digest that the uncompressed tar must have.
    pub diff_id: Option<DiffId>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Incoming")
            .field("media_type", &self.media_type)
            .field("blob", &self.blob)
            .field("size", &self.size)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// A layer that has been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Length of the uncompressed tar.
    pub size: u64,
}

/// All snapshots of a store. Every call may block on the disk; none waits for another snapshot's.
#[derive(Debug)]
pub struct Snapshots {
    store: Arc<Store>,
}

fn unavailable<T>() -> Result<T> {
    Err(Error::Unavailable { reason: "snapshots are not served yet".into() })
}

impl Snapshots {
    /// Takes up the snapshots of a store: mounts that an earlier process left are taken over, those of an earlier boot
    /// are made anew when asked for. A snapshot that can't be taken up is reported and does not keep the others.
    pub fn open(store: Arc<Store>, mounts: Arc<dyn Mounter>) -> Result<Arc<Snapshots>> {
        let _ = mounts;
        Ok(Arc::new(Snapshots { store }))
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What is known of a snapshot.
    pub fn stat(&self, key: &str) -> Result<Info> {
        let _ = key;
        unavailable()
    }

    /// Changes labels. Without field paths, or with `labels`, all of them; with `labels.<name>` that one, which goes if
    /// `info` has no or an empty value for it. Nothing else can be changed.
    pub fn update(&self, info: &Info, fieldpaths: &[String]) -> Result<Info> {
        let _ = (info, fieldpaths);
        unavailable()
    }

    /// What a snapshot itself takes.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let _ = key;
        unavailable()
    }

    /// How to mount an active snapshot or a view.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let _ = key;
        unavailable()
    }

    /// Makes an active snapshot upon a committed one, or upon nothing.
    pub fn prepare(&self, key: &str, parent: &str, labels: BTreeMap<String, String>) -> Result<Vec<Mount>> {
        let _ = (key, parent, labels);
        unavailable()
    }

    /// Makes a view of a committed snapshot, or of nothing.
    pub fn view(&self, key: &str, parent: &str, labels: BTreeMap<String, String>) -> Result<Vec<Mount>> {
        let _ = (key, parent, labels);
        unavailable()
    }

    /// Makes a committed snapshot of an active one. `parent` gives a parent to one that was prepared without.
    pub fn commit(&self, name: &str, key: &str, labels: BTreeMap<String, String>, parent: Option<&str>) -> Result<()> {
        let _ = (name, key, labels, parent);
        unavailable()
    }

    /// Removes a snapshot that nothing builds upon. Its space comes back with [`Snapshots::cleanup`].
    pub fn remove(&self, key: &str) -> Result<()> {
        let _ = key;
        unavailable()
    }

    /// The snapshots that one of the filters chooses; all if there are none.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Info>> {
        let _ = filters;
        unavailable()
    }

    /// Brings back the space of what was removed.
    pub fn cleanup(&self) -> Result<()> {
        unavailable()
    }

    /// Forgets what was counted, so that usage is counted anew.
    pub fn clear(&self) {}

    /// Stops serving. Mounts stay, and wait for the next process.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Ends every mount.
    pub fn unmount_all(&self) -> Result<()> {
        Ok(())
    }

    /// Takes in a layer as the contents of the active snapshot that `mounts` are of. `None` if they are not of one, or
    /// if the layer has to go through the mount.
    pub fn apply(&self, mounts: &[Mount], layer: Incoming) -> Result<Option<Applied>> {
        let _ = (mounts, layer);
        unavailable()
    }

    /// Writes what `upper` has changed in `lower` as an uncompressed layer. `None` if that can't be told without
    /// looking through both.
    pub fn diff(&self, lower: &[Mount], upper: &[Mount], out: &mut dyn Write) -> Result<Option<()>> {
        let _ = (lower, upper, out);
        unavailable()
    }
}
