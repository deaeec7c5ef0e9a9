//! Everything that can go wrong in the layer database.
//!
//! A variant says what the caller must do; "absent" is `Option`, never an error.

use std::io;

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
}

impl Error {
    /// Gives a system error the name of what was being done.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
