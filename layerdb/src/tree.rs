//! Tree files: the names, attributes and small contents of a layer or of a merged chain, as an EROFS image.
//!
//! `docs/FORMAT.md` is the contract of the bytes. A [`Tree`] maps a published file and answers lookups by
//! binary search without keeping state; it validates whatever it follows, so that hostile bytes are an error
//! and nothing worse. A [`Builder`] collects one layer and writes it; [`merge`] flattens a stack of layers.
//! Both writers are deterministic: equal content gives equal bytes, and thereby equal inode numbers.

mod build;
mod check;
mod directory;
mod format;
mod graph;
mod map;
mod merge;
mod names;
mod place;
mod read;
mod share;
mod sink;
mod write;
mod xattr;

use rustix::fs::{major, makedev, minor};

use crate::digest::{Digest, ObjectId};

pub use build::{Builder, NodeId};
pub use check::Form;
pub use directory::{Entries, Entry};
pub use merge::merge;
pub(crate) use names::Entered;
pub use read::{Inode, Tree};
pub use write::{Contents, Placement};
pub use xattr::{OPAQUE_XATTR, representable};

/// Contents up to this many bytes live in the tree itself, larger ones in the object store.
pub const INLINE_MAX: u64 = 4096;

/// The longest file name, in bytes (`NAME_MAX` of POSIX `<limits.h>` on Linux).
pub const NAME_MAX: usize = 255;

/// The longest target of a symbolic link, in bytes (`PATH_MAX` without its NUL).
pub const TARGET_MAX: usize = 4095;

/// The root's number, the same in every tree.
pub const ROOT_NID: Nid = Nid(format::ROOT_NID);

/// An inode's number within its tree: its place in the file, in units of 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nid(pub u64);

/// A point in time, as `struct timespec` has it: `nanos` counts forward from `secs`, also before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device; with number 0:0 in a layer tree: a whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileKind {
    /// The kind in the type bits of an `st_mode` (POSIX `<sys/stat.h>`); `None` when they name no kind.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::Regular,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }

    /// The type bits of `st_mode`.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }

    /// The `d_type` of `getdents64(2)` (`DT_REG` and so on).
    pub const fn dirent_type(self) -> u8 {
        (self.mode_bits() >> 12) as u8
    }

    const fn is_device(self) -> bool {
        matches!(self, Self::CharDevice | Self::BlockDevice)
    }
}

/// The attributes of an inode that is put into a [`Builder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// `st_mode`, with the type bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Device number as Linux' `dev_t` has it; ignored unless the inode is a device.
    pub rdev: u64,
    /// Extended attributes by full name (`user.mime_type`); a name given twice keeps its last value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an inode holds besides its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing: directories, devices, pipes, sockets and empty files.
    None,
    /// The target of a symbolic link, 1 to [`TARGET_MAX`] bytes.
    Symlink(Vec<u8>),
    /// Contents of a regular file, up to [`INLINE_MAX`] bytes.
    Inline(Vec<u8>),
    /// Contents of a regular file that are an object. What fits is to be put inline instead: two writers of
    /// one layer agree on its bytes only if they agree on this.
    Object {
        /// The object.
        id: ObjectId,
        /// Its length in bytes.
        size: u64,
    },
}

/// Where the contents of a regular file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// In the tree: these bytes, all of them. An empty file is an empty slice.
    Inline(&'a [u8]),
    /// In the object store, [`Inode::size`] bytes long.
    Object(ObjectId),
}

/// A tree file as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Digest of all bytes of the file.
    pub digest: Digest,
    /// Length of the file.
    pub bytes: u64,
    /// Number of inodes, the root included.
    pub inodes: u64,
}

/// The attributes of a whiteout: a character device 0:0, as overlayfs marks a deleted name
/// (kernel documentation, *Overlay Filesystem*, "whiteouts and opaque directories").
pub fn whiteout() -> Attributes {
    Attributes {
        mode: FileKind::CharDevice.mode_bits(),
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        rdev: makedev(0, 0),
        xattrs: Vec::new(),
    }
}

/// The kernel's 32-bit form of a device number; `None` when major or minor does not fit (12 and 20 bits).
fn encode_device(device: u64) -> Option<u32> {
    let (major, minor) = (major(device), minor(device));
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The inverse of [`encode_device`].
fn decode_device(encoded: u32) -> u64 {
    makedev((encoded & 0xf_ff00) >> 8, (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn device_numbers_survive_the_kernels_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (8, 256), (259, 1), (4095, 0xf_ffff)] {
            let device = makedev(major, minor);
            assert_eq!(decode_device(encode_device(device).unwrap()), device);
        }
        assert_eq!(encode_device(makedev(8, 0x123)), Some(0x0010_0823));
    }

    #[test]
    fn device_number_beyond_the_kernels_range_is_refused() {
        assert_eq!(encode_device(makedev(4096, 0)), None);
        assert_eq!(encode_device(makedev(1, 0x10_0000)), None);
    }

    #[test]
    fn kind_survives_its_mode_bits() {
        for bits in 0..16 {
            if let Some(kind) = FileKind::from_mode(bits << 12 | 0o7777) {
                assert_eq!(kind.mode_bits(), bits << 12);
                assert_eq!(u32::from(kind.dirent_type()), bits);
            }
        }
        assert_eq!(FileKind::from_mode(0o644), None);
    }
}
