//! The kernel's erofs driver as the oracle: the same tree through a mount and through our reader.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mica_layerdb::ObjectId;
use mica_layerdb::tree::{Content, FileKind, Inode, Nid, Tree};
use proptest::prelude::*;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::merge::{Operation, apply, listing_of, merged, operations};
use crate::sample::{self, bytes_of, everything, file, link, object_of};

/// A mount of a test, gone when dropped.
struct Mounted {
    point: PathBuf,
    _directory: tempfile::TempDir,
    /// What this mount stands on, unmounted after it.
    _lower: Vec<Mounted>,
}

impl Mounted {
    /// Mounts a tree. `None` (with the reason printed) where this kernel or user cannot mount.
    #[allow(clippy::print_stderr)]
    fn tree(bytes: &[u8]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a tree");
            return None;
        }
        let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap();
        let module = || Command::new("modprobe").arg("erofs").status().is_ok_and(|status| status.success());
        if !filesystems.contains("erofs") && !module() {
            eprintln!("skipped: this kernel has no erofs");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let (image, point) = (directory.path().join("tree"), directory.path().join("mnt"));
        std::fs::write(&image, bytes).unwrap();
        std::fs::create_dir(&point).unwrap();
        if let Err(error) = mount(&image, &point, c"erofs", MountFlags::RDONLY, None::<&CStr>) {
            // Before Linux 6.12 erofs wants a block device; the loop device goes with the mount.
            let status = Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(&image).arg(&point).status();
            assert!(status.is_ok_and(|status| status.success()), "the kernel refuses the tree: {error}");
        }
        Some(Self { point, _directory: directory, _lower: Vec::new() })
    }

    /// Kernel overlayfs over mounted trees, topmost first, with `objects` below as data-only layer.
    fn overlay(trees: Vec<Mounted>, objects: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let point = directory.path().join("mnt");
        std::fs::create_dir(&point).unwrap();
        let mut lower: Vec<_> = trees.iter().map(|tree| tree.point.display().to_string()).collect();
        if let Some(objects) = objects {
            lower.extend([String::new(), objects.display().to_string()]);
        }
        let options = CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
        mount("overlay", &point, "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
        Self { point, _directory: directory, _lower: trees }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.point, UnmountFlags::DETACH).expect("a test's mount can be unmounted");
    }
}

fn xattrs_by_kernel(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort();
    found
}

/// Compares one inode; `path` is where the kernel has it.
fn compare_inode(tree: &Tree, inode: &Inode, path: &Path) {
    let kernel = std::fs::symlink_metadata(path).unwrap();
    assert_eq!(inode.nid.0, kernel.ino(), "{path:?}");
    assert_eq!(inode.mode, kernel.mode(), "{path:?}");
    assert_eq!((inode.uid, inode.gid), (kernel.uid(), kernel.gid()), "{path:?}");
    assert_eq!(inode.size, kernel.size(), "{path:?}");
    assert_eq!((inode.mtime.secs, i64::from(inode.mtime.nanos)), (kernel.mtime(), kernel.mtime_nsec()), "{path:?}");
    assert_eq!(u64::from(inode.nlink), kernel.nlink(), "{path:?}");
    assert_eq!(inode.rdev, kernel.rdev(), "{path:?}");
    compare_xattrs(tree, inode, path);
    match inode.kind {
        FileKind::Symlink => {
            let target = std::fs::read_link(path).unwrap();
            assert_eq!(&*tree.link_target(inode).unwrap(), target.as_os_str().as_bytes(), "{path:?}");
        }
        FileKind::Regular => {
            if let Content::Inline(bytes) = tree.content(inode).unwrap() {
                assert_eq!(std::fs::read(path).unwrap(), bytes, "{path:?}");
            }
        }
        _ => {}
    }
}

/// The kernel sees the overlay's own attributes and the escaped form of users' ones of that name.
fn compare_xattrs(tree: &Tree, inode: &Inode, path: &Path) {
    let (mut own, mut users) = (Vec::new(), Vec::new());
    for (name, value) in xattrs_by_kernel(path) {
        match name.strip_prefix(b"trusted.overlay.") {
            Some(rest) if rest.starts_with(b"overlay.") => users.push(([b"trusted.", rest].concat(), value)),
            Some(rest) => own.push((rest.to_vec(), value)),
            None => users.push((name, value)),
        }
    }
    let mut ours: Vec<_> =
        tree.xattrs(inode).unwrap().into_iter().map(|(name, value)| (name, value.to_vec())).collect();
    ours.sort();
    users.sort();
    assert_eq!(ours, users, "{path:?}");
    for (name, value) in &users {
        assert_eq!(tree.xattr(inode, name).unwrap(), Some(&**value), "{path:?}");
    }
    if inode.kind == FileKind::Regular
        && let Content::Object(id) = tree.content(inode).unwrap()
    {
        let redirect = format!("/{}", id.relative_path()).into_bytes();
        assert_eq!(own, [(b"metacopy".to_vec(), Vec::new()), (b"redirect".to_vec(), redirect)], "{path:?}");
    }
}

fn compare(tree: &Tree, nid: Nid, path: &Path) -> usize {
    let inode = tree.inode(nid).unwrap();
    compare_inode(tree, &inode, path);
    if inode.kind != FileKind::Directory {
        return 1;
    }
    let mut by_kernel: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_vec(), std::os::unix::fs::DirEntryExt::ino(&entry))
        })
        .collect();
    by_kernel.sort();
    let ours: Vec<_> = tree.entries(&inode, 0).unwrap().map(|entry| entry.unwrap()).collect();
    let names: Vec<_> = ours.iter().map(|entry| (entry.name.to_vec(), entry.nid.0)).collect();
    assert_eq!(names, by_kernel, "{path:?}");
    let mut count = 1;
    for entry in ours {
        assert_eq!(tree.lookup(&inode, entry.name).unwrap().unwrap(), entry);
        let name = std::ffi::OsStr::from_bytes(entry.name);
        assert_eq!(tree.inode(entry.nid).unwrap().kind, entry.kind);
        count += compare(tree, entry.nid, &path.join(name));
    }
    count
}

#[test]
fn mount_of_a_tree_with_everything_shows_what_the_reader_reads() {
    let bytes = sample::bytes_of(&everything());
    let Some(mounted) = Mounted::tree(&bytes) else { return };
    let tree = Tree::from_vec(bytes, "everything").unwrap();
    let names = compare(&tree, tree.root(), &mounted.point);
    assert!(names as u64 > tree.inode_count(), "there are hard links");
}

#[test]
fn mount_of_an_empty_tree_shows_an_empty_root() {
    let bytes = sample::bytes_of(&[]);
    let Some(mounted) = Mounted::tree(&bytes) else { return };
    assert_eq!(std::fs::read_dir(&mounted.point).unwrap().count(), 0);
}

#[test]
fn mount_of_an_unknown_name_answers_not_found() {
    let bytes = sample::bytes_of(&everything());
    let Some(mounted) = Mounted::tree(&bytes) else { return };
    for name in ["nothing", "many/entry-5000", "many/entry", "many/zzz", "many/!", "names/.."] {
        let there = std::fs::symlink_metadata(mounted.point.join(name)).is_ok();
        assert_eq!(there, name.ends_with(".."), "{name}");
    }
}

#[test]
fn overlay_over_a_tree_reads_the_objects_it_names() {
    let contents = sample::pattern(100_000);
    let id = ObjectId(mica_layerdb::Digest::of(&contents));
    let objects = tempfile::tempdir().unwrap();
    let place = objects.path().join(id.relative_path());
    std::fs::create_dir(place.parent().unwrap()).unwrap();
    std::fs::write(&place, &contents).unwrap();
    let tree = [file("d/small", "in the tree"), object_of("d/large", &contents), link("d/again", "d/large")];
    let Some(mounted) = Mounted::tree(&bytes_of(&tree)) else { return };
    let overlay = Mounted::overlay(vec![mounted], Some(objects.path()));
    for name in ["large", "again"] {
        assert!(std::fs::read(overlay.point.join("d").join(name)).unwrap() == contents);
    }
    assert_eq!(std::fs::read(overlay.point.join("d/small")).unwrap(), b"in the tree");
}

type Listing = BTreeMap<Vec<Vec<u8>>, Option<Vec<u8>>>;

/// Every path with its contents; directories have none.
fn listing_by_kernel(point: &Path) -> Listing {
    let mut found = Listing::new();
    let mut pending = vec![(Vec::new(), point.to_path_buf())];
    while let Some((names, path)) = pending.pop() {
        // Overlayfs lists the whiteouts of a directory that only one layer has, but does not find them.
        if std::fs::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            continue;
        }
        let contents = if path.is_dir() {
            for entry in std::fs::read_dir(&path).unwrap() {
                let name = entry.unwrap().file_name();
                pending.push(([names.as_slice(), &[name.clone().into_vec()]].concat(), path.join(name)));
            }
            None
        } else {
            Some(std::fs::read(&path).unwrap())
        };
        found.insert(names, contents);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn overlay_of_layer_trees_shows_what_their_merge_has(mut layers in operations()) {
        // Overlayfs looks for no opaque mark on the root of a layer.
        for operations in &mut layers {
            operations.retain(|operation| !matches!(operation, Operation::Opaque(path) if path.is_empty()));
        }
        let (_, trees) = apply(&layers);
        let Some(empty) = Mounted::tree(&bytes_of(&[])) else { return Ok(()) };
        let Some(empty_too) = Mounted::tree(&bytes_of(&[])) else { return Ok(()) };
        let mut mounts: Vec<_> = trees.iter().rev().filter_map(|(_, bytes)| Mounted::tree(bytes)).collect();
        mounts.extend([empty, empty_too]);
        let overlay = Mounted::overlay(mounts, None);
        let trees: Vec<_> = trees.into_iter().map(|(tree, _)| tree).collect();
        let ours: Listing =
            listing_of(&merged(&trees).0).into_iter().map(|(path, (_, _, contents))| (path, contents)).collect();
        prop_assert_eq!(listing_by_kernel(&overlay.point), ours);
    }
}
