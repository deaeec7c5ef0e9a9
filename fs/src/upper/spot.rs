//! A place on the upper's disk, and the calls on it.
//!
//! A place is one name below a directory's descriptor, or a descriptor itself: there are no longer paths. Calls that have
//! no form with a directory descriptor go through `/proc/self/fd`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Longest list of names and longest value of extended attributes (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 << 10;

/// Where an inode is.
#[derive(Clone, Debug)]
pub(crate) enum Spot {
    /// Under a name. A symbolic link there is not followed.
    At(Arc<OwnedFd>, Vec<u8>),
    /// What a descriptor is.
    Fd(Arc<OwnedFd>),
}

impl Spot {
    pub(crate) fn at(dir: &Arc<OwnedFd>, name: &[u8]) -> Spot {
        Spot::At(Arc::clone(dir), name.to_vec())
    }

    /// The pair that `*at()` calls take, with the flags that keep them here.
    fn parts(&self) -> (BorrowedFd<'_>, &[u8], AtFlags) {
        match self {
            Spot::At(dir, name) => (dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW),
            Spot::Fd(fd) => (fd.as_fd(), b"", AtFlags::EMPTY_PATH),
        }
    }

    /// A path for calls that know paths alone, and whether its last part is to be followed.
    pub(crate) fn path(&self) -> (Vec<u8>, bool) {
        match self {
            Spot::At(dir, name) => {
                let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
                path.extend_from_slice(name);
                (path, false)
            }
            Spot::Fd(fd) => (format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes(), true),
        }
    }

    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        let (dir, name, flags) = self.parts();
        rustix::fs::statat(dir, name, flags)
    }

    /// Opens what is here, without following a symbolic link.
    pub(crate) fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        match self {
            Spot::At(dir, name) => rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW, Mode::empty()),
            Spot::Fd(_) => rustix::fs::openat(rustix::fs::CWD, self.path().0, flags - OFlags::NOFOLLOW, Mode::empty()),
        }
    }

    /// A descriptor that only names what is here.
    pub(crate) fn hold(&self) -> Result<Arc<OwnedFd>, Errno> {
        match self {
            Spot::At(dir, name) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::empty()).map(Arc::new)
            }
            Spot::Fd(fd) => Ok(Arc::clone(fd)),
        }
    }

    pub(crate) fn link_target(&self) -> Result<Vec<u8>, Errno> {
        let (dir, name, _) = self.parts();
        Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
    }

    pub(crate) fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let (dir, name, flags) = self.parts();
        rustix::fs::chownat(dir, name, uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)
    }

    /// Sets permission bits. Symbolic links have none to set: EOPNOTSUPP.
    pub(crate) fn chmod(&self, mode: u32) -> Result<(), Errno> {
        // chmod has no form that follows nothing but by /proc, through a descriptor that was opened without following.
        let held = Spot::Fd(self.hold()?);
        if rustix::fs::FileType::from_raw_mode(held.stat()?.st_mode) == rustix::fs::FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::chmodat(rustix::fs::CWD, held.path().0, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
    }

    pub(crate) fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        match self {
            Spot::At(dir, name) => rustix::fs::utimensat(dir, name, times, AtFlags::SYMLINK_NOFOLLOW),
            Spot::Fd(_) => rustix::fs::utimensat(rustix::fs::CWD, self.path().0, times, AtFlags::empty()),
        }
    }

    pub(crate) fn truncate(&self, size: u64) -> Result<(), Errno> {
        rustix::fs::ftruncate(self.open(OFlags::WRONLY)?, size)
    }

    /// Makes another name of what is here.
    pub(crate) fn link_to(&self, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        match self {
            Spot::At(from, old) => rustix::fs::linkat(from, old, dir, name, AtFlags::empty()),
            Spot::Fd(_) => rustix::fs::linkat(rustix::fs::CWD, self.path().0, dir, name, AtFlags::SYMLINK_FOLLOW),
        }
    }

    /// The names of all extended attributes.
    pub(crate) fn xattr_names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let (path, follow) = self.path();
        let list = |buffer: &mut [u8]| {
            if follow { rustix::fs::listxattr(&path, buffer) } else { rustix::fs::llistxattr(&path, buffer) }
        };
        let mut buffer = vec![0; 1024];
        let length = match list(&mut buffer) {
            Err(Errno::RANGE) => {
                buffer.resize(XATTR_MAX, 0);
                list(&mut buffer)
            }
            // The disk has none at all.
            Err(Errno::OPNOTSUPP) => Ok(0),
            result => result,
        }?;
        Ok(buffer[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// An extended attribute; `None` when there is none of this name.
    pub(crate) fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let (path, follow) = self.path();
        let get = |buffer: &mut [u8]| {
            if follow { rustix::fs::getxattr(&path, name, buffer) } else { rustix::fs::lgetxattr(&path, name, buffer) }
        };
        let mut buffer = vec![0; 256];
        let length = match get(&mut buffer) {
            Err(Errno::RANGE) => {
                buffer.resize(XATTR_MAX, 0);
                get(&mut buffer)
            }
            Err(Errno::NODATA) => return Ok(None),
            result => result,
        }?;
        buffer.truncate(length);
        Ok(Some(buffer))
    }

    pub(crate) fn set_xattr(&self, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
        let (path, follow) = self.path();
        if follow {
            rustix::fs::setxattr(&path, name, value, flags)
        } else {
            rustix::fs::lsetxattr(&path, name, value, flags)
        }
    }

    pub(crate) fn remove_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        let (path, follow) = self.path();
        if follow { rustix::fs::removexattr(&path, name) } else { rustix::fs::lremovexattr(&path, name) }
    }
}
