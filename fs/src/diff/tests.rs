#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat};
use tempfile::TempDir;

use super::*;
use crate::lower::DirsLower;
use crate::upper::Format;

/// A lower, and an upper made by hand.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = TempDir::new().unwrap();
        for name in ["lower", "upper", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Place { dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn dir(&self, path: &str) -> &Place {
        fs::create_dir_all(self.at(path)).unwrap();
        self
    }

    fn file(&self, path: &str, contents: &str) -> &Place {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), contents).unwrap();
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    fn node(&self, path: &str, kind: FileType, number: u64) -> &Place {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        mknodat(CWD, self.at(path), kind, Mode::from_raw_mode(0o640), number).unwrap();
        self
    }

    fn whiteout(&self, path: &str) -> &Place {
        self.node(path, FileType::CharacterDevice, 0)
    }

    fn xattr(&self, path: &str, name: &str, value: &str) -> &Place {
        rustix::fs::lsetxattr(self.at(path), name, value.as_bytes(), XattrFlags::empty()).unwrap();
        self
    }

    fn write(&self) -> Result<(DiffStats, Vec<u8>)> {
        let lower = DirsLower::open(&[self.at("lower")], Format::Trusted)?;
        let upper = Upper::open(&self.at("upper"), &self.at("work"), Format::Trusted)?.with_fresh_root();
        let mut out = Vec::new();
        Ok((write_diff(&lower, &upper, &mut out)?, out))
    }

    /// The paths of the layer, in order, with what tells most about each.
    fn told(&self) -> Vec<String> {
        let (stats, tar) = self.write().unwrap();
        assert_eq!((stats.bytes, stats.bytes % 512), (tar.len() as u64, 0));
        let told = told(&tar);
        assert_eq!(told.len() as u64, stats.entries);
        told
    }
}

fn told(tar: &[u8]) -> Vec<String> {
    let mut archive = ::tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().escape_ascii().to_string();
        let link = entry.link_name_bytes().map(|link| link.escape_ascii().to_string());
        let mut contents = String::new();
        entry.read_to_string(&mut contents).unwrap();
        let kind = entry.header().entry_type();
        if kind.is_hard_link() {
            format!("{path} = {}", link.unwrap())
        } else if kind.is_symlink() {
            format!("{path} -> {}", link.unwrap())
        } else if kind.is_file() && !contents.is_empty() {
            format!("{path}: {contents}")
        } else {
            path
        }
    });
    entries.collect()
}

#[test]
fn untouched_upper_changes_nothing() {
    assert_eq!(Place::new().told(), [] as [&str; 0]);
}

/// Rule 60: Everything in the upper is in the layer, with its parents; what was copied up and then left as it was,
/// too.
#[test]
fn changes_come_with_their_parents_in_the_order_of_names() {
    let place = Place::new();
    place.file("lower/a/old", "").file("upper/a/new", "1").file("upper/a/b/c", "2").whiteout("upper/a/old");
    place.whiteout("upper/z").dir("upper/empty");
    assert_eq!(place.told(), [".wh.z", "a/", "a/.wh.old", "a/b/", "a/b/c: 2", "a/new: 1", "empty/"]);
}

#[test]
fn hard_links_name_the_first_of_them() {
    let place = Place::new();
    place.file("upper/b/one", "1").dir("upper/a");
    fs::hard_link(place.at("upper/b/one"), place.at("upper/a/two")).unwrap();
    symlink("one", place.at("upper/b/link")).unwrap();
    fs::hard_link(place.at("upper/b/link"), place.at("upper/b/mirror")).unwrap();
    let expected = ["a/", "a/two: 1", "b/", "b/link -> one", "b/mirror = b/link", "b/one = a/two"];
    assert_eq!(place.told(), expected);
}

/// Rule 61: Removed names are `.wh.NAME`, opaque directories have `.wh..wh..opq`, where there is something to be
/// hidden.
#[test]
fn opaque_directory_hides_only_where_there_is_something_to_hide() {
    let place = Place::new();
    place.file("lower/a/b/hidden", "").file("upper/a/b/shown", "1").file("upper/new/f", "2").whiteout("upper/a/b/gone");
    for dir in ["upper/a", "upper/a/b", "upper/new"] {
        place.xattr(dir, "trusted.overlay.opaque", "y");
    }
    assert_eq!(place.told(), ["a/", "a/.wh..wh..opq", "a/b/", "a/b/shown: 1", "new/", "new/f: 2"]);
}

/// Rule 62: A renamed directory appears whole in its new place: layers have no renames.
#[test]
fn moved_directory_appears_whole_in_its_new_place() {
    let place = Place::new();
    place.file("lower/old/sub/f", "1").file("lower/old/g", "2").file("lower/old/h", "3").file("lower/new/x", "9");
    fs::hard_link(place.at("lower/old/h"), place.at("lower/old/sub/h")).unwrap();
    place.whiteout("upper/old").file("upper/new/g", "changed").whiteout("upper/new/sub/f").file("upper/new/sub/y", "4");
    place.xattr("upper/new", "trusted.overlay.redirect", "/old");
    let new =
        ["new/", "new/.wh..wh..opq", "new/g: changed", "new/h: 3", "new/sub/", "new/sub/h = new/h", "new/sub/y: 4"];
    assert_eq!(place.told(), [&[".wh.old"], &new[..]].concat());
}

/// Rule 62: A renamed directory appears whole in its new place: layers have no renames.
#[test]
fn hard_link_out_of_a_moved_directory_is_kept() {
    let place = Place::new();
    place.file("lower/a/x", "1").dir("lower/stay/deep").dir("lower/b");
    for name in ["stay/deep/y", "stay/z", "b/hidden", "a/w"] {
        fs::hard_link(place.at("lower/a/x"), place.at("lower").join(name)).unwrap();
    }
    place.dir("upper/c").whiteout("upper/a").xattr("upper/c", "trusted.overlay.redirect", "/a").whiteout("upper/b");
    let moved = [".wh.a", ".wh.b", "c/", "c/w: 1", "c/x = c/w"];
    let stays = ["stay/", "stay/deep/", "stay/deep/y = c/w", "stay/z = c/w"];
    assert_eq!(place.told(), [&moved[..], &stays[..]].concat());
}

#[test]
fn redirect_within_a_moved_directory_is_followed_there() {
    let place = Place::new();
    place.file("lower/a/sub/f", "1");
    place.dir("upper/b/sib").whiteout("upper/b/sub").whiteout("upper/a");
    place.xattr("upper/b", "trusted.overlay.redirect", "a").xattr("upper/b/sib", "trusted.overlay.redirect", "sub");
    assert_eq!(place.told(), [".wh.a", "b/", "b/sib/", "b/sib/f: 1"]);
}

#[test]
fn redirect_to_where_the_directory_is_anyway_moves_nothing() {
    let place = Place::new();
    place.file("lower/a/f", "1").file("upper/a/g", "2").xattr("upper/a", "trusted.overlay.redirect", "/a");
    assert_eq!(place.told(), ["a/", "a/g: 2"]);
}

#[test]
fn redirect_that_leads_nowhere_is_refused() {
    let place = Place::new();
    place.dir("upper/a").xattr("upper/a", "trusted.overlay.redirect", "/gone");
    let error = place.write().unwrap_err();
    assert_eq!(error.to_string(), "a: its redirect leads to no directory of the lower");
}

/// Rule 33: There, names that begin with `.wh.` never show.
/// Rule 65: Not in a layer: sockets; files named `.wh.*`; attributes with `=` in the name, `security.*` but
/// capabilities (they are the host's), `trusted.mica.*`.
#[test]
fn what_tar_can_not_hold_is_left_out_and_counted() {
    let place = Place::new();
    place.node("upper/socket", FileType::Socket, 0).file("upper/.wh.file", "").file("upper/f", "1");
    place.xattr("upper/f", "user.a=b", "1");
    let (stats, tar) = place.write().unwrap();
    assert_eq!((told(&tar), stats.left_out), (vec!["f: 1".into()], 3));
}

#[test]
fn devices_keep_their_numbers_and_a_programs_zero_device_is_one() {
    let place = Place::new();
    place.node("upper/null", FileType::CharacterDevice, makedev(1, 3)).node("upper/pipe", FileType::Fifo, 0);
    place.node("upper/disk", FileType::BlockDevice, makedev(259, 70_000)).file("upper/zero", "");
    place.xattr("upper/zero", "trusted.mica.device", "");
    let (_, tar) = place.write().unwrap();
    let mut archive = ::tar::Archive::new(&tar[..]);
    let heads = archive.entries().unwrap().map(|entry| {
        let header = entry.unwrap().header().clone();
        let number = (header.device_major().unwrap(), header.device_minor().unwrap());
        (header.entry_type().as_byte(), number, header.mode().unwrap())
    });
    let zeros = (Some(0), Some(0));
    let expected = [
        (b'4', (Some(259), Some(70_000)), 0o640),
        (b'3', (Some(1), Some(3)), 0o640),
        (b'6', zeros, 0o640),
        (b'3', zeros, 0o644),
    ];
    assert_eq!(heads.collect::<Vec<_>>(), expected);
}

#[test]
fn attributes_beyond_ustar_are_pax_records() {
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(200), "ü".repeat(100));
    place.file(&format!("upper/{long}"), "1").xattr(&format!("upper/{long}"), "user.mime_type", "a\0b");
    let path = place.at(&format!("upper/{long}"));
    place.xattr(&format!("upper/{long}"), "trusted.overlay.origin", "hidden");
    place.xattr(&format!("upper/{long}"), "trusted.overlay.overlay.opaque", "y");
    std::os::unix::fs::chown(&path, Some(4_000_000), Some(7)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    let time = Timespec { tv_sec: -3, tv_nsec: 500_000_000 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    let (_, tar) = place.write().unwrap();
    let mut archive = ::tar::Archive::new(&tar[..]);
    let mut entry = archive.entries().unwrap().nth(1).unwrap().unwrap();
    assert_eq!((&*entry.path_bytes(), entry.header().mode().unwrap()), (long.as_bytes(), 0o4751));
    let records = entry.pax_extensions().unwrap().unwrap().map(|record| {
        let record = record.unwrap();
        (record.key().unwrap().to_owned(), record.value_bytes().to_vec())
    });
    let expected = [
        ("path", long.as_bytes()),
        ("uid", b"4000000"),
        ("mtime", b"-2.5"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.mime_type", b"a\0b"),
    ];
    assert_eq!(records.collect::<Vec<_>>(), expected.map(|(key, value)| (key.to_owned(), value.to_vec())));
}

#[test]
fn root_is_told_once_it_is_the_unions_own() {
    let place = Place::new();
    place.file("upper/f", "1").xattr("upper", "trusted.overlay.opaque", "y");
    let lower = DirsLower::open(&[place.at("lower")], Format::Trusted).unwrap();
    let upper = Upper::open(&place.at("upper"), &place.at("work"), Format::Trusted).unwrap();
    let mut tar = Vec::new();
    write_diff(&lower, &upper, &mut tar).unwrap();
    assert_eq!(told(&tar), ["./", ".wh..wh..opq", "f: 1"]);
}

/// Rule 64: Equal uppers give equal bytes.
#[test]
fn two_runs_give_the_same_bytes_which_gnu_tar_reads() {
    let place = Place::new();
    place.file("upper/a/\u{e9}", "1").file(&format!("upper/{}/x", "n".repeat(250)), "2").whiteout("upper/gone");
    let (_, tar) = place.write().unwrap();
    assert_eq!(place.write().unwrap().1, tar);
    let mut child =
        Command::new("tar").args(["-t", "-v"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 5);
}

/// Rule 12: Changing owner, mode, times, extended attributes or names of a lower file of more than 4 KiB, or removing
/// one of several names, leaves its contents in the lower until something changes them: in the snapshots of a store
/// and in what `--image --rw` keeps always, over plain directories with `metacopy=on` (overlayfs' option; off by
/// default there as well).
#[test]
fn contents_that_are_in_the_lower_are_told() {
    let place = Place::new();
    place.file("lower/dir/by-name", "one").file("lower/dir/by-path", "two").file("lower/dir/beside", "three");
    let above = ["upper/dir/by-name", "upper/far", "upper/moved/next"];
    for (path, size) in above.into_iter().zip(["123", "123", "12345"]) {
        place.file(path, size).xattr(path, "trusted.overlay.metacopy", "");
    }
    place.xattr("upper/far", "trusted.overlay.redirect", "/dir/by-path");
    place.xattr("upper/moved", "trusted.overlay.redirect", "/dir");
    place.xattr("upper/moved/next", "trusted.overlay.redirect", "beside").whiteout("upper/moved/beside");
    place.whiteout("upper/moved/by-name").whiteout("upper/moved/by-path");
    assert_eq!(place.told(), ["dir/", "dir/by-name: one", "far: two", "moved/", "moved/next: three"]);
    place.file("upper/lost", "1234").xattr("upper/lost", "trusted.overlay.metacopy", "");
    assert_eq!(place.write().unwrap_err().errno(), Errno::IO);
}
