//! Hard links between a moved directory and what stays.
//!
//! A file below a moved directory is told anew, in its new place. Where it has another name in the lower that still shows,
//! that name must be told as well, or the two would be two files from then on.

use std::collections::HashSet;
use std::sync::Arc;

use mica_layerdb::tar::{Head, Kind};
use rustix::fs::FileType;

use super::{Diff, head};
use crate::error::Result;
use crate::inode::Ino;
use crate::upper::{DIRECTORY, Found, Spot};

/// A lower file that was told.
pub(super) struct Told {
    pub(super) ino: Ino,
    pub(super) path: Box<[u8]>,
}

impl Diff<'_> {
    /// Tells the other names of the lower's files.
    pub(super) fn tell_links(&mut self) -> Result<()> {
        let mut parents = HashSet::new();
        for Told { ino, path } in std::mem::take(&mut self.told) {
            let mut names = Vec::new();
            for (dir, name) in self.lower.links(ino)? {
                let mut link = self.lower.path_of(dir)?;
                link.push(name);
                names.push(link);
            }
            names.sort();
            for name in names {
                if let Some(depth) = self.in_place(&name)? {
                    self.tell_parents(&name, depth, &mut parents)?;
                    self.path = name.join(&b'/');
                    let attr = self.lower.attr(ino)?;
                    let link = self.path.clone();
                    let head = Head { kind: Kind::HardLink, link: &path, ..head(&link, &attr, b"", 0, &[]) };
                    self.stats.entries += 1;
                    self.out.head(&head)?;
                }
            }
        }
        Ok(())
    }

    /// If what the lower has under a name shows there: how many of the directories on the way are in the upper.
    fn in_place(&self, names: &[Vec<u8>]) -> Result<Option<usize>> {
        let format = self.upper.format;
        let mut dir = Arc::clone(&self.upper.root);
        if format.marks(&Spot::Fd(Arc::clone(&dir)))?.opaque {
            return Ok(None);
        }
        for (depth, name) in names.iter().enumerate() {
            let spot = Spot::at(&dir, name);
            let (stat, marks) = match format.look(&spot)? {
                None => return Ok(Some(depth)),
                Some(Found::Whiteout) => return Ok(None),
                Some(Found::Entry(stat, marks)) => (stat, marks),
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_dir || marks.opaque || !self.stays(&names[..=depth], marks.redirect.as_deref())? {
                return Ok(None);
            }
            dir = Arc::new(spot.open(DIRECTORY)?);
        }
        Ok(None)
    }

    /// Whether an upper directory shows the lower directory of its own path.
    fn stays(&self, names: &[Vec<u8>], redirect: Option<&[u8]>) -> Result<bool> {
        let Some(place) = redirect else { return Ok(true) };
        let there = match (place.starts_with(b"/"), names.split_last()) {
            (false, Some((_, parents))) => [&parents.join(&b'/')[..], b"/", place].concat(),
            _ => place.to_vec(),
        };
        let number = |path: &[u8]| Ok::<_, crate::Error>(self.lower.resolve(path)?.map(|attr| attr.ino));
        Ok(number(&there)? == number(&names.join(&b'/'))?)
    }

    /// Tells the directories on the way to a name that the upper doesn't have, each once.
    fn tell_parents(&mut self, names: &[Vec<u8>], depth: usize, told: &mut HashSet<Ino>) -> Result<()> {
        for end in depth + 1..names.len() {
            let mut path = names[..end].join(&b'/');
            let Some(attr) = self.lower.resolve(&path)? else { return Ok(()) };
            if told.insert(attr.ino) {
                let xattrs = self.lower_xattrs(attr.ino)?;
                path.push(b'/');
                self.emit(&path, &attr, b"", 0, &xattrs)?;
            }
        }
        Ok(())
    }
}
