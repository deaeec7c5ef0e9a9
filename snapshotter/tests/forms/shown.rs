//! What a mount shows, as text that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use mica_layerdb::Digest;

/// Everything below `root`: attributes, contents, extended attributes. Numbers and link counts are left out: there the forms
/// differ.
pub fn shown(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut paths = vec![root.to_path_buf()];
    while let Some(path) = paths.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let size = if stat.is_dir() { 0 } else { stat.size() };
        let mut text = format!(
            "{:o} {}:{} {size} {}.{:09} dev {}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.rdev()
        );
        if stat.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if stat.is_symlink() {
            write!(text, " -> {}", fs::read_link(&path).unwrap().display()).unwrap();
        } else if stat.is_file() {
            write!(text, " {}", Digest::of(&fs::read(&path).unwrap())).unwrap();
        }
        let mut buffer = vec![0; 65536];
        let length = rustix::fs::llistxattr(&path, &mut buffer).unwrap();
        // Mica's own marks, which the kernel shows to root as it shows any attribute.
        let own = |name: &[u8]| name.is_empty() || name.starts_with(b"trusted.mica.");
        let mut names: Vec<_> = buffer[..length].split(|byte| *byte == 0).filter(|name| !own(name)).collect();
        names.sort();
        for name in names {
            let mut value = [0; 1024];
            let length = rustix::fs::lgetxattr(&path, name, &mut value).unwrap();
            write!(text, " {}={}", name.escape_ascii(), value[..length].escape_ascii()).unwrap();
        }
        found.insert(path.strip_prefix(root).unwrap().to_path_buf(), text);
    }
    found
}

/// Fails with what differs, and nothing else.
pub fn same(found: &BTreeMap<PathBuf, String>, expected: &BTreeMap<PathBuf, String>) {
    let names: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let differ: Vec<_> = names.into_iter().filter(|name| found.get(*name) != expected.get(*name)).collect();
    let lines =
        differ.iter().map(|name| format!("{}: {:?}, not {:?}", name.display(), found.get(*name), expected.get(*name)));
    assert!(differ.is_empty(), "{}", lines.collect::<Vec<_>>().join("\n"));
}

/// The files of a tar with their contents.
pub fn names_in_tar(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        (name, contents)
    });
    entries.collect()
}
