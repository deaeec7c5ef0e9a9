//! The numbers and attributes that operations take and return.

use rustix::fs::{Stat, major, makedev, minor};

pub use mica_layerdb::tree::{FileKind, Timestamp};

/// An inode's number: `st_ino`, `d_ino` and FUSE's node id, one and the same.
///
/// A file of the lower keeps its lower number for ever, also when it has been copied up; what lives in the
/// upper alone has the number of [`Ino::of_upper`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// The root of every mount.
pub const ROOT: Ino = Ino(1);

/// Marks numbers that come from the upper's disk.
const UPPER: u64 = 1 << 48;
/// Marks those of a disk whose own numbers need more than 48 bits.
const UPPER_WIDE: u64 = 1 << 62;

impl Ino {
    /// The number of a file that only the upper has, from the disk's number for it. Disks number from 1
    /// upwards and stay below 2^48 unless they have more than 2^48 inodes' room (or, as xfs does, encode
    /// places beyond 64 PiB); those numbers are marked by another bit and stay distinct up to 2^62.
    pub fn of_upper(host: u64) -> Ino {
        if host < UPPER { Ino(UPPER | host) } else { Ino(UPPER_WIDE | host) }
    }

    /// Whether the number was made by [`Ino::of_upper`].
    pub fn is_upper(self) -> bool {
        self.0 & UPPER_WIDE != 0 || self.0 >> 48 == 1
    }
}

impl std::fmt::Display for Ino {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(out)
    }
}

/// A handle of an open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

/// What `stat(2)` tells (POSIX `<sys/stat.h>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Number.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// `st_mode`, with the type bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device, as Linux' `dev_t` has it.
    pub rdev: u64,
    /// Length in bytes.
    pub size: u64,
    /// Space, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of I/O, in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
}

impl Attr {
    /// The attributes of a file of the upper's disk, under the number `ino`. `None` when the disk reports a
    /// type that POSIX does not know.
    pub fn of_stat(ino: Ino, stat: &Stat) -> Option<Attr> {
        Some(Attr {
            ino,
            kind: FileKind::from_mode(stat.st_mode)?,
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: makedev(major(stat.st_rdev), minor(stat.st_rdev)),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            atime: Timestamp { secs: stat.st_atime, nanos: stat.st_atime_nsec as u32 },
            mtime: Timestamp { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            ctime: Timestamp { secs: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
        })
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

/// On whose behalf an operation creates something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process.
    pub pid: u32,
    /// File mode creation mask; already applied to modes unless the mount evaluates ACLs.
    pub umask: u32,
}

/// A time to be set (`utimensat(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to be set; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, with or without type bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
    /// Whether set-user-id, set-group-id and file capabilities are to be cleared, as for a write by a user without privilege.
    pub kill_privileges: bool,
}

/// An entry of a directory being read.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Number.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Name.
    pub name: &'a [u8],
    /// Where reading goes on behind this entry.
    pub cookie: u64,
    /// Attributes, when they were asked for; none for "." and "..".
    pub attr: Option<Attr>,
}

/// An opened file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its handle.
    pub fh: Fh,
}
