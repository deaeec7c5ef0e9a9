//! Every call with every answer it can have.

use std::time::SystemTime;

use mica_snapshotter::error::Kind as ErrorKind;
use mica_snapshotter::{Info, Kind, Usage};

use super::machine::Failing;
use super::world::{TAR, World, eventually, incoming, kind, labels, number_of, tar};

#[test]
fn prepare_answers_one_writable_bind_mount_that_is_there() {
    let world = World::new();
    let mounts = world.prepare("default/1/a b", "", labels(&[])).unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!((mounts[0].kind.as_str(), mounts[0].target.as_str()), ("bind", ""));
    assert_eq!(mounts[0].options, ["rbind", "rw"]);
    assert!(std::path::Path::new(&mounts[0].source).is_dir());
    assert_eq!(world.mounts("default/1/a b").unwrap(), mounts);
    assert_eq!(world.machine.served(), [number_of(&mounts)]);
    world.remove_all();
}

#[test]
fn view_answers_a_read_only_mount_and_has_no_folder() {
    let world = World::new();
    world.layer("base", "", "file");
    let mounts = world.view("look", "base", labels(&[])).unwrap();
    assert_eq!(mounts[0].options, ["rbind", "ro"]);
    assert_eq!(world.stat("look").unwrap().kind, Kind::View);
    assert_eq!(world.names_below("look"), ["file"]);
    assert!(!world.store().snapshot_dir(number_of(&mounts)).exists());
    assert_eq!(kind(world.commit("c", "look", labels(&[]), None), "look is view"), ErrorKind::FailedPrecondition);
    world.remove_all();
}

#[test]
fn prepare_upon_what_is_missing_or_can_change_is_refused_before_the_key_is_looked_at() {
    let world = World::new();
    world.active("taken", "");
    for writable in [false, true] {
        let make = |key: &str, parent: &str| {
            if writable { world.prepare(key, parent, labels(&[])) } else { world.view(key, parent, labels(&[])) }
        };
        assert_eq!(kind(make("new", "nowhere"), "parent snapshot nowhere"), ErrorKind::NotFound);
        assert_eq!(kind(make("taken", "nowhere"), "nowhere"), ErrorKind::NotFound);
        assert_eq!(kind(make("new", "taken"), "taken"), ErrorKind::InvalidArgument);
        assert_eq!(kind(make("new", "new"), "new"), ErrorKind::NotFound);
        assert_eq!(kind(make("taken", ""), "taken already exists"), ErrorKind::AlreadyExists);
        assert_eq!(kind(make("", ""), "key"), ErrorKind::InvalidArgument);
    }
    assert_eq!(world.names(), ["taken"]);
    world.remove_all();
}

#[test]
fn prepare_of_a_key_of_any_kind_exists() {
    let world = World::new();
    world.layer("base", "", "file");
    world.view("view", "", labels(&[])).unwrap();
    world.active("active", "");
    for key in ["base", "view", "active"] {
        assert_eq!(kind(world.prepare(key, "", labels(&[])), key), ErrorKind::AlreadyExists);
        assert_eq!(kind(world.view(key, "base", labels(&[])), key), ErrorKind::AlreadyExists);
    }
    world.remove_all();
}

#[test]
fn prepare_that_cannot_mount_leaves_nothing_and_can_be_repeated() {
    let world = World::new();
    world.machine.set(Failing::Mount, true);
    assert_eq!(kind(world.prepare("a", "", labels(&[])), "Mount fails"), ErrorKind::Unavailable);
    assert_eq!(kind(world.stat("a"), "a"), ErrorKind::NotFound);
    world.assert_empty();
    world.machine.set(Failing::Mount, false);
    world.active("a", "");
    world.remove_all();
}

#[test]
fn prepare_towards_a_target_that_is_there_exists() {
    const REF: &str = "containerd.io/snapshot.ref";
    let world = World::new();
    world.layer("base", "", "file");
    world.active("x", "base");
    world.commit("sha256:c", "x", labels(&[(REF, "sha256:c")]), None).unwrap();
    world.active("y", "base");
    world.commit("sha256:d", "y", labels(&[]), None).unwrap();
    let towards = |target: &str, parent: &str| world.prepare("extract", parent, labels(&[(REF, target)]));
    assert_eq!(kind(towards("sha256:c", "base"), "sha256:c"), ErrorKind::AlreadyExists);
    // An engine would not find these by label and parent.
    for (target, parent) in [("sha256:c", ""), ("sha256:d", "base"), ("sha256:e", "base")] {
        towards(target, parent).unwrap();
        world.remove("extract").unwrap();
    }
    world.remove_all();
}

#[test]
fn labels_beyond_the_limit_are_refused_by_every_call_that_takes_some() {
    let world = World::new();
    let long = labels(&[("l", &"x".repeat(4096))]);
    assert_eq!(kind(world.prepare("a", "", long.clone()), "4096"), ErrorKind::InvalidArgument);
    assert_eq!(kind(world.view("a", "", long.clone()), "4096"), ErrorKind::InvalidArgument);
    world.assert_empty();
    world.active("a", "");
    assert_eq!(kind(world.commit("c", "a", long.clone(), None), "4096"), ErrorKind::InvalidArgument);
    let info = Info { labels: long, ..world.stat("a").unwrap() };
    assert_eq!(kind(world.update(&info, &[]), "4096"), ErrorKind::InvalidArgument);
    assert!(world.stat("a").unwrap().labels.is_empty());
    world.remove_all();
}

#[test]
fn mounts_of_what_has_none_says_why() {
    let world = World::new();
    world.layer("base", "", "file");
    assert_eq!(kind(world.mounts("nothing"), "nothing"), ErrorKind::NotFound);
    assert_eq!(kind(world.mounts("base"), "base is committed"), ErrorKind::FailedPrecondition);
    world.remove_all();
}

#[test]
fn mounts_of_what_was_unmounted_by_hand_mounts_it_again() {
    let world = World::new();
    let number = world.active("a", "");
    world.machine.unmount_by_hand(number);
    world.machine.set(Failing::Mount, true);
    assert_eq!(kind(world.mounts("a"), "Mount fails"), ErrorKind::Unavailable);
    world.machine.set(Failing::Mount, false);
    assert_eq!(world.number("a"), number);
    assert_eq!(world.machine.served(), [number]);
    world.remove_all();
}

#[test]
fn commit_turns_the_key_into_the_name_and_replaces_labels() {
    let world = World::new();
    world.layer("base", "", "file");
    let before = SystemTime::now();
    world.prepare("a", "base", labels(&[("old", "1")])).unwrap();
    world.commit("c", "a", labels(&[("new", "2"), ("empty", "")]), None).unwrap();
    let info = world.stat("c").unwrap();
    assert_eq!((info.kind, info.name.as_str(), info.parent.as_str()), (Kind::Committed, "c", "base"));
    assert_eq!(info.labels, labels(&[("new", "2")]));
    assert!(info.created >= before && info.created <= SystemTime::now() && info.updated == info.created);
    assert_eq!(kind(world.stat("a"), "a"), ErrorKind::NotFound);
    assert_eq!(kind(world.remove("base"), "remove snapshot base: it has children, c"), ErrorKind::FailedPrecondition);
    eventually("its mount has ended", || world.machine.mounted().is_empty());
    world.remove_all();
}

#[test]
fn commit_refuses_each_wrong_case_by_its_kind() {
    let world = World::new();
    world.layer("base", "", "file");
    world.layer("other", "", "file");
    world.active("a", "base");
    world.active("free", "");
    let commit = |name: &str, key: &str, parent| world.commit(name, key, labels(&[]), parent);
    assert_eq!(kind(commit("c", "nothing", None), "nothing"), ErrorKind::NotFound);
    assert_eq!(kind(commit("base", "a", None), "base"), ErrorKind::AlreadyExists);
    assert_eq!(kind(commit("a", "a", None), "a"), ErrorKind::AlreadyExists);
    assert_eq!(kind(commit("free", "a", None), "free"), ErrorKind::AlreadyExists);
    assert_eq!(kind(commit("x", "x", None), "x"), ErrorKind::NotFound);
    assert_eq!(kind(commit("c", "base", None), "base is committed"), ErrorKind::FailedPrecondition);
    assert_eq!(kind(commit("c", "a", Some("other")), "from base to other"), ErrorKind::InvalidArgument);
    assert_eq!(kind(commit("c", "free", Some("nothing")), "nothing"), ErrorKind::NotFound);
    assert_eq!(kind(commit("c", "free", Some("a")), "upon a"), ErrorKind::FailedPrecondition);
    assert_eq!(kind(commit("c", "free", Some("free")), "free"), ErrorKind::FailedPrecondition);
    assert_eq!(kind(commit("", "free", None), "name"), ErrorKind::InvalidArgument);
    assert_eq!(world.names(), ["a", "base", "free", "other"]);
    commit("c", "a", Some("base")).unwrap();
    commit("d", "free", Some("other")).unwrap();
    assert_eq!(world.stat("d").unwrap().parent, "other");
    world.remove_all();
}

#[test]
fn commit_upon_a_parent_given_late_stacks_the_layers() {
    let world = World::new();
    world.layer("base", "", "below");
    let mounts = world.prepare("extract", "", labels(&[])).unwrap();
    world.apply(&mounts, incoming(TAR, &tar(&[("above", "x")]))).unwrap().unwrap();
    world.commit("top", "extract", labels(&[]), Some("base")).unwrap();
    world.view("look", "top", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["above", "below"]);
    assert_eq!(kind(world.remove("base"), "top"), ErrorKind::FailedPrecondition);
    world.remove_all();
}

#[test]
fn remove_takes_every_kind_at_once_and_frees_its_name() {
    let world = World::new();
    assert_eq!(kind(world.remove("nothing"), "nothing"), ErrorKind::NotFound);
    for _ in 0..2 {
        world.layer("base", "", "file");
        let number = world.active("a", "base");
        world.write(number, "big", "content");
        world.view("v", "base", labels(&[])).unwrap();
        assert_eq!(kind(world.remove("base"), "remove"), ErrorKind::FailedPrecondition);
        world.remove("a").unwrap();
        assert!(!world.store().snapshot_dir(number).exists(), "gone at once");
        world.remove("v").unwrap();
        world.remove("base").unwrap();
        assert_eq!(world.names(), [""; 0]);
    }
    world.assert_empty();
}

#[test]
fn remove_of_the_middle_is_refused_and_from_the_top_succeeds() {
    let world = World::new();
    world.layer("one", "", "1");
    world.layer("two", "one", "2");
    world.layer("three", "two", "3");
    assert_eq!(kind(world.remove("two"), "three"), ErrorKind::FailedPrecondition);
    for name in ["three", "two", "one"] {
        world.remove(name).unwrap();
    }
    world.assert_empty();
}

#[test]
fn cleanup_frees_what_was_removed_and_nothing_else() {
    let world = World::new();
    let base = world.layer("base", "", "file");
    let top = world.layer("top", "base", "other");
    world.view("look", "top", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["file", "other"]);
    world.cleanup().unwrap();
    assert!(world.store().layer(base).unwrap().is_some() && world.store().layer(top).unwrap().is_some());
    assert_eq!(world.store().chain_records().unwrap().len(), 1, "it will be used again");
    world.remove("look").unwrap();
    world.remove("top").unwrap();
    world.cleanup().unwrap();
    assert!(world.store().layer(base).unwrap().is_some() && world.store().layer(top).unwrap().is_none());
    world.remove_all();
}

#[test]
fn update_changes_labels_of_every_kind_and_the_time() {
    let world = World::new();
    world.layer("base", "", "file");
    world.view("v", "base", labels(&[])).unwrap();
    world.active("a", "base");
    for name in ["base", "v", "a"] {
        let before = world.stat(name).unwrap();
        // What can't be changed is not looked at.
        let wanted = Info {
            kind: Kind::View,
            parent: "doesnotexist".into(),
            labels: labels(&[("l", "1"), ("m", "2")]),
            created: SystemTime::UNIX_EPOCH,
            ..before.clone()
        };
        let after = world.update(&wanted, &[]).unwrap();
        assert_eq!(after, world.stat(name).unwrap());
        assert_eq!((after.kind, &after.parent, after.created), (before.kind, &before.parent, before.created));
        assert_eq!(after.labels, wanted.labels);
        assert!(after.updated > before.updated);
        let wanted = Info { labels: labels(&[("l", "9")]), ..before };
        let after = world.update(&wanted, &["labels.l".into(), "labels.m".into()]).unwrap();
        assert_eq!(after.labels, labels(&[("l", "9")]));
        assert_eq!(world.list(&["labels.l==9".into(), "labels.m==2".into()]).unwrap(), [after]);
        let refused = world.update(&wanted, &["labels".into(), "parent".into()]);
        assert_eq!(kind(refused, "parent"), ErrorKind::InvalidArgument);
        world.update(&Info { labels: labels(&[]), ..wanted }, &["labels".into()]).unwrap();
    }
    let nothing = Info { name: "nothing".into(), ..world.stat("a").unwrap() };
    assert_eq!(kind(world.update(&nothing, &[]), "nothing"), ErrorKind::NotFound);
    assert_eq!(world.mounts("a").unwrap().len(), 1);
    world.remove_all();
}

#[test]
fn list_uses_indexes_and_sees_what_a_scan_would() {
    let world = World::new();
    world.layer("base", "", "file");
    for (key, parent, label) in [("a", "base", "1"), ("b", "base", "2"), ("c", "", "1")] {
        world.prepare(key, parent, labels(&[("l", label)])).unwrap();
    }
    let list = |filter: &str| {
        let found = world.list(&[filter.to_owned()]).unwrap();
        found.into_iter().map(|info| info.name).collect::<String>()
    };
    assert_eq!(list("parent==base"), "ab");
    assert_eq!(list("labels.l==1"), "ac");
    assert_eq!(list("labels.l==1,parent==base"), "a");
    assert_eq!(list("name==b"), "b");
    assert_eq!(list("name==nothing"), "");
    assert_eq!(list("kind==active"), "abc");
    assert_eq!(list("parent==\"\""), "basec");
    world.remove("a").unwrap();
    assert_eq!(list("labels.l==1"), "c");
    assert_eq!(world.list(&["name==b".into(), "name==c".into(), "parent==base".into()]).unwrap().len(), 2);
    assert_eq!(kind(world.list(&["name==".into()]), "position 6"), ErrorKind::InvalidArgument);
    let stats: Vec<Info> = world.names().iter().map(|name| world.stat(name).unwrap()).collect();
    assert_eq!(world.list(&[]).unwrap(), stats);
    world.remove_all();
}

#[test]
fn usage_is_that_of_the_upper_or_of_the_layers() {
    let world = World::new();
    assert_eq!(kind(world.usage("nothing"), "nothing"), ErrorKind::NotFound);
    world.layer("base", "", "file");
    assert_eq!(world.usage("base").unwrap(), Usage { size: 4, inodes: 1 });
    world.view("look", "base", labels(&[])).unwrap();
    assert_eq!(world.usage("look").unwrap(), Usage::default());
    let number = world.active("a", "base");
    let empty = world.usage("a").unwrap();
    world.write(number, "file", &"x".repeat(100_000));
    let full = world.usage("a").unwrap();
    assert_eq!(full.inodes, empty.inodes + 1);
    assert!(full.size >= empty.size + 100_000, "{full:?}");
    world.committed("c", "a");
    world.settle("c").unwrap();
    assert_eq!(world.usage("c").unwrap(), Usage { size: 100_000, inodes: 1 });
    world.remove_all();
}

#[test]
fn usage_of_a_large_upper_is_counted_in_the_background() {
    let world = World::new();
    let number = world.active("a", "");
    for at in 0..6000 {
        world.write(number, &at.to_string(), "");
    }
    assert!(world.usage("a").unwrap().inodes < 6001);
    eventually("it is counted whole", || world.usage("a").unwrap().inodes == 6001);
    world.clear();
    eventually("it is counted anew", || world.usage("a").unwrap().inodes == 6001);
    world.remove_all();
}

#[test]
fn unmount_all_ends_every_mount_and_mounts_bring_them_back() {
    let world = World::new();
    world.active("a", "");
    world.active("b", "");
    world.machine.leave_behind(99);
    world.unmount_all().unwrap();
    assert!(world.machine.mounted().is_empty());
    world.mounts("a").unwrap();
    assert_eq!(world.machine.served().len(), 1);
    world.remove_all();
}

#[test]
fn unmount_that_fails_is_followed_by_a_discard() {
    let world = World::new();
    world.machine.set(Failing::Unmount, true);
    world.active("a", "");
    world.remove_all();
}

#[test]
fn closed_snapshots_refuse_changes_and_leave_mounts() {
    let world = World::new();
    let number = world.active("a", "");
    world.close().unwrap();
    world.close().unwrap();
    assert_eq!(world.machine.mounted(), [number]);
    assert!(world.machine.served().is_empty());
    assert_eq!(kind(world.prepare("b", "", labels(&[])), "stopping"), ErrorKind::Unavailable);
    assert_eq!(world.stat("a").unwrap().name, "a");
}
