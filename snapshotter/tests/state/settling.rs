//! Changes made through a mount become a layer after their commit.

use std::time::{Duration, Instant};

use mica_snapshotter::error::Kind as ErrorKind;

use super::machine::Failing;
use super::world::{World, eventually, kind, labels};

#[test]
fn changes_of_a_committed_snapshot_become_its_layer() {
    let world = World::new();
    world.layer("base", "", "below");
    let number = world.active("x", "base");
    world.write(number, "new", "content");
    world.committed("c", "x");
    world.settle("c").unwrap();
    assert!(!world.store().snapshot_dir(number).exists(), "the folder has served");
    world.view("look", "c", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["below", "new"]);
    let layers = world.store().layers().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        // Fails if the tar hasn't the diff-id: a layer of changes comes back as any other does.
        let bytes = world.store().export_layer(layer.diff_id, &mut std::io::sink()).unwrap();
        assert_eq!(bytes, layer.tar_bytes);
    }
    world.cleanup().unwrap();
    assert_eq!(world.store().layers().unwrap().len(), 2, "it is pinned");
    world.remove_all();
}

#[test]
fn commit_does_not_wait_but_a_mount_of_a_child_does_on_first_use() {
    let world = World::new();
    world.machine.close_gate();
    let number = world.active("x", "");
    world.write(number, "new", "content");
    world.committed("one", "x");
    // Engines go on at once: three more layers upon the one that has not settled.
    for at in 2..5 {
        let parent = ["", "", "one", "2", "3"][at];
        let number = world.active("x", parent);
        world.write(number, &format!("new{at}"), "content");
        world.committed(&at.to_string(), "x");
    }
    let child = world.active("run", "4");
    world.machine.until_waiting();
    let machine = std::sync::Arc::clone(&world.machine);
    let looking = std::thread::spawn(move || machine.look(child).map(drop));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!looking.is_finished());
    world.machine.open_gate();
    looking.join().unwrap().unwrap();
    assert_eq!(world.names_below("run"), ["new", "new2", "new3", "new4"]);
    world.remove_all();
}

#[test]
fn failed_settling_is_told_by_mounts_of_children_and_tried_again() {
    for failing in [Failing::Changes, Failing::HalfOfChanges] {
        let world = World::new();
        world.machine.set(failing, true);
        world.active("before", "");
        let number = world.active("x", "");
        world.write(number, "new", "content");
        world.committed("c", "x");
        eventually("it has failed", || world.settle("c").is_err());
        let expected = format!("{failing:?} fails");
        assert_eq!(kind(world.prepare("child", "c", labels(&[])), &expected), ErrorKind::Unavailable);
        assert_eq!(kind(world.view("child", "c", labels(&[])), "snapshot c"), ErrorKind::Unavailable);
        assert!(world.store().layers().unwrap().is_empty(), "half a layer is none");
        world.machine.set(failing, false);
        eventually("it has settled", || world.settle("c").is_ok());
        world.active("child", "c");
        assert_eq!(world.names_below("child"), ["new"]);
        world.remove_all();
    }
}

#[test]
fn child_made_before_the_failure_is_told_by_its_mounts() {
    let world = World::new();
    world.machine.close_gate();
    let number = world.active("x", "");
    world.write(number, "new", "content");
    world.committed("c", "x");
    let child = world.active("child", "c");
    world.machine.set(Failing::Changes, true);
    world.machine.open_gate();
    eventually("it has failed", || world.settle("c").is_err());
    assert_eq!(kind(world.mounts("child"), "Changes fails"), ErrorKind::Unavailable);
    assert_eq!(kind(world.machine.look(child), "Changes fails"), ErrorKind::Unavailable);
    world.machine.set(Failing::Changes, false);
    eventually("it has settled", || world.settle("c").is_ok());
    assert_eq!(world.names_below("child"), ["new"]);
    world.remove_all();
}

#[test]
fn settling_snapshot_that_is_removed_leaves_nothing() {
    let world = World::new();
    world.machine.close_gate();
    let number = world.active("x", "");
    world.write(number, "new", "content");
    world.committed("c", "x");
    world.machine.until_waiting();
    world.remove("c").unwrap();
    assert!(!world.store().snapshot_dir(number).exists());
    world.machine.open_gate();
    // The name is free, whatever becomes of the old one's job.
    let number = world.active("x", "");
    world.write(number, "other", "content");
    world.committed("c", "x");
    eventually("it has settled", || world.settle("c").is_ok());
    world.view("look", "c", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["other"]);
    world.remove_all();
}

#[test]
fn applied_layer_and_changes_upon_it_both_count() {
    use super::world::{TAR, incoming, tar};
    let world = World::new();
    let number = world.active("x", "");
    world.apply_to("x", incoming(TAR, &tar(&[("applied", "1")]))).unwrap().unwrap();
    world.write(number, "written", "2");
    world.committed("c", "x");
    world.settle("c").unwrap();
    world.view("look", "c", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["applied", "written"]);
    world.remove_all();
}

#[test]
fn snapshot_without_changes_upon_a_settling_one_settles_with_it() {
    let world = World::new();
    world.machine.close_gate();
    let number = world.active("x", "");
    world.write(number, "new", "content");
    world.committed("c", "x");
    world.active("y", "c");
    world.committed("d", "y");
    assert!(world.store().layers().unwrap().is_empty());
    world.machine.open_gate();
    world.settle("d").unwrap();
    assert_eq!(world.store().layers().unwrap().len(), 1);
    world.view("look", "d", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["new"]);
    world.remove_all();
}

#[test]
fn changes_given_a_parent_at_commit_stack_upon_it() {
    let world = World::new();
    world.layer("base", "", "below");
    let number = world.active("x", "");
    world.write(number, "new", "content");
    world.commit("c", "x", labels(&[]), Some("base")).unwrap();
    world.settle("c").unwrap();
    world.view("look", "c", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["below", "new"]);
    world.remove_all();
}

#[test]
fn root_that_was_changed_counts_as_a_change() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let number = world.active("x", "");
    let upper = world.store().snapshot_dir(number).join("upper");
    std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(0o700)).unwrap();
    world.machine.close_gate();
    world.committed("c", "x");
    world.machine.until_waiting();
    world.machine.open_gate();
    // The played diff has no entry for the root, so no layer comes of it.
    world.settle("c").unwrap();
    world.view("look", "c", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), [""; 0]);
    world.cleanup().unwrap();
    assert!(world.store().layers().unwrap().is_empty());
    world.remove_all();
}

#[test]
fn settle_of_what_does_not_exist_says_so() {
    let world = World::new();
    assert_eq!(kind(world.settle("nothing"), "nothing"), ErrorKind::NotFound);
}

#[test]
fn committed_stack_that_nobody_builds_upon_is_merged_ahead() {
    let world = World::new();
    let begun = Instant::now();
    world.layer("one", "", "1");
    world.layer("two", "one", "2");
    let layers = || world.store().chain_records().unwrap();
    eventually("the top is merged", || !layers().is_empty());
    assert!(begun.elapsed() > Duration::from_millis(400), "not while the next layer may come");
    std::thread::sleep(Duration::from_millis(200));
    let merged: Vec<usize> = layers().iter().map(|chain| chain.layers.len()).collect();
    assert_eq!(merged, [2], "and what is built upon is not");
    world.remove_all();
}
