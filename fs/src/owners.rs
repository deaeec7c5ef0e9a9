//! Owners and modes that are kept beside a file instead of by the disk (`xattr_permissions` of fuse-overlayfs).
//!
//! Who has no privilege owns every file of a layer himself. What the files are meant to be is then told by an extended
//! attribute, `UID:GID:MODE[:TYPE]`: decimal ids, an octal mode, and a type where the disk has a regular file in
//! the place of what takes privilege to make or can't have the attribute: `file`, `dir`, `symlink` (the contents are the
//! target), `pipe`, `socket`, `block-MAJOR-MINOR`, `char-MAJOR-MINOR`. A file without the attribute is what the disk says.
//!
//! With `user.containers.override_stat`, `security.NAME` is kept as `user.containers.override_security.NAME` as well.

use std::io::Read as _;
use std::os::fd::OwnedFd;

use rustix::fs::{Stat, major, makedev, minor};
use rustix::io::Errno;

use crate::inode::FileKind;

const SECURITY: &[u8] = b"security.";
const CONTAINERS_SECURITY: &[u8] = b"user.containers.override_security.";
const CONTAINERS_STAT: &[u8] = b"user.containers.override_stat";
const SECURITY_STAT: &[u8] = b"security.fuseoverlayfs.override_stat";

/// Who keeps owners and modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owners {
    /// The disk.
    #[default]
    Disk,
    /// `security.fuseoverlayfs.override_stat`, which takes privilege to write.
    Security,
    /// `user.containers.override_stat`, which containers' engines write into layers.
    Containers,
}

/// What an attribute tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// What it is meant to be, and the device's number; without, what the disk says.
    pub(crate) kind: Option<(FileKind, u64)>,
}

impl Owners {
    /// The attribute that tells, unless it is the disk.
    pub(crate) fn attribute(self) -> Option<&'static [u8]> {
        match self {
            Owners::Disk => None,
            Owners::Security => Some(SECURITY_STAT),
            Owners::Containers => Some(CONTAINERS_STAT),
        }
    }

    /// Under which name an attribute of programs is on the disk. Those that would tell another owner are EPERM.
    pub(crate) fn stored_name(self, name: Vec<u8>) -> Result<Vec<u8>, Errno> {
        if self.is_own(&name) {
            return Err(Errno::PERM);
        }
        match name.strip_prefix(SECURITY) {
            Some(rest) if self == Owners::Containers => Ok([CONTAINERS_SECURITY, rest].concat()),
            _ => Ok(name),
        }
    }

    /// The reverse; `None` for what tells owners.
    pub(crate) fn shown_name(self, stored: Vec<u8>) -> Option<Vec<u8>> {
        match stored.strip_prefix(CONTAINERS_SECURITY) {
            Some(rest) if self == Owners::Containers => Some([SECURITY, rest].concat()),
            // The disk's own say nothing about what the file is meant to be.
            _ if self == Owners::Containers && stored.starts_with(SECURITY) => None,
            _ => (!self.is_own(&stored)).then_some(stored),
        }
    }

    fn is_own(self, name: &[u8]) -> bool {
        match self {
            Owners::Disk => false,
            Owners::Security => name == SECURITY_STAT,
            Owners::Containers => name.starts_with(b"user.containers.override_"),
        }
    }
}

impl Owner {
    /// What the attributes of the disk say.
    pub(crate) fn of_stat(stat: &Stat) -> Owner {
        Owner { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777, kind: None }
    }

    /// Reads an attribute's value; EIO if it makes no sense.
    pub(crate) fn parse(value: &[u8]) -> Result<Owner, Errno> {
        std::str::from_utf8(value).ok().and_then(Owner::read).ok_or(Errno::IO)
    }

    fn read(text: &str) -> Option<Owner> {
        let mut parts = text.split(':');
        let id = |part: &str| part.parse::<u32>().ok().filter(|&id| id != u32::MAX);
        let (uid, gid) = (id(parts.next()?)?, id(parts.next()?)?);
        let mode = u32::from_str_radix(parts.next()?, 8).ok().filter(|mode| mode & !0o7777 == 0)?;
        let kind = parts.next().map(kind).map_or(Some(None), |kind| kind.map(Some))?;
        Some(Owner { uid, gid, mode, kind })
    }

    /// The value that tells this.
    pub(crate) fn value(&self) -> Vec<u8> {
        let kind = match self.kind {
            None => String::new(),
            Some((FileKind::Regular, _)) => ":file".to_owned(),
            Some((FileKind::Directory, _)) => ":dir".to_owned(),
            Some((FileKind::Symlink, _)) => ":symlink".to_owned(),
            Some((FileKind::Fifo, _)) => ":pipe".to_owned(),
            Some((FileKind::Socket, _)) => ":socket".to_owned(),
            Some((FileKind::BlockDevice, rdev)) => format!(":block-{}-{}", major(rdev), minor(rdev)),
            Some((FileKind::CharDevice, rdev)) => format!(":char-{}-{}", major(rdev), minor(rdev)),
        };
        format!("{}:{}:{:04o}{kind}", self.uid, self.gid, self.mode).into_bytes()
    }

    /// Whether it is meant to be a symbolic link.
    pub(crate) fn is_symlink(&self) -> bool {
        matches!(self.kind, Some((FileKind::Symlink, _)))
    }

    /// Makes the disk's attributes those that are told. Of what the disk has, only a regular file can be meant
    /// to be something else.
    pub(crate) fn apply(&self, stat: &mut Stat) {
        let mut kind = stat.st_mode & libc::S_IFMT;
        if let (Some((meant, rdev)), libc::S_IFREG) = (self.kind, kind) {
            if meant != FileKind::Directory {
                kind = meant.mode_bits();
            }
            stat.st_rdev = rdev;
        }
        stat.st_mode = kind | self.mode;
        (stat.st_uid, stat.st_gid) = (self.uid, self.gid);
    }

    /// The permissions that the disk has meanwhile: nothing but what the one who keeps the files needs, and
    /// what others are to have anyhow.
    pub(crate) fn mode_on_disk(&self, kind: u32) -> u32 {
        self.mode & 0o777 | if kind == libc::S_IFDIR { 0o700 } else { 0o600 }
    }
}

/// What a regular file is said to be in the place of what takes privilege to make, or can't have a `user.` attribute.
pub(crate) fn stands_for(kind: FileKind, rdev: u64) -> Option<(FileKind, u64)> {
    match kind {
        FileKind::Regular | FileKind::Directory | FileKind::Symlink => None,
        FileKind::Fifo | FileKind::Socket => Some((kind, 0)),
        FileKind::CharDevice | FileKind::BlockDevice => Some((kind, rdev)),
    }
}

/// The target of a symbolic link that the disk has as a file.
pub(crate) fn read_target(file: OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut target = Vec::new();
    let longest = libc::PATH_MAX as u64;
    match std::fs::File::from(file).take(longest).read_to_end(&mut target) {
        Ok(read) if (1..longest as usize).contains(&read) => Ok(target),
        Ok(_) => Err(Errno::IO),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

fn kind(text: &str) -> Option<(FileKind, u64)> {
    let plain = match text {
        "file" => FileKind::Regular,
        "dir" => FileKind::Directory,
        "symlink" => FileKind::Symlink,
        "pipe" => FileKind::Fifo,
        "socket" => FileKind::Socket,
        device => {
            let mut parts = device.split('-');
            let kind = match parts.next()? {
                "block" => FileKind::BlockDevice,
                "char" => FileKind::CharDevice,
                _ => return None,
            };
            let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            return parts.next().is_none().then(|| (kind, makedev(major, minor)));
        }
    };
    Some((plain, 0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_as_engines_write_them_are_read_and_written_back() {
        for (text, kind) in [
            ("0:0:0755", None),
            ("1000:33:4711:file", Some((FileKind::Regular, 0))),
            ("0:5:0620:char-1-3", Some((FileKind::CharDevice, makedev(1, 3)))),
            ("0:6:0660:block-259-70000", Some((FileKind::BlockDevice, makedev(259, 70_000)))),
            ("1:2:0777:symlink", Some((FileKind::Symlink, 0))),
            ("1:2:0644:pipe", Some((FileKind::Fifo, 0))),
            ("1:2:0644:socket", Some((FileKind::Socket, 0))),
            ("1:2:0755:dir", Some((FileKind::Directory, 0))),
        ] {
            let owner = Owner::parse(text.as_bytes()).unwrap();
            assert_eq!(owner.kind, kind, "{text}");
            assert_eq!(owner.value(), text.as_bytes());
        }
        assert_eq!(Owner::parse(b"0:0:555").unwrap().mode, 0o555);
    }

    #[test]
    fn values_that_make_no_sense_are_damage() {
        for text in ["", "0:0", "x:0:755", "0:-1:755", "4294967295:0:755", "0:0:999", "0:0:100755", "0:0:755:char-1"] {
            assert_eq!(Owner::parse(text.as_bytes()), Err(Errno::IO), "{text}");
        }
        assert_eq!(Owner::parse(b"0:0:755:\xff"), Err(Errno::IO));
    }

    #[test]
    fn names_that_tell_owners_can_not_be_set_and_security_has_a_place() {
        let owners = Owners::Containers;
        assert_eq!(owners.stored_name(b"user.containers.override_stat".to_vec()), Err(Errno::PERM));
        assert_eq!(owners.stored_name(b"user.containers.override_security.x".to_vec()), Err(Errno::PERM));
        let stored = owners.stored_name(b"security.capability".to_vec()).unwrap();
        assert_eq!(stored, b"user.containers.override_security.capability");
        assert_eq!(owners.shown_name(stored).unwrap(), b"security.capability");
        assert_eq!(owners.shown_name(b"security.selinux".to_vec()), None);
        assert_eq!(owners.shown_name(b"user.containers.override_stat".to_vec()), None);
        assert_eq!(Owners::Security.stored_name(SECURITY_STAT.to_vec()), Err(Errno::PERM));
        assert_eq!(Owners::Disk.stored_name(CONTAINERS_STAT.to_vec()).unwrap(), CONTAINERS_STAT);
    }
}
