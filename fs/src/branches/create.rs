//! Making files, directories, devices and symbolic links: in the work directory of the branch that gets them, whole, and then
//! renamed to their name.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::see::discard;
use super::{Branches, Stack};
use crate::error::{Error, Result};
use crate::inode::{Attr, Caller, Fh, Ino};
use crate::union::acl;
use crate::union::create::New;
use crate::upper::{Mark, Spot, Upper};

impl Branches {
    /// Makes a file of any type but directory and symbolic link.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u64) -> Result<Attr> {
        let new = New::node(mode, rdev)?;
        self.make(&self.stack.write(), caller, parent, name, mode, new).map(|(attr, _)| attr)
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        self.make(&self.stack.write(), caller, parent, name, mode, New::Dir).map(|(attr, _)| attr)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        self.make(&self.stack.write(), caller, parent, name, 0o777, New::Symlink(target)).map(|(attr, _)| attr)
    }

    /// Makes a regular file and opens it. One that is there already is opened as it is, unless `O_EXCL` is asked for.
    pub fn create(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, flags: OFlags) -> Result<(Attr, Fh)> {
        let made = {
            let stack = self.stack.write();
            self.make(&stack, caller, parent, name, mode, New::File).and_then(|(attr, file)| {
                let file = file.ok_or(Errno::IO)?;
                Ok((attr, self.open_new(&stack, attr.ino, file)?))
            })
        };
        match made {
            Err(Error::Refused(Errno::EXIST)) if !flags.contains(OFlags::EXCL) => {
                let attr = self.lookup(parent, name)?.ok_or(Errno::NOENT)?;
                let opened = self
                    .open(attr.ino, flags - OFlags::CREATE)
                    .and_then(|fh| Ok((self.getattr(attr.ino, Some(fh)).inspect_err(|_| self.release(fh))?, fh)));
                opened.inspect_err(|_| self.forget(attr.ino, 1))
            }
            made => made,
        }
    }

    /// Makes something; a regular file is open. The caller holds the stack exclusively.
    fn make(
        &self,
        stack: &Stack,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        new: New<'_>,
    ) -> Result<(Attr, Option<File>)> {
        let seen = self.see(stack, parent, name)?;
        if !seen.hits.is_empty() {
            return Err(Errno::EXIST.into());
        }
        let at = self.choose(stack, parent, name, seen.whiteout)?;
        let dir = self.provide(stack, parent, at)?;
        let upper = stack.branches[at].upper()?;
        let made = upper.temporary();
        let is_dir = matches!(new, New::Dir);
        let placed = self.build_new(stack, caller, parent, mode, new, &made).and_then(|file| {
            if is_dir && seen.whiteout.is_some_and(|hiding| hiding <= at) {
                self.format.set(&made, Mark::Opaque, b"y")?;
            }
            self.place_new(stack, &made, (parent, &dir, name), at, seen.whiteout, is_dir)?;
            Ok(file)
        });
        let file = placed.inspect_err(|_| discard(&made))?;
        if is_dir {
            self.recounts.fetch_add(1, Ordering::Relaxed);
        }
        self.touch(stack, parent, at)?;
        let attr = self.lookup_locked(stack, parent, name)?.ok_or(Error::Refused(Errno::IO))?;
        Ok((attr, file))
    }

    /// Gives something made in the work directory of branch `at` a name that nothing has, and takes a whiteout away that
    /// would hide it.
    pub(super) fn place_new(
        &self,
        stack: &Stack,
        made: &Spot,
        (parent, dir, name): (Ino, &Arc<OwnedFd>, &[u8]),
        at: usize,
        whiteout: Option<usize>,
        is_dir: bool,
    ) -> Result<()> {
        let place = Spot::at(dir, name);
        match whiteout {
            Some(hiding) if hiding == at && is_dir => {
                Upper::rename(made, &place, RenameFlags::EXCHANGE)?;
                Upper::discard(made)?;
            }
            Some(hiding) if hiding == at => Upper::rename(made, &place, RenameFlags::empty())?,
            Some(hiding) if hiding < at => {
                Upper::rename(made, &place, RenameFlags::NOREPLACE)?;
                // Until now it was hidden.
                self.uncover(stack, parent, name, hiding)?;
            }
            _ => Upper::rename(made, &place, RenameFlags::NOREPLACE)?,
        }
        Ok(())
    }

    /// Takes a whiteout away.
    pub(super) fn uncover(&self, stack: &Stack, parent: Ino, name: &[u8], hiding: usize) -> Result<()> {
        let dir = self.provide(stack, parent, hiding)?;
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    /// Has a directory's times tell of a change that was made in branch `at`: they are those of its topmost part.
    pub(super) fn touch(&self, stack: &Stack, dir: Ino, at: usize) -> Result<()> {
        let part = self.part(stack, dir)?;
        let top = stack.position(part.branch).ok_or(Error::Stale { ino: dir })?;
        if top == at || !stack.branches[top].is_writable() {
            return Ok(());
        }
        let now = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW };
        let omit = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
        Ok(Spot::Fd(part.fd).set_times(&Timestamps { last_access: omit, last_modification: now })?)
    }

    fn build_new(
        &self,
        stack: &Stack,
        caller: &Caller,
        parent: Ino,
        mode: u32,
        new: New<'_>,
        made: &Spot,
    ) -> Result<Option<File>> {
        let above = self.spot(stack, parent)?;
        let above_stat = above.stat()?;
        let inherits = above_stat.st_mode & libc::S_ISGID != 0;
        let acl = above.xattr(acl::DEFAULT).unwrap_or_default();
        let mut mode = mode & 0o7777;
        if acl.is_none() {
            mode &= !caller.umask;
        }
        if inherits && matches!(new, New::Dir) {
            mode |= libc::S_ISGID;
        }
        let Spot::At(dir, name) = made else { return Err(Errno::INVAL.into()) };
        let private = Mode::from_raw_mode(mode & 0o700);
        let mut file = None;
        match new {
            New::File | New::ZeroDevice => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                file = Some(File::from(rustix::fs::openat(dir, name, flags, private)?));
            }
            New::Dir => rustix::fs::mkdirat(dir, name, private)?,
            New::Symlink(to) => rustix::fs::symlinkat(to, dir, name)?,
            New::Node(kind, rdev) => rustix::fs::mknodat(dir, name, kind, private, rdev)?,
        }
        made.chown(Some(caller.uid), Some(if inherits { above_stat.st_gid } else { caller.gid }))?;
        match made.chmod(mode) {
            Err(Errno::OPNOTSUPP) => {}
            set => set?,
        }
        if let (Some(default), false) = (&acl, matches!(new, New::Symlink(_))) {
            acl::inherit(made, default, mode, matches!(new, New::Dir))?;
        }
        if matches!(new, New::ZeroDevice) {
            self.format.set(made, Mark::Device, b"y")?;
            file = None;
        }
        Ok(file)
    }
}
