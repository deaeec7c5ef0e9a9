//! The daemon ends at some point and comes back.

use mica_layerdb::{Batch, Family, Store};
use mica_snapshotter::error::Kind as ErrorKind;

use super::machine::Failing;
use super::world::{TAR, World, eventually, incoming, kind, labels, tar};

#[test]
fn snapshots_and_their_mounts_are_back_after_a_restart() {
    let mut world = World::new();
    world.layer("base", "", "below");
    let active = world.active("a", "base");
    let view = { super::world::number_of(&world.view("v", "base", labels(&[("l", "1")])).unwrap()) };
    let before = world.list(&[]).unwrap();
    world.restart();
    assert_eq!(world.list(&[]).unwrap(), before);
    assert_eq!(world.machine.served(), [active, view]);
    assert_eq!((world.number("a"), world.number("v")), (active, view));
    assert_eq!(world.names_below("v"), ["below"]);
    assert_eq!(world.list(&["labels.l==1".into()]).unwrap().len(), 1);
    world.committed("c", "a");
    world.remove_all();
}

#[test]
fn mounts_are_made_anew_after_a_reboot() {
    let mut world = World::new();
    world.layer("base", "", "below");
    let number = world.active("a", "base");
    world.write(number, "kept", "x");
    world.stop();
    world.machine.reboot();
    world.start();
    assert!(world.machine.mounted().is_empty(), "nobody has asked yet");
    assert_eq!(world.number("a"), number);
    assert_eq!(world.machine.served(), [number]);
    assert!(world.store().snapshot_dir(number).join("upper/kept").exists());
    world.remove_all();
}

#[test]
fn what_a_crash_left_without_a_record_goes() {
    let mut world = World::new();
    let kept = world.active("a", "");
    // Prepare made folder and mount, and died before its record.
    world.tamper(|store| drop(store.new_snapshot_dir(50).unwrap()));
    world.machine.leave_behind(50);
    // Remove wrote its batch, and died before folder and mount were gone; so did a commit.
    world.machine.leave_behind(51);
    world.start();
    assert_eq!(world.machine.mounted(), [kept]);
    assert_eq!(world.store().snapshot_dirs().unwrap(), [kept]);
    assert!(world.active("b", "") > 50, "their numbers are not used again");
    world.remove_all();
}

#[test]
fn commit_that_died_before_its_mount_ended_is_finished() {
    let mut world = World::new();
    world.machine.close_gate();
    let number = world.active("x", "");
    world.write(number, "new", "content");
    world.committed("c", "x");
    eventually("its mount has ended", || world.machine.mounted().is_empty());
    let machine = std::sync::Arc::clone(&world.machine);
    let opening = std::thread::spawn(move || {
        machine.until_waiting();
        std::thread::sleep(std::time::Duration::from_millis(100));
        machine.open_gate();
    });
    world.stop();
    opening.join().unwrap();
    world.machine.leave_behind(number);
    world.start();
    assert!(world.machine.mounted().is_empty());
    world.settle("c").unwrap();
    world.view("look", "c", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["new"]);
    world.remove_all();
}

/// More than a pipe holds: whoever writes the layer waits for a reader, who has gone.
#[test]
fn stop_while_much_is_settled_ends_and_the_next_start_settles_it() {
    let mut world = World::new();
    world.machine.close_gate();
    let number = world.active("x", "");
    world.write(number, "new", &"content".repeat(1 << 20));
    world.committed("c", "x");
    let machine = std::sync::Arc::clone(&world.machine);
    let opening = std::thread::spawn(move || {
        machine.until_waiting();
        std::thread::sleep(std::time::Duration::from_millis(100));
        machine.open_gate();
    });
    world.stop();
    opening.join().unwrap();
    world.start();
    world.settle("c").unwrap();
    world.view("look", "c", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["new"]);
    world.remove_all();
}

#[test]
fn settling_that_failed_goes_on_after_a_restart() {
    let mut world = World::new();
    world.machine.set(Failing::Changes, true);
    let number = world.active("x", "");
    world.write(number, "new", "content");
    world.committed("one", "x");
    world.active("y", "one");
    world.committed("two", "y");
    world.stop();
    world.machine.set(Failing::Changes, false);
    world.start();
    eventually("it has settled", || world.settle("two").is_ok());
    world.view("look", "two", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["new"]);
    world.remove_all();
}

#[test]
fn changes_that_a_power_cut_may_have_torn_are_reported_as_lost() {
    let mut world = World::new();
    world.machine.set(Failing::Changes, true);
    let number = world.active("x", "");
    world.write(number, "new", "content");
    world.committed("c", "x");
    world.tamper(|store| replace(store, "c", "\"synced\":true", "\"synced\":false"));
    world.machine.set(Failing::Changes, false);
    // The same boot: the kernel still has all of it.
    world.start();
    eventually("it has settled", || world.settle("c").is_ok());

    world.machine.set(Failing::Changes, true);
    let number = world.active("x", "c");
    world.write(number, "torn", "content");
    world.committed("d", "x");
    world.tamper(|store| {
        replace(store, "d", "\"synced\":true", "\"synced\":false");
        replace(store, "d", "\"boot\":\"", "\"boot\":\"earlier-");
    });
    world.machine.set(Failing::Changes, false);
    world.start();
    eventually("it is known", || world.settle("d").is_err());
    assert_eq!(kind(world.prepare("child", "d", labels(&[])), "went down"), ErrorKind::DataLoss);
    world.active("sibling", "c");
    world.remove_all();
}

/// Changes the record of a snapshot.
fn replace(store: &Store, key: &str, from: &str, to: &str) {
    let row = String::from_utf8(store.db().get(Family::Snapshots, key.as_bytes()).unwrap().unwrap()).unwrap();
    assert!(row.contains(from), "{row}");
    let mut batch = Batch::new();
    batch.put(Family::Snapshots, key.as_bytes(), row.replace(from, to).as_bytes());
    store.db().commit(batch).unwrap();
}

#[test]
fn one_snapshot_that_cannot_be_taken_up_does_not_keep_the_others() {
    let mut world = World::new();
    let good = world.active("good", "");
    let bad = world.active("bad", "");
    world.tamper(|store| {
        let mut batch = Batch::new();
        batch.put(Family::Snapshots, b"bad", b"{ damaged");
        store.db().commit(batch).unwrap();
    });
    world.start();
    assert_eq!(world.machine.mounted(), [good]);
    assert_eq!(world.names(), ["good"]);
    assert_eq!(kind(world.stat("bad"), "bad"), ErrorKind::DataLoss);
    assert!(world.store().snapshot_dir(bad).exists(), "what it holds stays for whoever can repair it");
    world.remove("good").unwrap();
}

#[test]
fn mount_that_cannot_be_resumed_is_made_anew_when_asked_for() {
    let mut world = World::new();
    let number = world.active("a", "");
    world.stop();
    world.machine.set(Failing::Resume, true);
    world.start();
    assert!(world.machine.mounted().is_empty());
    assert_eq!(world.number("a"), number);
    assert_eq!(world.machine.served(), [number]);
    world.remove_all();
}

#[test]
fn applied_layer_stays_with_its_snapshot_over_a_restart() {
    let mut world = World::new();
    world.active("extract", "");
    world.apply_to("extract", incoming(TAR, &tar(&[("f", "x")]))).unwrap().unwrap();
    world.restart();
    world.cleanup().unwrap();
    // Somebody may have looked into the mount before.
    assert_eq!(world.apply_to("extract", incoming(TAR, &tar(&[("g", "x")]))).unwrap(), None);
    world.committed("c", "extract");
    world.view("look", "c", labels(&[])).unwrap();
    assert_eq!(world.names_below("look"), ["f"]);
    world.remove_all();
}

#[test]
fn layer_that_was_taken_in_but_not_attached_is_garbage() {
    let mut world = World::new();
    world.active("extract", "");
    world.tamper(|store| {
        let options = mica_layerdb::IngestOptions::default();
        store.ingest(&mut std::io::Cursor::new(tar(&[("f", "x")])), &options, &()).unwrap();
    });
    world.start();
    assert_eq!(world.store().layers().unwrap().len(), 1);
    world.cleanup().unwrap();
    assert!(world.store().layers().unwrap().is_empty());
    world.remove_all();
}

#[test]
fn folders_of_removed_snapshots_are_freed_after_a_restart() {
    let mut world = World::new();
    let number = world.active("a", "");
    world.write(number, "big", "content");
    world.remove("a").unwrap();
    world.restart();
    world.assert_empty();
}
