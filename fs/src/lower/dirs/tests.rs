#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, XattrFlags, makedev, mknodat};
use tempfile::TempDir;

use super::*;

/// Directories to be stacked; layer 0 is the top.
struct Stack {
    dir: TempDir,
    count: usize,
}

impl Stack {
    fn of(count: usize) -> Stack {
        let stack = Stack { dir: TempDir::new().unwrap(), count };
        (0..count).for_each(|layer| fs::create_dir(stack.layer(layer)).unwrap());
        stack
    }

    fn layer(&self, layer: usize) -> PathBuf {
        self.dir.path().join(layer.to_string())
    }

    fn at(&self, layer: usize, path: &str) -> PathBuf {
        self.layer(layer).join(path)
    }

    fn file(&self, layer: usize, path: &str, contents: &str) -> &Stack {
        fs::create_dir_all(self.at(layer, path).parent().unwrap()).unwrap();
        fs::write(self.at(layer, path), contents).unwrap();
        self
    }

    fn dir(&self, layer: usize, path: &str) -> &Stack {
        fs::create_dir_all(self.at(layer, path)).unwrap();
        self
    }

    fn device(&self, layer: usize, path: &str, number: u64) -> &Stack {
        fs::create_dir_all(self.at(layer, path).parent().unwrap()).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, self.at(layer, path), rustix::fs::FileType::CharacterDevice, mode, number).unwrap();
        self
    }

    fn whiteout(&self, layer: usize, path: &str) -> &Stack {
        self.device(layer, path, makedev(0, 0))
    }

    fn xattr(&self, layer: usize, path: &str, name: &str, value: &str) -> &Stack {
        rustix::fs::lsetxattr(self.at(layer, path), name, value.as_bytes(), XattrFlags::empty()).unwrap();
        self
    }

    fn open(&self) -> DirsLower {
        self.open_as(Format::Trusted)
    }

    fn open_as(&self, format: Format) -> DirsLower {
        let layers: Vec<_> = (0..self.count).map(|layer| self.layer(layer)).collect();
        DirsLower::open(&layers, format).unwrap()
    }

    fn open_with(&self, roles: &[Role]) -> DirsLower {
        let layers: Vec<_> = roles.iter().enumerate().map(|(layer, role)| (self.layer(layer), *role)).collect();
        DirsLower::with(&layers, Format::Trusted, Owners::Disk).unwrap()
    }

    /// What shows: paths, with the contents of files.
    fn view(&self) -> BTreeMap<String, String> {
        view(&self.open())
    }
}

fn view(lower: &DirsLower) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    walk_into(lower, ROOT, "", &mut seen);
    seen
}

fn walk_into(lower: &DirsLower, dir: Ino, path: &str, seen: &mut BTreeMap<String, String>) {
    let mut entries = Vec::new();
    let mut collect = |entry: LowerEntry<'_>| {
        entries.push((entry.name.to_vec(), entry.ino, entry.kind));
        Ok(false)
    };
    lower.entries(dir, 0, &mut collect).unwrap();
    for (name, ino, kind) in entries {
        let attr = lower.lookup(dir, &name).unwrap().unwrap();
        assert_eq!((attr.ino, attr.kind), (ino, kind));
        let path = format!("{path}{}", name.escape_ascii());
        let shown = match kind {
            FileKind::Directory => {
                walk_into(lower, ino, &format!("{path}/"), seen);
                "/".into()
            }
            FileKind::Regular => {
                let mut buffer = vec![0; attr.size as usize];
                assert_eq!(lower.open(ino).unwrap().read_at(0, &mut buffer).unwrap(), buffer.len());
                String::from_utf8(buffer).unwrap()
            }
            FileKind::Symlink => String::from_utf8(lower.link_target(ino).unwrap()).unwrap(),
            other => format!("{other:?}"),
        };
        seen.insert(path, shown);
    }
}

fn shows(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(path, contents)| ((*path).into(), (*contents).into())).collect()
}

fn find(lower: &DirsLower, path: &str) -> Attr {
    lower.resolve(path.as_bytes()).unwrap().unwrap()
}

/// Rule 1: A name that the upper has hides the lower's.
#[test]
fn upper_layer_hides_the_names_it_has_and_adds_to_directories() {
    let stack = Stack::of(2);
    stack.file(0, "etc/host", "top").file(1, "etc/host", "low").file(1, "etc/hosts", "low").file(1, "var/log/a", "1");
    symlink("host", stack.at(1, "etc/link")).unwrap();
    let expected = [("etc", "/"), ("etc/host", "top"), ("etc/hosts", "low"), ("etc/link", "host")];
    let expected = [&expected[..], &[("var", "/"), ("var/log", "/"), ("var/log/a", "1")]].concat();
    assert_eq!(stack.view(), shows(&expected));
}

/// Rule 32: Layers that are plain directories may have whiteouts of every kind in use: the device, `.wh.NAME`,
/// `.wh..wh..opq`, `overlay.opaque` = `y` (or `x`, with `overlay.whiteout` on empty files),
/// `user.fuseoverlayfs.opaque`.
#[test]
fn every_kind_of_whiteout_deletes_a_name() {
    for kind in ["device", "aufs", "trusted", "user"] {
        let stack = Stack::of(3);
        stack.file(1, "d/gone", "1").file(2, "d/gone", "2").file(2, "d/kept", "2").dir(0, "d");
        match kind {
            "device" => _ = stack.whiteout(0, "d/gone"),
            "aufs" => _ = stack.file(0, "d/.wh.gone", ""),
            space => {
                stack.xattr(0, "d", &format!("{space}.overlay.opaque"), "x").file(0, "d/gone", "");
                stack.xattr(0, "d/gone", &format!("{space}.overlay.whiteout"), "");
            }
        }
        assert_eq!(stack.view(), shows(&[("d", "/"), ("d/kept", "2")]), "{kind}");
    }
}

#[test]
fn empty_file_is_no_whiteout_where_its_directory_does_not_say_so() {
    let stack = Stack::of(2);
    stack.file(0, "d/f", "").xattr(0, "d/f", "trusted.overlay.whiteout", "").file(1, "d/f", "low");
    assert_eq!(stack.view(), shows(&[("d", "/"), ("d/f", "")]));
}

/// Rule 32: Layers that are plain directories may have whiteouts of every kind in use: the device, `.wh.NAME`,
/// `.wh..wh..opq`, `overlay.opaque` = `y` (or `x`, with `overlay.whiteout` on empty files),
/// `user.fuseoverlayfs.opaque`.
#[test]
fn every_kind_of_opaque_mark_hides_what_is_below() {
    for mark in ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque", ".wh..wh..opq"] {
        let stack = Stack::of(3);
        stack.file(0, "d/a", "0").file(1, "d/b", "1").file(2, "d/c", "2");
        if mark.starts_with('.') {
            stack.file(1, &format!("d/{mark}"), "");
        } else {
            stack.xattr(1, "d", mark, "y");
        }
        assert_eq!(stack.view(), shows(&[("d", "/"), ("d/a", "0"), ("d/b", "1")]), "{mark}");
    }
}

#[test]
fn opaque_root_hides_the_layers_below() {
    let stack = Stack::of(2);
    stack.file(0, "a", "0").file(0, ".wh..wh..opq", "").file(1, "b", "1");
    assert_eq!(stack.view(), shows(&[("a", "0")]));
}

/// Rule 32: Layers that are plain directories may have whiteouts of every kind in use: the device, `.wh.NAME`,
/// `.wh..wh..opq`, `overlay.opaque` = `y` (or `x`, with `overlay.whiteout` on empty files),
/// `user.fuseoverlayfs.opaque`.
#[test]
fn whiteout_says_nothing_about_its_own_layer() {
    let stack = Stack::of(2);
    stack.file(0, "d/a", "0").file(0, ".wh.d", "").file(1, "d/b", "1");
    assert_eq!(stack.view(), shows(&[("d", "/"), ("d/a", "0")]));
}

/// Rule 32: Layers that are plain directories may have whiteouts of every kind in use: the device, `.wh.NAME`,
/// `.wh..wh..opq`, `overlay.opaque` = `y` (or `x`, with `overlay.whiteout` on empty files),
/// `user.fuseoverlayfs.opaque`.
#[test]
fn whiteout_of_a_middle_layer_cuts_a_directory_that_is_on_top_again() {
    for mark in ["d", ".wh.d"] {
        let stack = Stack::of(3);
        stack.file(0, "d/a", "0").file(2, "d/c", "2");
        let _ = if mark == "d" { stack.whiteout(1, mark) } else { stack.file(1, mark, "") };
        assert_eq!(stack.view(), shows(&[("d", "/"), ("d/a", "0")]), "{mark}");
    }
}

/// Rule 1: A name that the upper has hides the lower's.
#[test]
fn file_between_directories_cuts_them() {
    let stack = Stack::of(3);
    stack.file(0, "d/a", "0").file(1, "d", "file").file(2, "d/c", "2");
    assert_eq!(stack.view(), shows(&[("d", "/"), ("d/a", "0")]));
}

/// Rule 33: There, names that begin with `.wh.` never show.
#[test]
fn aufs_bookkeeping_does_not_show() {
    let stack = Stack::of(1);
    stack.file(0, ".wh..wh.plnk/x", "").file(0, ".wh.", "").file(0, "a", "0");
    assert_eq!(stack.view(), shows(&[("a", "0")]));
}

#[test]
fn redirect_shows_a_lower_directory_in_its_new_place() {
    let stack = Stack::of(2);
    stack.file(1, "old/sub/f", "1").file(1, "old/g", "1").file(0, "new/h", "0").whiteout(0, "old");
    stack.whiteout(0, "new/g").xattr(0, "new", "trusted.overlay.redirect", "/old");
    let expected = [("new", "/"), ("new/h", "0"), ("new/sub", "/"), ("new/sub/f", "1")];
    assert_eq!(stack.view(), shows(&expected));
}

#[test]
fn redirect_to_a_name_stays_within_the_directory_wherever_that_is() {
    let stack = Stack::of(2);
    stack.file(1, "a/old/f", "1").dir(0, "b/new").whiteout(0, "b/old").whiteout(0, "a");
    stack.xattr(0, "b", "trusted.overlay.redirect", "a").xattr(0, "b/new", "trusted.overlay.redirect", "old");
    assert_eq!(stack.view(), shows(&[("b", "/"), ("b/new", "/"), ("b/new/f", "1")]));
}

/// Rule 34: Redirects, and files whose contents are further below (`metacopy`), are followed through all layers, but
/// believed only if they are in the namespace of the mount (`trusted.`, or `user.` with `userxattr`).
#[test]
fn redirects_chain_across_layers() {
    let stack = Stack::of(4);
    stack.file(3, "a/f", "3").file(3, "a/gone", "3");
    stack.dir(2, "b").xattr(2, "b", "trusted.overlay.redirect", "/a").whiteout(2, "a").file(2, "b/g", "2");
    stack.whiteout(1, "b/gone");
    stack.dir(0, "deep/c").xattr(0, "deep/c", "trusted.overlay.redirect", "/b").whiteout(0, "b");
    let expected = [("deep", "/"), ("deep/c", "/"), ("deep/c/f", "3"), ("deep/c/g", "2")];
    assert_eq!(stack.view(), shows(&expected));
}

#[test]
fn redirect_of_a_directory_on_the_way_is_followed() {
    let stack = Stack::of(3);
    stack.file(2, "x/y/f", "2");
    stack.dir(1, "p").xattr(1, "p", "trusted.overlay.redirect", "/x").whiteout(1, "x");
    stack.dir(0, "q").xattr(0, "q", "trusted.overlay.redirect", "/p/y").whiteout(0, "p");
    assert_eq!(stack.view(), shows(&[("q", "/"), ("q/f", "2")]));
}

#[test]
fn absolute_redirect_leads_out_of_an_opaque_directory() {
    let stack = Stack::of(2);
    stack.file(1, "old/f", "1").dir(0, "d/new").whiteout(0, "old");
    stack.xattr(0, "d", "trusted.overlay.opaque", "y").xattr(0, "d/new", "trusted.overlay.redirect", "/old");
    assert_eq!(stack.view(), shows(&[("d", "/"), ("d/new", "/"), ("d/new/f", "1")]));
}

/// Rule 34: Redirects, and files whose contents are further below (`metacopy`), are followed through all layers, but
/// believed only if they are in the namespace of the mount (`trusted.`, or `user.` with `userxattr`).
#[test]
fn contents_of_a_metadata_copy_are_found_below() {
    let stack = Stack::of(4);
    stack.file(3, "old/f", "contents").file(3, "old/g", "others");
    stack.file(2, "old/f", "12345678").xattr(2, "old/f", "trusted.overlay.metacopy", "");
    stack.dir(1, "d").xattr(1, "d", "trusted.overlay.redirect", "/old").whiteout(1, "old");
    stack.file(0, "d/f", "87654321").xattr(0, "d/f", "trusted.overlay.metacopy", "");
    stack.file(0, "moved", "123456").xattr(0, "moved", "trusted.overlay.metacopy", "").file(0, "lost", "1");
    stack.xattr(0, "moved", "trusted.overlay.redirect", "/d/g").xattr(0, "lost", "trusted.overlay.metacopy", "");
    let lower = stack.open();
    for (path, contents) in [("d/f", "contents"), ("moved", "others")] {
        let mut buffer = vec![0; contents.len()];
        lower.open(find(&lower, path).ino).unwrap().read_at(0, &mut buffer).unwrap();
        assert_eq!(buffer, contents.as_bytes(), "{path}");
    }
    let error = lower.open(find(&lower, "lost").ino).unwrap_err();
    assert_eq!(error.errno(), Errno::IO);
    assert!(error.to_string().contains("lost are in no layer below"), "{error}");
}

/// Rule 30: Directories behind `::` in `lowerdir` show nothing; files without contents (`metacopy`) whose redirect is
/// a path may have them there.
#[test]
fn layers_of_data_alone_show_nothing_and_have_contents_by_path() {
    let stack = Stack::of(3);
    stack.file(2, "ab/object", "contents").file(1, "seen", "1");
    stack.file(0, "f", "12345678").xattr(0, "f", "trusted.overlay.metacopy", "");
    stack.xattr(0, "f", "trusted.overlay.redirect", "/ab/object");
    let open = || stack.open_with(&[Role::Layer, Role::Layer, Role::Data]);
    let lower = open();
    let names: Vec<String> = view(&lower).into_keys().collect();
    assert_eq!(names, ["f", "seen"]);
    let mut buffer = vec![0; 8];
    lower.open(find(&lower, "f").ino).unwrap().read_at(0, &mut buffer).unwrap();
    assert_eq!(buffer, b"contents");
    // Without a path, the same place is no place.
    stack.file(0, "ab/object", "87654321").xattr(0, "ab/object", "trusted.overlay.metacopy", "");
    let lower = open();
    assert_eq!(lower.open(find(&lower, "ab/object").ino).unwrap_err().errno(), Errno::IO);
}

/// Rule 34: Redirects, and files whose contents are further below (`metacopy`), are followed through all layers, but
/// believed only if they are in the namespace of the mount (`trusted.`, or `user.` with `userxattr`).
#[test]
fn redirect_that_shows_a_directory_twice_is_damage() {
    let stack = Stack::of(2);
    stack.file(1, "a/sub/f", "1").dir(0, "a/b").xattr(0, "a/b", "trusted.overlay.redirect", "/a");
    let lower = stack.open();
    let (a, b) = (find(&lower, "a").ino, find(&lower, "a/b").ino);
    assert_eq!(find(&lower, "a/sub").ino, lower.lookup(a, b"sub").unwrap().unwrap().ino);
    let error = lower.lookup(b, b"sub").unwrap_err();
    assert_eq!(error.errno(), Errno::IO);
    assert!(error.to_string().contains("two places"), "{error}");
}

/// Rule 47: No name leads out of a layer: symbolic links of layers are never followed by the daemon, also one that
/// somebody puts in the place of a directory or file of the upper while it is used; `..` is no name; a hard link to a
/// lower file is one to its copy.
#[test]
fn redirect_to_no_place_is_damage() {
    let stack = Stack::of(2);
    stack.dir(0, "d").xattr(0, "d", "trusted.overlay.redirect", "/../etc");
    let error = stack.open().lookup(ROOT, b"d").unwrap_err();
    assert_eq!(error.errno(), Errno::IO);
    assert!(error.to_string().contains("/0/d: "), "{error}");
}

/// Rule 34: Redirects, and files whose contents are further below (`metacopy`), are followed through all layers, but
/// believed only if they are in the namespace of the mount (`trusted.`, or `user.` with `userxattr`).
#[test]
fn redirect_of_another_namespace_is_not_believed() {
    let stack = Stack::of(2);
    stack.file(1, "old/f", "1").dir(0, "new").xattr(0, "new", "user.overlay.redirect", "/old").whiteout(0, "old");
    assert_eq!(view(&stack.open()), shows(&[("new", "/")]));
    assert_eq!(view(&stack.open_as(Format::User)), shows(&[("new", "/"), ("new/f", "1")]));
}

/// Rule 9: Hard links are one file, in the lower, in the upper and over copy-up.
#[test]
fn hard_links_share_a_number_and_count_the_names_that_show() {
    let stack = Stack::of(2);
    stack.file(1, "a/one", "1").dir(1, "b").file(1, "alone", "1");
    for name in ["b/two", "b/hidden", "three"] {
        fs::hard_link(stack.at(1, "a/one"), stack.at(1, name)).unwrap();
    }
    stack.whiteout(0, "b/hidden");
    let lower = stack.open();
    let three = find(&lower, "three");
    assert_eq!(three.nlink, 3);
    assert_eq!(find(&lower, "a/one"), three);
    assert_eq!(find(&lower, "b/two").ino, three.ino);
    assert_eq!(find(&lower, "alone").nlink, 1);
    let paths: Vec<_> = lower.links(three.ino).unwrap();
    let (a, b) = (find(&lower, "a").ino, find(&lower, "b").ino);
    assert_eq!(paths, [(ROOT, b"three".to_vec()), (a, b"one".to_vec()), (b, b"two".to_vec())]);
    assert_eq!(lower.name_of(three.ino).unwrap().unwrap(), b"three");
    assert_eq!(lower.parent(three.ino).unwrap(), ROOT);
}

/// Rule 8: The root is 1.
#[test]
fn numbers_are_the_same_each_time_and_known_without_a_lookup() {
    let stack = Stack::of(2);
    stack.file(0, "a/x", "0").file(1, "a/y/z", "1");
    let before = stack.open();
    let (a, z) = (find(&before, "a"), find(&before, "a/y/z"));
    assert_eq!(a.ino, Ino(2 << 48 | fs::metadata(stack.at(0, "a")).unwrap().ino()));
    assert_eq!(z.ino, Ino(3 << 48 | fs::metadata(stack.at(1, "a/y/z")).unwrap().ino()));
    let after = stack.open();
    assert_eq!(after.attr(z.ino).unwrap(), z);
    assert_eq!(after.path_of(z.ino).unwrap(), [b"a".to_vec(), b"y".to_vec(), b"z".to_vec()]);
    assert!(matches!(after.attr(Ino(2 << 48 | 1)), Err(Error::Stale { .. })));
}

/// Rule 10: `st_nlink` of a directory is two plus the subdirectories that show, also where several layers make it up.
#[test]
fn attributes_are_those_of_the_file() {
    let stack = Stack::of(2);
    stack.file(1, "f", "12345").device(1, "null", makedev(1, 3)).dir(1, "one/sub");
    let lower = stack.open();
    let (attr, host) = (find(&lower, "f"), fs::metadata(stack.at(1, "f")).unwrap());
    assert_eq!((attr.size, attr.blocks, attr.mode), (5, host.blocks(), host.mode()));
    assert_eq!((attr.mtime.secs, i64::from(attr.mtime.nanos)), (host.mtime(), host.mtime_nsec()));
    assert_eq!(find(&lower, "null").rdev, makedev(1, 3));
    assert_eq!(u64::from(find(&lower, "one").nlink), fs::metadata(stack.at(1, "one")).unwrap().nlink());
}

/// Rule 10: `st_nlink` of a directory is two plus the subdirectories that show, also where several layers make it up.
/// Rule 85: A merged directory counts the subdirectories that show.
#[test]
fn merged_directory_counts_the_subdirectories_that_show() {
    let stack = Stack::of(3);
    stack.dir(0, "merged/a").dir(1, "merged/a").dir(1, "merged/b").file(1, "merged/c", "").dir(2, "merged/c");
    stack.device(0, "merged/gone", 0).dir(2, "merged/gone").dir(2, "merged/d");
    let lower = stack.open();
    // a, b and d; c is a file on top, gone is deleted.
    assert_eq!(find(&lower, "merged").nlink, 2 + 3);
    assert_eq!(lower.attr(ROOT).unwrap().nlink, 2 + 1);
}

#[test]
fn device_that_a_user_made_is_a_device_again() {
    let stack = Stack::of(1);
    stack.file(0, "dev", "").xattr(0, "dev", "trusted.mica.device", "");
    let lower = stack.open();
    let attr = find(&lower, "dev");
    assert_eq!((attr.kind, attr.rdev, attr.mode & 0o170_000), (FileKind::CharDevice, 0, 0o020_000));
    assert_eq!(lower.xattrs(attr.ino).unwrap(), []);
}

/// Rule 36: All namespaces work as on the upper's disk.
#[test]
fn marks_do_not_show_and_those_of_nested_overlays_do() {
    let stack = Stack::of(1);
    stack.file(0, "f", "0").xattr(0, "f", "user.mime_type", "text").xattr(0, "f", "trusted.overlay.origin", "o");
    stack.xattr(0, "f", "trusted.overlay.overlay.opaque", "y").xattr(0, "f", "user.fuseoverlayfs.origin", "/f");
    symlink("f", stack.at(0, "link")).unwrap();
    stack.xattr(0, "link", "trusted.tag", "on the link");
    let lower = stack.open();
    let (file, link) = (find(&lower, "f").ino, find(&lower, "link").ino);
    let mut seen = lower.xattrs(file).unwrap();
    seen.sort();
    let expected = [("trusted.overlay.opaque", "y"), ("user.mime_type", "text")];
    assert_eq!(seen, expected.map(|(name, value)| (name.into(), value.into())));
    assert_eq!(lower.xattr(file, b"trusted.overlay.opaque").unwrap().unwrap(), b"y");
    assert_eq!(lower.xattr(file, b"trusted.overlay.origin").unwrap(), None);
    assert_eq!(lower.xattr(link, b"trusted.tag").unwrap().unwrap(), b"on the link");
}

/// Rule 2: Names are bytes: 1 to 255 of them, neither `/` nor NUL.
#[test]
fn names_are_bytes_in_the_order_of_bytes() {
    let stack = Stack::of(1);
    for name in [&b"\xff\xfe"[..], b"a b", b"\n", "ü".as_bytes()] {
        fs::write(stack.layer(0).join(OsStr::from_bytes(name)), "").unwrap();
    }
    let lower = stack.open();
    let mut names = Vec::new();
    lower
        .entries(ROOT, 1, &mut |entry| {
            names.push((entry.name.to_vec(), entry.cookie));
            Ok(false)
        })
        .unwrap();
    assert_eq!(names, [(b"a b".to_vec(), 2), ("ü".as_bytes().to_vec(), 3), (b"\xff\xfe".to_vec(), 4)]);
    assert!(lower.lookup(ROOT, b"\xff\xfe").unwrap().is_some());
    assert!(lower.lookup(ROOT, b"..").unwrap().is_none());
}

#[test]
fn descriptors_are_bounded_whatever_is_visited() {
    let stack = Stack::of(2);
    (0..400).for_each(|at| _ = stack.file(at % 2, &format!("d{at}/sub/f"), ""));
    let lower = stack.open();
    view(&lower);
    assert_eq!(lower.layers.open_count(), 256);
}

#[test]
fn nothing_is_followed_out_of_a_layer() {
    let stack = Stack::of(2);
    stack.file(1, "d/f", "1").file(1, "secret/f", "1");
    symlink("secret", stack.at(0, "d")).unwrap();
    let lower = stack.open();
    assert_eq!(find(&lower, "d").kind, FileKind::Symlink);
    assert_eq!(lower.lookup(find(&lower, "d").ino, b"f").unwrap_err().errno(), Errno::NOTDIR);
}

#[test]
fn directories_that_can_not_be_stacked_are_named() {
    let stack = Stack::of(1);
    let error = DirsLower::open(&[stack.layer(0), stack.layer(7)], Format::Trusted).unwrap_err();
    assert!(error.to_string().contains("/7: "), "{error}");
    assert_eq!(error.errno(), Errno::NOENT);
    assert_eq!(DirsLower::open(&[] as &[PathBuf], Format::Trusted).unwrap_err().errno(), Errno::INVAL);
}
