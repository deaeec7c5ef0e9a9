//! What a name stands for: the upper's word first, then the lower's.

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::nodes::{Node, Place};
use super::{Union, valid_name};
use crate::error::Result;
use crate::inode::{Attr, Ino, ROOT};

use crate::upper::{Found, Marks, Spot};

/// What a name stands for, before anybody is told.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing, and neither part of the directory has the name.
    Nothing,
    /// Nothing: a whiteout hides the lower's entry, or would.
    Whiteout,
    /// An upper inode, and whether the lower has the name as well.
    Upper(Entry),
    /// A lower inode.
    Lower(Attr),
}

/// An upper inode found under a name.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) spot: Spot,
    pub(super) stat: Stat,
    pub(super) marks: Marks,
    pub(super) ino: Ino,
    /// The lower directory it merges with.
    pub(super) merges: Option<Ino>,
}

impl Entry {
    pub(super) fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }

    /// The node to be known for it.
    pub(super) fn node(&self, parent: Ino, name: &[u8]) -> Node {
        let mut node = Node::named(parent, name, self.stat.st_ino, self.merges);
        node.keep = !self.ino.is_upper();
        node.impure = self.marks.impure;
        node.partial = self.marks.is_partial();
        node
    }
}

impl Union {
    /// The inode behind a name; `None` when the directory has no such name. What is found counts as one reference of the
    /// kernel, to be given back by [`Union::forget`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        let _names = self.names.read();
        self.lookup_locked(parent, name)
    }

    pub(super) fn lookup_locked(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        match self.see(parent, name)? {
            Seen::Nothing | Seen::Whiteout => Ok(None),
            Seen::Lower(attr) => Ok(Some(attr)),
            Seen::Upper(entry) => {
                let attr = self.attr_of_entry(&entry)?;
                self.nodes.lock().enter(entry.ino, entry.node(parent, name)).lookups += 1;
                Ok(Some(attr))
            }
        }
    }

    /// Gives `lookups` references back.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        if ino == ROOT {
            return;
        }
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(ino) else {
            drop(nodes);
            self.removed.lock().remove(&ino);
            return;
        };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 {
            return;
        }
        match node.place {
            Place::Held(_) => {}
            Place::Orphan(..) if self.is_open(ino) => return,
            Place::Orphan(_, ref name) => self.delete_orphan(name),
            _ if node.keep => return,
            _ => {}
        }
        nodes.remove(ino);
        drop(nodes);
        self.directories.lock().pop(&ino);
    }

    /// What a name stands for. The caller holds `names`.
    pub(super) fn see(&self, parent: Ino, name: &[u8]) -> Result<Seen> {
        valid_name(name)?;
        let Some(dir) = self.upper_dir(parent)? else {
            let found = self.lower()?.lookup(parent, name)?;
            return Ok(found.map_or(Seen::Nothing, Seen::Lower));
        };
        let upper = self.upper()?;
        match upper.look(&Spot::at(&dir, name))? {
            Some(Found::Whiteout) => Ok(Seen::Whiteout),
            Some(Found::Entry(stat, marks)) => {
                let spot = Spot::at(&dir, name);
                let merges = self.merges_with(parent, name, &stat, &marks)?;
                let ino = self.number(&stat, &marks, merges);
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    if self.leads_back(ino, parent) {
                        tracing::warn!(name = %name.escape_ascii(), "a directory of the upper says that it is one that it lies in");
                        return Err(Errno::IO.into());
                    }
                    if self.is_of_another(ino, stat.st_ino) {
                        tracing::warn!(name = %name.escape_ascii(), "two directories of the upper show the same one of the lower");
                        return Err(Errno::IO.into());
                    }
                }
                Ok(Seen::Upper(Entry { spot, stat, marks, ino, merges }))
            }
            None => Ok(self.see_lower(parent, name)?.map_or(Seen::Nothing, Seen::Lower)),
        }
    }

    /// Whether a number is that of a directory or of one that it lies in: marks that say so of something in it would make
    /// its place depend on itself.
    fn leads_back(&self, ino: Ino, dir: Ino) -> bool {
        let nodes = self.nodes.lock();
        let mut at = dir;
        while at != ino && at != ROOT {
            match nodes.get(at).map(|node| &node.place) {
                Some(Place::Named(names)) if !names.is_empty() => at = names[0].0,
                _ => return ino == ROOT,
            }
        }
        at == ino || ino == ROOT
    }

    /// What the lower part of a directory has under a name.
    pub(super) fn see_lower(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        match self.lower_dir(parent) {
            Some(dir) => self.lower()?.lookup(dir, name),
            None => Ok(None),
        }
    }

    /// The lower directory that the upper directory found under a name shows.
    pub(super) fn merges_with(&self, parent: Ino, name: &[u8], stat: &Stat, marks: &Marks) -> Result<Option<Ino>> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory || marks.opaque {
            return Ok(None);
        }
        let found = match &marks.redirect {
            Some(path) if path.starts_with(b"/") => self.lower()?.resolve(path)?,
            Some(beside) => self.see_lower(parent, beside)?,
            None => self.see_lower(parent, name)?,
        };
        match found {
            Some(attr) if attr.is_dir() => Ok(Some(attr.ino)),
            Some(_) | None if marks.redirect.is_some() => {
                tracing::warn!(name = %name.escape_ascii(), "a directory's redirect leads to no directory of the lower");
                Err(Errno::IO.into())
            }
            _ => Ok(None),
        }
    }

    /// An upper inode's number: the one it had in the lower, that of the directory it merges with, or its own.
    pub(super) fn number(&self, stat: &Stat, marks: &Marks, merges: Option<Ino>) -> Ino {
        let own = Ino::of_upper(stat.st_ino);
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory {
            return marks.origin.or(merges).unwrap_or(own);
        }
        let known = marks.origin.or_else(|| {
            let can_say = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            if can_say { None } else { self.nodes.lock().unmarked(stat.st_ino) }
        });
        // Old marks don't say whose they are: of two copies, the second is an inode of its own.
        known.filter(|&ino| !self.is_of_another(ino, stat.st_ino)).unwrap_or(own)
    }

    /// Whether a number is that of another inode of the upper, which is still where it was: somebody copied it, marks and
    /// all, while the union was not mounted.
    pub(super) fn is_of_another(&self, ino: Ino, host: u64) -> bool {
        let known = match self.nodes.lock().get(ino) {
            Some(node) if node.host != host => match &node.place {
                Place::Named(names) => names.first().cloned().map(|name| (name, node.host)),
                _ => None,
            },
            _ => None,
        };
        let Some(((parent, name), other)) = known else { return false };
        let Ok(Some(dir)) = self.upper_dir(parent) else { return false };
        Spot::at(&dir, &name).stat().is_ok_and(|stat| stat.st_ino == other)
    }
}
