//! Mounts as the kernel lists them, and the notes that `mica mount` leaves about its own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What the kernel calls a filesystem of Mica.
const TYPE: &[u8] = b"fuse.mica";
/// Folder of notes below the state folder.
const NOTES: &str = "mounts";

/// Where filesystems of Mica are mounted, in the order in which they were. A place that another mount hides is left out.
pub fn mounted() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

fn parse(mountinfo: &[u8]) -> Vec<PathBuf> {
    let mut mounts: Vec<(Vec<u8>, bool)> = Vec::new();
    for line in mountinfo.split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let Some(separator) = fields.iter().position(|field| *field == b"-") else { continue };
        let (Some(place), Some(kind)) = (fields.get(4), fields.get(separator + 1)) else { continue };
        let place = unescape(place);
        mounts.retain(|(known, _)| *known != place);
        mounts.push((place, *kind == TYPE));
    }
    mounts.into_iter().filter(|(_, ours)| *ours).map(|(place, _)| PathBuf::from(OsString::from_vec(place))).collect()
}

/// The kernel writes blanks and backslashes as octal numbers.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 1..at + 4).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if text[at] == b'\\' => {
                plain.push(digits.iter().fold(0_u8, |number, digit| number.wrapping_mul(8).wrapping_add(digit - b'0')));
                at += 4;
            }
            _ => {
                plain.push(text[at]);
                at += 1;
            }
        }
    }
    plain
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
    fn parse_finds_what_is_ours_and_on_top() {
        let mountinfo = b"22 1 0:20 / / rw - ext4 /dev/vda rw\n\
            30 22 0:40 / /a\\040b\\134c rw,nosuid shared:1 - fuse.mica mica rw,user_id=0\n\
            31 22 0:41 / /hidden rw - fuse.mica mica rw\n\
            32 22 0:42 / /hidden rw - tmpfs tmpfs rw\n\
            33 22 0:43 / /twice rw - tmpfs tmpfs rw\n\
            34 22 0:44 / /twice rw - fuse.mica mica rw\n\
            35 22 0:45 / /other rw - fuse.sshfs x rw\n";
        assert_eq!(parse(mountinfo), [Path::new("/a b\\c"), Path::new("/twice")]);
        assert!(parse(b"nonsense\n\n").is_empty());
    }

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
