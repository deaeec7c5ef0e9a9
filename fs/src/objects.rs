//! The object folder, open for serving.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use mica_layerdb::ObjectId;
use rustix::fs::{CWD, Mode, OFlags, StatVfs};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Error, Result};
use crate::sys;

/// A descriptor of the object folder.
///
/// As root it belongs to a private, detached mount of the folder that is read-only: nothing that is opened through it can be
/// written to, not even by the kernel when it opens a backing file anew with a program's flags.
pub struct Objects {
    dir: OwnedFd,
    /// The detached mount; it is dissolved when this is closed.
    seal: Option<OwnedFd>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Objects").field("sealed", &self.is_sealed()).finish_non_exhaustive()
    }
}

impl Objects {
    /// Opens the folder at `path` behind a read-only mount where that is permitted, else as it is.
    pub fn sealed(path: &Path) -> Result<Objects> {
        match seal(path) {
            Ok((mount, dir)) => Ok(Objects { dir, seal: Some(mount) }),
            Err(Errno::PERM | Errno::NOSYS) => {
                let dir = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|errno| at(path, errno))?;
                Ok(Objects { dir, seal: None })
            }
            Err(errno) => Err(at(path, errno)),
        }
    }

    /// Whether objects are opened through a read-only mount.
    pub fn is_sealed(&self) -> bool {
        self.seal.is_some()
    }

    /// Opens an object for reading.
    pub fn open(&self, id: ObjectId) -> Result<File> {
        let name = id.relative_path();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.dir, &name, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(Errno::NOENT) => {
                Err(Error::Unavailable { reason: format!("object {id} is missing"), errno: Errno::IO })
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Free space of the disk that holds the objects.
    pub fn statfs(&self) -> Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.dir)?)
    }
}

const DIRECTORY: OFlags =
    OFlags::from_bits_retain(OFlags::RDONLY.bits() | OFlags::DIRECTORY.bits() | OFlags::CLOEXEC.bits());

fn seal(path: &Path) -> Result<(OwnedFd, OwnedFd), Errno> {
    let clone = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::make_mount_read_only(&clone)?;
    // The clone's own descriptor is an O_PATH one; statfs needs a real one.
    let dir = rustix::fs::openat(&clone, ".", DIRECTORY, Mode::empty())?;
    Ok((clone, dir))
}

fn at(path: &Path, errno: Errno) -> Error {
    Error::Layer { path: path.display().to_string(), reason: errno.to_string(), errno }
}
