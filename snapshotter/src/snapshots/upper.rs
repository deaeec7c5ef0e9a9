//! The writable folder of an active snapshot: whether anything was changed, and getting it onto the disk.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Error, Result};
use crate::store::{Record, UpperRoot};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the upper in a snapshot's folder.
pub(super) fn open(folder: &Path) -> Result<OwnedFd> {
    let path = folder.join("upper");
    rustix::fs::openat(CWD, &path, DIRECTORY, Mode::empty())
        .map_err(|errno| Error::io(format!("open {}", path.display()))(errno.into()))
}

/// The attributes of the upper's root.
pub(super) fn root_of(folder: &Path) -> Result<UpperRoot> {
    let stat = rustix::fs::fstat(open(folder)?).map_err(|errno| Error::io("stat an upper")(errno.into()))?;
    Ok(UpperRoot { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid })
}

/// Attributes of the root that a union sets when it takes over those of the lower root, to change them or what is in it.
const TAKEN_OVER: [&str; 2] = ["trusted.mica.origin", "user.mica.origin"];

/// Whether the folder holds changes. Looks at one entry at most.
pub(super) fn has_changes(folder: &Path, record: &Record) -> Result<bool> {
    if record.root != Some(root_of(folder)?) {
        return Ok(true);
    }
    let upper = open(folder)?;
    let mut numbers = [0_u8; 16];
    if TAKEN_OVER.iter().any(|mark| rustix::fs::fgetxattr(&upper, *mark, &mut numbers).is_ok()) {
        return Ok(true);
    }
    let entries = rustix::fs::Dir::new(upper).map_err(|errno| Error::io("read an upper")(errno.into()))?;
    for entry in entries {
        let entry = entry.map_err(|errno| Error::io("read an upper")(errno.into()))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until all that was written to the folder's filesystem is on the disk, or until `patience` has passed; says which.
/// The kernel goes on writing in the second case.
pub(super) fn sync_within(folder: &Path, patience: Duration) -> bool {
    let (done, waiting) = mpsc::channel();
    let folder = folder.to_path_buf();
    let work = move || done.send(sync(&folder));
    match thread::Builder::new().name("mica-sync".into()).spawn(work) {
        Ok(_) => matches!(waiting.recv_timeout(patience), Ok(Ok(()))),
        Err(error) => {
            tracing::warn!(%error, "no thread to sync with");
            false
        }
    }
}

/// Waits until all that was written to the folder's filesystem is on the disk.
pub(super) fn sync(folder: &Path) -> Result<()> {
    let upper = open(folder)?;
    rustix::fs::syncfs(upper).map_err(|errno| Error::io(format!("sync {}", folder.display()))(errno.into()))
}
