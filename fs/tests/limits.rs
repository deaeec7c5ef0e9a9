//! Where the disk below sets the limits of a union.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mica_fs::lower::DirsLower;
use mica_fs::{Below, Caller, Format, Ino, ROOT, Union, Upper};
use rustix::fs::{Mode, OFlags, RenameFlags, mkdirat, openat};
use rustix::io::Errno;

/// A union over a directory that `build` fills.
fn union(build: impl FnOnce(OwnedFd)) -> (tempfile::TempDir, Union) {
    let dir = tempfile::tempdir().unwrap();
    for part in ["lower", "upper", "work"] {
        fs::create_dir(dir.path().join(part)).unwrap();
    }
    let format = Format::detect();
    build(fs::File::open(dir.path().join("lower")).unwrap().into());
    let lower = DirsLower::open(&[dir.path().join("lower")], format).unwrap();
    let upper = Upper::open(&dir.path().join("upper"), &dir.path().join("work"), format).unwrap();
    (dir, Union::new(Below::Ready(Arc::new(lower)), Some(upper)).unwrap())
}

fn find(union: &Union, dir: Ino, name: &[u8]) -> Option<Ino> {
    union.lookup(dir, name).unwrap().map(|attr| attr.ino)
}

/// Rule 22: EXDEV remains for a path that no extended attribute of the upper's disk can hold (over 1 KiB, and the
/// disk refuses).
#[test]
fn directory_whose_path_no_attribute_can_hold_is_renamed_as_between_disks() {
    let name = [b'd'; 250];
    let (_dir, union) = union(|lower| {
        let mut at = lower;
        for _ in 0..20 {
            mkdirat(&at, &name[..], Mode::RWXU).unwrap();
            at = openat(&at, &name[..], OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        mkdirat(&at, "deepest", Mode::RWXU).unwrap();
    });
    let mut dirs = vec![ROOT];
    for _ in 0..20 {
        dirs.push(find(&union, *dirs.last().unwrap(), &name).unwrap());
    }
    // A path of 750 bytes fits every disk that has attributes.
    union.rename(dirs[2], &name, ROOT, b"third", RenameFlags::empty()).unwrap();
    assert_eq!(find(&union, ROOT, b"third"), Some(dirs[3]));
    let (old, deepest) = (dirs[20], find(&union, dirs[20], b"deepest").unwrap());
    match union.rename(old, b"deepest", ROOT, b"high", RenameFlags::empty()) {
        Ok(()) => assert_eq!((find(&union, ROOT, b"high"), find(&union, old, b"deepest")), (Some(deepest), None)),
        Err(error) => {
            assert_eq!(error.errno(), Errno::XDEV);
            assert_eq!((find(&union, ROOT, b"high"), find(&union, old, b"deepest")), (None, Some(deepest)));
        }
    }
}

/// Rule 56: fsync(2) returns when the upper's disk has the data; on a lower file there is nothing to do.
#[test]
fn everything_can_be_synced_where_it_is() {
    let (dir, union) = union(|lower| {
        mkdirat(&lower, "dir", Mode::RWXU).unwrap();
        openat(&lower, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    });
    let (file, lower_dir) = (find(&union, ROOT, b"file").unwrap(), find(&union, ROOT, b"dir").unwrap());
    let reader = union.open(file, OFlags::RDONLY).unwrap();
    let listing = union.opendir(lower_dir).unwrap();
    let sync = || {
        for data_only in [false, true] {
            union.fsync(reader, data_only).unwrap();
            union.fsyncdir(listing, data_only).unwrap();
        }
    };
    sync();
    assert_eq!(fs::read_dir(dir.path().join("upper")).unwrap().count(), 0, "syncing copies nothing up");
    let flags = OFlags::CREATE | OFlags::EXCL;
    let (_, writer) = union.create(&Caller::default(), lower_dir, b"new", 0o644, flags).unwrap();
    let changer = union.open(file, OFlags::WRONLY).unwrap();
    assert_eq!(union.write(changer, 0, b"written").unwrap(), 7);
    // The handles from before are synced where the file and the directory are now.
    sync();
    union.fsync(writer, false).unwrap();
    // A handle that is none, and one of the other kind, are told apart.
    assert_eq!(union.fsync(listing, false).unwrap_err().errno(), Errno::BADF);
    assert_eq!(union.fsyncdir(writer, false).unwrap_err().errno(), Errno::BADF);
}
