//! What the disk below an upper promises about a crash.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, fstatfs, major, minor};
use rustix::io::Errno;

const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;
const BTRFS: i64 = 0x9123_683e;
const TMPFS: i64 = 0x0102_1994;

/// Whether changes of names, sizes and attributes are on the disk after a crash only together with all that were made
/// before them, and no block of a file before what was written to it. So it is where a journal or copy-on-write keeps
/// the order; of any other disk nobody knows.
pub(super) fn keeps_order(dir: impl AsFd) -> Result<bool, Errno> {
    Ok(match fstatfs(&dir)?.f_type as i64 {
        XFS | BTRFS | TMPFS => true,
        EXT4 => has_journal(fstat(&dir)?.st_dev),
        _ => false,
    })
}

/// Whether an ext4 of this device has a journal. Without /sys nobody can tell.
fn has_journal(device: u64) -> bool {
    let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let Ok(disk) = std::fs::canonicalize(device) else { return false };
    let Some(name) = disk.file_name() else { return false };
    let task: PathBuf = Path::new("/sys/fs/ext4").join(name).join("journal_task");
    std::fs::read_to_string(task).is_ok_and(|task| task.trim().parse::<u32>().is_ok())
}
