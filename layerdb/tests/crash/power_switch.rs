//! Shutting a filesystem down at once, as its own developers' tests do.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// `FS_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`: ext4, xfs and f2fs have it under names of their own.
const SHUTDOWN: libc::Ioctl = 0x8004_587d;

/// Not even the log is written out.
const NO_LOG_FLUSH: u32 = 2;

/// From now on nothing more reaches the device of the filesystem that is mounted there.
pub fn cut(mountpoint: &Path) -> io::Result<()> {
    let root = File::open(mountpoint)?;
    let flags = NO_LOG_FLUSH;
    // SAFETY: the request reads one u32 behind the pointer, which is there until the call returns.
    match unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
