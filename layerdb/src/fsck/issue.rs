//! What can be wrong with a store: one variant for each defect.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::damage::listed;
use crate::digest::{ChainId, DiffId, Digest, ObjectId};

/// How bad a defect is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing that anybody stored is lost or served wrongly: space, tidiness, or a guard that is not in place.
    Warning,
    /// Something that a layer, image or snapshot needs is damaged or gone. Everything else works.
    Error,
    /// The store can't tell what it holds, so that collecting garbage and the like refuse to work until somebody
    /// has decided.
    Fatal,
}

/// A defect, whoever knows how to find it.
pub trait Defect: fmt::Display {
    /// What defects of this kind are called, for example `missing-object`.
    fn name(&self) -> String;
    /// How bad it is.
    fn severity(&self) -> Severity;
    /// What a person can do about it.
    fn advice(&self) -> &'static str;
    /// Its parts, for programs.
    fn details(&self) -> serde_json::Value;
}

/// The layers and images that a damaged thing is needed by; the first of them, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// Layers.
    pub layers: Vec<DiffId>,
    /// How many layers.
    pub layers_total: u64,
    /// Images, by name.
    pub images: Vec<String>,
    /// How many images.
    pub images_total: u64,
}

impl From<crate::damage::Touched> for Users {
    fn from(mut touched: crate::damage::Touched) -> Users {
        const NAMED_MAX: usize = 10;
        let (layers_total, images_total) = (touched.layers.len() as u64, touched.images.len() as u64);
        touched.layers.truncate(NAMED_MAX);
        touched.images.truncate(NAMED_MAX);
        Users { layers: touched.layers, layers_total, images: touched.images, images_total }
    }
}

impl fmt::Display for Users {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = listed(self.layers.iter().map(ToString::to_string), self.layers_total as usize);
        let images = listed(self.images.iter().cloned(), self.images_total as usize);
        write!(out, "layers: {layers}; images: {images}")
    }
}

/// A defect of the layer database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", tag = "issue")]
pub enum Issue {
    /// `FORMAT` is not what it was when the store was opened.
    DamagedFormat {
        /// What is wrong.
        reason: String,
    },
    /// RocksDB can't read a family of rows.
    UnreadableMetadata {
        /// The family.
        family: String,
        /// RocksDB's words.
        reason: String,
    },
    /// A row's value or key makes no sense.
    DamagedRow {
        /// The family.
        family: String,
        /// The key, escaped.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A row that no part of Mica writes.
    UnknownRow {
        /// The family.
        family: String,
        /// The key, escaped.
        key: String,
    },
    /// A directory of the store is not there.
    MissingDirectory {
        /// Below the root.
        path: String,
    },
    /// A file or directory that no part of Mica makes.
    ForeignFile {
        /// Below the root.
        path: String,
    },
    /// A sealed file can be written to, or a private directory be read by others.
    WrongMode {
        /// Below the root.
        path: String,
        /// Permissions that it should have.
        expected: u32,
        /// Permissions that it has.
        found: u32,
    },
    /// A sealed file has further names, by which it might be written to.
    LinkedFile {
        /// Below the root.
        path: String,
        /// How many names it has.
        links: u64,
    },
    /// A tree or recipe that no row names: a crash left it.
    StrayTree {
        /// Below the root.
        path: String,
    },

    /// A content that is needed is not there.
    MissingObject {
        /// The object.
        id: ObjectId,
        /// The length that it has by the trees.
        bytes: u64,
        /// Whether it was moved to quarantine.
        quarantined: bool,
        /// Who needs it.
        users: Users,
    },
    /// A content has another length than the trees say.
    WrongLength {
        /// The object.
        id: ObjectId,
        /// The length that it has by the trees.
        expected: u64,
        /// The length of its file.
        found: u64,
        /// Who needs it.
        users: Users,
    },
    /// A content has another digest than its name.
    CorruptObject {
        /// The object.
        id: ObjectId,
        /// The digest of its file.
        actual: Digest,
        /// Who needs it.
        users: Users,
    },
    /// A content can't be read, or is no regular file.
    UnreadableObject {
        /// The object.
        id: ObjectId,
        /// Why.
        reason: String,
        /// Who needs it.
        users: Users,
    },

    /// The row of a layer has the key of another.
    MisnamedLayer {
        /// The key.
        key: String,
        /// The layer that the row describes.
        diff_id: DiffId,
    },
    /// A layer's tree is not there.
    MissingTree {
        /// The layer.
        diff_id: DiffId,
    },
    /// A layer's tree has another length than its row says.
    WrongTreeLength {
        /// The layer.
        diff_id: DiffId,
        /// The length that the row says.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// A layer's tree has another digest than its row says.
    CorruptTree {
        /// The layer.
        diff_id: DiffId,
        /// The digest that the row says.
        expected: Digest,
        /// The digest of the file.
        actual: Digest,
    },
    /// A layer's tree is what was written, and makes no sense.
    InvalidTree {
        /// The layer.
        diff_id: DiffId,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer's tree can't be read, or is no regular file.
    UnreadableTree {
        /// The layer.
        diff_id: DiffId,
        /// Why.
        reason: String,
    },
    /// A layer's recipe is not there.
    MissingRecipe {
        /// The layer.
        diff_id: DiffId,
    },
    /// A layer's recipe is not the one its row describes.
    CorruptRecipe {
        /// The layer.
        diff_id: DiffId,
        /// What is wrong with it.
        reason: String,
    },
    /// Tree, contents and recipe are each whole, and the tar made of them isn't the layer's.
    WrongTar {
        /// The layer.
        diff_id: DiffId,
        /// What came out.
        reason: String,
    },

    /// The row of a chain has the key of another.
    MisnamedChain {
        /// The key.
        key: String,
    },
    /// A chain's tree is not there.
    MissingChainTree {
        /// The chain.
        chain: ChainId,
    },
    /// A chain's tree is not the one its row describes.
    CorruptChainTree {
        /// The chain.
        chain: ChainId,
        /// What is wrong with it.
        reason: String,
    },
    /// A chain's tree is another than its layers make.
    StaleChainTree {
        /// The chain.
        chain: ChainId,
        /// The digest of what its layers make.
        expected: Digest,
        /// The digest that its row says.
        actual: Digest,
    },
    /// A chain's layer is not in the store.
    UselessChain {
        /// The chain.
        chain: ChainId,
        /// The layer.
        diff_id: DiffId,
    },

    /// The row of an image has the key of another.
    MisnamedImage {
        /// The key.
        key: String,
        /// The name in the row.
        name: String,
    },
    /// An image's layer is not in the store.
    MissingImageLayer {
        /// The image.
        image: String,
        /// The layer.
        diff_id: DiffId,
    },
    /// An image's manifest or configuration is not in the store.
    MissingDocument {
        /// The image.
        image: String,
        /// The document.
        id: ObjectId,
    },
    /// An image's manifest or configuration has another digest than its name.
    CorruptDocument {
        /// The image.
        image: String,
        /// The document.
        id: ObjectId,
        /// The digest of its file.
        actual: Digest,
    },
    /// An image's row and its configuration tell different layers.
    WrongConfig {
        /// The image.
        image: String,
        /// How they differ.
        reason: String,
    },
    /// A pin keeps a layer that is not in the store.
    MissingPinnedLayer {
        /// The pin's owner.
        owner: String,
        /// The layer.
        diff_id: DiffId,
    },

    /// A file in quarantine has no note.
    MissingNote {
        /// Its name.
        name: String,
    },
    /// A note in quarantine has no file: a crash came between the two.
    StrayNote {
        /// Its name.
        name: String,
    },
}

const IMPORT_AGAIN: &str = "import or pull the image again, or `mica layer verify --repair --from SOURCE` the layer";

impl Defect for Issue {
    fn name(&self) -> String {
        self.details()["issue"].as_str().unwrap_or_default().to_owned()
    }

    fn severity(&self) -> Severity {
        use Issue as I;
        match self {
            I::DamagedFormat { .. } | I::UnreadableMetadata { .. } | I::DamagedRow { .. } | I::MisnamedLayer { .. } => {
                Severity::Fatal
            }
            I::UnknownRow { .. }
            | I::MissingDirectory { .. }
            | I::ForeignFile { .. }
            | I::WrongMode { .. }
            | I::LinkedFile { .. }
            | I::StrayTree { .. }
            | I::MisnamedChain { .. }
            | I::MissingChainTree { .. }
            | I::UselessChain { .. }
            | I::MissingNote { .. }
            | I::StrayNote { .. } => Severity::Warning,
            I::MissingObject { .. }
            | I::WrongLength { .. }
            | I::CorruptObject { .. }
            | I::UnreadableObject { .. }
            | I::MissingTree { .. }
            | I::WrongTreeLength { .. }
            | I::CorruptTree { .. }
            | I::InvalidTree { .. }
            | I::UnreadableTree { .. }
            | I::MissingRecipe { .. }
            | I::CorruptRecipe { .. }
            | I::WrongTar { .. }
            | I::CorruptChainTree { .. }
            | I::StaleChainTree { .. }
            | I::MisnamedImage { .. }
            | I::MissingImageLayer { .. }
            | I::MissingDocument { .. }
            | I::CorruptDocument { .. }
            | I::WrongConfig { .. }
            | I::MissingPinnedLayer { .. } => Severity::Error,
        }
    }

    fn advice(&self) -> &'static str {
        use Issue as I;
        match self {
            I::DamagedFormat { .. } => "put the file back from another store of this version, with this store's uuid",
            I::UnreadableMetadata { .. } => {
                "stop the daemon, keep a copy of meta/, and look at the disk; the objects and trees are safe, and \
                 importing the images into a new store with `--from` this one is the way back"
            }
            I::DamagedRow { .. } | I::MisnamedLayer { .. } | I::MisnamedImage { .. } => {
                "a chain's row is dropped by --repair; of another, remove what it describes and import it again"
            }
            I::UnknownRow { .. } => "a newer or another program may have written it; it does no harm",
            I::MissingDirectory { .. } | I::WrongMode { .. } => "--repair sets it right",
            I::ForeignFile { .. } => {
                "--repair moves it to quarantine/ out of objects/, layers/ and chains/; elsewhere look whose it is"
            }
            I::LinkedFile { .. } => "find the other name (`find -samefile`) and remove it",
            I::StrayTree { .. } | I::StrayNote { .. } => "--repair removes it, and so does `mica gc`",
            I::MissingObject { .. } | I::MissingTree { .. } | I::MissingRecipe { .. } | I::MissingDocument { .. } => {
                IMPORT_AGAIN
            }
            I::WrongLength { .. }
            | I::CorruptObject { .. }
            | I::UnreadableObject { .. }
            | I::WrongTreeLength { .. }
            | I::CorruptTree { .. }
            | I::InvalidTree { .. }
            | I::UnreadableTree { .. }
            | I::CorruptRecipe { .. }
            | I::CorruptDocument { .. } => {
                "--repair takes it out of use; then import or pull the image again, or `mica layer verify --repair \
                 --from SOURCE` the layer"
            }
            I::WrongTar { .. } => "keep the store and report it: a part is damaged in a way that no digest shows",
            I::MisnamedChain { .. }
            | I::MissingChainTree { .. }
            | I::CorruptChainTree { .. }
            | I::StaleChainTree { .. }
            | I::UselessChain { .. } => "--repair drops it; it is built again when it is needed",
            I::MissingImageLayer { .. } | I::WrongConfig { .. } => "import the image again, or remove its name",
            I::MissingPinnedLayer { .. } => {
                "pull the image again; if the owner is a snapshot, remove it and what builds upon it"
            }
            I::MissingNote { .. } => "look at it; `mica fsck --empty-quarantine` removes it with the others",
        }
    }

    fn details(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Issue as I;
        match self {
            I::DamagedFormat { reason } => write!(out, "FORMAT is damaged: {reason}"),
            I::UnreadableMetadata { family, reason } => write!(out, "rows of {family} can't be read: {reason}"),
            I::DamagedRow { family, key, reason } => write!(out, "row \"{key}\" of {family} is damaged: {reason}"),
            I::UnknownRow { family, key } => write!(out, "row \"{key}\" of {family} is not known"),
            I::MissingDirectory { path } => write!(out, "directory {path} is missing"),
            I::ForeignFile { path } => write!(out, "{path} is no file of a store"),
            I::WrongMode { path, expected, found } => {
                write!(out, "{path} has permissions {found:04o} instead of {expected:04o}")
            }
            I::LinkedFile { path, links } => write!(out, "{path} has {links} names"),
            I::StrayTree { path } => write!(out, "{path} belongs to nothing"),
            I::MissingObject { id, bytes, quarantined, users } => {
                let place = if *quarantined { "in quarantine" } else { "missing" };
                write!(out, "object {id} of {bytes} bytes is {place}; {users}")
            }
            I::WrongLength { id, expected, found, users } => {
                write!(out, "object {id} has {found} bytes instead of {expected}; {users}")
            }
            I::CorruptObject { id, actual, users } => {
                write!(out, "object {id} is corrupt: its digest is {actual}; {users}")
            }
            I::UnreadableObject { id, reason, users } => {
                write!(out, "object {id} can't be read: {reason}; {users}")
            }
            I::MisnamedLayer { key, diff_id } => write!(out, "the row of layer {diff_id} is called {key}"),
            I::MissingTree { diff_id } => write!(out, "the tree of layer {diff_id} is missing"),
            I::WrongTreeLength { diff_id, expected, found } => {
                write!(out, "the tree of layer {diff_id} has {found} bytes instead of {expected}")
            }
            I::CorruptTree { diff_id, expected, actual } => {
                write!(out, "the tree of layer {diff_id} is corrupt: its digest is {actual} instead of {expected}")
            }
            I::InvalidTree { diff_id, reason } => write!(out, "the tree of layer {diff_id} is invalid: {reason}"),
            I::UnreadableTree { diff_id, reason } => {
                write!(out, "the tree of layer {diff_id} can't be read: {reason}")
            }
            I::MissingRecipe { diff_id } => write!(out, "the recipe of layer {diff_id} is missing"),
            I::CorruptRecipe { diff_id, reason } => write!(out, "the recipe of layer {diff_id} is corrupt: {reason}"),
            I::WrongTar { diff_id, reason } => write!(out, "layer {diff_id} does not give its tar back: {reason}"),
            I::MisnamedChain { key } => write!(out, "the row {key} of a chain has layers of another"),
            I::MissingChainTree { chain } => write!(out, "the tree of chain {chain} is missing"),
            I::CorruptChainTree { chain, reason } => write!(out, "the tree of chain {chain} is corrupt: {reason}"),
            I::StaleChainTree { chain, expected, actual } => {
                write!(out, "the tree of chain {chain} is {actual}, and its layers make {expected}")
            }
            I::UselessChain { chain, diff_id } => write!(out, "chain {chain} has layer {diff_id}, which is gone"),
            I::MisnamedImage { key, name } => write!(out, "the row \"{key}\" of an image says that it is {name}"),
            I::MissingImageLayer { image, diff_id } => write!(out, "image {image} has layer {diff_id}, which is gone"),
            I::MissingDocument { image, id } => write!(out, "document {id} of image {image} is missing"),
            I::CorruptDocument { image, id, actual } => {
                write!(out, "document {id} of image {image} is corrupt: its digest is {actual}")
            }
            I::WrongConfig { image, reason } => write!(out, "the configuration of image {image} disagrees: {reason}"),
            I::MissingPinnedLayer { owner, diff_id } => write!(out, "{owner} needs layer {diff_id}, which is gone"),
            I::MissingNote { name } => write!(out, "quarantine/{name} has no note"),
            I::StrayNote { name } => write!(out, "quarantine/{name} is the note of nothing"),
        }
    }
}
