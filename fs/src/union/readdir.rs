//! Reading directories.
//!
//! A directory without an upper part is read straight from the lower. One with an upper part is listed when it is opened and
//! again when reading starts over; so a program that goes on reading sees each name that was there all the time
//! exactly once, as POSIX' readdir() wants it, whatever is made or removed meanwhile.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::Union;
use crate::error::{Error, Result};
use crate::inode::{Attr, DirEntry, Fh, FileKind, Ino, ROOT};
use crate::listing::{DOT_DOT, Listed, Listing, Look, read_dots, read_listing};
use crate::upper::{Found, Spot, read_dir};

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    ino: Ino,
    /// `None`: read from the lower as it is.
    listing: Mutex<Option<Listing>>,
}

impl Union {
    /// Opens a directory for reading.
    pub fn opendir(&self, ino: Ino) -> Result<Fh> {
        let listing = Mutex::new(self.list(ino)?);
        Ok(self.insert_dir(OpenDir { ino, listing }))
    }

    /// Ends a directory's handle.
    pub fn releasedir(&self, fh: Fh) {
        self.remove_dir(fh);
    }

    /// Makes a directory's entries durable.
    pub fn fsyncdir(&self, fh: Fh, data_only: bool) -> Result<()> {
        let ino = self.dir(fh)?.ino;
        match self.upper_dir(ino)? {
            None => Ok(()),
            Some(dir) if data_only => Ok(rustix::fs::fdatasync(&dir)?),
            Some(dir) => Ok(rustix::fs::fsync(&dir)?),
        }
    }

    /// Hands the entries behind `after` (0: from the start, read anew) to `each` until it returns false. "." and ".." are
    /// the first. With `plus` entries have their attributes, and each one that was accepted counts as one reference of
    /// the kernel.
    pub fn readdir(&self, fh: Fh, after: u64, plus: bool, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let dir = self.dir(fh)?;
        if after == 0 {
            *dir.listing.lock() = self.list(dir.ino)?;
        }
        if !read_dots(dir.ino, || self.parent_of(dir.ino), after, each)? {
            return Ok(());
        }
        let listing = dir.listing.lock().clone();
        match listing {
            Some(listing) => {
                let look = |name: &[u8]| self.lookup(dir.ino, name);
                read_listing(&listing, after, plus.then_some(&look as Look<'_>), &|ino| self.forget(ino, 1), each);
                Ok(())
            }
            None => self.read_lower(dir.ino, after, plus, each),
        }
    }

    fn read_lower(&self, dir: Ino, after: u64, plus: bool, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let Some(dir) = self.lower_dir(dir) else { return Ok(()) };
        let lower = self.lower()?;
        lower.entries(dir, after.saturating_sub(DOT_DOT), &mut |entry| {
            let attr: Option<Attr> = if plus { Some(lower.attr(entry.ino)?) } else { None };
            let cookie = entry.cookie + DOT_DOT;
            Ok(!each(DirEntry { ino: entry.ino, kind: entry.kind, name: entry.name, cookie, attr }))
        })
    }

    /// The visible entries of a directory with an upper part; `None` for one without.
    fn list(&self, ino: Ino) -> Result<Option<Listing>> {
        let _names = self.names.read();
        let Some(dir) = self.upper_dir(ino)? else { return Ok(None) };
        let (merged, impure) = match self.nodes.lock().get(ino) {
            Some(node) => (node.lower, node.impure),
            None => return Err(Error::Stale { ino }),
        };
        let mut entries = Vec::new();
        let mut hiding = HashSet::new();
        let told = self.upper()?.tells_owners();
        for (name, host, kind) in read_dir(dir.as_fd())? {
            let known = match kind {
                FileType::Unknown | FileType::CharacterDevice => None,
                _ if impure || merged.is_some() => None,
                FileType::RegularFile if told => None,
                kind => FileKind::from_mode(kind.as_raw_mode()).map(|kind| (Ino::of_upper(host), kind)),
            };
            let shown = match known {
                Some(known) => Some(known),
                None => self.upper_entry(ino, &Spot::at(&dir, &name), &name)?,
            };
            if merged.is_some() {
                hiding.insert(name.clone());
            }
            entries.extend(shown.map(|(ino, kind)| Listed { name, ino, kind }));
        }
        if let Some(lower) = merged {
            self.lower()?.entries(lower, 0, &mut |entry| {
                if !hiding.contains(entry.name) {
                    entries.push(Listed { name: entry.name.to_vec(), ino: entry.ino, kind: entry.kind });
                }
                Ok(false)
            })?;
        }
        Ok(Some(Arc::new(entries)))
    }

    /// Number and type of an upper entry as the union shows it; `None` for a whiteout.
    fn upper_entry(&self, parent: Ino, spot: &Spot, name: &[u8]) -> Result<Option<(Ino, FileKind)>> {
        let Some(Found::Entry(stat, marks)) = self.upper()?.look(spot)? else { return Ok(None) };
        let number = match self.merges_with(parent, name, &stat, &marks) {
            // It is there, whatever its marks say; whoever looks it up is told that they make no sense.
            Err(Error::Refused(Errno::IO)) => Ino::of_upper(stat.st_ino),
            merges => match self.number(&stat, &marks, merges?) {
                number if self.is_of_another(number, stat.st_ino) => Ino::of_upper(stat.st_ino),
                number => number,
            },
        };
        let kind = if marks.device { Some(FileKind::CharDevice) } else { FileKind::from_mode(stat.st_mode) };
        Ok(kind.map(|kind| (number, kind)))
    }

    /// Whether nothing is seen in a directory. The caller holds `names`.
    pub(super) fn is_empty_dir(&self, ino: Ino) -> Result<bool> {
        let mut hiding = HashSet::new();
        if let Some(dir) = self.upper_dir(ino)? {
            for (name, _, _) in read_dir(dir.as_fd())? {
                if matches!(self.upper()?.look(&Spot::at(&dir, &name))?, Some(Found::Entry(..))) {
                    return Ok(false);
                }
                hiding.insert(name);
            }
        }
        let mut empty = true;
        if let Some(lower) = self.lower_dir(ino) {
            self.lower()?.entries(lower, 0, &mut |entry| {
                empty = hiding.contains(entry.name);
                Ok(!empty)
            })?;
        }
        Ok(empty)
    }

    /// The number of a directory's parent, as far as it is known.
    pub(super) fn parent_of(&self, ino: Ino) -> Result<Ino> {
        use super::nodes::Place;
        if ino == ROOT {
            return Ok(ROOT);
        }
        match self.nodes.lock().get(ino).map(|node| node.place.clone()) {
            Some(Place::Named(names)) => return Ok(names.first().map_or(ino, |(parent, _)| *parent)),
            Some(_) => return Ok(ino),
            None => {}
        }
        self.lower()?.parent(ino)
    }
}
