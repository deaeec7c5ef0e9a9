//! Copying what can't be changed in its branch to the nearest writable branch above.
//!
//! What is made is made in that branch's work directory, whole, synced, and then renamed to its name. A file of several names
//! takes them all along, so that it stays one file.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::branch::Branch;
use super::nodes::Part;
use super::see::{discard, place};
use super::{Branches, Stack};
use crate::error::{Error, Result};
use crate::inode::{Ino, ROOT};
use crate::lower::LowerFile;
use crate::union::copy_up::{Keep, copy_contents, times_of};
use crate::upper::{Mark, Spot, read_dir};

/// A name and the directory it is in.
type Name = (Ino, Vec<u8>);

/// How often a copy is begun anew when the branches change under it.
const ATTEMPTS: usize = 8;

/// A copy that is to be made.
struct Plan {
    /// The branch that gets it.
    branch: Arc<Branch>,
    names: Vec<Name>,
    /// The original.
    part: Part,
    /// Directories that were made known for this alone.
    pinned: Vec<Ino>,
}

impl Branches {
    /// Makes sure that an inode is in a branch that can be written to. The caller holds no lock.
    pub(super) fn copy_up(&self, ino: Ino, keep: Keep) -> Result<()> {
        if self.nodes.lock().get(ino)?.is_dir() {
            return self.copy_up_dir(ino);
        }
        let _turn = self.stripe(ino).lock();
        for _ in 0..ATTEMPTS {
            let Some(plan) = self.plan(ino)? else { return Ok(()) };
            let made = plan.branch.upper()?.temporary();
            let done = self.build(&plan, ino, &made, keep).and_then(|()| self.finish(&plan, ino, &made));
            for dir in &plan.pinned {
                self.forget(*dir, 1);
            }
            match done {
                Ok(true) => return Ok(()),
                Ok(false) => discard(&made),
                Err(error) => {
                    discard(&made);
                    return Err(error);
                }
            }
        }
        Err(Errno::BUSY.into())
    }

    fn copy_up_dir(&self, ino: Ino) -> Result<()> {
        let stack = self.stack.write();
        let part = self.part(&stack, ino)?;
        let at = stack.position(part.branch).ok_or(Error::Stale { ino })?;
        if stack.branches[at].is_writable() {
            return Ok(());
        }
        if ino == ROOT {
            // It is where it is: nothing above can have it.
            return Err(Errno::ROFS.into());
        }
        let above = self.nearest(&stack, at, &[ino])?.ok_or(Errno::ROFS)?;
        self.provide(&stack, ino, above).map(drop)
    }

    /// The nearest writable branch above one in which all of these directories can be.
    pub(super) fn nearest(&self, stack: &Stack, at: usize, dirs: &[Ino]) -> Result<Option<usize>> {
        'branches: for above in stack.above(at) {
            for dir in dirs {
                if !self.usable(stack, *dir, above)? {
                    continue 'branches;
                }
            }
            return Ok(Some(above));
        }
        Ok(None)
    }

    /// What is to be copied where; `None` if nothing is.
    fn plan(&self, ino: Ino) -> Result<Option<Plan>> {
        let stack = self.stack.read();
        let part = self.part(&stack, ino)?;
        let Some(at) = stack.position(part.branch) else { return Err(Error::Stale { ino }) };
        if stack.branches[at].is_writable() {
            return Ok(None);
        }
        let stat = rustix::fs::fstat(&part.fd)?;
        let known = self.nodes.lock().get(ino)?.names.clone();
        let (names, pinned) = match known.len() {
            0 => (Vec::new(), Vec::new()),
            _ if stat.st_nlink > 1 => self.all_names(&stack, at, part.host)?,
            _ => (known, Vec::new()),
        };
        let dirs: Vec<Ino> = names.iter().map(|(dir, _)| *dir).collect();
        match self.nearest(&stack, at, &dirs) {
            Ok(Some(above)) => Ok(Some(Plan { branch: Arc::clone(&stack.branches[above]), names, part, pinned })),
            refused => {
                for dir in pinned {
                    self.forget(dir, 1);
                }
                Err(refused.err().unwrap_or(Error::Refused(Errno::ROFS)))
            }
        }
    }

    /// Every name that shows a file of branch `at`, with the directories that were made known, each with one reference.
    fn all_names(&self, stack: &Stack, at: usize, host: (u64, u64)) -> Result<(Vec<Name>, Vec<Ino>)> {
        let (mut names, mut pinned) = (Vec::new(), Vec::new());
        let searched = self.search(stack, at, host, &mut names, &mut pinned);
        searched.inspect_err(|_| pinned.iter().for_each(|dir| self.forget(*dir, 1)))?;
        Ok((names, pinned))
    }

    fn search(
        &self,
        stack: &Stack,
        at: usize,
        host: (u64, u64),
        names: &mut Vec<Name>,
        pinned: &mut Vec<Ino>,
    ) -> Result<()> {
        let branch = &stack.branches[at];
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            let parts = self.parts(stack, dir)?;
            let Some(part) = parts.iter().find(|part| part.branch == branch.id) else { continue };
            for (name, number, kind) in read_dir(part.fd.as_fd())? {
                let may_be_dir = matches!(kind, FileType::Directory | FileType::Unknown);
                if number != host.1 && !may_be_dir || !branch.shows(&name) {
                    continue;
                }
                let seen = self.see(stack, dir, &name)?;
                match seen.hits.first() {
                    Some(hit) if hit.is_dir() => {
                        let inner = self.enter(stack, dir, &name, &seen)?;
                        pinned.push(inner);
                        dirs.push(inner);
                    }
                    Some(hit) if hit.at == at && hit.host() == host => names.push((dir, name)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Makes the copy, whole, in the work directory.
    fn build(&self, plan: &Plan, ino: Ino, made: &Spot, keep: Keep) -> Result<()> {
        let from = Spot::Fd(Arc::clone(&plan.part.fd));
        let stat = from.stat()?;
        let file = make_like(&from, &stat, made)?;
        if let Some(file) = &file
            && keep == Keep::Contents
            && stat.st_size > 0
        {
            let original = LowerFile::File { file: Arc::new(from.open(OFlags::RDONLY)?.into()), sealed: false };
            copy_contents(&original, stat.st_size as u64, file)?;
        }
        if self.format.marks(&from)?.device {
            self.format.set(made, Mark::Device, b"y")?;
        }
        self.dress(&from, ino, made)?;
        if let Some(file) = file {
            rustix::fs::fdatasync(&file)?;
        }
        Ok(())
    }

    /// Gives a copy its original's owner, attributes, mode and times, and its number.
    pub(super) fn dress(&self, from: &Spot, ino: Ino, copy: &Spot) -> Result<()> {
        let stat = from.stat()?;
        // A change of owner takes capabilities away, so it comes before they are given.
        copy.chown(Some(stat.st_uid), Some(stat.st_gid))?;
        for stored in from.xattr_names()? {
            let (Some(name), Some(value)) = (self.format.shown_name(&stored), from.xattr(&stored)?) else { continue };
            match copy.set_xattr(&self.format.stored_name(&name), &value, XattrFlags::empty()) {
                // A program without privilege can't write these, and its kernel doesn't heed them.
                Err(Errno::PERM) if self.format == crate::upper::Format::User && !name.starts_with(b"user.") => {}
                set => set?,
            }
        }
        self.format.set_origin(copy, ino)?;
        match copy.chmod(stat.st_mode) {
            Err(Errno::OPNOTSUPP) => {}
            set => set?,
        }
        Ok(copy.set_times(&times_of(from)?)?)
    }

    /// Gives a finished copy its names. False if the branches have changed meanwhile.
    fn finish(&self, plan: &Plan, ino: Ino, made: &Spot) -> Result<bool> {
        let stack = self.stack.write();
        let Some(at) = stack.branches.iter().position(|branch| Arc::ptr_eq(branch, &plan.branch)) else {
            return Ok(false);
        };
        if stack.position(plan.part.branch).is_none_or(|below| below <= at) {
            return Ok(false);
        }
        let mut placed: Option<Arc<OwnedFd>> = None;
        // A file that lost its last name lives on without one.
        let has_name = !self.nodes.lock().get(ino)?.names.is_empty();
        for (parent, name) in plan.names.iter().filter(|_| has_name) {
            let seen = self.see(&stack, *parent, name)?;
            if seen.hits.first().is_none_or(|hit| hit.host() != plan.part.host) || !self.usable(&stack, *parent, at)? {
                continue;
            }
            let dir = self.provide(&stack, *parent, at)?;
            if let Some(copy) = &placed {
                let times = times_of(&Spot::Fd(Arc::clone(&dir)))?;
                Spot::Fd(Arc::clone(copy)).link_to(&dir, name)?;
                Spot::Fd(dir).set_times(&times)?;
            } else {
                place(made, &dir, name)?;
                placed = Some(Spot::at(&dir, name).hold()?);
            }
        }
        let fd = if let Some(fd) = placed {
            fd
        } else if has_name {
            // It has been given other names meanwhile.
            return Ok(false);
        } else {
            let (fd, Spot::At(tmp, name)) = (made.hold()?, made) else { return Err(Errno::INVAL.into()) };
            rustix::fs::unlinkat(tmp, name, AtFlags::empty())?;
            fd
        };
        let stat = rustix::fs::fstat(&fd)?;
        let part = Part { branch: plan.branch.id, fd, host: (stat.st_dev, stat.st_ino) };
        self.nodes.lock().get_mut(ino)?.set_file(part);
        self.follow(&stack, ino)?;
        Ok(true)
    }
}

/// Makes something of the type of the original; a regular file is opened.
fn make_like(from: &Spot, stat: &Stat, made: &Spot) -> Result<Option<File>> {
    let Spot::At(dir, name) = made else { return Err(Errno::INVAL.into()) };
    let mode = Mode::RUSR | Mode::WUSR;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            return Ok(Some(rustix::fs::openat(dir, name, flags, mode)?.into()));
        }
        FileType::Symlink => {
            rustix::fs::symlinkat(from.link_target()?, dir, name)?;
        }
        kind => rustix::fs::mknodat(dir, name, kind, mode, stat.st_rdev)?,
    }
    Ok(None)
}
