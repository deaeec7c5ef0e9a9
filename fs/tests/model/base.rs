//! Puts a model on the disk.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use mica_fs::inode::FileKind;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, utimensat};

use super::reference::{Model, Shown};

/// Makes a directory that looks like the model, with a time on everything that has none.
pub fn lay_out(model: &mut Model, dir: &Path) {
    fs::create_dir(dir).unwrap();
    let mut made: HashMap<u64, PathBuf> = HashMap::new();
    let shown = model.shown();
    for (path, shown) in &shown {
        let at = path.iter().fold(dir.to_owned(), |at, name| at.join(OsStr::from_bytes(name)));
        match made.get(&shown.id) {
            Some(first) => fs::hard_link(first, &at).unwrap(),
            None => make(&at, shown),
        }
        made.insert(shown.id, at);
    }
    for (path, shown) in shown.iter().rev() {
        let (secs, nanos) = shown.mtime.unwrap_or((shown.id as i64 * 1000, shown.id as u32));
        let time = Timespec { tv_sec: secs, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &made[&shown.id], &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        model.apply(&super::reference::Action::SetTimes(path.clone(), secs, nanos)).unwrap();
    }
}

fn make(at: &Path, shown: &Shown) {
    match shown.kind {
        FileKind::Directory if at.exists() => {}
        FileKind::Directory => fs::create_dir(at).unwrap(),
        FileKind::Regular => fs::write(at, &shown.bytes).unwrap(),
        FileKind::Symlink => std::os::unix::fs::symlink(OsStr::from_bytes(&shown.bytes), at).unwrap(),
        kind => {
            let kind = FileType::from_raw_mode(kind.mode_bits());
            mknodat(CWD, at, kind, Mode::from_raw_mode(0o600), shown.rdev).unwrap();
        }
    }
    rustix::fs::chownat(
        CWD,
        at,
        Some(rustix::fs::Uid::from_raw(shown.owner.0)),
        Some(rustix::fs::Gid::from_raw(shown.owner.1)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    if shown.kind != FileKind::Symlink {
        rustix::fs::chmodat(CWD, at, Mode::from_raw_mode(shown.mode), AtFlags::empty()).unwrap();
    }
    for (name, value) in &shown.xattrs {
        rustix::fs::lsetxattr(at, &name[..], value, XattrFlags::empty()).unwrap();
    }
}
