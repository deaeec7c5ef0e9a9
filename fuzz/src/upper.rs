//! The marks of an upper: extended attributes that somebody else has written. Each four bytes and what they announce set
//! one of them; then everything that the union shows is looked at, and some of it changed. Errors are fine.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mica_fs::inode::{FileKind, Ino, ROOT};
use mica_fs::mount::union_of_dirs;
use mica_fs::options::Options;
use mica_fs::union::Union;
use rustix::fs::XattrFlags;

use crate::store::memory;

/// Where attributes are set.
const NODES: [&str; 8] = ["", "both", "both/inner", "new", "new/file", "both/file", "both/link", "empty"];
/// Their names, after the namespace.
const MARKS: [&str; 12] = [
    "overlay.opaque",
    "overlay.redirect",
    "overlay.impure",
    "overlay.origin",
    "overlay.metacopy",
    "overlay.whiteout",
    "overlay.whiteouts",
    "overlay.upper",
    "overlay.overlay.opaque",
    "mica.origin",
    "mica.device",
    "mica.mica.origin",
];
/// Inodes looked at: marks may make directories circular.
const SEEN: usize = 200;

struct Place {
    folder: tempfile::TempDir,
}

pub fn run(data: &[u8]) {
    let place = Place::new();
    let mut rest = data;
    let namespace = if rustix::process::geteuid().is_root() { "trusted" } else { "user" };
    while let [node, mark, length, more @ ..] = rest {
        let (value, after) = more.split_at(usize::from(*length).min(more.len()));
        let path = place.path("upper").join(NODES[usize::from(*node) % NODES.len()]);
        let name = format!("{namespace}.{}", MARKS[usize::from(*mark) % MARKS.len()]);
        // A link or a full attribute area takes none.
        let _ = rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty());
        rest = after;
    }
    let Ok(union) = place.union() else { return };
    drop(union.recover());
    let seen = look(&union);
    change(&union, data.first().copied().unwrap_or(0), &seen);
    look(&union);
    drop(union);
    // What it left can be opened again.
    if let Ok(union) = place.union() {
        drop(union.recover());
        look(&union);
    }
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::Builder::new().prefix("mica-fuzz-").tempdir_in(memory()).expect("a directory");
        let place = Place { folder };
        for dir in ["lower/both/inner", "lower/other/inner", "upper/both/inner", "upper/new", "work"] {
            fs::create_dir_all(place.path(dir)).expect("a directory");
        }
        for file in [
            "lower/both/file",
            "lower/both/inner/deep",
            "lower/other/inner/deeper",
            "upper/new/file",
            "upper/both/file",
        ] {
            fs::write(place.path(file), file).expect("a file");
        }
        fs::write(place.path("upper/empty"), "").expect("a file");
        symlink("file", place.path("upper/both/link")).expect("a link");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn union(&self) -> mica_fs::Result<Union> {
        let mut options = Options::default();
        let shown = |path: &Path| path.display().to_string();
        let (lower, upper, work) = (self.path("lower"), self.path("upper"), self.path("work"));
        let text = format!("lowerdir={},upperdir={},workdir={}", shown(&lower), shown(&upper), shown(&work));
        options.parse(text.as_bytes())?;
        union_of_dirs(&options)
    }
}

/// Looks at everything there is, each inode once; returns directories and the names in them.
fn look(union: &Union) -> Vec<(Ino, Vec<u8>)> {
    let (mut seen, mut names, mut pending) = (BTreeSet::from([ROOT.0]), Vec::new(), vec![ROOT]);
    while let Some(ino) = pending.pop() {
        let Ok(attr) = union.getattr(ino, None) else { continue };
        for name in union.listxattr(ino).unwrap_or_default() {
            drop(union.getxattr(ino, &name));
        }
        match attr.kind {
            FileKind::Symlink => drop(union.readlink(ino)),
            FileKind::Directory => {
                let Ok(fh) = union.opendir(ino) else { continue };
                let mut listed = BTreeSet::new();
                let read = union.readdir(fh, 0, false, &mut |entry| {
                    if !matches!(entry.name, b"." | b"..") {
                        assert!(listed.insert(entry.name.to_vec()), "a name twice");
                    }
                    true
                });
                union.releasedir(fh);
                for name in listed.into_iter().filter(|_| read.is_ok()) {
                    names.push((ino, name.clone()));
                    let Ok(Some(found)) = union.lookup(ino, &name) else { continue };
                    if seen.len() < SEEN && seen.insert(found.ino.0) {
                        pending.push(found.ino);
                    }
                }
            }
            _ => {}
        }
    }
    names
}

/// Removes a name and moves another, as the input says.
fn change(union: &Union, choice: u8, names: &[(Ino, Vec<u8>)]) {
    let pick = |at: usize| names.get(at % names.len().max(1));
    if let Some((dir, name)) = pick(usize::from(choice)) {
        drop(union.unlink(*dir, name).or_else(|_| union.rmdir(*dir, name)));
    }
    if let (Some((from, name)), Some((to, _))) = (pick(usize::from(choice / 7)), pick(usize::from(choice / 3))) {
        drop(union.rename(*from, name, *to, b"moved", rustix::fs::RenameFlags::empty()));
    }
}
