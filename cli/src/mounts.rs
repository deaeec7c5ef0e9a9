//! Mounts as the kernel lists them, and the notes that `mica mount` leaves about its own.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use mica_fs::kernel::SOURCE;
use mica_fs::mountinfo::{Listed, listed};
use serde::{Deserialize, Serialize};

/// What the kernel calls a filesystem that Mica serves.
const TYPE: &[u8] = b"fuse.mica";
/// What it calls one that Mica has made of a tree, and leaves to the kernel.
const KERNEL_TYPE: &[u8] = b"overlay";
/// Folder of notes below the state folder.
const NOTES: &str = "mounts";

/// Where filesystems of Mica are mounted, in the order in which they were. A place that another mount hides is left out.
pub fn mounted() -> io::Result<Vec<PathBuf>> {
    let ours = |mount: &Listed| mount.kind == TYPE || mount.kind == KERNEL_TYPE && mount.source == SOURCE.as_bytes();
    Ok(listed()?.into_iter().filter(ours).map(|mount| mount.place).collect())
}

/// What is known of a mount that `mica mount` made. The file goes when the mount ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The process that serves it.
    pub pid: u32,
    /// Where it is.
    pub mountpoint: PathBuf,
}

/// A note on the disk.
#[derive(Debug)]
pub struct Written {
    path: PathBuf,
}

impl Note {
    /// Writes it down.
    pub fn write(&self, state: &Path) -> io::Result<Written> {
        let folder = state.join(NOTES);
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&folder)?;
        let path = folder.join(format!("{}.json", self.pid));
        fs::write(&path, serde_json::to_vec(self)?)?;
        Ok(Written { path })
    }

    /// Whether its process lives. Another one may have its number by now.
    pub fn is_served(&self) -> bool {
        is_running(self.pid)
    }

    /// All notes of a state folder, with their files. What can't be read is nobody's.
    pub fn all(state: &Path) -> Vec<(PathBuf, Note)> {
        let Ok(entries) = fs::read_dir(state.join(NOTES)) else { return Vec::new() };
        let read = |path: PathBuf| Some((serde_json::from_slice(&fs::read(&path).ok()?).ok()?, path));
        entries.flatten().filter_map(|entry| read(entry.path())).map(|(note, path)| (path, note)).collect()
    }
}

/// Whether a process has not ended. A zombie has.
pub fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

impl Written {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // A note without its process is harmless.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn note_is_read_back_until_it_is_dropped() {
        let state = std::env::temp_dir().join(format!("mica-note-test-{}", std::process::id()));
        let note = Note { pid: 7, mountpoint: "/mnt".into() };
        let written = note.write(&state).unwrap();
        assert_eq!(Note::all(&state), [(state.join("mounts/7.json"), note)]);
        drop(written);
        assert!(Note::all(&state).is_empty());
        fs::remove_dir_all(&state).unwrap();
    }
}
