//! A small filesystem in a file, which can be filled.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::command::succeed;
use crate::failure::Result;
use crate::wait::SOON;

/// An ext4 of a few MiB on a loop device. Dropped, it is unmounted; the kernel then lets the device go.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
    mounted: bool,
}

impl SmallDisk {
    /// Makes and mounts it.
    pub fn new(mebibytes: u64) -> Result<SmallDisk> {
        let folder = tempfile::Builder::new().prefix("mica-disk-").tempdir()?;
        let image = folder.path().join("image");
        File::create(&image)?.set_len(mebibytes << 20)?;
        succeed(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image), SOON)?;
        let mut disk = SmallDisk { folder, mounted: false };
        fs::create_dir(disk.path())?;
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()), SOON)?;
        disk.mounted = true;
        Ok(disk)
    }

    /// Its root.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> Result<u64> {
        free_bytes(&self.path())
    }
}

/// Bytes that are free on the filesystem of `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.mounted {
            let unmounted = succeed(Command::new("umount").arg(self.path()), SOON);
            if unmounted.is_err() {
                let _ = succeed(Command::new("umount").arg("--lazy").arg(self.path()), SOON);
            }
        }
    }
}
