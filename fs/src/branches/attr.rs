//! Attributes: what stat(2) tells, what chmod, chown, truncate and utimensat change; extended ones; and symbolic links' targets.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, XattrFlags};
use rustix::io::Errno;

use super::see::Hit;
use super::{Branches, Stack};
use crate::error::{Error, Result};
use crate::inode::{Attr, Fh, FileKind, Ino, SetAttr};
use crate::union::attr::{kill_bits, times};
use crate::union::copy_up::Keep;
use crate::upper::{Spot, read_dir};

impl Branches {
    /// The attributes of an inode.
    pub fn getattr(&self, ino: Ino, fh: Option<Fh>) -> Result<Attr> {
        let _ = fh;
        self.attr(&self.stack.read(), ino)
    }

    pub(super) fn attr(&self, stack: &Stack, ino: Ino) -> Result<Attr> {
        let (part, parts, is_nameless) = {
            let (gone, is_dir, is_nameless) = {
                let nodes = self.nodes.lock();
                let node = nodes.get(ino)?;
                (node.gone().cloned(), node.is_dir(), node.names.is_empty())
            };
            match gone {
                Some(part) => (part, 0, true),
                None if is_dir => {
                    let parts = self.parts(stack, ino)?;
                    (parts.first().ok_or(Error::Stale { ino })?.clone(), parts.len(), false)
                }
                None => (self.part(stack, ino)?, 0, is_nameless),
            }
        };
        let spot = Spot::Fd(Arc::clone(&part.fd));
        let stat = spot.stat()?;
        let mut attr = Attr::of_stat(ino, &stat).ok_or(Errno::IO)?;
        let is_writable = stack.position(part.branch).is_some_and(|at| stack.branches[at].is_writable());
        if parts > 1 {
            // One that can't be read has attributes all the same; 1 says "not counted".
            attr.nlink = self.subdirectories(stack, ino).map_or(1, |count| 2 + count);
        } else if is_nameless && (attr.is_dir() || !is_writable) {
            attr.nlink = 0;
        }
        if attr.kind == FileKind::Regular && attr.size == 0 && self.format.marks(&spot)?.device {
            attr.kind = FileKind::CharDevice;
            attr.mode = attr.mode & 0o7777 | libc::S_IFCHR;
            attr.rdev = 0;
        }
        Ok(attr)
    }

    /// How many subdirectories show in a merged directory.
    fn subdirectories(&self, stack: &Stack, dir: Ino) -> Result<u32> {
        let now = (stack.generation, self.recounts.load(Ordering::Relaxed));
        if let Some((then, count)) = self.nodes.lock().get(dir)?.counted
            && then == now
        {
            return Ok(count);
        }
        let mut known = HashSet::new();
        for part in self.parts(stack, dir)?.iter() {
            for (name, _, kind) in read_dir(part.fd.as_fd())? {
                if matches!(kind, FileType::Directory | FileType::Unknown)
                    && !known.contains(&name)
                    && self.see(stack, dir, &name)?.hits.first().is_some_and(Hit::is_dir)
                {
                    known.insert(name);
                }
            }
        }
        let count = u32::try_from(known.len()).unwrap_or(u32::MAX - 2);
        self.nodes.lock().get_mut(dir)?.counted = Some((now, count));
        Ok(count)
    }

    /// Changes attributes and returns them all.
    pub fn setattr(&self, ino: Ino, fh: Option<Fh>, set: &SetAttr) -> Result<Attr> {
        self.copy_up(ino, if set.size == Some(0) { Keep::Nothing } else { Keep::Contents })?;
        let stack = self.stack.read();
        let spot = self.writable_spot(&stack, ino)?;
        if let Some(size) = set.size {
            match fh.and_then(|fh| self.writable_file(fh).ok()) {
                Some(file) => rustix::fs::ftruncate(&*file, size)?,
                None => spot.truncate(size)?,
            }
        }
        // Changing the owner clears set-id bits on the disk, so it comes before the mode.
        if set.uid.is_some() || set.gid.is_some() {
            spot.chown(set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            spot.chmod(mode)?;
        }
        if set.kill_privileges {
            kill_privileges(&spot)?;
        }
        if let Some(times) = times(set) {
            spot.set_times(&times)?;
        }
        self.attr(&stack, ino)
    }

    /// Where an inode's attributes are changed; EROFS if its branch has become read-only.
    fn writable_spot(&self, stack: &Stack, ino: Ino) -> Result<Spot> {
        let part = self.part(stack, ino)?;
        let at = stack.position(part.branch).ok_or(Error::Stale { ino })?;
        stack.branches[at].upper()?;
        Ok(Spot::Fd(part.fd))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let stack = self.stack.read();
        Ok(self.spot(&stack, ino)?.link_target()?)
    }

    /// An extended attribute; ENODATA when there is none of this name.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let stack = self.stack.read();
        let value = self.spot(&stack, ino)?.xattr(&self.format.stored_name(name))?;
        value.ok_or(Error::Refused(Errno::NODATA))
    }

    /// The names of all extended attributes.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let stack = self.stack.read();
        let names = self.spot(&stack, ino)?.xattr_names()?;
        Ok(names.iter().filter_map(|name| self.format.shown_name(name)).collect())
    }

    /// Sets an extended attribute, with the flags of setxattr(2).
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let flags = XattrFlags::from_bits(flags as u32).ok_or(Errno::INVAL)?;
        self.copy_up(ino, Keep::Contents)?;
        let stack = self.stack.read();
        Ok(self.writable_spot(&stack, ino)?.set_xattr(&self.format.stored_name(name), value, flags)?)
    }

    /// Removes an extended attribute; ENODATA when there is none of this name.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        // Nothing is copied up to learn that there is nothing to remove.
        self.getxattr(ino, name)?;
        self.copy_up(ino, Keep::Contents)?;
        let stack = self.stack.read();
        Ok(self.writable_spot(&stack, ino)?.remove_xattr(&self.format.stored_name(name))?)
    }
}

/// What a write by a user without privilege does to a program's (inode(7)).
fn kill_privileges(spot: &Spot) -> Result<(), Errno> {
    let mode = spot.stat()?.st_mode;
    let kept = kill_bits(mode);
    if kept != mode {
        spot.chmod(kept)?;
    }
    match spot.remove_xattr(b"security.capability") {
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        removed => removed,
    }
}
