//! Snapshots that were removed: directories of any size, which a container filled.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::{Gc, Halt};
use crate::disk;
use crate::error::{Error, Result};
use crate::store::REMOVED_DEEP;
use crate::tally::Tally;
use crate::walk;

/// A directory whose path is longer is moved up before it is emptied: paths have an end at 4096 bytes.
const FAR: usize = 1024;

impl Gc<'_> {
    /// What can't be removed does not keep the rest from being collected; it is an error in the end.
    pub(super) fn remove_snapshots(&mut self) -> Result<(), Halt> {
        for path in self.store.removed_snapshot_dirs()? {
            let shown = self.store.root().join(&path);
            let removed = if self.dry_run {
                let size = measure(self.store.disk(), &path);
                let size = size.map_err(Error::io(format!("read {}", shown.display())))?;
                self.report.snapshots += Tally { count: 1, ..size };
                self.pace.check()
            } else {
                self.remove_folder(&path)
            };
            match removed {
                Ok(()) => {}
                Err(Halt::Stopped) => return Err(Halt::Stopped),
                Err(Halt::Failed(error)) => {
                    tracing::warn!(path = %shown.display(), %error, "a removed snapshot stays");
                    self.failed.get_or_insert(error);
                }
            }
        }
        Ok(())
    }

    fn remove_folder(&mut self, top: &Path) -> Result<(), Halt> {
        let store = self.store;
        let disk = store.disk();
        let failed = |path: &Path| Error::io(format!("remove {}", store.root().join(path).display()));
        let mut pending = vec![(top.to_path_buf(), false)];
        while let Some((mut path, emptied)) = pending.pop() {
            let Some(stat) = disk::stat(disk, &path).map_err(failed(&path))? else { continue };
            let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
            if emptied || !is_directory {
                let removed = if is_directory { disk.remove_dir(&path) } else { disk.remove(&path) };
                removed.map_err(failed(&path))?;
                let taken = Tally::of(&stat);
                // A file of several names gives its blocks back with the last.
                if is_directory || stat.st_nlink == 1 {
                    self.report.snapshots += Tally { count: u64::from(path == top), ..taken };
                }
                self.pace.spend(taken)?;
                continue;
            }
            if path.as_os_str().len() > FAR {
                path = self.move_up(&path)?;
            }
            pending.push((path.clone(), true));
            let mut directories = Vec::new();
            for name in walk::names(disk.root(), &path).map_err(failed(&path))? {
                let (name, kind) = name.map_err(failed(&path))?;
                let inner = path.join(name);
                if matches!(kind, FileType::Directory | FileType::Unknown) {
                    directories.push((inner, false));
                } else {
                    self.remove_inner(&inner)?;
                }
            }
            pending.extend(directories);
        }
        Ok(())
    }

    fn remove_inner(&mut self, path: &Path) -> Result<(), Halt> {
        let action = || format!("remove {}", self.store.root().join(path).display());
        let disk = self.store.disk();
        let Some(stat) = disk::stat(disk, path).map_err(Error::io(action()))? else { return Ok(()) };
        disk.remove(path).map_err(Error::io(action()))?;
        let taken = Tally { count: 1, ..Tally::of(&stat) };
        if stat.st_nlink == 1 {
            self.report.snapshots += Tally { count: 0, ..taken };
        }
        self.pace.spend(taken)
    }

    fn move_up(&self, path: &Path) -> Result<PathBuf> {
        let disk = self.store.disk();
        for number in 0_u64.. {
            let target = Path::new("tmp").join(format!("{REMOVED_DEEP}{number}"));
            match disk.publish(path, &target) {
                Ok(()) => return Ok(target),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(format!("move {}", path.display()))(error)),
            }
        }
        Ok(path.to_path_buf())
    }
}

/// What a directory and all in it take, itself included; files of several names count once.
pub(crate) fn measure(disk: &dyn disk::Disk, top: &Path) -> std::io::Result<Tally> {
    let mut total = Tally::default();
    let mut linked = HashSet::new();
    for stat in walk::files(disk.root(), top)? {
        let stat = stat?;
        let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        if is_directory || stat.st_nlink == 1 || linked.insert(stat.st_ino) {
            total += Tally::of(&stat);
        }
    }
    Ok(total)
}
