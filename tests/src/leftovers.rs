//! What is left of a scene after its end.

use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::failure::Result;

/// Mountpoints at or below `folder` in this mount namespace.
pub fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mounts")?;
    let targets = table.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(1));
    let targets = targets.map(|target| PathBuf::from(std::ffi::OsString::from_vec(unescape(target))));
    Ok(targets.filter(|target| target.starts_with(folder)).collect())
}

/// Processes whose command line holds `text`: id and command line. This process is none of them.
pub fn processes_with(text: &str) -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = std::str::from_utf8(name.as_bytes()).ok().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the listing and the reading.
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid != std::process::id() && line.contains(text) {
            found.push((pid, line));
        }
    }
    Ok(found)
}

/// Bytes that the files below `folder` take on the disk, hard links counted once.
pub fn disk_bytes(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0;
    let mut todo = vec![folder.to_path_buf()];
    while let Some(folder) = todo.pop() {
        // A folder may go while it is looked at, and one that is not there takes no space.
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            let Ok(data) = entry.metadata() else { continue };
            if data.nlink() == 1 || data.is_dir() || seen.insert((data.dev(), data.ino())) {
                bytes += data.blocks() * 512;
            }
            if data.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

/// Removes empty cgroups at `name` below every hierarchy, and those in them. Engines leave the folder of a namespace.
pub fn remove_cgroups(name: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        remove_cgroup(&hierarchy.join(name));
    }
}

fn remove_cgroup(path: &Path) {
    for child in fs::read_dir(path).into_iter().flatten().flatten().filter(|child| child.path().is_dir()) {
        remove_cgroup(&child.path());
    }
    let _ = fs::remove_dir(path);
}

/// `\040` and the like, as the kernel writes odd bytes of paths.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| byte == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(escaped) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(escaped);
            rest = &behind[3..];
        } else {
            plain.push(byte);
            rest = behind;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_proc_are_found() -> Result {
        assert!(mounts_below(Path::new("/proc"))?.contains(&PathBuf::from("/proc")));
        assert!(mounts_below(Path::new("/pro"))?.is_empty());
        Ok(())
    }

    #[test]
    fn unescape_of_octal_codes_gives_the_bytes() {
        assert_eq!(unescape(br"/a\040b\134c\x"), br"/a b\c\x");
    }
}
