//! The kernel's terms and ours.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, FopenFlags, INodeNo, Request, TimeOrNow};
use rustix::fs::{OFlags, makedev};

use crate::error::Error;
use crate::inode::{Attr, Caller, FileKind, Ino, SetTime, Timestamp};
use crate::session::ledger::{EXEC, Via};

/// How long the kernel may keep what it was told: for ever, since nobody else changes the filesystem.
pub(super) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What the kernel is told about an inode that it knows as absent.
pub(super) const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// The errno of a failure. ENOSYS never gets out: the kernel takes it for "never ask again".
pub(super) fn errno(error: &Error) -> Errno {
    match error.errno() {
        rustix::io::Errno::NOSYS => Errno::EOPNOTSUPP,
        errno => {
            if matches!(error, Error::Lower(_) | Error::Unavailable { .. }) {
                tracing::error!(%error, "a request fails");
            }
            Errno::from_i32(errno.raw_os_error())
        }
    }
}

pub(super) fn attributes(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_out(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// A device number as the protocol has it: the kernel's `new_encode_dev`.
fn device_out(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

pub(super) fn device_in(device: u32) -> u64 {
    makedev((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00))
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    if time.secs >= 0 {
        SystemTime::UNIX_EPOCH + Duration::from_secs(time.secs as u64) + nanos
    } else {
        // A disk may hold times that no clock will show; they must not panic.
        let start = SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(time.secs.unsigned_abs()));
        start.unwrap_or(SystemTime::UNIX_EPOCH) + nanos
    }
}

pub(super) fn time_in(time: TimeOrNow) -> SetTime {
    let time = match time {
        TimeOrNow::Now => return SetTime::Now,
        TimeOrNow::SpecificTime(time) => time,
    };
    SetTime::At(match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() },
        // Before 1970 the library takes seconds and nanoseconds both off the epoch instead of adding the latter.
        Err(before) => {
            let before = before.duration();
            Timestamp { secs: -(before.as_secs() as i64), nanos: before.subsec_nanos() }
        }
    })
}

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid(), umask }
}

/// The flags of an open that concern the union, and [`EXEC`]. Appending is the kernel's work, which tells every write's
/// offset, and direct I/O is between the program and the kernel.
pub(super) fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags as u32) & (OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC | EXEC)
}

pub(super) fn writes(flags: OFlags) -> bool {
    flags & OFlags::RWMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC)
}

/// How the kernel treats a handle. A close is a message only where a shared mapping may have left pages that this
/// process has not seen; any other close must not wait for anybody.
pub(super) fn fopen(flags: OFlags, via: Via) -> FopenFlags {
    let cached = via == Via::Cache;
    let mut fopen = FopenFlags::empty();
    fopen.set(FopenFlags::FOPEN_KEEP_CACHE, cached);
    fopen.set(FopenFlags::FOPEN_NOFLUSH, !cached || flags & OFlags::RWMODE == OFlags::RDONLY);
    fopen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for device in [makedev(0, 0), makedev(1, 3), makedev(259, 70_000), makedev(4095, 0xf_ffff)] {
            assert_eq!(device_in(device_out(device)), device);
        }
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        // As the library makes it of (-2, 250 ms).
        let library = SystemTime::UNIX_EPOCH - Duration::new(2, 250_000_000);
        let expected = Timestamp { secs: -2, nanos: 250_000_000 };
        assert_eq!(time_in(TimeOrNow::SpecificTime(library)), SetTime::At(expected));
        assert_eq!(system_time(expected), SystemTime::UNIX_EPOCH - Duration::new(1, 750_000_000));
    }
}
