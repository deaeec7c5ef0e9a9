//! Snapshots that the kernel mounts by itself, and those that change from one form to the other. Needs root, `/dev/fuse`, EROFS
//! and overlayfs; says so without.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

#[path = "forms/shown.rs"]
mod shown;
#[path = "forms/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use mica_snapshotter::config::Form;
use rustix::fs::XattrFlags;
use shown::{names_in_tar, same, shown};
use world::{LARGE, World, eventually, names};

fn set_xattr(path: &Path, name: &str, value: &str) {
    rustix::fs::lsetxattr(path, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// Every kind of change there is.
fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::write(at("new"), "new").unwrap();
    fs::create_dir_all(at("made/in/depth")).unwrap();
    fs::write(at("made/in/depth/file"), vec![5; 9000]).unwrap();
    File::options().append(true).open(at("append-small")).unwrap().write_all(b" and more").unwrap();
    File::options().append(true).open(at("append-large")).unwrap().write_all(b" and more").unwrap();
    fs::remove_file(at("deleted")).unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    // Attributes alone.
    fs::set_permissions(at("chmod-large"), Permissions::from_mode(0o4711)).unwrap();
    chown(at("chown-large"), Some(1234), Some(4321)).unwrap();
    set_xattr(&at("xattr-large"), "user.mark", "set");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    File::open(at("utimes-large")).unwrap().set_modified(time).unwrap();
    fs::set_permissions(at("tree"), Permissions::from_mode(0o701)).unwrap();
    // Attributes alone, then another name, in the same folder and elsewhere.
    for (name, to) in [("moved-beside", "moved-beside-to"), ("moved-away", "made/moved-away-to")] {
        fs::set_permissions(at(name), Permissions::from_mode(0o600)).unwrap();
        fs::rename(at(name), at(to)).unwrap();
    }
    fs::set_permissions(at("linked"), Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(at("linked"), at("made/linked-to")).unwrap();
    // Folders move with what is in them, changed or not.
    fs::set_permissions(at("tree/sub/large"), Permissions::from_mode(0o400)).unwrap();
    fs::rename(at("tree"), at("tree-moved")).unwrap();
    fs::write(at("tree-moved/sub/added"), "added").unwrap();
    fs::remove_file(at("tree-moved/sub/small")).unwrap();
    fs::rename(at("tree-moved/sub"), at("made/sub-moved")).unwrap();
    // A folder in the place of a folder, and one of a file, and the other way around.
    fs::remove_dir_all(at("again")).unwrap();
    fs::create_dir(at("again")).unwrap();
    fs::write(at("again/other"), "other").unwrap();
    fs::remove_file(at("file-to-folder")).unwrap();
    fs::create_dir(at("file-to-folder")).unwrap();
    fs::remove_dir_all(at("folder-to-file")).unwrap();
    fs::write(at("folder-to-file"), "file").unwrap();
    // Parts of files.
    File::options().write(true).open(at("written-within")).unwrap().write_all_at(b"HERE", 5000).unwrap();
    File::options().write(true).open(at("cut")).unwrap().set_len(4097).unwrap();
    let mut holes = File::create(at("holes")).unwrap();
    holes.seek(SeekFrom::Start(1 << 20)).unwrap();
    holes.write_all(b"end").unwrap();
    // What has no contents.
    symlink("somewhere", at("link-new")).unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("elsewhere", at("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("device"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o620),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    fs::set_permissions(root, Permissions::from_mode(0o750)).unwrap();
}

/// Changes to what [`change`] has left, which the other form finds in the upper.
fn change_again(root: &Path) {
    let at = |name: &str| root.join(name);
    File::options().append(true).open(at("chmod-large")).unwrap().write_all(b" and more").unwrap();
    fs::rename(at("chown-large"), at("again/chown-large")).unwrap();
    fs::set_permissions(at("utimes-large"), Permissions::from_mode(0o444)).unwrap();
    fs::remove_file(at("made/moved-away-to")).unwrap();
    fs::write(at("deleted"), "not any more").unwrap();
    fs::create_dir(at("gone")).unwrap();
    fs::rename(at("made/sub-moved"), at("sub")).unwrap();
    File::options().append(true).open(at("sub/large")).unwrap().write_all(b" and more").unwrap();
    fs::rename(at("tree-moved"), at("tree")).unwrap();
    fs::remove_dir_all(at("again")).unwrap();
    File::options().append(true).open(at("made/linked-to")).unwrap().write_all(b" and more").unwrap();
    rustix::fs::removexattr(at("xattr-large"), "user.mark").unwrap();
    fs::set_permissions(root, Permissions::from_mode(0o755)).unwrap();
}

fn snapshot_goes_from_one_form_to_the_other(first: Form, second: Form) {
    let Some(world) = World::new(Form::Fuse) else { return };
    world.base();
    let root = world.prepare_in("a", "base", first);
    assert_eq!(world.form_of("a"), first);
    change(&root);
    let left = shown(&root);
    world.change_form("a", second);
    assert_eq!(world.form_of("a"), second);
    same(&shown(&root), &left);
    change_again(&root);
    let left = shown(&root);
    world.change_form("a", first);
    assert_eq!(world.form_of("a"), first);
    same(&shown(&root), &left);
    world.change_form("a", second);
    same(&shown(&root), &left);
    world.commit("c", "a");
    world.on().settle("c").unwrap();
    for form in [Form::Fuse, Form::Kernel] {
        let key = format!("view-{form:?}");
        same(&shown(&world.view_in(&key, "c", form)), &left);
        assert_eq!(world.form_of(&key), form);
    }
}

/// Rule 88: A snapshot goes from one form to the other and back with all its changes: new, changed, cut and removed
/// files, attributes alone, renamed folders and files, opaque folders, whiteouts, links, devices, holes.
#[test]
fn snapshot_goes_from_fuse_to_the_kernel_and_back_with_its_changes() {
    snapshot_goes_from_one_form_to_the_other(Form::Fuse, Form::Kernel);
}

/// Rule 88: A snapshot goes from one form to the other and back with all its changes: new, changed, cut and removed
/// files, attributes alone, renamed folders and files, opaque folders, whiteouts, links, devices, holes.
#[test]
fn snapshot_goes_from_the_kernel_to_fuse_and_back_with_its_changes() {
    snapshot_goes_from_one_form_to_the_other(Form::Kernel, Form::Fuse);
}

/// Rule 89: Layers made of a snapshot have whole contents, also of files whose attributes alone the kernel has copied
/// up.
#[test]
fn changes_of_attributes_alone_are_told_with_whole_contents() {
    let Some(world) = World::new(Form::Kernel) else { return };
    world.base();
    let root = world.prepare("a", "base");
    change(&root);
    let upper = world.upper("a");
    let mut value = [0; 8];
    for name in ["chmod-large", "moved-beside-to", "made/moved-away-to", "made/sub-moved/large"] {
        assert!(rustix::fs::getxattr(upper.join(name), "trusted.overlay.metacopy", &mut value).is_ok(), "{name}");
    }
    // The differ, while it is mounted.
    let lower = world.on().view("lower", "base", BTreeMap::default()).unwrap();
    let mut tar = Vec::new();
    world.on().diff(&lower, &world.on().mounts("a").unwrap(), &mut tar).unwrap().unwrap();
    let told = names_in_tar(&tar);
    for name in ["chmod-large", "chown-large", "moved-beside-to", "made/moved-away-to", "made/sub-moved/large"] {
        assert_eq!(told[name], LARGE.as_bytes(), "{name}");
    }
    assert!(told.contains_key(".wh.deleted") && told.contains_key(".wh.tree"));
    // And what is made of it.
    let left = shown(&root);
    world.commit("c", "a");
    world.on().settle("c").unwrap();
    same(&shown(&world.view("v", "c")), &left);
}

/// Rule 93: `st_ino` is the kernel's: a file of the lower has its place in the tree, as with FUSE, but with bit 63
/// set (`xino`), and the root the number of the upper's; it keeps it over a copy-up in this form.
#[test]
fn numbers_of_the_kernels_form_are_those_of_fuse_with_another_bit_and_stay_over_a_copy_up() {
    let Some(world) = World::new(Form::Kernel) else { return };
    world.base();
    let root = world.prepare("a", "base");
    let number = |root: &Path, name: &str| fs::metadata(root.join(name)).unwrap().ino();
    let before = number(&root, "append-large");
    assert_eq!(before, number(&world.view_in("v", "base", Form::Fuse), "append-large") | 1 << 63);
    File::options().append(true).open(root.join("append-large")).unwrap().write_all(b" and more").unwrap();
    assert_eq!(number(&root, "append-large"), before);
}

/// Rule 90: Nothing can write to an object or a tree by way of a mount: overlayfs has mounts of its lowers to itself,
/// read-only.
#[test]
fn objects_and_trees_can_not_be_written_to_by_way_of_a_mount() {
    let Some(world) = World::new(Form::Kernel) else { return };
    world.base();
    let before = world.sealed_bytes();
    let root = world.prepare("a", "base");
    for name in ["append-large", "append-small"] {
        let mut file = File::options().read(true).write(true).open(root.join(name)).unwrap();
        file.write_all(b"overwritten").unwrap();
        file.sync_all().unwrap();
    }
    let view = world.view("v", "base");
    let refused = File::options().write(true).open(view.join("append-large")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(world.sealed_bytes(), before);
}

/// Rule 91: The tree of an image is mounted once for all its containers, and unmounted half a minute after the last.
#[test]
fn tree_is_mounted_once_for_all_and_goes_with_the_last() {
    let Some(world) = World::new(Form::Kernel) else { return };
    world.base();
    assert_eq!(world.trees(), 0);
    std::thread::scope(|scope| {
        for at in 0..8 {
            let world = &world;
            scope.spawn(move || {
                let root = world.prepare(&format!("c{at}"), "base");
                fs::write(root.join("mine"), at.to_string()).unwrap();
                assert_eq!(fs::read_to_string(root.join("append-large")).unwrap(), LARGE);
            });
        }
    });
    assert_eq!(world.trees(), 1);
    let inode = |key: &str| fs::metadata(world.root(key).join("append-large")).unwrap().ino();
    assert_eq!(inode("c0"), inode("c7"));
    for at in 0..8 {
        world.on().remove(&format!("c{at}")).unwrap();
    }
    eventually("the tree is unmounted", || world.trees() == 0);
    eventually("all mounts have ended", || names(&world.state().join("mnt")).is_empty());
}

/// Rule 92: Mounts go on while no daemon runs.
#[test]
fn mounts_outlive_the_daemon_and_are_taken_over_with_their_trees() {
    let Some(mut world) = World::new(Form::Kernel) else { return };
    world.base();
    let root = world.prepare("a", "base");
    let mut open = File::create(root.join("open")).unwrap();
    world.restart(Form::Kernel);
    open.write_all(b"still there").unwrap();
    assert_eq!(fs::read_to_string(root.join("open")).unwrap(), "still there");
    assert_eq!(world.form_of("a"), Form::Kernel);
    assert_eq!(world.trees(), 1);
    // The next of the same image uses the tree that is there.
    world.prepare("b", "base");
    assert_eq!(world.trees(), 1);
    world.on().remove("b").unwrap();
    eventually("the second mount has ended", || names(&world.state().join("mnt")).len() == 1);
    assert_eq!(world.trees(), 1);
    drop(open);
    // A daemon that is told otherwise leaves mounts as they are.
    world.restart(Form::Fuse);
    assert_eq!(world.form_of("a"), Form::Kernel);
    world.on().remove("a").unwrap();
    eventually("the tree is unmounted", || world.trees() == 0);
}

/// Rule 92: Mounts go on while no daemon runs.
#[test]
fn trees_and_mounts_that_nobody_needs_go_at_the_next_start() {
    let Some(mut world) = World::new(Form::Kernel) else { return };
    world.base();
    let root = world.prepare("a", "base");
    world.stop();
    // Somebody takes the mount away while there is no daemon, and one is left that nobody knows.
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
    let stray = world.state().join("mnt/4711");
    fs::create_dir(&stray).unwrap();
    rustix::mount::mount("mica", &stray, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    world.start(Form::Kernel);
    assert!(!stray.exists());
    assert_eq!(world.trees(), 0);
    assert_eq!(world.root("a"), root);
    assert_eq!(fs::read_to_string(root.join("append-large")).unwrap(), LARGE);
    assert_eq!(world.trees(), 1);
}

#[test]
fn mount_taken_away_by_hand_is_made_anew_once_nobody_uses_it() {
    let Some(world) = World::new(Form::Kernel) else { return };
    world.base();
    let root = world.prepare("a", "base");
    fs::write(root.join("file"), "x").unwrap();
    let open = File::open(root.join("file")).unwrap();
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = world.on().mounts("a").unwrap_err().to_string();
    assert!(error.contains("programs still use it"), "{error}");
    drop(open);
    assert_eq!(world.root("a"), root);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "x");
}

#[test]
fn removed_snapshot_goes_out_of_sight_though_a_program_uses_it() {
    let Some(world) = World::new(Form::Kernel) else { return };
    world.base();
    let root = world.prepare("a", "base");
    fs::write(root.join("file"), "x").unwrap();
    let open = File::open(root.join("file")).unwrap();
    world.on().remove("a").unwrap();
    eventually("it is out of sight", || !root.exists());
    assert_eq!(open.metadata().unwrap().len(), 1);
    world.on().cleanup().unwrap();
    drop(open);
}

#[test]
fn layers_are_applied_by_fuse_whatever_the_form_and_labels_choose() {
    let Some(world) = World::new(Form::Kernel) else { return };
    // Has nothing below.
    world.base();
    assert_eq!(world.trees(), 0);
    world.prepare("ns/1/extract-1-abc sha256:0", "base");
    assert_eq!(world.form_of("ns/1/extract-1-abc sha256:0"), Form::Fuse);
    world.prepare_in("b", "base", Form::Fuse);
    assert_eq!(world.form_of("b"), Form::Fuse);
    world.prepare_in("c", "base", Form::Auto);
    assert_eq!(world.form_of("c"), Form::Kernel);
    let error = world.try_prepare("d", "base", "both").unwrap_err().to_string();
    assert!(error.contains("mica.mount") && error.contains("both"), "{error}");
}

#[test]
fn names_of_marks_that_programs_use_appear_as_they_are() {
    let Some(world) = World::new(Form::Kernel) else { return };
    world.base();
    let mut value = [0; 16];
    let mut read = |root: &Path, name: &str| {
        let length = rustix::fs::getxattr(root.join(name), "trusted.overlay.opaque", &mut value).unwrap();
        value[..length].to_vec()
    };
    for form in [Form::Kernel, Form::Fuse] {
        let root = world.prepare_in(&format!("a-{form:?}"), "base", form);
        set_xattr(&root.join("append-large"), "trusted.overlay.opaque", "mine");
        assert_eq!(read(&root, "append-large"), b"mine");
        world.commit(&format!("c-{form:?}"), &format!("a-{form:?}"));
        world.on().settle(&format!("c-{form:?}")).unwrap();
        for shown_by in [Form::Kernel, Form::Fuse] {
            let view = world.view_in(&format!("v-{form:?}-{shown_by:?}"), &format!("c-{form:?}"), shown_by);
            assert_eq!(read(&view, "append-large"), b"mine", "{form:?} {shown_by:?}");
        }
    }
}

/// Rule 94: A mark of Mica's that a program copies to another file, by a mount of the kernel's, means nothing there.
#[test]
fn mark_that_a_program_copies_by_the_kernel_means_nothing_on_the_copy() {
    let Some(world) = World::new(Form::Fuse) else { return };
    world.base();
    let root = world.prepare("a", "base");
    File::options().append(true).open(root.join("append-large")).unwrap().write_all(b" and more").unwrap();
    let number = fs::metadata(root.join("append-large")).unwrap().ino();
    world.change_form("a", Form::Kernel);
    fs::write(root.join("copy"), "another").unwrap();
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(root.join("append-large"), "trusted.mica.origin", &mut value).unwrap();
    rustix::fs::setxattr(root.join("copy"), "trusted.mica.origin", &value[..length], XattrFlags::empty()).unwrap();
    world.change_form("a", Form::Fuse);
    assert_eq!(fs::metadata(root.join("append-large")).unwrap().ino(), number);
    assert_ne!(fs::metadata(root.join("copy")).unwrap().ino(), number);
    assert_eq!(fs::read_to_string(root.join("copy")).unwrap(), "another");
    assert_eq!(fs::read_to_string(root.join("append-large")).unwrap(), format!("{LARGE} and more"));
}
