//! The calls, each with its arguments. What a call does is in the file of its group.

use std::path::PathBuf;

use mica_layerdb::Rate;
use serde::{Deserialize, Serialize};

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
    /// One image: [`super::ImageReport`].
    ImageShow {
        /// Name, digest or unique prefix of a digest.
        reference: String,
    },
    /// Take an image's name away; answers the image.
    ImageRm {
        /// Name, digest or unique prefix of a digest.
        reference: String,
    },
    /// What it takes to mount an image: [`super::MountableImage`].
    ImageMount {
        /// Name, digest or unique prefix of a digest.
        reference: String,
        /// The lock ([`super::ImageLock`]) that keeps the image's layers.
        lock: String,
    },
    /// All layers.
    LayerLs,
    /// One layer: [`super::LayerReport`].
    LayerShow {
        /// Diff-id, blob digest or unique prefix of one.
        digest: String,
    },
    /// A layer's uncompressed tar as data, byte for byte; answers the layer.
    LayerExport {
        /// Diff-id, blob digest or unique prefix of one.
        digest: String,
    },
    /// All snapshots: a list of [`super::SnapshotRow`].
    SnapshotLs,
    /// One snapshot: [`super::SnapshotReport`].
    SnapshotShow {
        /// The engine's key.
        key: String,
    },
    /// Collect garbage: [`mica_layerdb::GcReport`].
    Gc {
        /// Remove nothing.
        dry_run: bool,
        /// How much to remove in a second; as much as possible if `None`.
        #[serde(default)]
        rate: Option<Rate>,
    },
    /// Who refers to something: [`mica_layerdb::Explanation`], or null if there is no such thing.
    GcExplain {
        /// The digest of an object, a layer, a blob, a chain, a manifest or a configuration, or a unique prefix of one.
        digest: String,
    },
    /// What takes space: [`mica_layerdb::df::Df`].
    Df,
    /// Who serves what: [`super::StatusReport`].
    Status,
    /// End every mount, and then the daemon. It ends also if programs hold on to their mounts, which is an error.
    UmountAll,
    /// End the daemon. Mounts stay.
    Stop,
}
