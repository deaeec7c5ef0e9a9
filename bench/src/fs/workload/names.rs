//! Names and attributes of 20,000 small files in 200 directories: found, read, made, removed.

use std::ffi::CString;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use mica_tests::command::succeed;
use mica_tests::wait::LATER;
use mica_tests::{Result, ensure_eq};
use rustix::fs::{Mode, OFlags, mkdir, open, rename, rmdir, unlink};

use super::Workload;
use crate::fs::files::{c_path, name_of, paths, read_all, small_files, stat_all, walk};
use crate::fs::lower::Lower;
use crate::fs::place::{Place, Upper};
use crate::fs::row::{Kind, Row, overlayfs};
use crate::fs::stage::{Stage, drop_caches};

/// What the kernel may know already.
pub const WARM: Workload = Workload {
    name: "names",
    rows: &[
        Row::time("stat", "stat by path, warm", Kind::Metadata, &[overlayfs(1.2)]),
        Row::time("walk", "readdir and stat of an entry, warm", Kind::Metadata, &[overlayfs(1.0)]),
        Row::time("find", "find of 20,000 files, warm", Kind::Metadata, &[overlayfs(1.3)]),
        Row::time("open", "open, read, close of a small file, warm, read-write", Kind::Metadata, &[overlayfs(0.4)]),
        Row::time("open-read-only", "the same, read-only mount", Kind::Metadata, &[overlayfs(1.2)]),
    ],
    run: warm,
};

/// What it can't know: caches are dropped and the mount is new.
pub const COLD: Workload = Workload {
    name: "cold",
    rows: &[
        Row::time("find-cold", "find of 20,000 files, cold", Kind::Metadata, &[overlayfs(0.5)]).of_kernel(Some(1.5)),
        Row::time("find-stat-cold", "find by size of 20,000 files, cold", Kind::Metadata, &[overlayfs(0.9)])
            .of_kernel(Some(1.5)),
        Row::time("stat-cold", "stat by path, cold", Kind::Metadata, &[overlayfs(0.35)]),
        Row::time("open-cold", "open, read, close of a small file, cold", Kind::Metadata, &[overlayfs(0.35)]),
    ],
    run: cold,
};

/// What changes names.
pub const CHANGE: Workload = Workload {
    name: "change",
    rows: &[
        Row::time("create", "create, write, close of a small file, tmpfs", Kind::Metadata, &[overlayfs(0.4)]),
        Row::time("rename", "rename of a small file, tmpfs", Kind::Metadata, &[overlayfs(0.4)]),
        Row::time("unlink", "unlink of a small file, tmpfs", Kind::Metadata, &[overlayfs(0.4)]),
        Row::time("mkdir", "mkdir, tmpfs", Kind::Metadata, &[overlayfs(0.4)]),
    ],
    run: change,
};

const FILES: u32 = 20_000;
const PASSES: u32 = 3;
const CREATED: u32 = 10_000;
const MADE: u32 = 5000;

fn small(stage: &Stage<'_>) -> Result<Rc<Lower>> {
    let files = stage.of(FILES);
    stage.lower("small", |folder| {
        small_files(folder, files)?;
        Ok(Lower::folder(folder, "small"))
    })
}

/// Does it once, then times it `PASSES` times.
fn repeat<T>(stage: &Stage<'_>, key: &str, number: u32, mut action: impl FnMut() -> Result<T>) -> Result {
    action()?;
    stage.time(key, PASSES * number, || (0..PASSES).try_for_each(|_| action().map(drop)));
    Ok(())
}

fn warm(stage: &Stage<'_>) -> Result {
    let files = stage.of(FILES);
    let lower = small(stage)?;
    let place = stage.place(&lower, Upper::Disk)?;
    let mount = place.mount()?;
    let all = paths(mount.root(), files)?;
    repeat(stage, "stat", files, || stat_all(&all))?;
    repeat(stage, "walk", files, || {
        let found = walk(mount.root())?;
        ensure_eq!(found, files + files.div_ceil(100), "number of entries");
        Ok(())
    })?;
    repeat(stage, "find", 1, || find(mount.root(), &[]))?;
    repeat(stage, "open", files, || read_all(&all))?;
    mount.end()?;
    let place = stage.place(&lower, Upper::None)?;
    let mount = place.mount()?;
    let all = paths(mount.root(), files)?;
    repeat(stage, "open-read-only", files, || read_all(&all))?;
    mount.end()
}

fn cold(stage: &Stage<'_>) -> Result {
    let files = stage.of(FILES);
    let lower = small(stage)?;
    let place = stage.place(&lower, Upper::Disk)?;
    fresh(stage, &place, "find-cold", 1, |root| find(root, &[]))?;
    fresh(stage, &place, "find-stat-cold", 1, |root| find(root, &["-size", "+1"]))?;
    let all = |root: &Path| paths(root, files);
    fresh(stage, &place, "stat-cold", files, |root| stat_all(&all(root)?))?;
    fresh(stage, &place, "open-cold", files, |root| read_all(&all(root)?))
}

fn fresh(stage: &Stage<'_>, place: &Place<'_>, key: &str, number: u32, action: impl FnOnce(&Path) -> Result) -> Result {
    drop_caches()?;
    let mount = place.mount()?;
    stage.time(key, number, || action(mount.root()));
    mount.end()
}

fn find(root: &Path, words: &[&str]) -> Result {
    succeed(Command::new("find").arg(root).args(words), LATER).map(drop)
}

fn change(stage: &Stage<'_>) -> Result {
    let lower = small(stage)?;
    let place = stage.place(&lower, Upper::Memory)?;
    let mount = place.mount()?;
    let created = stage.of(CREATED);
    let named = |suffix: &str| -> Result<Vec<CString>> {
        (0..created).map(|file| c_path(&mount.path(format!("{}{suffix}", name_of(file))))).collect()
    };
    let (first, second) = (named(".new")?, named(".renamed")?);
    let directories: Result<Vec<CString>> =
        (0..stage.of(MADE)).map(|number| c_path(&mount.path(format!("d{:03}/m{number}", number % 20)))).collect();
    let directories = directories?;
    stage.time("create", created, || {
        for path in &first {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = open(path, flags, Mode::from_raw_mode(0o644))?;
            rustix::io::write(&file, &[7; 1000])?;
        }
        Ok(())
    });
    stage.time("rename", created, || {
        for (from, to) in first.iter().zip(&second) {
            rename(from, to)?;
        }
        Ok(())
    });
    stage.time("unlink", created, || {
        for path in &second {
            unlink(path)?;
        }
        Ok(())
    });
    stage.time("mkdir", directories.len() as u32, || {
        for path in &directories {
            mkdir(path, Mode::from_raw_mode(0o755))?;
        }
        Ok(())
    });
    for path in &directories {
        rmdir(path)?;
    }
    mount.end()
}
