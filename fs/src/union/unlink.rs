//! Removing names.
//!
//! A name that the lower has too leaves a whiteout, put in its place in the same step. What is open goes on under its
//! number in `orphans/` of the work directory, so that a program's deleted file survives the daemon; what is merely known to the
//! kernel is held by a descriptor until it is forgotten.

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::copy_up::{Keep, orphan_name};
use super::lookup::{Entry, Seen};
use super::nodes::Place;
use super::{Union, valid_name};
use crate::error::{Error, Result};
use crate::inode::{Attr, Ino};
use crate::upper::{Spot, Upper};

impl Union {
    /// Removes a name that is no directory's.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.upper()?;
        valid_name(name)?;
        self.copy_up_parent(parent)?;
        self.part_links(parent, name)?;
        let _names = self.names.write();
        match self.see(parent, name)? {
            Seen::Nothing | Seen::Whiteout => Err(Errno::NOENT.into()),
            Seen::Lower(attr) if attr.is_dir() => Err(Errno::ISDIR.into()),
            Seen::Upper(entry) if entry.is_dir() => Err(Errno::ISDIR.into()),
            Seen::Lower(attr) => self.hide(parent, name, &attr),
            Seen::Upper(entry) => self.detach(parent, name, &entry),
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.upper()?;
        valid_name(name)?;
        self.copy_up_parent(parent)?;
        let _names = self.names.write();
        match self.see(parent, name)? {
            Seen::Nothing | Seen::Whiteout => return Err(Errno::NOENT.into()),
            Seen::Lower(attr) if attr.is_dir() => {
                self.require_empty(attr.ino)?;
                self.hide(parent, name, &attr)?;
            }
            Seen::Upper(entry) if entry.is_dir() => self.detach_dir(parent, name, &entry)?,
            Seen::Lower(_) | Seen::Upper(_) => return Err(Errno::NOTDIR.into()),
        }
        self.forget_links(parent);
        Ok(())
    }

    /// A lower file of several names is copied up before one of them goes: how many are left is then the disk's to count.
    pub(super) fn part_links(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let seen = {
            let _names = self.names.read();
            self.see(parent, name)?
        };
        match seen {
            Seen::Lower(attr) if !attr.is_dir() && attr.nlink > 1 => self.copy_up(attr.ino, Keep::Attributes),
            Seen::Upper(entry) => self.anchor_name(parent, name, &entry),
            _ => Ok(()),
        }
    }

    pub(super) fn require_empty(&self, dir: Ino) -> Result<()> {
        if self.is_empty_dir(dir)? { Ok(()) } else { Err(Errno::NOTEMPTY.into()) }
    }

    /// Puts a whiteout where only the lower has something.
    fn hide(&self, parent: Ino, name: &[u8], attr: &Attr) -> Result<()> {
        let dir = self.upper_dir(parent)?.ok_or(Error::Stale { ino: parent })?;
        Upper::make_whiteout(&Spot::At(dir, name.to_vec()))?;
        self.removed.lock().insert(attr.ino);
        Ok(())
    }

    /// Takes a file's name away.
    fn detach(&self, parent: Ino, name: &[u8], entry: &Entry) -> Result<()> {
        self.keep_beyond_name(parent, name, entry)?;
        let hides = self.see_lower(parent, name)?.is_some();
        let upper = self.upper()?;
        let last = entry.stat.st_nlink == 1;
        let Spot::At(dir, _) = &entry.spot else { return Err(Errno::INVAL.into()) };
        if last && self.is_open(entry.ino) {
            let orphan = orphan_name(entry.ino);
            let place = Spot::at(&upper.orphans, &orphan);
            Upper::rename(&entry.spot, &place, whiteout_if(hides))?;
            self.become_orphan(entry.ino, orphan);
        } else if hides {
            let gone = upper.temporary();
            Upper::rename(&entry.spot, &gone, RenameFlags::WHITEOUT)?;
            Upper::discard(&gone)?;
        } else {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
        }
        self.nodes.lock().drop_name(entry.ino, parent, name);
        Ok(())
    }

    /// Takes an empty directory away, with the whiteouts that may be in it.
    fn detach_dir(&self, parent: Ino, name: &[u8], entry: &Entry) -> Result<()> {
        self.nodes.lock().enter(entry.ino, entry.node(parent, name));
        self.require_empty(entry.ino)?;
        self.keep_beyond_name(parent, name, entry)?;
        let hides = self.see_lower(parent, name)?.is_some();
        let Spot::At(dir, _) = &entry.spot else { return Err(Errno::INVAL.into()) };
        let plain = if hides { Err(Errno::NOTEMPTY) } else { rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) };
        match plain {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let gone = self.upper()?.temporary();
                Upper::rename(&entry.spot, &gone, whiteout_if(hides))?;
                Upper::discard(&gone)?;
            }
            done => done?,
        }
        self.directories.lock().pop(&entry.ino);
        self.nodes.lock().drop_name(entry.ino, parent, name);
        Ok(())
    }

    /// Makes sure that an inode which may lose its last known name can still be found.
    pub(super) fn keep_beyond_name(&self, parent: Ino, name: &[u8], entry: &Entry) -> Result<()> {
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(entry.ino) else { return Ok(()) };
        let others = match &node.place {
            Place::Named(names) => names.iter().any(|(at, known)| *at != parent || known != name),
            _ => return Ok(()),
        };
        if !others {
            node.place = Place::Held(entry.spot.hold()?);
            node.keep = false;
        }
        Ok(())
    }

    pub(super) fn become_orphan(&self, ino: Ino, name: Vec<u8>) {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get_mut(ino)
            && let Place::Held(fd) = &node.place
        {
            node.place = Place::Orphan(fd.clone(), name);
        }
    }

    pub(super) fn delete_orphan(&self, name: &[u8]) {
        let Some(upper) = &self.upper else { return };
        if let Err(errno) = rustix::fs::unlinkat(&upper.orphans, name, AtFlags::empty()) {
            tracing::warn!(%errno, "a deleted file stays in the work directory until the next mount");
        }
    }
}

pub(super) fn whiteout_if(hides: bool) -> RenameFlags {
    if hides { RenameFlags::WHITEOUT } else { RenameFlags::empty() }
}
