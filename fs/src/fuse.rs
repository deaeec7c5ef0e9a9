//! The kernel's messages as operations of a union, and back. Translates, and decides nothing about files.
//!
//! One method per message; what takes more than a line is next door: `names` changes directories, `files` opens,
//! `dirs` lists, `handles` numbers what is open, `translate` converts terms. No message is answered ENOSYS but those that the kernel shall not send again.

mod dirs;
mod files;
pub(crate) mod handles;
mod names;
mod serving;
mod translate;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::error::{Error, Result};
use crate::inode::{Attr, SetAttr};
use translate::{ABSENT, errno, ino, time_in};

pub(crate) use serving::Serving;
pub use serving::Shown;

/// A union as `fuser` wants it.
#[derive(Debug)]
pub(crate) struct Adapter(pub(crate) Arc<Serving>);

/// Requests of this size at most are read and written in one message; the kernel's own limit is the same by default.
const LARGEST: u32 = 1 << 20;

/// What is asked of the kernel, where it can:
/// * `ATOMIC_O_TRUNC`: truncation comes with the open, so that a copy-up need not copy what is thrown away.
/// * `DO_READDIRPLUS`, `READDIRPLUS_AUTO`: entries come with attributes when somebody looks at them.
/// * `PARALLEL_DIROPS`, `ASYNC_DIO`: no serialization above the union, which locks by itself.
/// * `CACHE_SYMLINKS`, `EXPLICIT_INVAL_DATA`: nobody else changes the files, so caches hold.
/// * `HANDLE_KILLPRIV_V2`: set-user-id bits are cleared here; the kernel need not ask for capabilities at each write.
/// * `POSIX_ACL`, `DONT_MASK`: the kernel checks ACLs; the umask counts only where no ACL is inherited.
/// * `HAS_RESEND`: what a killed server has read and not answered is sent again to the next.
///
/// Not asked for: `WRITEBACK_CACHE` (it excludes passthrough, and the kernel would own sizes and times), locks (they
/// are between processes of one mount, where the kernel keeps them itself).
const WANTED: [InitFlags; 11] = [
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_HAS_RESEND,
];

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            // What the kernel does not know it does without.
            let _ = config.add_capabilities(flag);
        }
        if self.0.shown.idmapped {
            let _ = config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP);
        }
        let _ = config.set_max_write(LARGEST);
        let _ = config.set_max_background(64);
        // Depth 1: backing files must lie on a plain disk, and kernel overlayfs may be stacked on the mount.
        if self.0.passes_through()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok()
        {
            self.0.table.enable();
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _serving = self.0.enter();
        match self.0.union.lookup(ino(parent), name.as_bytes()) {
            Ok(Some(attr)) => self.entry(reply, Ok(attr)),
            Ok(None) => reply.entry(&self.0.lasting(), &ABSENT, Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        let _serving = self.0.enter();
        self.0.union.forget(ino(number), lookups);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _serving = self.0.enter();
        let fh = fh.and_then(|fh| self.0.opened(fh));
        self.attr(reply, self.0.union.getattr(ino(number), fh));
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _serving = self.0.enter();
        let mut set = SetAttr { mode, uid, gid, size, ..SetAttr::default() };
        set.atime = atime.map(time_in);
        set.mtime = mtime.map(time_in);
        // A truncation says in a flag that the library does not hand on whether privileges go; whoever is root keeps
        // them. A message that sets nothing is the kernel's way to have them cleared before a write it passes through.
        set.kill_privileges = if size.is_some() { request.uid() != 0 } else { set == SetAttr::default() };
        self.attr(reply, self.0.setattr(ino(number), fh, set));
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        let _serving = self.0.enter();
        match self.0.union.readlink(ino(number)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _serving = self.0.enter();
        let new = names::New::of(&self.0, request, ino(parent), name, umask);
        self.entry(reply, new.and_then(|new| self.0.mknod(&new, mode, translate::device_in(rdev))));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _serving = self.0.enter();
        let new = names::New::of(&self.0, request, ino(parent), name, umask);
        self.entry(reply, new.and_then(|new| self.0.mkdir(&new, mode)));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.0.enter();
        done(reply, self.0.unlink(request.unique().0, ino(parent), name.as_bytes()));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.0.enter();
        done(reply, self.0.rmdir(request.unique().0, ino(parent), name.as_bytes()));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _serving = self.0.enter();
        let new = names::New::of(&self.0, request, ino(parent), name, 0);
        self.entry(reply, new.and_then(|new| self.0.symlink(&new, target.as_os_str().as_bytes())));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _serving = self.0.enter();
        let from = (ino(parent), name.as_bytes());
        let to = (ino(new_parent), new_name.as_bytes());
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        done(reply, self.0.rename(request.unique().0, from, to, flags));
    }

    fn link(&self, request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _serving = self.0.enter();
        self.entry(reply, self.0.link(request.unique().0, ino(number), ino(parent), name.as_bytes()));
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _serving = self.0.enter();
        self.0.open(request, ino(number), flags.0, reply);
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _serving = self.0.enter();
        self.0.read(ino(number), fh, offset, size, reply);
    }

    fn write(
        &self,
        _request: &Request,
        number: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _serving = self.0.enter();
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.0.write(ino(number), fh, offset, data, kill) {
            Ok(written) => reply.written(written as u32),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let _serving = self.0.enter();
        if self.0.read_only {
            // Files are not opened either, so there is nothing to close: the kernel need not ask again.
            return reply.error(Errno::ENOSYS);
        }
        done(reply, self.0.flush(fh));
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _serving = self.0.enter();
        self.0.release(fh);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let _serving = self.0.enter();
        done(reply, self.0.fsync(fh, data_only));
    }

    fn opendir(&self, request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _serving = self.0.enter();
        self.0.opendir(request, ino(number), reply);
    }

    fn readdir(&self, _request: &Request, number: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let _serving = self.0.enter();
        self.0.readdir(ino(number), fh, offset, reply);
    }

    fn readdirplus(&self, _request: &Request, number: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let _serving = self.0.enter();
        self.0.readdirplus(ino(number), fh, offset, reply);
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _serving = self.0.enter();
        self.0.releasedir(fh);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, number: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let _serving = self.0.enter();
        done(reply, self.0.fsyncdir(ino(number), fh, data_only));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _serving = self.0.enter();
        match self.0.union.statfs() {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                stat.f_namemax as u32,
                stat.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _serving = self.0.enter();
        done(reply, self.0.setxattr(request.unique().0, ino(number), name.as_bytes(), value, flags));
    }

    fn getxattr(&self, _request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _serving = self.0.enter();
        bounded(reply, size, self.0.getxattr(ino(number), name.as_bytes()));
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let _serving = self.0.enter();
        bounded(reply, size, self.0.listxattr(ino(number)));
    }

    fn removexattr(&self, request: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.0.enter();
        done(reply, self.0.removexattr(request.unique().0, ino(number), name.as_bytes()));
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself (`default_permissions`) and needs not ask.
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _serving = self.0.enter();
        match names::New::of(&self.0, request, ino(parent), name, umask) {
            Ok(new) => self.0.create(&new, mode, flags, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getlk(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        // Locks are the kernel's own matter.
        reply.error(Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _request: &Request, _ino: INodeNo, _size: u32, _index: u64, reply: ReplyBmap) {
        reply.error(Errno::EINVAL);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files are always ready; the kernel need not ask.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _request: &Request,
        number: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _serving = self.0.enter();
        let fh = self.0.fh(ino(number), fh);
        done(reply, fh.and_then(|fh| self.0.union.fallocate(fh, mode, offset, length)));
    }

    fn lseek(&self, _request: &Request, number: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let _serving = self.0.enter();
        match self.0.lseek(ino(number), fh, offset, whence) {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        from: INodeNo,
        from_fh: FileHandle,
        from_offset: u64,
        to: INodeNo,
        to_fh: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _serving = self.0.enter();
        let (from, to) = ((ino(from), from_fh, from_offset), (ino(to), to_fh, to_offset));
        match self.0.copy_file_range(from, to, length) {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

impl Adapter {
    fn entry(&self, reply: ReplyEntry, attr: Result<Attr>) {
        match attr {
            Ok(attr) => {
                let ttl = self.0.ttl(attr.ino);
                reply.entry_with_ttls(&ttl, &self.0.lasting(), &self.0.attributes(&attr), Generation(0));
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn attr(&self, reply: ReplyAttr, attr: Result<Attr>) {
        match attr {
            Ok(attr) => reply.attr(&self.0.ttl(attr.ino), &self.0.attributes(&attr)),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

fn done(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Answers a request for bytes that says how many there is room for; 0 asks for their number.
fn bounded(reply: ReplyXattr, size: u32, bytes: Result<Vec<u8>>) {
    match bytes {
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() <= size as usize => reply.data(&bytes),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(error) => reply.error(errno(&error)),
    }
}
