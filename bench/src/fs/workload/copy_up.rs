//! First changes of what the lower has.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use mica_tests::Result;
use mica_tests::command::succeed;
use mica_tests::wait::LATER;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, open, setxattr, utimensat,
};

use super::Workload;
use super::data::{large, mebibytes};
use crate::fs::files::{name_of, paths, small_files};
use crate::fs::lower::Lower;
use crate::fs::place::{Mount, Upper};
use crate::fs::row::{Goal, Kind, Row, overlayfs, overlayfs_all};
use crate::fs::stage::{Stage, settle};
use crate::fs::subject::Subject;

const ATTRIBUTES: &[Goal] = &[overlayfs(500.0), overlayfs_all(0.5)];

/// The first change of a large file.
pub const LARGE: Workload = Workload {
    name: "copy-up",
    rows: &[
        Row::time("first-write", "first 4 KiB write to a lower file of 1 GiB, ext4", Kind::Data, &[overlayfs(200.0)]),
        Row::time("chmod", "chmod of a lower file of 1 GiB, ext4", Kind::Metadata, ATTRIBUTES),
        Row::time("chown", "chown of a lower file of 1 GiB, ext4", Kind::Metadata, ATTRIBUTES),
        Row::time("utimes", "utimes of a lower file of 1 GiB, ext4", Kind::Metadata, ATTRIBUTES),
        Row::time("setxattr", "setxattr of a lower file of 1 GiB, ext4", Kind::Metadata, ATTRIBUTES),
    ],
    run: large_file,
};

/// The first change of many small files.
pub const SMALL: Workload = Workload {
    name: "append",
    rows: &[
        Row::time(
            "copy-up-memory",
            "copy-up of a small file by append, 2,000 files, tmpfs",
            Kind::Data,
            &[overlayfs(1.0)],
        ),
        Row::time("copy-up-disk", "copy-up of a small file by append, 500 files, ext4", Kind::Data, &[overlayfs(1.0)]),
    ],
    run: small,
};

/// Another name for a lower directory.
pub const RENAME: Workload = Workload {
    name: "rename",
    rows: &[Row::time(
        "rename-directory",
        "mv of a lower directory of 10,000 files, ext4",
        Kind::Metadata,
        &[overlayfs(100.0)],
    )],
    run: rename,
};

type Change = fn(&Path) -> Result;

const CHANGES: [(&str, Change); 5] = [
    ("first-write", |path| Ok(File::options().write(true).open(path)?.write_all_at(&[7; 4096], 1 << 20)?)),
    ("chmod", |path| Ok(rustix::fs::chmod(path, Mode::from_raw_mode(0o600))?)),
    ("chown", |path| {
        let (owner, group) = (Uid::from_raw(1000), Gid::from_raw(1000));
        Ok(chownat(CWD, path, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }),
    ("utimes", |path| {
        let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }),
    ("setxattr", |path| Ok(setxattr(path, "user.bench", b"value", XattrFlags::empty())?)),
];

fn large_file(stage: &Stage<'_>) -> Result {
    let lower = large(stage)?;
    let warm = || -> Result {
        let bytes = std::io::copy(&mut File::open(lower.dirs[0].join("large"))?, &mut std::io::sink())?;
        mica_tests::ensure_eq!(bytes, u64::from(mebibytes(stage)) << 20, "length of the large file");
        Ok(())
    };
    if stage.subject() == Subject::Directory {
        // Nothing is copied, so that one place is enough.
        let place = stage.place(&lower, Upper::Disk)?;
        let mount = place.mount()?;
        for (key, change) in CHANGES {
            stage.time(key, 1, || change(&mount.path("large")));
        }
        mount.end()?;
        return place.delete();
    }
    for (key, change) in CHANGES {
        let place = stage.place(&lower, Upper::Disk)?;
        let mount = place.mount()?;
        warm()?;
        // The mount knows the file: what is measured is the change.
        fs::metadata(mount.path("large"))?;
        settle();
        stage.time(key, 1, || change(&mount.path("large")));
        mount.end()?;
        place.delete()?;
    }
    settle();
    Ok(())
}

const FILES: u32 = 2000;

fn small(stage: &Stage<'_>) -> Result {
    let files = stage.of(FILES);
    let lower = stage.lower("appended", |folder| {
        small_files(folder, files)?;
        Ok(Lower::folder(folder, "appended"))
    })?;
    for (key, upper, number) in [("copy-up-memory", Upper::Memory, files), ("copy-up-disk", Upper::Disk, files / 4)] {
        let place = stage.place(&lower, upper)?;
        let mount = place.mount()?;
        let paths = paths(mount.root(), number)?;
        settle();
        stage.time(key, number, || {
            for path in &paths {
                let file = open(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC, Mode::empty())?;
                rustix::io::write(&file, b"one more line\n")?;
            }
            Ok(())
        });
        mount.end()?;
    }
    Ok(())
}

const IN_DIRECTORY: u32 = 10_000;

fn rename(stage: &Stage<'_>) -> Result {
    let files = stage.of(IN_DIRECTORY);
    let lower = stage.lower("directory", |folder| {
        small_files(&folder.join("from"), files)?;
        Ok(Lower::folder(folder, "directory"))
    })?;
    let place = stage.place(&lower, Upper::Disk)?;
    let mount = place.mount()?;
    settle();
    stage.time("rename-directory", 1, || moved(&mount, files));
    mount.end()?;
    settle();
    Ok(())
}

fn moved(mount: &Mount<'_>, files: u32) -> Result {
    succeed(Command::new("mv").arg(mount.path("from")).arg(mount.path("to")), LATER)?;
    fs::metadata(mount.path("to").join(name_of(files - 1)))?;
    Ok(())
}
