//! Removing names.
//!
//! A name that a branch further below has too leaves a whiteout: in the branch that had it, in the same step, or in the nearest
//! writable one above.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::see::Hit;
use super::{Branches, Stack};
use crate::error::Result;
use crate::inode::Ino;
use crate::union::copy_up::Keep;
use crate::upper::{Upper, read_dir};

impl Branches {
    /// Removes a name that is no directory's.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.part_links(parent, name)?;
        let stack = self.stack.write();
        let seen = self.see(&stack, parent, name)?;
        let hit = seen.hits.first().ok_or(Errno::NOENT)?;
        if hit.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        let ino = self.number(&stack, parent, name, hit);
        self.take_away(&stack, parent, name, hit)?;
        self.lost(ino, parent, name);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let stack = self.stack.write();
        let seen = self.see(&stack, parent, name)?;
        let hit = seen.hits.first().ok_or(Errno::NOENT)?;
        if !hit.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let ino = self.enter(&stack, parent, name, &seen)?;
        let done = self.require_empty(&stack, ino).and_then(|()| self.take_away(&stack, parent, name, hit));
        if done.is_ok() {
            self.recounts.fetch_add(1, Ordering::Relaxed);
            self.lost(ino, parent, name);
        }
        self.forget(ino, 1);
        done
    }

    /// A file of several names that can't be changed where it is comes up before one of them goes: how many are left is then
    /// the disk's to count.
    pub(super) fn part_links(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let ino = {
            let stack = self.stack.read();
            let seen = self.see(&stack, parent, name)?;
            match seen.hits.first() {
                Some(hit) if !hit.is_dir() && hit.stat.st_nlink > 1 && !stack.branches[hit.at].is_writable() => {
                    self.enter(&stack, parent, name, &seen)?
                }
                _ => return Ok(()),
            }
        };
        let copied = self.copy_up(ino, Keep::Contents);
        self.forget(ino, 1);
        copied
    }

    pub(super) fn require_empty(&self, stack: &Stack, dir: Ino) -> Result<()> {
        for part in self.parts(stack, dir)?.iter() {
            for (name, _, _) in read_dir(part.fd.as_fd())? {
                if !self.see(stack, dir, &name)?.hits.is_empty() {
                    return Err(Errno::NOTEMPTY.into());
                }
            }
        }
        Ok(())
    }

    /// Makes a name show nothing; `hit` is what shows.
    fn take_away(&self, stack: &Stack, parent: Ino, name: &[u8], hit: &Hit) -> Result<()> {
        if !stack.branches[hit.at].is_writable() {
            let above = self.nearest(stack, hit.at, &[parent])?.ok_or(Errno::ROFS)?;
            let dir = self.provide(stack, parent, above)?;
            Upper::make_whiteout(&crate::upper::Spot::at(&dir, name))?;
            return self.touch(stack, parent, above);
        }
        let hides = !self.see_below(stack, parent, name, Some(hit.at))?.hits.is_empty();
        if hides || hit.is_dir() {
            let gone = stack.branches[hit.at].upper()?.temporary();
            Upper::rename(&hit.spot, &gone, whiteout_if(hides))?;
            Upper::discard(&gone)?;
        } else {
            rustix::fs::unlinkat(hit.dir()?, name, AtFlags::empty())?;
        }
        self.touch(stack, parent, hit.at)
    }

    /// Notes that an inode has lost a name.
    pub(super) fn lost(&self, ino: Ino, parent: Ino, name: &[u8]) {
        if let Ok(node) = self.nodes.lock().get_mut(ino) {
            node.drop_name(parent, name);
            if node.is_dir() {
                // Whoever is in it sees an empty directory; its attributes are those it had.
                node.end();
            }
        }
    }
}

pub(super) fn whiteout_if(hides: bool) -> RenameFlags {
    if hides { RenameFlags::WHITEOUT } else { RenameFlags::empty() }
}
