//! Renaming and linking, within one branch.
//!
//! A file that can't be written to where it is comes up first. The new name is made in the branch that has the file; what a
//! branch above shows under that name is taken away afterwards, which is the step in which the name changes its meaning:
//! the file has both names then, so that none is lost whenever the power fails.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::remove::whiteout_if;
use super::see::{Hit, Seen, discard};
use super::{Branches, Stack};
use crate::error::{Error, Result};
use crate::inode::{Attr, Ino, ROOT};
use crate::union::copy_up::Keep;
use crate::upper::{Format, Mark, Spot, Upper, read_dir};

/// A name, with its directory.
#[derive(Clone, Copy)]
struct At<'a> {
    dir: Ino,
    name: &'a [u8],
}

impl Branches {
    /// Gives an inode another name. `NOREPLACE` and `EXCHANGE` mean what they mean in renameat2(2); `WHITEOUT` is EINVAL.
    pub fn rename(&self, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if flags.contains(RenameFlags::WHITEOUT) || exchange && flags.contains(RenameFlags::NOREPLACE) {
            return Err(Errno::INVAL.into());
        }
        let (from, to) = (At { dir: parent, name }, At { dir: new_parent, name: new_name });
        self.copy_up_name(from)?;
        if exchange {
            self.copy_up_name(to)?;
        } else {
            self.part_links(to.dir, to.name)?;
        }
        let stack = self.stack.write();
        let (source, target) = (self.see(&stack, from.dir, from.name)?, self.see(&stack, to.dir, to.name)?);
        let moving = movable(&stack, &source)?;
        if exchange {
            return self.exchange(&stack, from, moving, to, movable(&stack, &target)?);
        }
        match target.hits.first() {
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => Err(Errno::EXIST.into()),
            // Two names of one file: POSIX' rename() does nothing then.
            Some(hit) if hit.host() == moving.host() => Ok(()),
            _ => self.replace(&stack, from, moving, to, &target),
        }
    }

    /// Makes sure that a file can be changed where it is.
    fn copy_up_name(&self, at: At<'_>) -> Result<()> {
        let ino = {
            let stack = self.stack.read();
            let seen = self.see(&stack, at.dir, at.name)?;
            match seen.hits.first() {
                Some(hit) if !hit.is_dir() && !stack.branches[hit.at].is_writable() => {
                    self.enter(&stack, at.dir, at.name, &seen)?
                }
                _ => return Ok(()),
            }
        };
        let copied = self.copy_up(ino, Keep::Contents);
        self.forget(ino, 1);
        copied
    }

    fn replace(&self, stack: &Stack, from: At<'_>, moving: &Hit, to: At<'_>, target: &Seen) -> Result<()> {
        let at = moving.at;
        let replaced = self.require_replaceable(stack, moving, to, target)?;
        let over = target.hits.first().map(|hit| hit.at).or(target.whiteout);
        let is_covered = over.is_some_and(|over| over < at);
        if is_covered && (moving.is_dir() || !over.is_some_and(|over| stack.branches[over].is_writable())) {
            return Err(Errno::XDEV.into());
        }
        if is_covered && !self.is_clear_between(stack, to, over.unwrap_or(0), at)? {
            return Err(Errno::XDEV.into());
        }
        let ino = self.number(stack, from.dir, from.name, moving);
        if moving.is_dir() {
            self.require_outside(ino, to.dir)?;
        }
        if !self.usable(stack, to.dir, at)? {
            return Err(Errno::XDEV.into());
        }
        let dir = self.provide(stack, to.dir, at)?;
        if moving.is_dir() && (over.is_some_and(|over| over >= at) || self.has_below(stack, to, at)?) {
            self.format.set(&moving.spot, Mark::Opaque, b"y")?;
        }
        let hides = !self.see_below(stack, from.dir, from.name, Some(at))?.hits.is_empty();
        if let (true, Some(over)) = (is_covered, over) {
            self.move_below(stack, moving, &dir, to, over, hides)?;
        } else {
            move_over(self.format, moving, &dir, to.name, target, hides)?;
        }
        if let Some(hit) = target.hits.first().filter(|hit| hit.at > at && !hit.is_dir())
            && stack.branches[hit.at].is_writable()
        {
            // It is hidden from now on, and one name less.
            Upper::discard(&hit.spot)?;
        }
        if let Some(replaced) = replaced {
            self.lost(replaced, to.dir, to.name);
        }
        self.moved(ino, from, to);
        self.touch(stack, from.dir, at)?;
        self.touch(stack, to.dir, at)
    }

    /// Moves a file to a name that a branch above hides, and takes away what hides it.
    fn move_below(
        &self,
        stack: &Stack,
        moving: &Hit,
        dir: &Arc<OwnedFd>,
        to: At<'_>,
        over: usize,
        hides: bool,
    ) -> Result<()> {
        moving.spot.link_to(dir, to.name)?;
        if let Err(error) = self.uncover(stack, to.dir, to.name, over) {
            discard(&Spot::at(dir, to.name));
            return Err(error);
        }
        if hides {
            let gone = stack.branches[moving.at].upper()?.temporary();
            Upper::rename(&moving.spot, &gone, RenameFlags::WHITEOUT)?;
            return Ok(Upper::discard(&gone)?);
        }
        let Spot::At(old, name) = &moving.spot else { return Err(Errno::INVAL.into()) };
        Ok(rustix::fs::unlinkat(old, name, AtFlags::empty())?)
    }

    /// Whether nothing between two branches, and nothing in the lower one, has a name, shown or hidden.
    fn is_clear_between(&self, stack: &Stack, to: At<'_>, over: usize, at: usize) -> Result<bool> {
        for part in self.parts(stack, to.dir)?.iter() {
            let below = stack.position(part.branch).ok_or(Error::Stale { ino: to.dir })?;
            let look = || stack.branches[below].look(self.format, &part.fd, to.name);
            if below > over && below <= at && !matches!(look()?, super::branch::Look::Nothing) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_below(&self, stack: &Stack, to: At<'_>, at: usize) -> Result<bool> {
        Ok(!self.see_below(stack, to.dir, to.name, Some(at))?.hits.is_empty())
    }

    /// Type and emptiness, as POSIX' rename() wants them; returns the inode that loses its name.
    fn require_replaceable(&self, stack: &Stack, moving: &Hit, to: At<'_>, target: &Seen) -> Result<Option<Ino>> {
        let Some(hit) = target.hits.first() else { return Ok(None) };
        match (moving.is_dir(), hit.is_dir()) {
            (true, false) => return Err(Errno::NOTDIR.into()),
            (false, true) => return Err(Errno::ISDIR.into()),
            (true, true) => {
                let ino = self.enter(stack, to.dir, to.name, target)?;
                let empty = self.require_empty(stack, ino);
                self.forget(ino, 1);
                empty?;
            }
            (false, false) => {}
        }
        Ok(Some(self.number(stack, to.dir, to.name, hit)))
    }

    /// A directory can't be moved below itself.
    fn require_outside(&self, moving: Ino, dir: Ino) -> Result<()> {
        let mut at = dir;
        while at != ROOT {
            if at == moving {
                return Err(Errno::INVAL.into());
            }
            match self.nodes.lock().get(at)?.names.first() {
                Some((parent, _)) => at = *parent,
                None => break,
            }
        }
        Ok(())
    }

    fn exchange(&self, stack: &Stack, from: At<'_>, moving: &Hit, to: At<'_>, other: &Hit) -> Result<()> {
        if moving.host() == other.host() {
            return Ok(());
        }
        if moving.at != other.at {
            return Err(Errno::XDEV.into());
        }
        let (ino, other_ino) =
            (self.number(stack, from.dir, from.name, moving), self.number(stack, to.dir, to.name, other));
        for (hit, ino, to) in [(moving, ino, to), (other, other_ino, from)] {
            if hit.is_dir() {
                self.require_outside(ino, to.dir)?;
                if self.has_below(stack, to, hit.at)? {
                    self.format.set(&hit.spot, Mark::Opaque, b"y")?;
                }
            }
        }
        Upper::rename(&moving.spot, &other.spot, RenameFlags::EXCHANGE)?;
        self.moved(ino, from, to);
        self.moved(other_ino, to, from);
        self.touch(stack, from.dir, moving.at)?;
        self.touch(stack, to.dir, moving.at)
    }

    fn moved(&self, ino: Ino, from: At<'_>, to: At<'_>) {
        self.recounts.fetch_add(1, Ordering::Relaxed);
        if let Ok(node) = self.nodes.lock().get_mut(ino) {
            node.drop_name(from.dir, from.name);
            node.add_name(to.dir, to.name);
        }
    }

    /// Gives an inode one more name, in the branch that has it.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.copy_up(ino, Keep::Contents)?;
        let stack = self.stack.write();
        let part = self.part(&stack, ino)?;
        let at = stack.position(part.branch).ok_or(Error::Stale { ino })?;
        let seen = self.see(&stack, parent, name)?;
        if !seen.hits.is_empty() {
            return Err(Errno::EXIST.into());
        }
        let to = At { dir: parent, name };
        let is_hidden = match seen.whiteout {
            Some(hiding) if hiding < at => {
                !stack.branches[hiding].is_writable() || !self.is_clear_between(&stack, to, hiding, at)?
            }
            _ => false,
        };
        if is_hidden || !self.usable(&stack, parent, at)? {
            return Err(Errno::XDEV.into());
        }
        let dir = self.provide(&stack, parent, at)?;
        let made = stack.branches[at].upper()?.temporary();
        let Spot::At(tmp, tmp_name) = &made else { return Err(Errno::INVAL.into()) };
        Spot::Fd(part.fd).link_to(tmp, tmp_name)?;
        let placed = self.place_new(&stack, &made, (parent, &dir, name), at, seen.whiteout, false);
        placed.inspect_err(|_| discard(&made))?;
        self.touch(&stack, parent, at)?;
        self.lookup_locked(&stack, parent, name)?.ok_or(Error::Refused(Errno::IO))
    }
}

/// What can be renamed as it is: a file of a writable branch, or a directory that is all in one. Else EXDEV.
fn movable<'a>(stack: &Stack, seen: &'a Seen) -> Result<&'a Hit> {
    match &seen.hits[..] {
        [] => Err(Errno::NOENT.into()),
        [hit] if stack.branches[hit.at].is_writable() => Ok(hit),
        _ => Err(Errno::XDEV.into()),
    }
}

/// Moves something to a name that no branch above has.
fn move_over(format: Format, moving: &Hit, dir: &Arc<OwnedFd>, name: &[u8], target: &Seen, hides: bool) -> Result<()> {
    let place = Spot::at(dir, name);
    match target.hits.first() {
        Some(hit) if hit.at == moving.at && hit.is_dir() => {
            clear(format, hit)?;
            Upper::rename(&moving.spot, &place, whiteout_if(hides))?;
        }
        None if target.whiteout == Some(moving.at) && moving.is_dir() => {
            // The whiteout goes to the old name, where it may be wanted.
            Upper::rename(&moving.spot, &place, RenameFlags::EXCHANGE)?;
            if !hides {
                Upper::discard(&moving.spot)?;
            }
        }
        _ => Upper::rename(&moving.spot, &place, whiteout_if(hides))?,
    }
    Ok(())
}

/// Makes an empty-looking directory really empty, which is seen by nobody: it is opaque before its whiteouts go.
fn clear(format: Format, hit: &Hit) -> Result<()> {
    let dir = Arc::new(hit.spot.open(crate::upper::DIRECTORY)?);
    let whiteouts = read_dir(dir.as_fd())?;
    if whiteouts.is_empty() {
        return Ok(());
    }
    format.set(&hit.spot, Mark::Opaque, b"y")?;
    for (name, _, _) in whiteouts {
        Upper::discard(&Spot::at(&dir, &name))?;
    }
    Ok(())
}
