//! What a name stands for: every branch is asked, from the top down.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, RenameFlags, Stat};
use rustix::io::Errno;

use super::branch::{Branch, Look};
use super::nodes::{Node, Part};
use super::{Branches, Stack};
use crate::error::{Error, Result};
use crate::inode::{Attr, Ino, ROOT};
use crate::union::copy_up::times_of;
use crate::union::valid_name;
use crate::upper::{DIRECTORY, Marks, Spot, Upper};

/// What the branches have under a name.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What shows, top first: one file, or the directories that are shown as one.
    pub(super) hits: Vec<Hit>,
    /// Where a whiteout was met before anything else.
    pub(super) whiteout: Option<usize>,
}

/// What one branch has under a name.
#[derive(Debug)]
pub(super) struct Hit {
    /// Which branch.
    pub(super) at: usize,
    pub(super) spot: Spot,
    pub(super) stat: Stat,
    pub(super) marks: Marks,
}

impl Hit {
    pub(super) fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }

    pub(super) fn host(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// The directory it is in.
    pub(super) fn dir(&self) -> Result<&Arc<OwnedFd>, Errno> {
        match &self.spot {
            Spot::At(dir, _) => Ok(dir),
            Spot::Fd(_) => Err(Errno::INVAL),
        }
    }
}

impl Branches {
    /// The inode behind a name; `None` when the directory has no such name. What is found counts as one reference of the
    /// kernel, to be given back by [`Branches::forget`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        let stack = self.stack.read();
        self.lookup_locked(&stack, parent, name)
    }

    pub(super) fn lookup_locked(&self, stack: &Stack, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        let seen = self.see(stack, parent, name)?;
        if seen.hits.is_empty() {
            return Ok(None);
        }
        let ino = self.enter(stack, parent, name, &seen)?;
        let attr = self.attr(stack, ino).inspect_err(|_| self.forget(ino, 1))?;
        Ok(Some(attr))
    }

    /// Gives references back.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        self.nodes.lock().forget(ino, lookups);
    }

    /// What the branches have under a name. The caller holds the stack.
    pub(super) fn see(&self, stack: &Stack, parent: Ino, name: &[u8]) -> Result<Seen> {
        valid_name(name)?;
        self.see_below(stack, parent, name, None)
    }

    /// The same for the branches below one, `None`: for all of them.
    pub(super) fn see_below(&self, stack: &Stack, parent: Ino, name: &[u8], below: Option<usize>) -> Result<Seen> {
        let mut seen = Seen::default();
        for part in self.parts(stack, parent)?.iter() {
            let at = stack.position(part.branch).ok_or(Error::Stale { ino: parent })?;
            if below.is_some_and(|below| at <= below) {
                continue;
            }
            match stack.branches[at].look(self.format, &part.fd, name)? {
                Look::Nothing => {}
                Look::Whiteout => {
                    if seen.hits.is_empty() {
                        seen.whiteout = Some(at);
                    }
                    break;
                }
                Look::Entry { stat, marks, last } => {
                    let hit = Hit { at, spot: Spot::at(&part.fd, name), stat, marks };
                    // What lies below a directory shows in it if it is a directory, and else not at all.
                    if !seen.hits.is_empty() && !hit.is_dir() {
                        break;
                    }
                    seen.hits.push(hit);
                    if last {
                        break;
                    }
                }
            }
        }
        Ok(seen)
    }

    /// The number of what was seen.
    ///
    /// A copy has that of its original, by its mark; all else that which its branch and disk give it. A mark may be another
    /// mount's, and an original may show again; so a number that a different inode has at present is passed over.
    pub(super) fn number(&self, stack: &Stack, parent: Ino, name: &[u8], hit: &Hit) -> Ino {
        let branch = &stack.branches[hit.at];
        let (device, host) = hit.host();
        let other = (device != branch.host.0).then_some(device);
        let own = self.numbers.of(branch.id, other, host);
        let nodes = self.nodes.lock();
        let is_free = |ino: &Ino| match nodes.get(*ino) {
            Err(_) => true,
            Ok(_) if *ino == ROOT => false,
            Ok(node) if node.is_dir() != hit.is_dir() => false,
            Ok(node) => match node.file() {
                Some(part) => part.host == (device, host),
                None => node.names.iter().any(|(at, known)| *at == parent && known == name),
            },
        };
        let mark = hit.marks.origin.filter(|ino| !ino.is_upper());
        mark.filter(is_free).unwrap_or_else(|| {
            if is_free(&own) { own } else { self.numbers.of(branch.id, Some(device ^ 1 << 63), host) }
        })
    }

    /// Makes what was seen known, and counts a reference.
    pub(super) fn enter(&self, stack: &Stack, parent: Ino, name: &[u8], seen: &Seen) -> Result<Ino> {
        let hit = seen.hits.first().ok_or(Errno::NOENT)?;
        let ino = self.number(stack, parent, name, hit);
        let is_known = self.nodes.lock().get(ino).is_ok();
        let new = if is_known {
            None
        } else if hit.is_dir() {
            Some(Node::new_dir(open_parts(stack, seen)?, stack.generation))
        } else {
            let branch = stack.branches[hit.at].id;
            Some(Node::new_file(Part { branch, fd: hit.spot.hold()?, host: hit.host() }))
        };
        let mut nodes = self.nodes.lock();
        let node = match new {
            Some(new) => nodes.insert(ino, new),
            None => nodes.get_mut(ino)?,
        };
        node.lookups += 1;
        node.add_name(parent, name);
        Ok(ino)
    }

    /// Whether what is in a directory of branch `at` shows in the union's directory, where it may have to be made.
    pub(super) fn usable(&self, stack: &Stack, dir: Ino, at: usize) -> Result<bool> {
        let branch = &stack.branches[at];
        if self.parts(stack, dir)?.iter().any(|part| part.branch == branch.id) {
            return Ok(true);
        }
        let Some((parent, name)) = self.nodes.lock().get(dir)?.names.first().cloned() else { return Ok(false) };
        if !self.usable(stack, parent, at)? {
            return Ok(false);
        }
        for part in self.parts(stack, parent)?.iter() {
            let above = stack.position(part.branch).ok_or(Error::Stale { ino: parent })?;
            if above > at {
                break;
            }
            match stack.branches[above].look(self.format, &part.fd, &name)? {
                Look::Nothing => {}
                Look::Entry { last: false, .. } if above < at => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The directory of a branch that is part of the union's; made if it isn't there. The caller holds the stack
    /// exclusively, and has found the branch usable.
    pub(super) fn provide(&self, stack: &Stack, dir: Ino, at: usize) -> Result<Arc<OwnedFd>> {
        let branch = &stack.branches[at];
        let parts = self.parts(stack, dir)?;
        if let Some(part) = parts.iter().find(|part| part.branch == branch.id) {
            return Ok(Arc::clone(&part.fd));
        }
        let (parent, name) = self.nodes.lock().get(dir)?.names.first().cloned().ok_or(Errno::NOENT)?;
        let into = self.provide(stack, parent, at)?;
        let from = Spot::Fd(Arc::clone(&parts.first().ok_or(Errno::NOENT)?.fd));
        let upper = branch.upper()?;
        let made = upper.temporary();
        let placed = make_dir(&made)
            .and_then(|()| self.dress(&from, dir, &made))
            .and_then(|()| place(&made, &into, &name))
            .and_then(|()| part_of(branch, &into, &name));
        let part = placed.inspect_err(|_| discard(&made))?;
        let fd = Arc::clone(&part.fd);
        let mut all = parts.to_vec();
        let before = all.iter().take_while(|part| stack.position(part.branch).is_some_and(|above| above < at)).count();
        all.insert(before, part);
        self.nodes.lock().get_mut(dir)?.set_parts(Arc::new(all), stack.generation);
        Ok(fd)
    }
}

/// Opens the directories that were seen.
pub(super) fn open_parts(stack: &Stack, seen: &Seen) -> Result<Vec<Part>> {
    let open = |hit: &Hit| {
        let fd = Arc::new(hit.spot.open(DIRECTORY)?);
        Ok(Part { branch: stack.branches[hit.at].id, fd, host: hit.host() })
    };
    seen.hits.iter().map(open).collect()
}

fn make_dir(made: &Spot) -> Result<()> {
    let Spot::At(tmp, name) = made else { return Err(Errno::INVAL.into()) };
    Ok(rustix::fs::mkdirat(tmp, name, Mode::RWXU)?)
}

fn part_of(branch: &Branch, dir: &Arc<OwnedFd>, name: &[u8]) -> Result<Part> {
    let fd = Spot::at(dir, name).open(DIRECTORY)?;
    let stat = rustix::fs::fstat(&fd)?;
    Ok(Part { branch: branch.id, fd: Arc::new(fd), host: (stat.st_dev, stat.st_ino) })
}

/// Gives what was made its name. The directory's times are those it had: copying up is no change.
pub(super) fn place(made: &Spot, dir: &Arc<OwnedFd>, name: &[u8]) -> Result<()> {
    let parent = Spot::Fd(Arc::clone(dir));
    let times = times_of(&parent)?;
    Upper::rename(made, &Spot::at(dir, name), RenameFlags::NOREPLACE)?;
    Ok(parent.set_times(&times)?)
}

/// What could not be placed is removed; what can't be removed is when the branch is opened again.
pub(super) fn discard(made: &Spot) {
    if let Err(errno) = Upper::discard(made) {
        tracing::warn!(%errno, "something unfinished stays in a work directory until the next start");
    }
}
