//! Everything that can go wrong in the layer database.
//!
//! A variant says what the caller must do; "absent" is `Option`, never an error.

use std::io;
use std::path::PathBuf;

use crate::digest::{DiffId, Digest, ObjectId};

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the name of the thing concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk or the kernel refused.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, and to what.
        action: String,
        /// The system's answer.
        source: io::Error,
    },

    /// Not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("invalid digest {text:?}")]
    InvalidDigest {
        /// The text as given.
        text: String,
    },

    /// The file is no tree at all, or one whose superblock is damaged.
    #[error("tree {tree} is corrupt: {reason}")]
    CorruptTreeFile {
        /// The tree's name.
        tree: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The file is shorter or longer than its superblock says.
    #[error("tree {tree} is corrupt: its file has {actual_bytes} bytes, its superblock says {expected_bytes}")]
    TreeLength {
        /// The tree's name.
        tree: String,
        /// Length by the superblock.
        expected_bytes: u64,
        /// Length of the file.
        actual_bytes: u64,
    },

    /// A newer Mica wrote the tree.
    #[error("tree {tree} has format version {found}, this program reads version {supported}")]
    TreeVersion {
        /// The tree's name.
        tree: String,
        /// Version in the file.
        found: u32,
        /// Version this program writes and reads.
        supported: u32,
    },

    /// One inode of a tree, or what hangs on it, is damaged.
    #[error("tree {tree} is corrupt at nid {nid}: {reason}")]
    CorruptTree {
        /// The tree's name.
        tree: String,
        /// The damaged inode.
        nid: u64,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A caller took an inode of one kind for another (e.g. a lookup in a regular file).
    #[error("tree {tree}: nid {nid} is not a {wanted}")]
    WrongKind {
        /// The tree's name.
        tree: String,
        /// The inode.
        nid: u64,
        /// The kind it should have had.
        wanted: &'static str,
    },

    /// A name that no directory can hold: empty, `.`, `..`, over 255 bytes, with `/` or NUL.
    #[error("invalid file name \"{name}\": {reason}")]
    InvalidName {
        /// The name, escaped.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A hard link to a directory, a child of something that is none, or the like.
    #[error("cannot place \"{name}\" in the tree: {reason}")]
    InvalidNode {
        /// The name, escaped.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },

    /// An extended attribute outside the namespaces `user.`, `trusted.`, `security.` and the POSIX ACLs.
    #[error("extended attribute \"{name}\" has no namespace that a tree can hold")]
    XattrNamespace {
        /// The attribute's name, escaped.
        name: String,
    },

    /// An extended attribute that is too long, by its value, its name or together with its inode's others.
    #[error("extended attribute \"{name}\" of {bytes} bytes is too long: {reason}")]
    XattrTooLong {
        /// The attribute's name, escaped.
        name: String,
        /// Length of the part that is too long.
        bytes: u64,
        /// The limit that was broken.
        reason: &'static str,
    },

    /// The tree would outgrow its format.
    #[error("tree is too large: {reason}")]
    TreeTooLarge {
        /// The limit that was broken.
        reason: &'static str,
    },

    /// A newer program wrote the store; nothing was touched.
    #[error("the store at {} has format version {found}; this program supports version {supported}", root.display())]
    NewerFormat {
        /// The store's directory.
        root: PathBuf,
        /// Version of the store, with the features this program doesn't know.
        found: String,
        /// Newest version this program understands.
        supported: String,
    },

    /// The directory holds something that is no store.
    #[error("{} is not a store: {reason}", root.display())]
    NotAStore {
        /// The directory.
        root: PathBuf,
        /// How that was noticed.
        reason: String,
    },

    /// A process has the store open.
    #[error("the store at {} is in use by another process", root.display())]
    Locked {
        /// The store's directory.
        root: PathBuf,
    },

    /// The store's directories are not all on one filesystem, so files can't be moved between them.
    #[error("{} and its directory {directory} are on different filesystems", root.display())]
    SplitStore {
        /// The store's directory.
        root: PathBuf,
        /// The directory elsewhere.
        directory: String,
    },

    /// A sync failed earlier: what the kernel was given may be lost, so nothing more is written until the store is
    /// opened anew.
    #[error("the store at {} refuses writes, since an earlier one failed; open it anew", root.display())]
    Broken {
        /// The store's directory.
        root: PathBuf,
    },

    /// The metadata database failed.
    #[error("{action}: {reason}")]
    Metadata {
        /// What was being done.
        action: String,
        /// The database's answer.
        reason: String,
    },

    /// The metadata is damaged.
    #[error("{action}: {reason}")]
    CorruptMetadata {
        /// What was being done.
        action: String,
        /// What is wrong.
        reason: String,
    },

    /// A layer's bytes can't be taken in.
    #[error("layer {layer} is bad: {}at offset {offset} of its tar: {reason}", in_entry(entry))]
    BadLayer {
        /// What the caller called the layer.
        layer: String,
        /// The name in the entry concerned, escaped; empty if there is none.
        entry: String,
        /// Where in the uncompressed tar the entry begins, or the stream broke.
        offset: u64,
        /// What is wrong.
        reason: String,
    },

    /// Bytes are not those that their name promised.
    #[error("{what}: expected {expected}, found {actual}")]
    DigestMismatch {
        /// What was compared.
        what: String,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },

    /// The store doesn't have this layer.
    #[error("there is no layer {diff_id}")]
    NoLayer {
        /// The layer.
        diff_id: DiffId,
    },

    /// The store doesn't have a layer that somebody asked for by its digest, or the beginning of it.
    #[error("there is no layer {name}")]
    NoLayerNamed {
        /// The layer as the caller named it.
        name: String,
    },

    /// Nothing has a name that could be of several kinds.
    #[error("there is no image, snapshot or layer {name}")]
    NoneNamed {
        /// The name.
        name: String,
    },

    /// The tree file of a layer is damaged or gone.
    #[error("layer {diff_id} is corrupt: {source}")]
    CorruptLayer {
        /// The layer.
        diff_id: DiffId,
        /// What is wrong with its tree.
        source: Box<Error>,
    },

    /// The layer was taken in by a program that kept no recipes, so its tar can't be rebuilt. Taking it in again adds
    /// the recipe.
    #[error("layer {diff_id} has no recipe to rebuild its tar from; take it in again")]
    NoRecipe {
        /// The layer.
        diff_id: DiffId,
    },

    /// The recipe of a layer is damaged or gone.
    #[error("the recipe of layer {diff_id} is corrupt: {reason}")]
    CorruptRecipe {
        /// The layer.
        diff_id: DiffId,
        /// What is wrong with it.
        reason: String,
    },

    /// A name stands for several things.
    #[error("{name} is ambiguous: {}", matches.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// What it stands for.
        matches: Vec<String>,
    },

    /// The store doesn't have this image.
    #[error("there is no image {name}")]
    NoImage {
        /// The image as the caller named it.
        name: String,
    },

    /// No name for an image.
    #[error("{name:?} is no name for an image: {reason}")]
    BadName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// No change of a configuration.
    #[error("change {change:?}: {reason}")]
    BadChange {
        /// The change as given.
        change: String,
        /// What is wrong with it.
        reason: String,
    },

    /// No platform.
    #[error("platform {text:?} is not of the form OS/ARCHITECTURE[/VARIANT], for example linux/arm64")]
    BadPlatform {
        /// The text as given.
        text: String,
    },

    /// The configuration that a new image is to have is not known.
    #[error("cannot make image {name}: {reason}")]
    BadCommit {
        /// The image that was to be made.
        name: String,
        /// What is missing.
        reason: String,
    },

    /// An image can't be written in the form that was asked for.
    #[error("cannot export image {name}: {reason}")]
    BadExport {
        /// The image.
        name: String,
        /// What is in the way.
        reason: String,
    },

    /// A file or directory is not the image it is taken for.
    #[error("cannot import from {}: {reason}", path.display())]
    BadImage {
        /// Where the image was to come from.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// The file of an object has other bytes than its name says.
    #[error("object {id} is corrupt: {reason}")]
    CorruptObject {
        /// The object.
        id: ObjectId,
        /// What is wrong with it.
        reason: String,
    },

    /// An object that is named has no file.
    #[error("object {id} is missing")]
    NoObject {
        /// The object.
        id: ObjectId,
    },

    /// The directory of a new snapshot is there already.
    #[error("snapshot directory {} exists", path.display())]
    SnapshotDirExists {
        /// The directory.
        path: PathBuf,
    },

    /// A collection of garbage is running.
    #[error("garbage is being collected already")]
    Collecting,

    /// A scrub is reading all contents.
    #[error("all contents are being scrubbed already; fsck reads them too, at once and all of them, if it is told to")]
    Scrubbing,
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Ask for something else: this isn't there.
    NotFound,
    /// Choose another name: this is taken.
    Exists,
    /// Try again later: somebody else is at it.
    Busy,
    /// Give other input: this will never do.
    Invalid,
    /// Repair or fetch anew: what is stored is damaged.
    Corrupt,
    /// Make room.
    NoSpace,
    /// Look after the machine or the program: it can't be done as things are.
    Unavailable,
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        use io::ErrorKind as Io;
        match self {
            Self::Io { source, .. } => match source.kind() {
                Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Kind::NoSpace,
                Io::NotFound => Kind::NotFound,
                Io::AlreadyExists => Kind::Exists,
                Io::ResourceBusy | Io::WouldBlock => Kind::Busy,
                _ => Kind::Unavailable,
            },
            Self::NoLayer { .. }
            | Self::NoLayerNamed { .. }
            | Self::NoneNamed { .. }
            | Self::NoImage { .. }
            | Self::NoRecipe { .. } => Kind::NotFound,
            Self::SnapshotDirExists { .. } => Kind::Exists,
            Self::Locked { .. } | Self::Collecting | Self::Scrubbing => Kind::Busy,
            Self::InvalidDigest { .. }
            | Self::WrongKind { .. }
            | Self::InvalidName { .. }
            | Self::InvalidNode { .. }
            | Self::XattrNamespace { .. }
            | Self::XattrTooLong { .. }
            | Self::TreeTooLarge { .. }
            | Self::NotAStore { .. }
            | Self::BadLayer { .. }
            | Self::DigestMismatch { .. }
            | Self::Ambiguous { .. }
            | Self::BadImage { .. }
            | Self::BadName { .. }
            | Self::BadExport { .. }
            | Self::BadChange { .. }
            | Self::BadPlatform { .. }
            | Self::BadCommit { .. } => Kind::Invalid,
            Self::CorruptTreeFile { .. }
            | Self::TreeLength { .. }
            | Self::CorruptTree { .. }
            | Self::CorruptMetadata { .. }
            | Self::CorruptLayer { .. }
            | Self::CorruptRecipe { .. }
            | Self::CorruptObject { .. }
            | Self::NoObject { .. } => Kind::Corrupt,
            Self::TreeVersion { .. }
            | Self::NewerFormat { .. }
            | Self::SplitStore { .. }
            | Self::Broken { .. }
            | Self::Metadata { .. } => Kind::Unavailable,
        }
    }

    /// Gives a system error the name of what was being done.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

fn in_entry(entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!("entry \"{entry}\" ") }
}
