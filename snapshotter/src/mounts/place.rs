//! Mountpoints.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{Error, Result};

/// What programs do below it is none of other users' business.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(Error::io(format!("create {}", path.display())))
}

/// Whether something is mounted there. Asks nothing of whoever serves it.
pub(super) fn is_mountpoint(path: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match rustix::fs::statx(CWD, path, flags, StatxFlags::empty()) {
        Ok(found) if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        }
        // A kernel that can't tell.
        Ok(_) => true,
        Err(errno) => errno != Errno::NOENT,
    }
}

/// Takes away whatever is mounted there.
pub(super) fn detach(mountpoint: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(Error::io(format!("unmount {}", mountpoint.display()))(errno.into())),
        }
    }
}

pub(super) fn remove_mountpoint(mountpoint: &Path) -> Result<()> {
    match fs::remove_dir(mountpoint) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", mountpoint.display()))(error))
        }
        _ => Ok(()),
    }
}
