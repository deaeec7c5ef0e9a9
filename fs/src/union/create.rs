//! Making files, directories, devices and symbolic links.
//!
//! When the disk itself would give the new inode its right owner and nothing is in the way, it is made in place, by one
//! call. Else it is made in the work directory and renamed to its name when it is complete.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Stat, makedev};
use rustix::io::Errno;

use super::acl;
use super::lookup::Seen;
use super::nodes::Node;
use super::{Union, valid_name};
use crate::error::{Error, Result};
use crate::inode::{Attr, Caller, Fh, FileKind, Ino};
use crate::owners::{self, Owner};
use crate::upper::{Mark, Marks, Spot, Upper};

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum New<'a> {
    File,
    Dir,
    Symlink(&'a [u8]),
    Node(FileType, u64),
    /// A char device 0:0, which on the disk would be a whiteout.
    ZeroDevice,
}

impl New<'_> {
    /// What mknod(2) makes. EINVAL for what it doesn't.
    pub(crate) fn node(mode: u32, rdev: u64) -> Result<Self, Errno> {
        Ok(match FileType::from_raw_mode(mode) {
            FileType::RegularFile => New::File,
            FileType::CharacterDevice if rdev == 0 => New::ZeroDevice,
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => New::Node(kind, rdev),
            kind @ (FileType::Fifo | FileType::Socket) => New::Node(kind, 0),
            _ => return Err(Errno::INVAL),
        })
    }
}

/// Where and for whom.
struct Target<'a> {
    parent: Ino,
    name: &'a [u8],
    dir: Arc<OwnedFd>,
    dir_stat: Stat,
    owner: (u32, u32),
    mode: u32,
    /// Whether a whiteout is in the place.
    whiteout: bool,
    /// The directory's default ACL. The disk has it inherited by what is made in place alone.
    acl: Option<Vec<u8>>,
}

impl Union {
    /// Makes a file of any type but directory and symbolic link.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u64) -> Result<Attr> {
        Ok(self.make(caller, parent, name, mode, New::node(mode, rdev)?)?.0)
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let attr = self.make(caller, parent, name, mode, New::Dir)?.0;
        self.forget_links(parent);
        Ok(attr)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        Ok(self.make(caller, parent, name, 0o777, New::Symlink(target))?.0)
    }

    /// Makes a regular file and opens it. One that is there already is opened as it is, unless `O_EXCL` is asked for.
    pub fn create(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, flags: OFlags) -> Result<(Attr, Fh)> {
        match self.make(caller, parent, name, mode, New::File) {
            Ok((attr, Some(file))) => Ok((attr, self.open_new(attr.ino, file))),
            Ok((attr, None)) => Ok((attr, self.open(attr.ino, flags - OFlags::TRUNC)?)),
            Err(Error::Refused(Errno::EXIST)) if !flags.contains(OFlags::EXCL) => {
                let attr = self.lookup(parent, name)?.ok_or(Errno::NOENT)?;
                let opened = self
                    .open(attr.ino, flags - OFlags::CREATE)
                    .and_then(|fh| Ok((self.getattr(attr.ino, Some(fh)).inspect_err(|_| self.release(fh))?, fh)));
                opened.inspect_err(|_| self.forget(attr.ino, 1))
            }
            Err(error) => Err(error),
        }
    }

    fn make(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, new: New<'_>) -> Result<(Attr, Option<File>)> {
        valid_name(name)?;
        self.copy_up_parent(parent)?;
        let _names = self.names.read();
        let target = self.target(caller, parent, name, mode, new)?;
        let in_place = !self.upper()?.tells_owners() && target.fits_in_place(new);
        let made =
            if in_place { make_in_place(&target, new).map_err(Error::from) } else { self.make_aside(&target, new) };
        let file = match made {
            // The name was free a moment ago, or is a whiteout's that hides nothing.
            Err(Error::Refused(Errno::EXIST))
                if !target.whiteout && matches!(self.see(parent, name), Ok(Seen::Whiteout)) =>
            {
                self.make_aside(&Target { whiteout: true, ..target }, new)?
            }
            made => made?,
        };
        self.enter_new(parent, name, new).map(|attr| (attr, file))
    }

    fn target<'a>(&self, caller: &Caller, parent: Ino, name: &'a [u8], mode: u32, new: New<'_>) -> Result<Target<'a>> {
        let dir = self.upper_dir(parent)?.ok_or(Error::Stale { ino: parent })?;
        let whiteout = self.see_lower(parent, name)?.is_some();
        if whiteout && !matches!(self.see(parent, name)?, Seen::Whiteout) {
            return Err(Errno::EXIST.into());
        }
        let upper = self.upper()?;
        let dir_stat = upper.stat(&Spot::Fd(Arc::clone(&dir)))?;
        let inherits = dir_stat.st_mode & libc::S_ISGID != 0;
        let acl = if upper.tells_owners() {
            None
        } else {
            Spot::Fd(Arc::clone(&dir)).xattr(acl::DEFAULT).unwrap_or_default()
        };
        let mut mode = mode & 0o7777;
        if acl.is_none() {
            mode &= !caller.umask;
        }
        if inherits && matches!(new, New::Dir) {
            mode |= libc::S_ISGID;
        }
        let owner = (caller.uid, if inherits { dir_stat.st_gid } else { caller.gid });
        Ok(Target { parent, name, dir, dir_stat, owner, mode, whiteout, acl })
    }

    fn make_aside(&self, target: &Target<'_>, new: New<'_>) -> Result<Option<File>> {
        let upper = self.upper()?;
        let made = upper.temporary();
        let placed = self.build_new(upper, target, new, &made).and_then(|file| {
            let place = Spot::at(&target.dir, target.name);
            match (target.whiteout, new) {
                (false, _) => Upper::rename(&made, &place, RenameFlags::NOREPLACE)?,
                (true, New::Dir) => {
                    Upper::rename(&made, &place, RenameFlags::EXCHANGE)?;
                    Upper::discard(&made)?;
                }
                (true, _) => Upper::rename(&made, &place, RenameFlags::empty())?,
            }
            Ok(file)
        });
        if placed.is_err()
            && let Err(errno) = Upper::discard(&made)
        {
            tracing::warn!(%errno, "an unfinished inode stays in the work directory until the next start");
        }
        placed
    }

    fn build_new(&self, upper: &Upper, target: &Target<'_>, new: New<'_>, made: &Spot) -> Result<Option<File>> {
        let Spot::At(dir, name) = made else { return Err(Errno::INVAL.into()) };
        let mode = Mode::from_raw_mode(target.mode & 0o700);
        let mut file = None;
        let stands_for = stands_for(new).filter(|_| upper.tells_owners());
        match new {
            New::Node(..) if stands_for.is_some() => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, mode)?;
            }
            New::File | New::ZeroDevice => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                file = Some(File::from(rustix::fs::openat(dir, name, flags, mode)?));
            }
            New::Dir => rustix::fs::mkdirat(dir, name, mode)?,
            New::Symlink(to) => rustix::fs::symlinkat(to, dir, name)?,
            New::Node(kind, rdev) => rustix::fs::mknodat(dir, name, kind, mode, device(rdev))?,
        }
        let (uid, gid) = target.owner;
        upper.own(made, &Owner { uid, gid, mode: target.mode, kind: stands_for })?;
        if let (Some(default), false) = (&target.acl, matches!(new, New::Symlink(_))) {
            acl::inherit(made, default, target.mode, matches!(new, New::Dir))?;
        }
        match new {
            New::Dir if target.whiteout => upper.format.set(made, Mark::Opaque, b"y")?,
            New::ZeroDevice => {
                upper.format.set(made, Mark::Device, b"y")?;
                self.mark_impure(upper, target.parent)?;
                file = None;
            }
            _ => {}
        }
        Ok(file)
    }

    /// Tells the kernel of what was just made.
    fn enter_new(&self, parent: Ino, name: &[u8], new: New<'_>) -> Result<Attr> {
        let dir = self.upper_dir(parent)?.ok_or(Error::Stale { ino: parent })?;
        let spot = Spot::at(&dir, name);
        let stat = self.upper()?.stat(&spot)?;
        let mut attr = Attr::of_stat(self.number(&stat, &Marks::default(), None), &stat).ok_or(Errno::IO)?;
        if matches!(new, New::ZeroDevice) {
            attr.kind = FileKind::CharDevice;
            attr.mode = attr.mode & 0o7777 | libc::S_IFCHR;
        }
        let node = Node::named(parent, name, stat.st_ino, None);
        self.nodes.lock().enter(attr.ino, node).lookups += 1;
        Ok(attr)
    }
}

impl Target<'_> {
    /// Whether one call makes it, owner and all.
    fn fits_in_place(&self, new: New<'_>) -> bool {
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let given = match self.dir_stat.st_mode & libc::S_ISGID {
            0 => own,
            _ => (own.0, self.dir_stat.st_gid),
        };
        let plain = !matches!(new, New::ZeroDevice) && !self.whiteout;
        // mkdir and open leave set-id and sticky bits to chmod.
        let bits = match new {
            New::Dir => {
                self.mode & 0o6000 == 0 || self.dir_stat.st_mode & libc::S_ISGID != 0 && self.mode & 0o4000 == 0
            }
            _ => true,
        };
        plain && bits && (self.owner == given || self.acl.is_some())
    }
}

/// What a new inode is meant to be where a regular file has to do.
fn stands_for(new: New<'_>) -> Option<(FileKind, u64)> {
    match new {
        New::Node(kind, rdev) => owners::stands_for(FileKind::from_mode(kind.as_raw_mode())?, device(rdev)),
        New::ZeroDevice => Some((FileKind::CharDevice, 0)),
        New::File | New::Dir | New::Symlink(_) => None,
    }
}

fn device(rdev: u64) -> u64 {
    makedev(rustix::fs::major(rdev), rustix::fs::minor(rdev))
}

fn make_in_place(target: &Target<'_>, new: New<'_>) -> Result<Option<File>, Errno> {
    let mode = Mode::from_raw_mode(target.mode & 0o7777);
    let mut file = None;
    match new {
        New::File => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            file = Some(File::from(rustix::fs::openat(&target.dir, target.name, flags, mode)?));
        }
        New::Dir => rustix::fs::mkdirat(&target.dir, target.name, mode)?,
        New::Symlink(to) => rustix::fs::symlinkat(to, &target.dir, target.name)?,
        New::Node(kind, rdev) => rustix::fs::mknodat(&target.dir, target.name, kind, mode, device(rdev))?,
        New::ZeroDevice => return Err(Errno::INVAL),
    }
    if target.acl.is_some() {
        Spot::at(&target.dir, target.name).chown(Some(target.owner.0), Some(target.owner.1))?;
    }
    Ok(file)
}
