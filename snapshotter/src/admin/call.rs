//! The calls, each with its arguments. What a call does is in the file of its group.

use std::path::PathBuf;

use mica_layerdb::image::ExportOptions;
use mica_layerdb::{ImportOptions, Rate};
use serde::{Deserialize, Serialize};

/// What can be asked. As JSON: `{"verb": "image-show", "arguments": {"reference": "app:1"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", content = "arguments", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Call {
    /// Import images; answers the list of them.
    ImageImport {
        /// A folder or file on the machine of the store, absolute.
        source: PathBuf,
        /// How.
        #[serde(default)]
        options: ImportOptions,
    },
    /// An image as data; answers [`mica_layerdb::image::Exported`].
    ImageExport {
        /// Name, digest or unique prefix of a digest.
        reference: String,
        /// How.
        options: ExportOptions,
    },
    /// Give an image one more name; answers the image.
    ImageTag {
        /// Name, digest or unique prefix of a digest.
        reference: String,
        /// The new name.
        name: String,
    },
    /// An image's history: [`super::HistoryReport`]; with files the data has a [`super::HistoryLine`] to a line.
    ImageHistory {
        /// Name, digest or unique prefix of a digest.
        reference: String,
        /// Whether the changes of the layers are told one by one.
        files: bool,
    },
    /// How two images, snapshots or layers differ: [`super::DiffReport`]; the data has a change to a line.
    Diff {
        /// The first.
        before: String,
        /// The second.
        after: String,
        /// Whether a time of modification is a difference of its own.
        times: bool,
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
    /// How a snapshot differs from what it builds upon: [`super::DiffReport`]; the data has a change to a line.
    SnapshotDiff {
        /// The engine's key.
        key: String,
        /// Whether a time of modification is a difference of its own.
        times: bool,
    },
    /// Make an image of a snapshot, which stays as it is; answers the image.
    SnapshotCommit {
        /// The engine's key.
        key: String,
        /// The image to be.
        options: CommitOptions,
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
    /// Check the store: [`mica_layerdb::fsck::FsckReport`].
    Fsck(super::FsckCall),
    /// Verify layers: a list of [`mica_layerdb::verify::LayerCheck`].
    LayerVerify(super::VerifyCall),
    /// Read all contents: [`mica_layerdb::verify::ScrubReport`].
    Scrub {
        /// Bytes read in a second at most; 0 is no limit.
        bytes_per_second: u64,
        /// Begin anew, wherever the last scrub stopped.
        restart: bool,
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

/// An image to be made of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommitOptions {
    /// What to call it.
    pub name: String,
    /// The image that has the configuration, if the layers don't tell.
    pub base: Option<String>,
    /// Who makes it.
    pub author: Option<String>,
    /// A comment for the history.
    pub message: Option<String>,
    /// Instructions of a Dockerfile that change the configuration.
    pub changes: Vec<String>,
}
