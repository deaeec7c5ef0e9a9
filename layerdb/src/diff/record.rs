//! What a comparison tells.

use serde::{Deserialize, Serialize};

use super::Name;
use crate::error::Result;
use crate::tree::{FileKind, Inode, Tree};

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// How.
    pub change: ChangeKind,
    /// From the root: `/etc/issue`.
    pub path: Name,
    /// In what, if it is there before and after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<Property>,
    /// The names of extended attributes that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<Name>,
    /// What was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Seen>,
    /// What is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Seen>,
}

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It wasn't there.
    Added,
    /// It was there, and is something else now.
    Changed,
    /// It isn't there any more.
    Removed,
}

/// In what two inodes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Property {
    /// What it is.
    Type,
    /// The bytes of a regular file.
    Content,
    /// Where a symbolic link leads.
    Target,
    /// The numbers of a device.
    Device,
    /// Permissions.
    Mode,
    /// Owner or group.
    Owner,
    /// Extended attributes.
    Xattr,
    /// With which other names it is one file.
    Links,
    /// Time of modification.
    Time,
    /// In a layer: whether a directory hides what lower layers have in it.
    Opaque,
    /// In a layer: whether a directory is there only because of what is in it.
    Implied,
}

impl Property {
    /// Its name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Property::Type => "type",
            Property::Content => "content",
            Property::Target => "target",
            Property::Device => "device",
            Property::Mode => "mode",
            Property::Owner => "owner",
            Property::Xattr => "xattr",
            Property::Links => "links",
            Property::Time => "time",
            Property::Opaque => "opaque",
            Property::Implied => "implied",
        }
    }
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Chardev,
    /// A block device.
    Blockdev,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// In a layer: what hides a name of lower layers.
    Whiteout,
}

impl NodeKind {
    pub(super) fn of(inode: &Inode) -> NodeKind {
        match inode.kind {
            _ if inode.is_whiteout() => NodeKind::Whiteout,
            FileKind::Regular => NodeKind::File,
            FileKind::Directory => NodeKind::Directory,
            FileKind::Symlink => NodeKind::Symlink,
            FileKind::CharDevice => NodeKind::Chardev,
            FileKind::BlockDevice => NodeKind::Blockdev,
            FileKind::Fifo => NodeKind::Fifo,
            FileKind::Socket => NodeKind::Socket,
        }
    }

    /// Its name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            NodeKind::File => "file",
            NodeKind::Directory => "directory",
            NodeKind::Symlink => "symlink",
            NodeKind::Chardev => "chardev",
            NodeKind::Blockdev => "blockdev",
            NodeKind::Fifo => "fifo",
            NodeKind::Socket => "socket",
            NodeKind::Whiteout => "whiteout",
        }
    }
}

/// An inode as a comparison shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: NodeKind,
    /// Permissions in octal digits.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file; 0 for anything else.
    pub size: u64,
    /// Time of modification, in seconds since the epoch.
    pub mtime: i64,
    /// Where a symbolic link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// Numbers of a device: `8:1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl Seen {
    pub(super) fn of(tree: &Tree, inode: &Inode) -> Result<Seen> {
        let kind = NodeKind::of(inode);
        let target = match kind {
            NodeKind::Symlink => Some(Name(tree.link_target(inode)?.into_owned())),
            _ => None,
        };
        let device = matches!(kind, NodeKind::Chardev | NodeKind::Blockdev)
            .then(|| format!("{}:{}", rustix::fs::major(inode.rdev), rustix::fs::minor(inode.rdev)));
        Ok(Seen {
            kind,
            mode: format!("{:04o}", inode.mode & 0o7777),
            uid: inode.uid,
            gid: inode.gid,
            size: if kind == NodeKind::File { inode.size } else { 0 },
            mtime: inode.mtime.secs,
            target,
            device,
        })
    }
}

/// How many paths differ in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Regular files, by their names.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Everything else.
    pub others: u64,
    /// Bytes of these files before; a file of several names counts once.
    pub bytes_before: u64,
    /// Bytes of these files after.
    pub bytes_after: u64,
}

impl Counts {
    /// All paths.
    pub fn paths(&self) -> u64 {
        self.files + self.directories + self.others
    }
}

/// All differences, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// What wasn't there.
    pub added: Counts,
    /// What is something else now.
    pub changed: Counts,
    /// What isn't there any more.
    pub removed: Counts,
}
