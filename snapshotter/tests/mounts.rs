//! Snapshots that are really mounted. Needs root and `/dev/fuse`; says so without.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Cursor, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_fs::keeper::Keeper;
use mica_layerdb::Store;
use mica_snapshotter::{FuseMounter, Incoming, Mount, Snapshots};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A daemon that is its own keeper.
struct World {
    snapshots: Arc<Snapshots>,
    keeper: Arc<Keeper>,
    _folder: tempfile::TempDir,
}

impl World {
    /// `None` where nothing can be mounted.
    fn new() -> Option<World> {
        if !rustix::process::geteuid().is_root() || File::open("/dev/fuse").is_err() {
            eprintln!("skipped: mounting needs root and /dev/fuse");
            return None;
        }
        let keeper = Arc::new(Keeper::in_process());
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("root")).unwrap();
        let mounter = FuseMounter::with_keeper(&folder.path().join("state"), &store, Arc::clone(&keeper)).unwrap();
        let snapshots = Snapshots::open(store, Arc::new(mounter)).unwrap();
        Some(World { snapshots, keeper, _folder: folder })
    }

    fn on(&self) -> &Snapshots {
        &self.snapshots
    }

    fn prepare(&self, key: &str, parent: &str) -> PathBuf {
        place(&self.on().prepare(key, parent, BTreeMap::new()).unwrap())
    }

    fn view(&self, key: &str, parent: &str) -> PathBuf {
        place(&self.on().view(key, parent, BTreeMap::new()).unwrap())
    }

    fn commit(&self, name: &str, key: &str) {
        self.on().commit(name, key, BTreeMap::new(), None).unwrap();
    }

    fn apply(&self, key: &str, tar: &[u8]) -> bool {
        let layer = Incoming {
            reader: Box::new(Cursor::new(tar.to_vec())),
            media_type: TAR.into(),
            blob: None,
            size: tar.len() as u64,
            diff_id: None,
        };
        self.on().apply(&self.on().mounts(key).unwrap(), layer).unwrap().is_some()
    }

    fn mounted(&self) -> usize {
        self.keeper.held().unwrap().len()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let ended = self.snapshots.unmount_all();
        assert!(std::thread::panicking() || ended.is_ok(), "{ended:?}");
    }
}

fn place(mounts: &[Mount]) -> PathBuf {
    PathBuf::from(&mounts[0].source)
}

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn fresh_snapshot_is_an_empty_directory_of_mode_0755() {
    let Some(world) = World::new() else { return };
    let root = world.prepare("a", "");
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(names(&root), [""; 0]);
    let view = world.view("v", "");
    assert_eq!(fs::metadata(&view).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::write(view.join("x"), "x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn extraction_does_not_make_anybody_look_for_the_lower() {
    let Some(world) = World::new() else { return };
    for (name, parent, file) in [("one", "", "1"), ("two", "one", "2"), ("three", "two", "3")] {
        world.prepare("extract", parent);
        assert!(world.apply("extract", &tar(&[(file, "content")])));
        world.commit(name, "extract");
    }
    assert!(world.on().store().chain_records().unwrap().is_empty());
    let root = world.view("look", "three");
    assert!(world.on().store().chain_records().unwrap().is_empty(), "nobody has looked yet");
    assert_eq!(names(&root), ["1", "2", "3"]);
    assert_eq!(world.on().store().chain_records().unwrap().len(), 1);
}

#[test]
fn changes_through_the_mount_are_in_the_committed_snapshot() {
    let Some(world) = World::new() else { return };
    world.prepare("extract", "");
    world.apply("extract", &tar(&[("kept", "1"), ("changed", "2"), ("deleted", "3")]));
    world.commit("base", "extract");

    let root = world.prepare("a", "base");
    fs::write(root.join("changed"), "new").unwrap();
    fs::remove_file(root.join("deleted")).unwrap();
    fs::create_dir(root.join("folder")).unwrap();
    fs::write(root.join("folder/large"), vec![7; 3_000_000]).unwrap();
    world.commit("c", "a");
    // A child is there at once, and waits when it is used.
    let child = world.prepare("b", "c");
    assert_eq!(names(&child), ["changed", "folder", "kept"]);
    assert_eq!(fs::read_to_string(child.join("changed")).unwrap(), "new");
    assert_eq!(fs::read(child.join("folder/large")).unwrap(), vec![7; 3_000_000]);
    assert_eq!(fs::read_to_string(world.view("v", "base").join("changed")).unwrap(), "2");
    assert_eq!(world.on().usage("c").unwrap().size, 3_000_003);
    eventually("the mounts of committed snapshots have ended", || world.mounted() == 2);
}

#[test]
fn mount_taken_away_by_hand_is_made_anew_with_its_contents() {
    let Some(world) = World::new() else { return };
    let root = world.prepare("a", "");
    fs::write(root.join("file"), "x").unwrap();
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(place(&world.on().mounts("a").unwrap()), root);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "x");

    // Not while a program is in the old one.
    let open = File::open(root.join("file")).unwrap();
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = world.on().mounts("a").unwrap_err().to_string();
    assert!(error.contains("programs still use it"), "{error}");
    drop(open);
    assert_eq!(place(&world.on().mounts("a").unwrap()), root);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "x");
}

#[test]
fn removed_snapshot_is_out_of_sight_at_once_though_a_program_uses_it() {
    let Some(world) = World::new() else { return };
    let root = world.prepare("a", "");
    fs::write(root.join("file"), "x").unwrap();
    let mut open = File::open(root.join("file")).unwrap();
    let begun = Instant::now();
    world.on().remove("a").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    eventually("it is out of sight", || !root.exists());
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
    drop(open);
    eventually("the mount has ended", || world.mounted() == 0);
    world.on().cleanup().unwrap();
}

#[test]
fn snapshot_committed_while_a_program_holds_its_mount_still_settles() {
    let Some(world) = World::new() else { return };
    let root = world.prepare("a", "");
    fs::write(root.join("file"), "x").unwrap();
    let open = File::open(root.join("file")).unwrap();
    world.commit("c", "a");
    world.on().settle("c").unwrap();
    assert_eq!(names(&world.view("v", "c")), ["file"]);
    drop(open);
}

#[test]
fn diff_of_a_mounted_snapshot_holds_its_changes_and_disturbs_nobody() {
    let Some(world) = World::new() else { return };
    world.prepare("extract", "");
    world.apply("extract", &tar(&[("kept", "1"), ("deleted", "3")]));
    world.commit("base", "extract");
    let root = world.prepare("a", "base");
    fs::write(root.join("new"), "content").unwrap();
    fs::remove_file(root.join("deleted")).unwrap();
    let mut open = File::create(root.join("unlinked")).unwrap();
    fs::remove_file(root.join("unlinked")).unwrap();
    let lower = world.on().view("lower", "base", BTreeMap::new()).unwrap();
    let upper = world.on().mounts("a").unwrap();
    for _ in 0..2 {
        let mut out = Vec::new();
        world.on().diff(&lower, &upper, &mut out).unwrap().unwrap();
        let mut archive = tar::Archive::new(&out[..]);
        let mut found: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        found.sort();
        assert_eq!(found.iter().filter(|name| *name != "./").collect::<Vec<_>>(), [".wh.deleted", "new"]);
    }
    open.write_all(b"still there").unwrap();
    assert_eq!(names(&root), ["kept", "new"]);
}

#[test]
fn diff_of_a_committed_snapshot_is_its_layer() {
    let Some(world) = World::new() else { return };
    world.prepare("extract", "");
    world.apply("extract", &tar(&[("kept", "1"), ("deleted", "3")]));
    world.commit("base", "extract");
    let root = world.prepare("a", "base");
    fs::write(root.join("new"), vec![7; 100_000]).unwrap();
    fs::remove_file(root.join("deleted")).unwrap();
    world.commit("top", "a");
    let view = |key: &str, parent: &str| world.on().view(key, parent, BTreeMap::new()).unwrap();
    let (nothing, base, top) = (view("0", ""), view("1", "base"), view("2", "top"));
    let diff = |lower: &[Mount], upper: &[Mount]| {
        let mut out = Vec::new();
        let told = world.on().diff(lower, upper, &mut out).unwrap();
        told.map(|()| {
            let mut archive = tar::Archive::new(&out[..]);
            let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
            names.filter(|name| name != "./").collect::<Vec<_>>()
        })
    };
    assert_eq!(diff(&base, &top).unwrap(), [".wh.deleted", "new"]);
    assert_eq!(diff(&nothing, &base).unwrap(), ["deleted", "kept"]);
    assert_eq!(diff(&[], &base).unwrap(), ["deleted", "kept"]);
    assert_eq!(diff(&top, &top).unwrap(), [""; 0]);
    assert_eq!(diff(&nothing, &top), None, "more than one layer");
    // An active snapshot that a layer was applied to.
    let applied = world.on().prepare("applied", "base", BTreeMap::new()).unwrap();
    world.apply("applied", &tar(&[("f", "x")]));
    assert_eq!(diff(&base, &applied).unwrap(), ["f"]);
}

#[test]
fn many_containers_of_one_image_start_at_once() {
    let Some(world) = World::new() else { return };
    world.prepare("extract", "");
    world.apply("extract", &tar(&[("file", "content")]));
    world.commit("base", "extract");
    std::thread::scope(|scope| {
        for at in 0..16 {
            let world = &world;
            scope.spawn(move || {
                let root = world.prepare(&format!("c{at}"), "base");
                fs::write(root.join("mine"), at.to_string()).unwrap();
                assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "content");
                assert_eq!(fs::read_to_string(root.join("mine")).unwrap(), at.to_string());
            });
        }
    });
    assert_eq!(world.mounted(), 16);
    assert_eq!(world.on().store().chain_records().unwrap().len(), 1);
    for at in 0..16 {
        world.on().remove(&format!("c{at}")).unwrap();
    }
    eventually("all mounts have ended", || world.mounted() == 0);
}

#[test]
fn stack_of_128_committed_snapshots_shows_every_change() {
    let Some(world) = World::new() else { return };
    let (mut parent, mut expected) = (String::new(), BTreeMap::new());
    for depth in 0..128 {
        let root = world.prepare("active", &parent);
        // One file changed by each, one of its own, one that the next but one removes, a folder made anew.
        let mut write = |name: String, content: String| {
            fs::write(root.join(&name), &content).unwrap();
            expected.insert(name, content);
        };
        write("changed".into(), depth.to_string());
        write(format!("own-{depth}"), "x".repeat(depth));
        write(format!("short-{depth}"), String::new());
        if depth >= 2 {
            fs::remove_file(root.join(format!("short-{}", depth - 2))).unwrap();
            expected.remove(&format!("short-{}", depth - 2));
        }
        if depth > 0 {
            fs::remove_dir_all(root.join("folder")).unwrap();
        }
        fs::create_dir(root.join("folder")).unwrap();
        fs::write(root.join(format!("folder/{depth}")), "").unwrap();
        parent = format!("layer-{depth}");
        world.commit(&parent, "active");
        if depth % 32 == 31 {
            let root = world.view(&format!("view-{depth}"), &parent);
            let mut wanted: Vec<_> = expected.keys().cloned().chain(["folder".to_owned()]).collect();
            wanted.sort();
            assert_eq!(names(&root), wanted, "{depth}");
            for (name, content) in &expected {
                assert_eq!(fs::read_to_string(root.join(name)).unwrap(), *content, "{depth}: {name}");
            }
            assert_eq!(names(&root.join("folder")), [depth.to_string()]);
        }
    }
}

#[test]
fn file_overwritten_with_the_same_size_and_time_shows_the_new_bytes() {
    let Some(world) = World::new() else { return };
    let mut parent = String::new();
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for content in ["aaaa", "bbbb", "cccc"] {
        let root = world.prepare("active", &parent);
        fs::write(root.join("file"), content).unwrap();
        File::open(root.join("file")).unwrap().set_modified(time).unwrap();
        parent = content.into();
        world.commit(&parent, "active");
        let seen = fs::read_to_string(world.view(&format!("view-{content}"), &parent).join("file")).unwrap();
        assert_eq!(seen, content);
    }
}
