//! Files of the upper whose contents are in the lower.
//!
//! Where only a file's attributes or names change, its contents need not be copied: its upper file has a size and no data, and
//! marks say where the contents are. Kernel overlayfs does the same (`metacopy=on`), in the same form. Readers are given
//! the lower's contents; the first who opens or cuts one to change it has them copied, in place, and then the marks removed:
//! until then the lower's contents count, whatever was copied of them.
//!
//! A path from the lower's root (a redirect) leads to the contents, so that the file can have other names. The kernel leaves it
//! out where a file has the name that it has in the lower; it is added before that changes.

use std::fs::File;

use rustix::fs::{OFlags, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::Union;
use super::blocks::CAPABILITY;
use super::copy_up::{Keep, copy_contents, times_of};
use super::lookup::Entry;
use super::nodes::Place;
use crate::error::{Error, Result};
use crate::inode::{Attr, FileKind, Ino};
use crate::upper::{Mark, Marks, Spot, Upper};

impl Union {
    /// Makes the upper file at `made` one whose contents are in the lower. False if its disk can't hold the marks.
    pub(super) fn refer(&self, upper: &Upper, ino: Ino, made: &Spot) -> Result<bool> {
        match self.set_redirect(upper, made, ino) {
            Ok(()) => {}
            Err(Error::Refused(Errno::XDEV)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        upper.format.set(made, Mark::Metacopy, b"")?;
        Ok(true)
    }

    /// Says where in the lower something of the upper has its contents, or the other part of its entries. EXDEV if that is more
    /// than an attribute of this disk holds.
    pub(super) fn set_redirect(&self, upper: &Upper, spot: &Spot, lower: Ino) -> Result<()> {
        let mut path = Vec::new();
        for name in self.lower()?.path_of(lower)? {
            path.push(b'/');
            path.extend_from_slice(&name);
        }
        upper.format.set(spot, Mark::Redirect, &path).map_err(|errno| match errno {
            // As between disks: programs that rename something then copy it.
            Errno::NOSPC | Errno::TOOBIG | Errno::RANGE if path.len() >= 1024 => Errno::XDEV.into(),
            errno => errno.into(),
        })
    }

    /// Makes sure that an upper file has its contents itself, or those that are to be kept. The caller holds no lock.
    pub(super) fn complete(&self, ino: Ino, keep: Keep) -> Result<()> {
        if !self.is_partial(ino) {
            return Ok(());
        }
        let _turn = self.stripe(ino).lock();
        if !self.is_partial(ino) {
            return Ok(());
        }
        let (spot, original) = {
            let _names = self.names.read();
            let spot = self.locate(ino)?.ok_or(Error::Stale { ino })?;
            let marks = self.upper()?.format.marks(&spot)?;
            if marks.blocks.is_some() {
                // It has its own ways.
                return Ok(());
            }
            let original = if marks.metacopy { Some(self.original(ino, &marks)?) } else { None };
            (spot, original)
        };
        if let Some(original) = original {
            let file = File::from(spot.open(OFlags::WRONLY)?);
            let times = times_of(&spot)?;
            if keep == Keep::Nothing {
                rustix::fs::ftruncate(&file, 0)?;
            } else if keep == Keep::Contents && self.turn_to_blocks(&spot, &original, &file)? {
                return self.follow_copy_up(ino);
            } else {
                self.fill(&spot, &original, &file, &times)?;
            }
            rustix::fs::fsync(&file)?;
            let format = self.upper()?.format;
            for mark in [Mark::Metacopy, Mark::Redirect] {
                match spot.remove_xattr(format.name(mark).as_bytes()) {
                    Err(Errno::NODATA) => {}
                    removed => removed?,
                }
            }
        }
        if let Some(node) = self.nodes.lock().get_mut(ino) {
            node.partial = false;
        }
        self.follow_copy_up(ino)
    }

    /// Goes on block by block with a file that has no contents of its own, if that is better than to copy them.
    fn turn_to_blocks(&self, spot: &Spot, original: &Attr, file: &File) -> Result<bool> {
        let stat = spot.stat()?;
        let fits = stat.st_size as u64 == original.size;
        Ok(fits && self.refer_blocks(self.upper()?, &Attr { mode: stat.st_mode, ..*original }, spot, file)?)
    }

    /// Copies the contents into an upper file that has all but them.
    fn fill(&self, spot: &Spot, original: &Attr, file: &File, times: &Timestamps) -> Result<()> {
        let size = spot.stat()?.st_size as u64;
        let capability = spot.xattr(CAPABILITY)?;
        let lower = self.lower()?;
        lower.prepare(original.ino)?;
        copy_contents(&lower.open(original.ino)?, size.min(original.size), file)?;
        // Only what was there is cut off at the end of the original.
        rustix::fs::ftruncate(file, size)?;
        if let Some(capability) = capability {
            // Writing has taken it away.
            spot.set_xattr(CAPABILITY, &capability, XattrFlags::empty())?;
        }
        Ok(spot.set_times(times)?)
    }

    pub(super) fn is_partial(&self, ino: Ino) -> bool {
        self.nodes.lock().get(ino).is_some_and(|node| node.partial)
    }

    /// Whether readers are given contents of the lower.
    pub(super) fn has_contents_below(&self, ino: Ino) -> bool {
        self.nodes.lock().get(ino).is_none_or(|node| node.partial)
    }

    /// The inode of the lower that readers are given the contents of, if there is one.
    pub(super) fn original_of(&self, ino: Ino) -> Result<Option<Ino>> {
        if !self.is_partial(ino) {
            return Ok(self.is_lower(ino).then_some(ino));
        }
        let original = {
            let _names = self.names.read();
            let spot = self.locate(ino)?.ok_or(Error::Stale { ino })?;
            let marks = self.upper()?.format.marks(&spot)?;
            if let Some(record) = &marks.blocks {
                return Ok(Some(self.recorded(ino, record, spot.stat()?.st_ino)?.1));
            }
            self.original_at(ino, &spot)?
        };
        if original.is_none() {
            // Cut off or grown without its contents, which nothing does that ends as it should.
            self.complete(ino, Keep::Contents)?;
        }
        Ok(original)
    }

    /// The same for an upper inode at its place; `None` also if its size isn't that of the contents. The caller holds `names`.
    pub(super) fn original_at(&self, ino: Ino, spot: &Spot) -> Result<Option<Ino>> {
        if !self.is_partial(ino) {
            return Ok(None);
        }
        let marks = self.upper()?.format.marks(spot)?;
        if !marks.metacopy {
            return Ok(None);
        }
        let original = self.original(ino, &marks)?;
        let fits = spot.stat()?.st_size as u64 == original.size;
        Ok(fits.then_some(original.ino))
    }

    /// Whether an upper inode, found with these marks or known, may have its contents in the lower.
    pub(super) fn may_be_partial(&self, ino: Ino, marks: Option<&Marks>) -> bool {
        marks.map_or_else(|| self.is_partial(ino), Marks::is_partial)
    }

    /// Lets what is under a name have another, if it is in the upper.
    pub(super) fn anchor_name(&self, parent: Ino, name: &[u8], entry: &Entry) -> Result<()> {
        if is_anchored(&entry.marks) {
            return Ok(());
        }
        self.nodes.lock().enter(entry.ino, entry.node(parent, name));
        self.anchor(entry.ino)
    }

    /// Lets an upper inode have other names than that of the lower where its contents are. The caller holds no lock.
    pub(super) fn anchor(&self, ino: Ino) -> Result<()> {
        if !self.is_partial(ino) {
            return Ok(());
        }
        let turn = self.stripe(ino).lock();
        {
            let _names = self.names.read();
            let upper = self.upper()?;
            let spot = self.locate(ino)?.ok_or(Error::Stale { ino })?;
            let marks = upper.format.marks(&spot)?;
            if is_anchored(&marks) {
                return Ok(());
            }
            let original = self.original(ino, &marks)?.ino;
            match self.set_redirect(upper, &spot, original) {
                Err(Error::Refused(Errno::XDEV)) => {}
                set => return set,
            }
        }
        drop(turn);
        self.complete(ino, Keep::Attributes)
    }

    /// The file of the lower that has the contents. The caller holds `names`.
    fn original(&self, ino: Ino, marks: &Marks) -> Result<Attr> {
        let place = self.nodes.lock().get(ino).map(|node| node.place.clone());
        let found = match (&marks.redirect, place) {
            (Some(path), _) if path.starts_with(b"/") => self.lower()?.resolve(path)?,
            (redirect, Some(Place::Named(names))) => match names.first() {
                Some((parent, name)) => self.see_lower(*parent, redirect.as_deref().unwrap_or(name))?,
                None => None,
            },
            _ => None,
        };
        found.filter(|attr| attr.kind == FileKind::Regular).ok_or_else(|| {
            tracing::error!(%ino, "a file of the upper has its contents (metacopy) in a place of the lower that has no file");
            Error::Refused(Errno::IO)
        })
    }
}

/// Whether a file's contents, if they are in the lower, are found whatever its name is.
fn is_anchored(marks: &Marks) -> bool {
    !marks.metacopy || marks.redirect.as_ref().is_some_and(|path| path.starts_with(b"/"))
}
