//! Attributes: what stat(2) tells, and what chmod, chown, truncate and utimensat change.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::fs::{FileType, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::Union;
use super::copy_up::Keep;
use super::lookup::Entry;
use super::nodes::Place;
use crate::error::{Error, Result};
use crate::inode::{Attr, Fh, FileKind, Ino, ROOT, SetAttr, SetTime};
use crate::upper::{DIRECTORY, Marks, Spot, Upper, read_dir};

impl Union {
    /// The attributes of an inode.
    pub fn getattr(&self, ino: Ino, fh: Option<Fh>) -> Result<Attr> {
        let _ = fh;
        let _names = self.names.read();
        self.getattr_locked(ino)
    }

    pub(super) fn getattr_locked(&self, ino: Ino) -> Result<Attr> {
        match self.locate(ino)? {
            Some(_) if ino == ROOT && *self.root_is_fresh.read() => self.fresh_root_attr(),
            Some(spot) => self.attr_at(ino, &spot),
            None => {
                let mut attr = self.lower()?.attr(ino)?;
                if self.removed.lock().contains(&ino) {
                    attr.nlink = 0;
                }
                Ok(attr)
            }
        }
    }

    fn fresh_root_attr(&self) -> Result<Attr> {
        let mut attr = self.lower()?.attr(ROOT)?;
        attr.ino = ROOT;
        Ok(attr)
    }

    /// The attributes of an upper inode at its place.
    pub(super) fn attr_at(&self, ino: Ino, spot: &Spot) -> Result<Attr> {
        let stat = self.upper()?.stat(spot)?;
        let known =
            self.nodes.lock().get(ino).map(|node| (node.host, node.lower, matches!(node.place, Place::Orphan(..))));
        let Some((host, lower, orphan)) = known else { return Err(Error::Stale { ino }) };
        if host != stat.st_ino && ino != ROOT {
            return Err(Error::Stale { ino });
        }
        let mut attr = self.attr_of_stat(ino, &stat, None, spot)?;
        if orphan {
            attr.nlink = 0;
        } else if attr.is_dir()
            && attr.nlink > 0
            && let Some(lower) = lower
        {
            attr.nlink = self.merged_links(ino, lower, spot)?;
        }
        Ok(attr)
    }

    /// The attributes of an upper inode just found under a name.
    pub(super) fn attr_of_entry(&self, entry: &Entry) -> Result<Attr> {
        let mut attr = self.attr_of_stat(entry.ino, &entry.stat, Some(&entry.marks), &entry.spot)?;
        if let (true, Some(lower)) = (attr.is_dir(), entry.merges) {
            attr.nlink = self.merged_links(entry.ino, lower, &entry.spot)?;
        }
        Ok(attr)
    }

    fn attr_of_stat(&self, ino: Ino, stat: &Stat, marks: Option<&Marks>, spot: &Spot) -> Result<Attr> {
        let mut attr = Attr::of_stat(ino, stat).ok_or(Errno::IO)?;
        if attr.kind == FileKind::Regular && self.may_be_partial(ino, marks) {
            if let Some(partial) = self.open_partial(ino) {
                // While a block is copied, the disk shows a time that is taken back.
                attr = Attr::of_stat(ino, &partial.stat()?).ok_or(Errno::IO)?;
            }
            // Its holes are contents of the lower, and programs that look for holes by this must not see some.
            attr.blocks = attr.blocks.max(attr.size.div_ceil(512));
        }
        if attr.kind == FileKind::Regular && attr.size == 0 {
            let is_device = match marks {
                Some(marks) => marks.device,
                None => self.upper()?.format.marks(spot)?.device,
            };
            if is_device {
                attr.kind = FileKind::CharDevice;
                attr.mode = attr.mode & 0o7777 | libc::S_IFCHR;
                attr.rdev = 0;
            }
        }
        Ok(attr)
    }

    /// `st_nlink` of a merged directory: two, and one for each subdirectory that is seen in it; or 1, which says that nobody
    /// counted, when the lower says so.
    fn merged_links(&self, ino: Ino, lower: Ino, spot: &Spot) -> Result<u32> {
        let known = self.nodes.lock().get(ino).map(|node| (node.subdirectories, node.recounts));
        if let Some((Some(count), _)) = known {
            return Ok(2 + count);
        }
        let below = self.lower()?;
        let links = below.attr(lower)?.nlink;
        if links < 2 {
            return Ok(1);
        }
        let mut count = i64::from(links - 2);
        let dir = Arc::new(spot.open(DIRECTORY)?);
        for (name, _, kind) in read_dir(dir.as_fd())? {
            let is_dir = match kind {
                FileType::Unknown => {
                    let stat = Spot::at(&dir, &name).stat()?;
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                }
                kind => kind == FileType::Directory,
            };
            count += i64::from(is_dir);
            count -= i64::from(below.lookup(lower, &name)?.is_some_and(|attr| attr.is_dir()));
        }
        let count = u32::try_from(count).unwrap_or(0);
        if let (Some((_, recounts)), Some(node)) = (known, self.nodes.lock().get_mut(ino))
            && node.recounts == recounts
        {
            node.subdirectories = Some(count);
        }
        Ok(2 + count)
    }

    /// Lets the number of a directory's subdirectories be counted anew.
    pub(super) fn forget_links(&self, ino: Ino) {
        if let Some(node) = self.nodes.lock().get_mut(ino) {
            node.subdirectories = None;
            node.recounts = node.recounts.wrapping_add(1);
        }
    }

    /// Changes attributes and returns them all.
    pub fn setattr(&self, ino: Ino, fh: Option<Fh>, set: &SetAttr) -> Result<Attr> {
        self.upper()?;
        let keep = match set.size {
            Some(0) => Keep::Nothing,
            Some(_) => Keep::Contents,
            None => Keep::Attributes,
        };
        self.copy_up(ino, keep)?;
        if set.size.is_some() {
            self.complete(ino, keep)?;
        }
        if set.mode.is_some_and(|mode| mode & (libc::S_ISUID | libc::S_ISGID) != 0) {
            // What is copied later would take these away.
            self.finish_blocks(ino)?;
        }
        let _names = self.names.read();
        let spot = self.locate(ino)?.ok_or(Error::Stale { ino })?;
        let upper = self.upper()?;
        if let Some(size) = set.size {
            self.set_size(ino, fh, &spot, size)?;
        }
        // Changing the owner clears set-id bits on the disk, so it comes before the mode.
        if set.uid.is_some() || set.gid.is_some() {
            upper.chown(&spot, set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            upper.chmod(&spot, mode)?;
        }
        if set.kill_privileges {
            kill_privileges(upper, &spot)?;
        }
        if let Some(times) = times(set) {
            spot.set_times(&times)?;
        }
        self.attr_at(ino, &spot)
    }
}

/// What a write by a user without privilege does to a program's (inode(7)).
fn kill_privileges(upper: &Upper, spot: &Spot) -> Result<(), Errno> {
    let mode = upper.stat(spot)?.st_mode;
    let kept = kill_bits(mode);
    if kept != mode {
        upper.chmod(spot, kept)?;
    }
    upper.drop_capabilities(spot)
}

/// A mode without set-user-id, and without set-group-id where the group may execute.
pub(crate) fn kill_bits(mode: u32) -> u32 {
    let kept = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP == 0 { kept } else { kept & !libc::S_ISGID }
}

/// The times to be set; `None` if none are.
pub(crate) fn times(set: &SetAttr) -> Option<Timestamps> {
    let wanted = set.atime.is_some() || set.mtime.is_some();
    wanted.then(|| Timestamps { last_access: time(set.atime), last_modification: time(set.mtime) })
}

fn time(set: Option<SetTime>) -> Timespec {
    match set {
        None => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(SetTime::At(time)) => Timespec { tv_sec: time.secs, tv_nsec: i64::from(time.nanos) },
    }
}
