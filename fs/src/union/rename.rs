//! Renaming, with all flags of renameat2(2).
//!
//! A directory that shows a lower one is not copied: it gets a redirect to the lower path and moves with it. Everything that
//! must be true afterwards and is harmless before (redirects, opaque marks) is written first; then one rename
//! or exchange changes what is seen.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::copy_up::{Keep, orphan_name};
use super::lookup::{Entry, Seen};
use super::{Union, valid_name};
use crate::error::{Error, Result};
use crate::inode::{Ino, ROOT};
use crate::upper::{Mark, Spot, Upper, read_dir};
use std::os::fd::AsFd as _;

/// A name, with its directory.
#[derive(Clone, Copy)]
struct At<'a> {
    dir: Ino,
    name: &'a [u8],
}

impl Union {
    /// Gives an inode another name. `NOREPLACE`, `EXCHANGE` and `WHITEOUT` mean what they mean in renameat2(2).
    pub fn rename(&self, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        self.upper()?;
        valid_name(name)?;
        valid_name(new_name)?;
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if exchange && flags.intersects(RenameFlags::NOREPLACE | RenameFlags::WHITEOUT) {
            return Err(Errno::INVAL.into());
        }
        let (from, to) = (At { dir: parent, name }, At { dir: new_parent, name: new_name });
        self.copy_up_parent(parent)?;
        self.copy_up_parent(new_parent)?;
        self.copy_up_name(from)?;
        if exchange {
            self.copy_up_name(to)?;
        } else {
            self.part_links(to.dir, to.name)?;
        }
        let _names = self.names.write();
        let Seen::Upper(source) = self.see(from.dir, from.name)? else { return Err(Errno::NOENT.into()) };
        let target = self.see(to.dir, to.name)?;
        if exchange {
            let Seen::Upper(target) = target else { return Err(Errno::NOENT.into()) };
            return self.exchange(from, &source, to, &target);
        }
        if flags.contains(RenameFlags::NOREPLACE) && matches!(target, Seen::Upper(_) | Seen::Lower(_)) {
            return Err(Errno::EXIST.into());
        }
        self.replace(from, &source, to, target, flags.contains(RenameFlags::WHITEOUT))
    }

    /// Makes sure that what is under a name is in the upper.
    fn copy_up_name(&self, at: At<'_>) -> Result<()> {
        let seen = {
            let _names = self.names.read();
            self.see(at.dir, at.name)?
        };
        match seen {
            Seen::Nothing | Seen::Whiteout => Err(Errno::NOENT.into()),
            Seen::Lower(attr) => self.copy_up(attr.ino, Keep::Attributes),
            Seen::Upper(entry) => self.anchor_name(at.dir, at.name, &entry),
        }
    }

    fn replace(&self, from: At<'_>, source: &Entry, to: At<'_>, target: Seen, leave_device: bool) -> Result<()> {
        let upper = self.upper()?;
        match &target {
            Seen::Upper(target) if target.stat.st_ino == source.stat.st_ino => {
                // Two names of one file: POSIX' rename() does nothing then.
                return Ok(());
            }
            Seen::Upper(target) => self.require_replaceable(source, target.ino, target.is_dir())?,
            Seen::Lower(target) => self.require_replaceable(source, target.ino, target.is_dir())?,
            Seen::Nothing | Seen::Whiteout => {}
        }
        let device = if leave_device { Some(prepare_device(upper)?) } else { None };
        self.prepare_move(source, to)?;
        if let Seen::Upper(target) = &target {
            self.nodes.lock().enter(target.ino, target.node(to.dir, to.name));
            self.keep_beyond_name(to.dir, to.name, target)?;
            if target.is_dir() {
                clear_for_replacement(upper, target)?;
            }
        }
        self.nodes.lock().enter(source.ino, source.node(from.dir, from.name));
        let hides = self.see_lower(from.dir, from.name)?.is_some();
        self.move_over(upper, source, to, &target, hides)?;
        if let Some(device) = device {
            Upper::rename(&device, &source.spot, RenameFlags::empty())?;
            self.mark_impure(upper, from.dir)?;
        }
        self.moved(from, source, to);
        match target {
            Seen::Upper(target) => {
                self.nodes.lock().drop_name(target.ino, to.dir, to.name);
                self.directories.lock().pop(&target.ino);
            }
            Seen::Lower(target) => drop(self.removed.lock().insert(target.ino)),
            Seen::Nothing | Seen::Whiteout => {}
        }
        Ok(())
    }

    /// The step in which the names change.
    fn move_over(&self, upper: &Upper, source: &Entry, to: At<'_>, target: &Seen, hides: bool) -> Result<()> {
        let dir = self.upper_dir(to.dir)?.ok_or(Error::Stale { ino: to.dir })?;
        let place = Spot::at(&dir, to.name);
        match target {
            Seen::Whiteout if source.is_dir() => {
                // The whiteout goes to the old name, where it may be wanted.
                Upper::rename(&source.spot, &place, RenameFlags::EXCHANGE)?;
                if !hides {
                    Upper::discard(&source.spot)?;
                }
            }
            Seen::Upper(open) if !open.is_dir() && open.stat.st_nlink == 1 && self.is_open(open.ino) => {
                // The file that loses its name is given one in the work directory first, so that it survives.
                let orphan = orphan_name(open.ino);
                open.spot.link_to(&upper.orphans, &orphan)?;
                Upper::rename(&source.spot, &place, super::unlink::whiteout_if(hides))
                    .inspect_err(|_| self.delete_orphan(&orphan))?;
                self.become_orphan(open.ino, orphan);
            }
            _ => Upper::rename(&source.spot, &place, super::unlink::whiteout_if(hides))?,
        }
        Ok(())
    }

    fn exchange(&self, from: At<'_>, source: &Entry, to: At<'_>, target: &Entry) -> Result<()> {
        if source.stat.st_ino == target.stat.st_ino {
            return Ok(());
        }
        self.prepare_move(source, to)?;
        self.prepare_move(target, from)?;
        {
            let mut nodes = self.nodes.lock();
            nodes.enter(source.ino, source.node(from.dir, from.name));
            nodes.enter(target.ino, target.node(to.dir, to.name));
        }
        Upper::rename(&source.spot, &target.spot, RenameFlags::EXCHANGE)?;
        self.moved(from, source, to);
        self.moved(to, target, from);
        Ok(())
    }

    /// Type and emptiness, as POSIX' rename() wants them.
    fn require_replaceable(&self, source: &Entry, target: Ino, target_is_dir: bool) -> Result<()> {
        match (source.is_dir(), target_is_dir) {
            (true, false) => Err(Errno::NOTDIR.into()),
            (false, true) => Err(Errno::ISDIR.into()),
            (true, true) => self.require_empty(target),
            (false, false) => Ok(()),
        }
    }

    /// Writes the marks that let an inode be what it is at its new name.
    fn prepare_move(&self, source: &Entry, to: At<'_>) -> Result<()> {
        let upper = self.upper()?;
        if source.is_dir() {
            self.require_outside(source.ino, to.dir)?;
            match source.merges {
                Some(lower) => self.set_redirect(upper, &source.spot, lower)?,
                None if !source.marks.opaque && self.see_lower(to.dir, to.name)?.is_some_and(|attr| attr.is_dir()) => {
                    upper.format.set(&source.spot, Mark::Opaque, b"y")?;
                }
                None => {}
            }
        }
        if !source.ino.is_upper() || source.marks.device {
            self.mark_impure(upper, to.dir)?;
        }
        Ok(())
    }

    /// A directory can't be moved below itself.
    fn require_outside(&self, moving: Ino, dir: Ino) -> Result<()> {
        let mut at = dir;
        while at != ROOT {
            if at == moving {
                return Err(Errno::INVAL.into());
            }
            let parent = self.parent_of(at)?;
            if parent == at {
                break;
            }
            at = parent;
        }
        Ok(())
    }

    /// Notes in the tables what the disk has done.
    fn moved(&self, from: At<'_>, source: &Entry, to: At<'_>) {
        self.nodes.lock().rename(source.ino, (from.dir, from.name), (to.dir, to.name));
        if source.is_dir() {
            self.forget_links(from.dir);
            self.forget_links(to.dir);
        }
    }
}

/// A program's char device 0:0, to be put where a file was moved away.
fn prepare_device(upper: &Upper) -> Result<Spot> {
    use rustix::fs::{Mode, OFlags};
    let made = upper.temporary();
    let Spot::At(dir, name) = &made else { return Err(Errno::INVAL.into()) };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())?;
    upper.format.set(&made, Mark::Device, b"y")?;
    Ok(made)
}

/// Makes an empty-looking directory really empty, which is seen by nobody: it is opaque before its whiteouts go.
fn clear_for_replacement(upper: &Upper, target: &Entry) -> Result<()> {
    let dir = std::sync::Arc::new(target.spot.open(crate::upper::DIRECTORY)?);
    let whiteouts = read_dir(dir.as_fd())?;
    if whiteouts.is_empty() {
        return Ok(());
    }
    upper.format.set(&target.spot, Mark::Opaque, b"y")?;
    for (name, _, _) in whiteouts {
        Upper::discard(&Spot::at(&dir, &name))?;
    }
    Ok(())
}
