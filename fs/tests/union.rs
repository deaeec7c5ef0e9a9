//! The union without a kernel: operations on a lower of plain directories and an upper beside it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_fs::lower::DirsLower;
use mica_fs::upper::METACOPY_ABOVE;
use mica_fs::{Attr, Below, Caller, Format, Ino, ROOT, SetAttr, Union, Upper};
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

struct Scene {
    dir: tempfile::TempDir,
    union: Union,
}

fn open(dir: &Path) -> Union {
    let format = Format::detect();
    let lower = DirsLower::open(&[dir.join("lower")], format).unwrap();
    let upper = Upper::open(&dir.join("upper"), &dir.join("work"), format).unwrap().with_metacopy(METACOPY_ABOVE);
    Union::new(Below::Ready(Arc::new(lower)), Some(upper)).unwrap()
}

impl Scene {
    fn new(build: impl FnOnce(&Path)) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        for part in ["lower", "upper", "work"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        build(&dir.path().join("lower"));
        let union = open(dir.path());
        Scene { dir, union }
    }

    /// The same directories, in a union that knows nothing yet.
    fn again(self) -> Scene {
        let Scene { dir, union } = self;
        drop(union);
        let union = open(dir.path());
        Scene { dir, union }
    }

    fn find(&self, path: &str) -> Option<Attr> {
        let mut at = self.union.getattr(ROOT, None).unwrap();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.union.lookup(at.ino, name.as_bytes()).unwrap()?;
        }
        Some(at)
    }

    fn ino(&self, path: &str) -> Ino {
        self.find(path).unwrap_or_else(|| panic!("{path} is missing")).ino
    }

    fn split<'a>(&self, path: &'a str) -> (Ino, &'a [u8]) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.ino(dir), name.as_bytes())
    }

    fn read(&self, path: &str) -> Vec<u8> {
        let fh = self.union.open(self.ino(path), OFlags::RDONLY).unwrap();
        let mut buffer = vec![0; 1 << 16];
        let read = self.union.read(fh, 0, &mut buffer).unwrap();
        self.union.release(fh);
        buffer.truncate(read);
        buffer
    }

    fn write(&self, path: &str, data: &[u8]) {
        let (dir, name) = self.split(path);
        let (_, fh) = self.union.create(&Caller::default(), dir, name, 0o644, OFlags::RDWR).unwrap();
        self.union.write(fh, 0, data).unwrap();
        self.union.release(fh);
    }

    fn mkdir(&self, path: &str) {
        let (dir, name) = self.split(path);
        self.union.mkdir(&Caller::default(), dir, name, 0o755).unwrap();
    }

    fn unlink(&self, path: &str) -> Result<(), Errno> {
        let (dir, name) = self.split(path);
        self.union.unlink(dir, name).map_err(|error| error.errno())
    }

    fn rmdir(&self, path: &str) -> Result<(), Errno> {
        let (dir, name) = self.split(path);
        self.union.rmdir(dir, name).map_err(|error| error.errno())
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
        let ((dir, name), (new_dir, new_name)) = (self.split(from), self.split(to));
        self.union.rename(dir, name, new_dir, new_name, flags).map_err(|error| error.errno())
    }

    /// Names and numbers of a directory's entries.
    fn list(&self, path: &str) -> BTreeMap<String, Ino> {
        let fh = self.union.opendir(self.ino(path)).unwrap();
        let mut found = BTreeMap::new();
        self.union
            .readdir(fh, 0, false, &mut |entry| {
                let name = String::from_utf8(entry.name.to_vec()).unwrap();
                if name != "." && name != ".." {
                    assert!(found.insert(name.clone(), entry.ino).is_none(), "{name} came twice");
                }
                true
            })
            .unwrap();
        self.union.releasedir(fh);
        found
    }

    fn names(&self, path: &str) -> Vec<String> {
        self.list(path).into_keys().collect()
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.dir.path().join("upper").join(path)
    }
}

fn sample(lower: &Path) {
    fs::create_dir_all(lower.join("dir/deep")).unwrap();
    fs::write(lower.join("dir/file"), "lower file").unwrap();
    fs::write(lower.join("dir/deep/leaf"), "leaf").unwrap();
    fs::write(lower.join("top"), "top").unwrap();
    fs::hard_link(lower.join("top"), lower.join("dir/top2")).unwrap();
    fs::create_dir(lower.join("empty")).unwrap();
    std::os::unix::fs::symlink("top", lower.join("link")).unwrap();
}

const NONE: RenameFlags = RenameFlags::empty();

/// Rule 7: `st_ino` never changes while a file exists: not by copy-up, rename, remount, restart or takeover.
/// Rule 14: Who has the file open goes on with the same file: a handle that was opened for reading before the copy-up
/// reads what is written after it, by read(2) and by mmap(2).
#[test]
fn write_to_a_lower_file_copies_it_up_under_the_same_number_and_open_handles_follow() {
    let scene = Scene::new(sample);
    let before = scene.find("dir/file").unwrap();
    let reader = scene.union.open(before.ino, OFlags::RDONLY).unwrap();
    let writer = scene.union.open(before.ino, OFlags::RDWR).unwrap();
    scene.union.write(writer, 0, b"UPPER").unwrap();
    let mut buffer = [0; 32];
    let read = scene.union.read(reader, 0, &mut buffer).unwrap();
    assert_eq!(&buffer[..read], b"UPPER file");
    let after = scene.find("dir/file").unwrap();
    assert_eq!((after.ino, after.mode, after.nlink), (before.ino, before.mode, before.nlink));
    assert_eq!(fs::read(scene.dir.path().join("lower/dir/file")).unwrap(), b"lower file");
    assert_eq!(scene.list("dir")["file"], before.ino);
    let scene = scene.again();
    assert_eq!(scene.ino("dir/file"), before.ino);
    assert_eq!(scene.read("dir/file"), b"UPPER file");
}

/// Rule 15: Copying a parent up changes none of its times.
#[test]
fn copy_up_of_a_directory_changes_neither_its_number_nor_links_nor_times() {
    let scene = Scene::new(sample);
    let before = scene.find("dir").unwrap();
    scene
        .union
        .setattr(scene.ino("dir/deep/leaf"), None, &SetAttr { mode: Some(0o600), ..SetAttr::default() })
        .unwrap();
    let after = scene.find("dir").unwrap();
    assert_eq!((after.ino, after.nlink, after.mtime), (before.ino, before.nlink, before.mtime));
    assert_eq!(scene.find("dir/deep").unwrap().mtime, scene.again().find("dir/deep").unwrap().mtime);
}

/// Rule 25: A removed name of the lower is a character device 0:0 in the upper; a directory made in its place is
/// opaque and shows nothing of the lower.
#[test]
fn unlink_of_a_lower_file_leaves_a_whiteout_and_a_new_file_replaces_it() {
    let scene = Scene::new(sample);
    let old = scene.ino("dir/file");
    scene.unlink("dir/file").unwrap();
    assert!(scene.find("dir/file").is_none());
    assert_eq!(scene.names("dir"), ["deep", "top2"]);
    assert!(fs::symlink_metadata(scene.upper("dir/file")).unwrap().file_type().is_char_device());
    assert_eq!(scene.union.getattr(old, None).unwrap().nlink, 0);
    assert_eq!(scene.unlink("dir/file"), Err(Errno::NOENT));
    scene.write("dir/file", b"new");
    assert_ne!(scene.ino("dir/file"), old);
    let scene = scene.again();
    assert_eq!(scene.read("dir/file"), b"new");
    scene.unlink("dir/file").unwrap();
    assert!(scene.again().find("dir/file").is_none());
}

/// Rule 17: An open file whose last name is removed stays, with its contents, until it is closed, also when the
/// daemon is killed in between.
#[test]
fn deleted_open_file_stays_readable_and_its_space_goes_with_the_last_handle() {
    let scene = Scene::new(sample);
    scene.write("fresh", b"data");
    let ino = scene.ino("fresh");
    let fh = scene.union.open(ino, OFlags::RDWR).unwrap();
    scene.unlink("fresh").unwrap();
    scene.union.write(fh, 4, b"+more").unwrap();
    let mut buffer = [0; 16];
    assert_eq!(scene.union.read(fh, 0, &mut buffer).unwrap(), 9);
    assert_eq!(scene.union.getattr(ino, Some(fh)).unwrap().nlink, 0);
    let orphans = scene.dir.path().join("work/orphans");
    assert_eq!(fs::read_dir(&orphans).unwrap().count(), 1);
    scene.union.release(fh);
    scene.union.forget(ino, 100);
    assert_eq!(fs::read_dir(&orphans).unwrap().count(), 0);
}

/// Rule 17: An open file whose last name is removed stays, with its contents, until it is closed, also when the
/// daemon is killed in between.
#[test]
fn lower_file_deleted_while_open_for_reading_can_be_changed_by_its_handle() {
    let scene = Scene::new(sample);
    let ino = scene.ino("dir/file");
    let fh = scene.union.open(ino, OFlags::RDONLY).unwrap();
    scene.unlink("dir/file").unwrap();
    let attr = scene.union.setattr(ino, Some(fh), &SetAttr { mode: Some(0o400), ..SetAttr::default() }).unwrap();
    assert_eq!((attr.nlink, attr.mode & 0o7777), (0, 0o400));
    let mut buffer = [0; 32];
    assert_eq!(scene.union.read(fh, 0, &mut buffer).unwrap(), 10);
    assert!(scene.find("dir/file").is_none());
}

/// Rule 25: A removed name of the lower is a character device 0:0 in the upper; a directory made in its place is
/// opaque and shows nothing of the lower.
#[test]
fn rmdir_and_mkdir_over_a_lower_directory_show_nothing_of_it() {
    let scene = Scene::new(sample);
    assert_eq!(scene.rmdir("dir"), Err(Errno::NOTEMPTY));
    scene.unlink("dir/file").unwrap();
    scene.unlink("dir/top2").unwrap();
    scene.unlink("dir/deep/leaf").unwrap();
    scene.rmdir("dir/deep").unwrap();
    assert_eq!(scene.find("dir").unwrap().nlink, 2);
    scene.rmdir("dir").unwrap();
    assert!(scene.find("dir").is_none());
    scene.mkdir("dir");
    assert!(scene.names("dir").is_empty());
    let scene = scene.again();
    assert!(scene.names("dir").is_empty());
    assert_eq!(scene.names(""), ["dir", "empty", "link", "top"]);
}

/// Rule 21: Any directory can be renamed, also one of the lower, at the cost of renaming one file: the upper notes
/// where its lower part is (a redirect).
#[test]
fn rename_of_a_lower_directory_moves_it_whole_without_copying_it() {
    let scene = Scene::new(sample);
    let (dir, leaf) = (scene.ino("dir"), scene.ino("dir/deep/leaf"));
    scene.rename("dir", "moved", NONE).unwrap();
    assert!(scene.find("dir").is_none());
    assert_eq!((scene.ino("moved"), scene.ino("moved/deep/leaf")), (dir, leaf));
    assert!(!scene.upper("moved/deep").exists());
    scene.write("moved/deep/leaf", b"changed");
    let scene = scene.again();
    assert_eq!(scene.names(""), ["empty", "link", "moved", "top"]);
    assert_eq!(scene.names("moved"), ["deep", "file", "top2"]);
    assert_eq!(scene.read("moved/deep/leaf")[..7], *b"changed");
    assert_eq!(scene.ino("moved/deep/leaf"), leaf);
    scene.mkdir("dir");
    assert!(scene.names("dir").is_empty());
    scene.rename("moved", "dir", NONE).unwrap();
    assert_eq!(scene.again().names("dir"), ["deep", "file", "top2"]);
}

/// Rule 24: A directory replaces an empty one alone, and a directory a directory alone.
#[test]
fn rename_over_directories_needs_them_empty_and_keeps_kinds_apart() {
    let scene = Scene::new(sample);
    scene.mkdir("fresh");
    scene.write("file", b"x");
    assert_eq!(scene.rename("fresh", "dir", NONE), Err(Errno::NOTEMPTY));
    assert_eq!(scene.rename("fresh", "top", NONE), Err(Errno::NOTDIR));
    assert_eq!(scene.rename("file", "empty", NONE), Err(Errno::ISDIR));
    assert_eq!(scene.rename("file", "top", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(scene.rename("dir", "dir/deep/in", NONE), Err(Errno::INVAL));
    scene.write("fresh/inner", b"y");
    scene.rename("fresh", "empty", NONE).unwrap();
    assert_eq!(scene.names("empty"), ["inner"]);
    scene.rename("dir", "fresh2", NONE).unwrap();
    scene.rename("empty", "dir", NONE).unwrap();
    let scene = scene.again();
    assert_eq!(scene.names("dir"), ["inner"]);
    assert_eq!(scene.names(""), ["dir", "file", "fresh2", "link", "top"]);
}

/// Rule 23: `RENAME_NOREPLACE` and `RENAME_EXCHANGE` work for all files, lower and upper mixed.
#[test]
fn exchange_swaps_a_lower_directory_and_a_new_file() {
    let scene = Scene::new(sample);
    scene.write("file", b"x");
    let (dir, file) = (scene.ino("dir"), scene.ino("file"));
    scene.rename("dir", "file", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((scene.ino("file"), scene.ino("dir")), (dir, file));
    let scene = scene.again();
    assert_eq!(scene.read("dir"), b"x");
    assert_eq!(scene.names("file"), ["deep", "file", "top2"]);
}

/// Rule 23: `RENAME_NOREPLACE` and `RENAME_EXCHANGE` work for all files, lower and upper mixed.
#[test]
fn rename_with_whiteout_leaves_a_device_that_programs_see() {
    let scene = Scene::new(sample);
    scene.rename("dir/file", "dir/other", RenameFlags::WHITEOUT).unwrap();
    let left = scene.find("dir/file").unwrap();
    assert_eq!((left.kind, left.rdev), (mica_fs::inode::FileKind::CharDevice, 0));
    let scene = scene.again();
    assert_eq!(scene.find("dir/file").unwrap().kind, mica_fs::inode::FileKind::CharDevice);
    assert_eq!(scene.read("dir/other"), b"lower file");
    scene.unlink("dir/file").unwrap();
    assert!(scene.again().find("dir/file").is_none());
}

/// Rule 9: Hard links are one file, in the lower, in the upper and over copy-up.
#[test]
fn hard_links_of_the_lower_stay_one_file_over_copy_up_and_restart() {
    let scene = Scene::new(sample);
    assert_eq!(scene.find("top").unwrap().nlink, 2);
    scene.write("top", b"both");
    assert_eq!(&scene.read("dir/top2")[..4], b"both");
    assert_eq!((scene.find("top").unwrap().nlink, scene.ino("top")), (2, scene.ino("dir/top2")));
    let scene = scene.again();
    assert_eq!(&scene.read("dir/top2")[..4], b"both");
    scene.unlink("top").unwrap();
    assert_eq!(scene.find("dir/top2").unwrap().nlink, 1);
    let ino = scene.ino("dir/top2");
    let (dir, _) = scene.split("dir/x");
    assert_eq!(scene.union.link(ino, dir, b"top3").unwrap().nlink, 2);
    assert_eq!(scene.read("dir/top3"), scene.read("dir/top2"));
}

/// Rule 9: Hard links are one file, in the lower, in the upper and over copy-up.
/// Rule 13: The copy is complete and synced before it gets its name: after a crash there is the old file or the new
/// one.
#[test]
fn owed_links_of_an_interrupted_copy_up_are_made_at_the_next_start() {
    let scene = Scene::new(sample);
    let ino = scene.ino("top");
    scene.write("top", b"both");
    // As if the process had died before the second name.
    let intent = scene.dir.path().join("work/links").join(format!("{:016x}", ino.0));
    fs::hard_link(scene.upper("top"), &intent).unwrap();
    fs::remove_file(scene.upper("dir/top2")).unwrap();
    let scene = scene.again();
    assert_eq!(&scene.read("dir/top2")[..4], b"both");
    assert_eq!(scene.find("top").unwrap().nlink, 2);
    assert!(!intent.exists());
}

/// Rule 11: The lower is never changed.
#[test]
fn symlinks_devices_and_xattrs_are_copied_up_as_they_are() {
    let scene = Scene::new(sample);
    let link = scene.ino("link");
    scene.union.setattr(link, None, &SetAttr { uid: Some(7), ..SetAttr::default() }).unwrap();
    assert_eq!(scene.union.readlink(link).unwrap(), b"top");
    assert_eq!(scene.find("link").unwrap().uid, 7);
    let file = scene.ino("dir/file");
    scene.union.setxattr(file, b"user.color", b"green", 0).unwrap();
    assert_eq!(scene.union.getxattr(file, b"user.color").unwrap(), b"green");
    assert_eq!(scene.union.listxattr(file).unwrap(), [b"user.color"]);
    assert_eq!(scene.union.getxattr(file, b"user.none").unwrap_err().errno(), Errno::NODATA);
    scene.union.removexattr(file, b"user.color").unwrap();
    assert!(scene.union.listxattr(file).unwrap().is_empty());
    scene.union.mknod(&Caller::default(), ROOT, b"zero", libc::S_IFCHR | 0o600, 0).unwrap();
    let scene = scene.again();
    let zero = scene.find("zero").unwrap();
    assert_eq!((zero.kind, zero.mode & 0o7777), (mica_fs::inode::FileKind::CharDevice, 0o600));
    assert!(scene.names("").contains(&"zero".to_owned()));
}

/// Rule 42: A new file belongs to who made it; in a set-group-id directory to the directory's group.
#[test]
fn new_inodes_belong_to_the_caller_and_setgid_directories_hand_their_group_down() {
    let scene = Scene::new(sample);
    let caller = Caller { uid: 1000, gid: 1001, pid: 1, umask: 0o022 };
    let attr = scene.union.mkdir(&caller, ROOT, b"team", 0o2777).unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode & 0o7777), (1000, 1001, 0o2755));
    scene.union.setattr(attr.ino, None, &SetAttr { gid: Some(55), mode: Some(0o2775), ..SetAttr::default() }).unwrap();
    let inner = scene.union.mkdir(&caller, attr.ino, b"inner", 0o755).unwrap();
    assert_eq!((inner.uid, inner.gid, inner.mode & 0o7777), (1000, 55, 0o2755));
    let (file, fh) = scene.union.create(&caller, attr.ino, b"file", 0o666, OFlags::WRONLY).unwrap();
    assert_eq!((file.uid, file.gid, file.mode & 0o7777), (1000, 55, 0o644));
    scene.union.release(fh);
    let on_disk = fs::metadata(scene.upper("team/file")).unwrap();
    assert_eq!((on_disk.uid(), on_disk.gid(), on_disk.permissions().mode() & 0o7777), (1000, 55, 0o644));
}

#[test]
fn new_inodes_replace_whiteouts_that_hide_nothing() {
    let scene = Scene::new(sample);
    for name in ["a", "b", "c"] {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            scene.upper(name),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        )
        .unwrap();
    }
    let caller = Caller { uid: 1000, gid: 1000, pid: 1, umask: 0 };
    assert!(scene.find("a").is_none());
    scene.union.mkdir(&caller, ROOT, b"a", 0o755).unwrap();
    scene.union.symlink(&caller, ROOT, b"b", b"a").unwrap();
    scene.union.mkdir(&Caller::default(), ROOT, b"c", 0o755).unwrap();
    assert_eq!(scene.again().names(""), ["a", "b", "c", "dir", "empty", "link", "top"]);
}

#[test]
fn recover_learns_moved_directories_and_open_files_without_a_name() {
    let scene = Scene::new(sample);
    let leaf = scene.ino("dir/deep/leaf");
    scene.rename("dir", "moved", NONE).unwrap();
    scene.write("gone", b"kept");
    let gone = scene.ino("gone");
    scene.union.open(gone, OFlags::RDWR).unwrap();
    scene.unlink("gone").unwrap();
    let scene = scene.again();
    scene.union.recover().unwrap();
    // Nobody looked these up in this process: the kernel still names them.
    scene.union.setattr(leaf, None, &SetAttr { mode: Some(0o640), ..SetAttr::default() }).unwrap();
    assert_eq!(scene.find("moved/deep/leaf").unwrap().mode & 0o7777, 0o640);
    let fh = scene.union.open(gone, OFlags::RDONLY).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(scene.union.read(fh, 0, &mut buffer).unwrap(), 4);
    assert_eq!(scene.union.getattr(gone, None).unwrap().nlink, 0);
}

/// Rule 49: Without an upper, every change is EROFS.
#[test]
fn read_only_union_refuses_every_change() {
    let scene = Scene::new(sample);
    let lower = DirsLower::open(&[scene.dir.path().join("lower")], Format::detect()).unwrap();
    let union = Union::new(Below::Ready(Arc::new(lower)), None).unwrap();
    let file = union.lookup(ROOT, b"top").unwrap().unwrap().ino;
    let refused = |result: mica_fs::Result<()>| assert_eq!(result.unwrap_err().errno(), Errno::ROFS);
    refused(union.unlink(ROOT, b"top"));
    refused(union.rmdir(ROOT, b"empty"));
    refused(union.rename(ROOT, b"top", ROOT, b"x", NONE));
    refused(union.setxattr(file, b"user.a", b"b", 0));
    refused(union.removexattr(file, b"user.a"));
    refused(union.open(file, OFlags::RDWR).map(drop));
    refused(union.mkdir(&Caller::default(), ROOT, b"x", 0o755).map(drop));
    refused(union.link(file, ROOT, b"x").map(drop));
    refused(union.setattr(file, None, &SetAttr { size: Some(0), ..SetAttr::default() }).map(drop));
}

/// Rule 2: Names are bytes: 1 to 255 of them, neither `/` nor NUL.
/// Rule 47: No name leads out of a layer: symbolic links of layers are never followed by the daemon, also one that
/// somebody puts in the place of a directory or file of the upper while it is used; `..` is no name; a hard link to a
/// lower file is one to its copy.
#[test]
fn names_that_no_directory_can_hold_are_refused() {
    let scene = Scene::new(sample);
    let long = [b'x'; 256];
    assert_eq!(scene.union.lookup(ROOT, &long).unwrap_err().errno(), Errno::NAMETOOLONG);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert_eq!(scene.union.mkdir(&Caller::default(), ROOT, name, 0o755).unwrap_err().errno(), Errno::INVAL);
    }
}

/// Rule 34: Redirects, and files whose contents are further below (`metacopy`), are followed through all layers, but
/// believed only if they are in the namespace of the mount (`trusted.`, or `user.` with `userxattr`).
#[test]
fn directory_whose_redirect_leads_to_one_that_it_lies_in_is_damage() {
    let scene = Scene::new(|lower| {
        fs::create_dir_all(lower.join("outer/inner")).unwrap();
        fs::write(lower.join("outer/file"), "whole").unwrap();
    });
    let upper = scene.dir.path().join("upper/outer/inner");
    fs::create_dir_all(&upper).unwrap();
    let prefix = if Format::detect() == Format::Trusted { "trusted" } else { "user" };
    let redirect = |target: &str| {
        let name = format!("{prefix}.overlay.redirect");
        rustix::fs::lsetxattr(&upper, name, target.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
    };
    for target in ["/outer", "/"] {
        redirect(target);
        let scene = open(scene.dir.path());
        for round in 0..2 {
            let outer = scene.lookup(ROOT, b"outer").unwrap().unwrap();
            let error = scene.lookup(outer.ino, b"inner").unwrap_err();
            assert_eq!(error.errno(), Errno::IO, "{target}, round {round}: {error}");
            assert!(scene.lookup(outer.ino, b"file").unwrap().is_some());
            // A daemon that takes over looks through the upper.
            scene.recover().unwrap();
        }
    }
}

/// Several blocks, so that they are worth leaving where they are.
fn large(lower: &Path) {
    fs::create_dir(lower.join("dir")).unwrap();
    fs::write(lower.join("dir/large"), vec![b'l'; 40_000]).unwrap();
    fs::write(lower.join("dir/other"), vec![b'o'; 40_000]).unwrap();
    fs::hard_link(lower.join("dir/large"), lower.join("second")).unwrap();
}

impl Scene {
    fn set(&self, path: &str, set: SetAttr) -> Attr {
        self.union.setattr(self.ino(path), None, &set).unwrap()
    }

    /// Whether an upper file has no contents of its own.
    fn is_empty_above(&self, path: &str) -> bool {
        fs::metadata(self.upper(path)).unwrap().blocks() <= 8
    }
}

/// Rule 12: Changing owner, mode, times, extended attributes or names of a lower file of more than 4 KiB, or removing
/// one of several names, leaves its contents in the lower until something changes them: in the snapshots of a store
/// and in what `--image --rw` keeps always, over plain directories with `metacopy=on` (overlayfs' option; off by
/// default there as well).
#[test]
fn change_of_attributes_alone_leaves_the_contents_in_the_lower_over_renames_and_links() {
    let scene = Scene::new(large);
    let before = scene.find("dir/large").unwrap();
    let attr = scene.set("dir/large", SetAttr { mode: Some(0o600), uid: Some(7), ..SetAttr::default() });
    assert_eq!((attr.ino, attr.mode & 0o7777, attr.uid, attr.nlink), (before.ino, 0o600, 7, 2));
    assert_eq!((attr.size, attr.blocks), (before.size, before.size.div_ceil(512)));
    scene.union.setxattr(scene.ino("dir/other"), b"user.a", b"b", 0).unwrap();
    scene.rename("dir", "moved", NONE).unwrap();
    scene.rename("moved/large", "elsewhere", NONE).unwrap();
    scene.rename("moved/other", "moved/again", NONE).unwrap();
    scene.union.link(scene.ino("moved/again"), ROOT, b"link").unwrap();
    for scene in [scene.again()] {
        assert_eq!(scene.read("elsewhere"), vec![b'l'; 40_000]);
        assert_eq!(scene.read("second"), vec![b'l'; 40_000]);
        assert_eq!(scene.read("link"), vec![b'o'; 40_000]);
        for path in ["elsewhere", "second", "moved/again", "link"] {
            assert!(scene.is_empty_above(path), "{path}");
        }
        let times = |attr: &Attr| (attr.mtime, attr.ino, attr.size, attr.nlink, attr.uid);
        let shown = scene.find("second").unwrap();
        let writer = scene.union.open(shown.ino, OFlags::WRONLY).unwrap();
        assert_eq!(times(&scene.find("elsewhere").unwrap()), times(&shown));
        scene.union.write(writer, 39_999, b"!?").unwrap();
        scene.union.release(writer);
        assert!(!scene.is_empty_above("elsewhere"));
        assert_eq!(scene.read("elsewhere"), [&vec![b'l'; 39_999][..], b"!?"].concat());
        assert_eq!(fs::read(scene.upper("second")).unwrap(), scene.read("second"));
    }
}

/// Rule 12: Changing owner, mode, times, extended attributes or names of a lower file of more than 4 KiB, or removing
/// one of several names, leaves its contents in the lower until something changes them: in the snapshots of a store
/// and in what `--image --rw` keeps always, over plain directories with `metacopy=on` (overlayfs' option; off by
/// default there as well).
#[test]
fn reader_of_contents_in_the_lower_reads_what_is_written_to_the_copy() {
    let scene = Scene::new(large);
    let ino = scene.ino("dir/large");
    let early = scene.union.open(ino, OFlags::RDONLY).unwrap();
    scene.set("dir/large", SetAttr { mode: Some(0o600), ..SetAttr::default() });
    let late = scene.union.open(ino, OFlags::RDONLY).unwrap();
    scene.union.fsync(late, false).unwrap();
    assert!(scene.is_empty_above("dir/large"));
    let writer = scene.union.open(ino, OFlags::RDWR).unwrap();
    scene.union.write(writer, 1, b"WRITTEN").unwrap();
    for reader in [early, late] {
        let mut start = [0; 9];
        assert_eq!(scene.union.read(reader, 0, &mut start).unwrap(), 9);
        assert_eq!(&start, b"lWRITTENl");
    }
}

/// Rule 12: Changing owner, mode, times, extended attributes or names of a lower file of more than 4 KiB, or removing
/// one of several names, leaves its contents in the lower until something changes them: in the snapshots of a store
/// and in what `--image --rw` keeps always, over plain directories with `metacopy=on` (overlayfs' option; off by
/// default there as well).
#[test]
fn truncation_of_a_file_whose_contents_are_in_the_lower_copies_what_is_left() {
    let scene = Scene::new(large);
    for path in ["dir/large", "dir/other"] {
        scene.set(path, SetAttr { mode: Some(0o600), ..SetAttr::default() });
    }
    scene.set("dir/large", SetAttr { size: Some(3), ..SetAttr::default() });
    let fh = scene.union.open(scene.ino("dir/other"), OFlags::RDONLY | OFlags::TRUNC).unwrap();
    scene.union.release(fh);
    let scene = scene.again();
    assert_eq!(scene.read("dir/large"), b"lll");
    assert_eq!(scene.read("second"), b"lll");
    assert_eq!(scene.read("dir/other"), b"");
    assert_eq!(fs::read(scene.upper("dir/other")).unwrap(), b"");
}

/// Rule 12: Changing owner, mode, times, extended attributes or names of a lower file of more than 4 KiB, or removing
/// one of several names, leaves its contents in the lower until something changes them: in the snapshots of a store
/// and in what `--image --rw` keeps always, over plain directories with `metacopy=on` (overlayfs' option; off by
/// default there as well).
#[test]
fn file_whose_contents_are_in_the_lower_is_deleted_while_open_and_goes_on_with_the_next_process() {
    let scene = Scene::new(large);
    let (ino, unnamed) = (scene.ino("dir/other"), scene.ino("dir/large"));
    scene.set("dir/other", SetAttr { mode: Some(0o600), ..SetAttr::default() });
    scene.union.open(ino, OFlags::RDONLY).unwrap();
    scene.union.open(unnamed, OFlags::RDONLY).unwrap();
    scene.unlink("dir/other").unwrap();
    scene.unlink("second").unwrap();
    scene.unlink("dir/large").unwrap();
    // Copied up without a name.
    scene.union.setattr(unnamed, None, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    let scene = scene.again();
    scene.union.recover().unwrap();
    for (ino, byte) in [(ino, b'o'), (unnamed, b'l')] {
        let fh = scene.union.open(ino, OFlags::RDONLY).unwrap();
        let mut bytes = vec![0; 50_000];
        assert_eq!(scene.union.read(fh, 0, &mut bytes).unwrap(), 40_000);
        assert!(bytes[..40_000].iter().all(|&read| read == byte));
        let writer = scene.union.open(ino, OFlags::RDWR).unwrap();
        scene.union.write(writer, 40_000, b"x").unwrap();
        assert_eq!(scene.union.read(fh, 39_999, &mut bytes).unwrap(), 2);
        assert_eq!(bytes[..2], [byte, b'x']);
    }
}
