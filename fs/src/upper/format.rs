//! The marks of an upper: what kernel overlayfs writes
//! (Documentation/filesystems/overlayfs.rst), and some of our own.
//!
//! | mark | on | means |
//! |---|---|---|
//! | char device 0:0 | a name | the lower's name is hidden |
//! | `overlay.whiteout` | an empty regular file | the same, as kernels from 6.7 on read it |
//! | `overlay.opaque` = `y` | directory | nothing of the lower is seen in it |
//! | `overlay.redirect` | directory | it merges with the lower directory of that path, or of that name beside it |
//! | `overlay.metacopy` | regular file | its contents are in the lower, at the place of its redirect or of its own name |
//! | `overlay.impure` = `y` | directory | it may hold entries whose number is not their own |
//! | `mica.origin` | copied-up inode | its number in the lower and its own on this disk, 8 bytes each, little-endian |
//! | `mica.blocks` | regular file | only some of its blocks are its own; `overlay.metacopy` and a redirect to nowhere keep others off |
//! | `mica.device` | empty regular file | a program's char device 0:0, which must not be taken for a whiteout |

use rustix::fs::{FileType, Stat, XattrFlags};
use rustix::io::Errno;

use super::Spot;
use crate::inode::Ino;
pub use crate::lower::Format;

/// The mark that an attribute name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Opaque,
    Redirect,
    Impure,
    Origin,
    Device,
    Metacopy,
    Blocks,
}

/// The marks found on an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) opaque: bool,
    pub(crate) impure: bool,
    pub(crate) whiteout: bool,
    pub(crate) redirect: Option<Vec<u8>>,
    pub(crate) origin: Option<Ino>,
    /// It has been marked with an origin, though that may be another inode's. On a root: its attributes count.
    pub(crate) taken_over: bool,
    pub(crate) device: bool,
    /// The contents are in the lower; see `union/complete.rs`.
    pub(crate) metacopy: bool,
    /// The record of a file of which a part is copied; see `upper/blocks.rs`.
    pub(crate) blocks: Option<Vec<u8>>,
}

impl Marks {
    /// Whether some or all of the contents are in the lower.
    pub(crate) fn is_partial(&self) -> bool {
        self.metacopy || self.blocks.is_some()
    }
}

/// The number in the lower that a mark of origin says of the inode `host` of the upper's disk. One that speaks of another inode was
/// copied with its file by somebody else than this union, and means nothing; marks of older programs don't say of which they speak.
fn origin_of(value: &[u8], host: u64) -> Option<Ino> {
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    let ino = match value.len() {
        8 => number(value)?,
        16 if number(&value[8..])? == host => number(&value[..8])?,
        _ => return None,
    };
    (ino != 0).then_some(Ino(ino))
}

/// What a name of an upper directory stands for.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one, and none is kept")]
pub(crate) enum Found {
    /// The lower's name is hidden.
    Whiteout,
    /// An inode of the upper.
    Entry(Stat, Marks),
}

impl Format {
    /// `trusted.` where this process may read and write it, else `user.`.
    pub fn detect() -> Format {
        if rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
            && in_initial_user_namespace()
        {
            Format::Trusted
        } else {
            Format::User
        }
    }

    /// The namespace, with its dot.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Format::Trusted => "trusted.",
            Format::User => "user.",
        }
    }

    /// The attribute's full name.
    pub(crate) fn name(self, mark: Mark) -> String {
        let rest = match mark {
            Mark::Opaque => "overlay.opaque",
            Mark::Redirect => "overlay.redirect",
            Mark::Impure => "overlay.impure",
            Mark::Origin => "mica.origin",
            Mark::Device => "mica.device",
            Mark::Metacopy => "overlay.metacopy",
            Mark::Blocks => "mica.blocks",
        };
        format!("{}{rest}", self.prefix())
    }

    /// What a name inside this union is called on the upper's disk: what would be taken for a mark is escaped as
    /// overlayfs does it (`overlay.x` is stored as `overlay.overlay.x`).
    pub(crate) fn stored_name(self, name: &[u8]) -> Vec<u8> {
        let prefix = self.prefix().as_bytes();
        for own in [&b"overlay."[..], b"mica."] {
            if let Some(rest) = name.strip_prefix(prefix).filter(|rest| rest.starts_with(own)) {
                return [prefix, own, rest].concat();
            }
        }
        name.to_vec()
    }

    /// The reverse of [`Format::stored_name`]; `None` for what is ours and is not shown.
    pub(crate) fn shown_name(self, stored: &[u8]) -> Option<Vec<u8>> {
        let prefix = self.prefix().as_bytes();
        let Some(rest) = stored.strip_prefix(prefix) else { return Some(stored.to_vec()) };
        for own in [&b"overlay."[..], b"mica."] {
            if let Some(inner) = rest.strip_prefix(own) {
                return inner.starts_with(own).then(|| [prefix, inner].concat());
            }
        }
        Some(stored.to_vec())
    }

    /// What is at `spot`; `None` when there is nothing.
    pub(crate) fn look(self, spot: &Spot) -> Result<Option<Found>, Errno> {
        let stat = match spot.stat() {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        if is_whiteout(&stat) {
            return Ok(Some(Found::Whiteout));
        }
        let marks = match self.marks(spot) {
            Ok(marks) => marks,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let hidden = marks.whiteout && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(Some(if hidden && stat.st_size == 0 { Found::Whiteout } else { Found::Entry(stat, marks) }))
    }

    /// The marks of what is at `spot`.
    pub(crate) fn marks(self, spot: &Spot) -> Result<Marks, Errno> {
        let mut marks = Marks::default();
        for name in spot.xattr_names()? {
            match name.strip_prefix(self.prefix().as_bytes()) {
                Some(b"overlay.opaque") => marks.opaque = spot.xattr(&name)?.as_deref() == Some(b"y"),
                Some(b"overlay.impure") => marks.impure = true,
                Some(b"overlay.whiteout") => marks.whiteout = true,
                Some(b"overlay.redirect") => marks.redirect = spot.xattr(&name)?,
                Some(b"mica.device") => marks.device = true,
                Some(b"overlay.metacopy") => marks.metacopy = true,
                Some(b"mica.blocks") => marks.blocks = spot.xattr(&name)?,
                Some(b"mica.origin") => {
                    let value = spot.xattr(&name)?.unwrap_or_default();
                    marks.taken_over = true;
                    marks.origin = origin_of(&value, spot.stat()?.st_ino);
                }
                _ => {}
            }
        }
        Ok(marks)
    }

    /// Sets a mark.
    pub(crate) fn set(self, spot: &Spot, mark: Mark, value: &[u8]) -> Result<(), Errno> {
        spot.set_xattr(self.name(mark).as_bytes(), value, XattrFlags::empty())
    }

    /// Marks a copied-up inode with its number in the lower. False if it is of a type that can't carry a `user.`
    /// attribute: it has another number after the next mount.
    pub(crate) fn set_origin(self, spot: &Spot, ino: Ino) -> Result<bool, Errno> {
        let value = [ino.0.to_le_bytes(), spot.stat()?.st_ino.to_le_bytes()].concat();
        match self.set(spot, Mark::Origin, &value) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) if self == Format::User => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

/// Whether the first user namespace is this process's: only there can `trusted.` be written.
fn in_initial_user_namespace() -> bool {
    let path = "/proc/self/uid_map";
    let Ok(file) = rustix::fs::openat(rustix::fs::CWD, path, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
    else {
        return true;
    };
    let mut buffer = [0; 128];
    let Ok(read) = rustix::io::read(&file, &mut buffer[..]) else { return true };
    let fields: Vec<&[u8]> = buffer[..read].split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).collect();
    fields == [&b"0"[..], b"0", b"4294967295"]
}

/// Whether an inode is overlayfs' whiteout.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_like_marks_are_escaped_and_come_back() {
        for name in [&b"trusted.overlay.opaque"[..], b"trusted.overlay.overlay.x", b"trusted.mica.origin", b"user.a"] {
            let stored = Format::Trusted.stored_name(name);
            assert_eq!(Format::Trusted.shown_name(&stored).as_deref(), Some(name));
        }
        assert_eq!(Format::Trusted.stored_name(b"trusted.overlay.opaque"), b"trusted.overlay.overlay.opaque");
        assert_eq!(Format::Trusted.stored_name(b"user.overlay.opaque"), b"user.overlay.opaque");
        assert_eq!(Format::Trusted.shown_name(b"trusted.overlay.opaque"), None);
        assert_eq!(Format::User.shown_name(b"user.mica.origin"), None);
    }
}
