//! The directories that hold the writable part of snapshots.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::Store;
use crate::disk;
use crate::error::{Error, Result};

const REMOVED: &str = "removed-";

/// What a directory deep in a removed snapshot is called, before a number, when it is moved up to be emptied.
pub(crate) const REMOVED_DEEP: &str = "removed-deep-";

/// True for the names below `tmp/` that [`Store::remove_snapshot_dir`] gives.
pub(crate) fn is_removed(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(REMOVED.as_bytes())
}

impl Store {
    /// Makes `snapshots/<n>/{upper,work}`, durably, and returns the absolute path of `snapshots/<n>`.
    /// An existing one is [`Error::SnapshotDirExists`]. The upper's mode is 0755.
    pub fn new_snapshot_dir(&self, n: u64) -> Result<PathBuf> {
        self.require_writable()?;
        let relative = Path::new("snapshots").join(n.to_string());
        let path = self.root.join(&relative);
        let disk = self.disk();
        match disk.create_dir(&relative) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::SnapshotDirExists { path });
            }
            made => made.map_err(Error::io(format!("create {}", path.display())))?,
        }
        let fill = || {
            for part in ["upper", "work"] {
                disk.create_dir(&relative.join(part))?;
            }
            disk.set_mode(&relative.join("upper"), 0o755)
        };
        let filled = fill()
            .map_err(Error::io(format!("create {}", path.display())))
            .and_then(|()| self.sync_dir(&relative.join("upper")))
            .and_then(|()| self.sync_dir(&relative))
            .and_then(|()| self.sync_dir(Path::new("snapshots")));
        if let Err(error) = filled {
            if let Err(left) = disk::remove_tree(disk, &relative) {
                tracing::warn!(path = %path.display(), error = %left, "a half-made snapshot directory stays");
            }
            return Err(error);
        }
        Ok(path)
    }

    /// The absolute path of `snapshots/<n>`, whether it exists or not.
    pub fn snapshot_dir(&self, n: u64) -> PathBuf {
        self.root.join("snapshots").join(n.to_string())
    }

    /// The numbers of the snapshot directories there are, ascending.
    pub fn snapshot_dirs(&self) -> Result<Vec<u64>> {
        let action = || format!("read {}", self.root.join("snapshots").display());
        let names = disk::list(self.disk(), Path::new("snapshots")).map_err(Error::io(action()))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Takes `snapshots/<n>` away at once by moving it below `tmp/`; its space comes back with [`Store::gc`].
    /// A missing one is no error.
    pub fn remove_snapshot_dir(&self, n: u64) -> Result<()> {
        self.require_writable()?;
        let relative = Path::new("snapshots").join(n.to_string());
        // Unique over restarts too: what an earlier process removed may still be there.
        let mut target = Path::new("tmp").join(format!("{REMOVED}{n}"));
        for attempt in 1_u32.. {
            match self.disk().publish(&relative, &target) {
                Ok(()) => break,
                // An earlier attempt may have failed between this and the sync.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    target = Path::new("tmp").join(format!("{REMOVED}{n}-{attempt}"));
                }
                Err(error) => return Err(Error::io(format!("remove {}", self.snapshot_dir(n).display()))(error)),
            }
        }
        self.sync_dir(Path::new("snapshots"))
    }

    /// The paths below the root that wait to be deleted, relative.
    pub(crate) fn removed_snapshot_dirs(&self) -> Result<Vec<PathBuf>> {
        let action = || format!("read {}", self.root.join("tmp").display());
        let names = disk::list(self.disk(), Path::new("tmp")).map_err(Error::io(action()))?;
        Ok(names.iter().filter(|name| is_removed(name)).map(|name| Path::new("tmp").join(name)).collect())
    }
}
