//! Changes of names and of extended attributes, also those that come twice.
//!
//! When a server is killed between making a change and saying so, the kernel sends the request again to the next one.
//! The names it concerns were locked all the time by the program that waits, so what they mean now tells whether the
//! change was made: a name that should be new and is there, or should go and is absent, was made or removed by the first
//! attempt, for the kernel sends no request that it knows to fail. Where that does not tell, what the names meant is
//! noted before the change.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{FileHandle, Generation, ReplyCreate, Request};
use rustix::fs::{RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::files::OpenedFile;
use super::translate::{errno, fopen, open_flags};
use super::{Error, Result, Serving};
use crate::inode::{Attr, Caller, Fh, Ino, SetAttr};
use crate::session::ledger::{RESENT, Via};
use crate::sys;

/// A name to be made.
pub(super) struct New<'a> {
    caller: Caller,
    unique: u64,
    parent: Ino,
    name: &'a [u8],
}

impl<'a> New<'a> {
    pub(super) fn of(
        serving: &Serving,
        request: &Request,
        parent: Ino,
        name: &'a OsStr,
        umask: u32,
    ) -> Result<New<'a>> {
        let caller = serving.caller(request, umask)?;
        Ok(New { caller, unique: request.unique().0, parent, name: name.as_bytes() })
    }
}

fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

fn resent(unique: u64) -> bool {
    unique & RESENT != 0
}

fn is(result: &Result<impl Sized>, errno: Errno) -> bool {
    result.as_ref().is_err_and(|error| error.errno() == errno)
}

impl Serving {
    pub(super) fn mknod(&self, new: &New<'_>, mode: u32, device: u64) -> Result<Attr> {
        let made = self.union.mknod(&new.caller, new.parent, new.name, mode, device);
        self.made(new, made)
    }

    pub(super) fn mkdir(&self, new: &New<'_>, mode: u32) -> Result<Attr> {
        let made = self.union.mkdir(&new.caller, new.parent, new.name, mode);
        self.made(new, made)
    }

    pub(super) fn symlink(&self, new: &New<'_>, target: &[u8]) -> Result<Attr> {
        let made = self.union.symlink(&new.caller, new.parent, new.name, target);
        self.made(new, made)
    }

    pub(super) fn create(&self, new: &New<'_>, mode: u32, flags: i32, reply: ReplyCreate) {
        if let Some(earlier) = self.handles.made_by(new.unique) {
            self.release(FileHandle(earlier));
        }
        let flags = open_flags(flags);
        match self.created(new, mode, flags) {
            Ok((attr, OpenedFile { number, via })) => {
                let (fh, fopen) = (FileHandle(number), fopen(flags, via));
                match via {
                    Via::Upper(id) | Via::Lower(id) => {
                        sys::reply_created(reply, self.lasting(), &self.attributes(&attr), (fh, fopen, id));
                    }
                    _ => reply.created(&self.lasting(), &self.attributes(&attr), Generation(0), fh, fopen),
                }
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn created(&self, new: &New<'_>, mode: u32, flags: rustix::fs::OFlags) -> Result<(Attr, OpenedFile)> {
        let made = self.union.create(&new.caller, new.parent, new.name, mode, flags);
        let (attr, fh): (Attr, Fh) = if resent(new.unique) && is(&made, Errno::EXIST) {
            let attr = self.looked_up(new.parent, new.name)?.ok_or(Error::Refused(Errno::STALE))?;
            (attr, self.union.open(attr.ino, flags)?)
        } else {
            made?
        };
        Ok((attr, self.enter_file(new.unique, attr.ino, flags, fh)?))
    }

    /// The attributes of what was made, also when the first attempt made it.
    fn made(&self, new: &New<'_>, made: Result<Attr>) -> Result<Attr> {
        if resent(new.unique) && is(&made, Errno::EXIST) {
            return self.looked_up(new.parent, new.name)?.ok_or(Error::Refused(Errno::STALE));
        }
        made
    }

    fn looked_up(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        self.union.lookup(parent, name)
    }

    pub(super) fn link(&self, unique: u64, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let linked = self.union.link(ino, parent, name);
        if resent(unique)
            && is(&linked, Errno::EXIST)
            && let Some(attr) = self.looked_up(parent, name)?
        {
            if attr.ino == ino {
                return Ok(attr);
            }
            self.union.forget(attr.ino, 1);
        }
        linked
    }

    pub(super) fn unlink(&self, unique: u64, parent: Ino, name: &[u8]) -> Result<()> {
        let gone = self.union.unlink(parent, name);
        if resent(unique) && is(&gone, Errno::NOENT) { Ok(()) } else { gone }
    }

    pub(super) fn rmdir(&self, unique: u64, parent: Ino, name: &[u8]) -> Result<()> {
        let gone = self.union.rmdir(parent, name);
        if resent(unique) && is(&gone, Errno::NOENT) { Ok(()) } else { gone }
    }

    pub(super) fn rename(&self, unique: u64, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: RenameFlags) -> Result<()> {
        // Afterwards the source's name exists all the same, so the names alone do not tell.
        if flags.intersects(RenameFlags::EXCHANGE | RenameFlags::WHITEOUT) {
            let target = self.number(to)?;
            if resent(unique)
                && let Some((source, _)) = self.handles.ledger().intended(unique)
                && source == target
            {
                return Ok(());
            }
            self.handles.ledger().intend(unique, self.number(from)?, target)?;
        }
        let renamed = self.union.rename(from.0, from.1, to.0, to.1, flags);
        if resent(unique) && is(&renamed, Errno::NOENT) && self.number(to)? != 0 { Ok(()) } else { renamed }
    }

    /// The inode behind a name; 0 if there is none.
    fn number(&self, (parent, name): (Ino, &[u8])) -> Result<u64> {
        let Some(attr) = self.union.lookup(parent, name)? else { return Ok(0) };
        self.union.forget(attr.ino, 1);
        Ok(attr.ino.0)
    }

    pub(super) fn setxattr(&self, unique: u64, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.require_xattrs(name)?;
        let stored = self.shown.ids.store_xattr(name, value)?;
        let value = stored.as_deref().unwrap_or(value);
        if XattrFlags::from_bits_retain(flags as u32).contains(XattrFlags::CREATE) {
            if self.was_intended(unique) {
                return self.union.setxattr(ino, name, value, 0);
            }
            if is(&self.union.getxattr(ino, name), Errno::NODATA) {
                self.handles.ledger().intend(unique, ino.0, 0)?;
            }
        }
        self.union.setxattr(ino, name, value, flags)
    }

    pub(super) fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if is_acl(name) && !self.has_xattr(name) {
            // The kernel asks before it grants access by group, and takes any other answer for a failure.
            return Err(Error::Refused(Errno::NODATA));
        }
        self.require_xattrs(name)?;
        Ok(self.shown.ids.show_xattr(name, self.union.getxattr(ino, name)?))
    }

    /// The names of an inode's extended attributes, each with a NUL behind it.
    pub(super) fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        self.require_xattrs(b"")?;
        let mut list = Vec::new();
        for name in self.union.listxattr(ino)?.iter().filter(|name| self.has_xattr(name)) {
            list.extend_from_slice(name);
            list.push(0);
        }
        Ok(list)
    }

    fn require_xattrs(&self, name: &[u8]) -> Result<()> {
        if self.has_xattr(name) { Ok(()) } else { Err(Error::Refused(Errno::OPNOTSUPP)) }
    }

    /// Whether the mount has attributes of this name.
    fn has_xattr(&self, name: &[u8]) -> bool {
        !(self.shown.no_xattrs || self.shown.no_acls && is_acl(name))
    }

    pub(super) fn removexattr(&self, unique: u64, ino: Ino, name: &[u8]) -> Result<()> {
        self.require_xattrs(name)?;
        let again = self.was_intended(unique);
        if !again && self.union.getxattr(ino, name).is_ok() {
            self.handles.ledger().intend(unique, ino.0, 0)?;
        }
        let removed = self.union.removexattr(ino, name);
        if again && is(&removed, Errno::NODATA) { Ok(()) } else { removed }
    }

    /// Whether an earlier server found that the request can be done.
    fn was_intended(&self, unique: u64) -> bool {
        resent(unique) && self.handles.ledger().intended(unique).is_some()
    }

    /// Truncations keep clear of files that are passed through from the lower; all else is the union's.
    pub(super) fn setattr(&self, ino: Ino, fh: Option<FileHandle>, mut set: SetAttr) -> Result<Attr> {
        set.uid = set.uid.map(|uid| self.shown.ids.stored_user(uid)).transpose()?;
        set.gid = set.gid.map(|gid| self.shown.ids.stored_group(gid)).transpose()?;
        let _change = match set.size {
            Some(_) => Some(self.table.change(ino).ok_or(Error::Refused(Errno::TXTBSY))?),
            None => None,
        };
        self.union.setattr(ino, fh.and_then(|fh| self.opened(fh)), &set)
    }
}
