#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;

use mica_layerdb::tree::{Attributes, Body, Builder, FileKind, Timestamp};
use rustix::mount::unmount;
use tempfile::TempDir;

use super::*;

/// A tree with one small file. `None` where nothing can be mounted.
fn place() -> Option<(TempDir, PathBuf)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return None;
    }
    let folder = TempDir::new().unwrap();
    let spool = fs::File::options().read(true).write(true).create_new(true).open(folder.path().join("spool")).unwrap();
    let mut tree = Builder::new(spool).unwrap();
    let mode = FileKind::Regular.mode_bits() | 0o644;
    let attributes = Attributes { mode, uid: 0, gid: 0, mtime: Timestamp::default(), rdev: 0, xattrs: Vec::new() };
    tree.insert(tree.root(), b"file", attributes, Body::Inline(b"contents".to_vec())).unwrap();
    let file = folder.path().join("tree");
    tree.write(&mut fs::File::create_new(&file).unwrap()).unwrap();
    for name in ["mnt", "objects", "upper", "work"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    Some((folder, file))
}

fn overlay<'a>(tree: &'a Path, objects: &'a Path, writable: Option<&'a Path>) -> Overlay<'a> {
    Overlay { source: SOURCE, tree, objects, writable, attributes: MountAttrFlags::empty() }
}

#[test]
fn tree_by_a_loop_device_shows_what_it_holds_and_the_device_goes_with_it() {
    let Some((folder, file)) = place() else { return };
    let mountpoint = folder.path().join("mnt");
    match tree_by_loop(&file) {
        Err(Error::Mount { errno: Errno::NOENT, .. }) => return eprintln!("skipped: no loop devices"),
        mount => mount.unwrap().place(&mountpoint).unwrap(),
    }
    assert_eq!(fs::read(mountpoint.join("file")).unwrap(), b"contents");
    let uses = || {
        let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path().join("loop/backing_file"));
        let name = file.as_os_str().as_bytes();
        devices.filter(|path| fs::read(path).is_ok_and(|backing| backing.trim_ascii_end() == name)).count()
    };
    assert_eq!(uses(), 1);
    unmount(&mountpoint, UnmountFlags::empty()).unwrap();
    for _ in 0..500 {
        if uses() == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(uses(), 0);
}

#[test]
fn places_of_any_length_and_with_any_character_can_be_used() {
    let Some((folder, file)) = place() else { return };
    for name in ["back\\slash", "colon:comma,quote\"", &format!("{}/{0}", "long".repeat(60))] {
        let here = folder.path().join(name);
        for name in ["mnt", "objects", "upper", "work"] {
            fs::create_dir_all(here.join(name)).unwrap();
        }
        let (mountpoint, file_here) = (here.join("mnt"), here.join("tree"));
        fs::copy(&file, &file_here).unwrap();
        mount_image(&file_here, &overlay(&mountpoint, &here.join("objects"), Some(&here)), &mountpoint).unwrap();
        fs::write(mountpoint.join("new"), name).unwrap();
        assert_eq!(fs::read(mountpoint.join("file")).unwrap(), b"contents");
        unmount(&mountpoint, UnmountFlags::empty()).unwrap();
        assert!(fs::read_dir(&mountpoint).unwrap().next().is_none(), "something is mounted below");
        assert_eq!(fs::read_to_string(here.join("upper/new")).unwrap(), name);
    }
}

#[test]
fn overlay_upon_a_tree_that_is_somewhere_for_a_moment_is_alone_afterwards() {
    let Some((folder, file)) = place() else { return };
    let (mountpoint, objects) = (folder.path().join("mnt"), folder.path().join("objects"));
    let overlay = overlay(&mountpoint, &objects, None);
    let made = overlay_over(new_tree(&file).unwrap(), &overlay, &mountpoint).unwrap();
    assert!(fs::read_dir(&mountpoint).unwrap().next().is_none(), "the tree is left");
    made.place(&mountpoint).unwrap();
    assert_eq!(fs::read(mountpoint.join("file")).unwrap(), b"contents");
    unmount(&mountpoint, UnmountFlags::empty()).unwrap();
    assert!(fs::read_dir(&mountpoint).unwrap().next().is_none(), "something is mounted below");
}

#[test]
fn refusal_says_why_and_leaves_nothing() {
    let Some((folder, file)) = place() else { return };
    let mountpoint = folder.path().join("mnt");
    let absent = folder.path().join("absent");
    let error = mount_image(&file, &overlay(&mountpoint, &absent, None), &mountpoint).unwrap_err().to_string();
    assert!(error.contains("datadir+") && error.contains("absent"), "{error}");
    assert!(fs::read_dir(&mountpoint).unwrap().next().is_none());
    fs::write(&file, "no tree").unwrap();
    let error = mount_tree(&file, &mountpoint).unwrap_err().to_string();
    assert!(error.contains("tree"), "{error}");
}

#[test]
fn end_of_a_filesystem_is_told_once_its_last_user_lets_go() {
    let Some((folder, file)) = place() else { return };
    let mountpoint = folder.path().join("mnt");
    mount_tree(&file, &mountpoint).unwrap();
    let departures = Departures::new().unwrap();
    let departure = departures.of(&mountpoint).unwrap();
    let open = fs::File::open(mountpoint.join("file")).unwrap();
    unmount(&mountpoint, UnmountFlags::DETACH).unwrap();
    assert!(!departure.has_come());
    drop(open);
    departure.wait();
    assert!(departure.has_come());
}

#[test]
fn probe_leaves_nothing_behind() {
    let Some((folder, _)) = place() else { return };
    let empty = folder.path().join("mnt");
    if let Err(error) = probe(&empty) {
        eprintln!("this machine can't: {error}");
    }
    assert!(fs::read_dir(&empty).unwrap().next().is_none());
}
