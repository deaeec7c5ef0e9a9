//! Each defect alone, found by name, and put right where that leaves no choice.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;

use mica_layerdb::fsck::{FsckOptions, FsckReport, Severity};
use mica_layerdb::{Digest, IngestOptions};

use super::*;
use crate::store::Rows;

struct World {
    _directory: tempfile::TempDir,
    store: Arc<Store>,
    rows: Rows,
}

impl World {
    /// Three snapshots: `base`, committed, with a layer; `upper`, committed upon it without one; `live`, active upon that.
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let layer = store.ingest(&mut &[0_u8; 1024][..], &IngestOptions::default(), &()).unwrap().diff_id;
        let rows = Rows::open(Arc::clone(&store)).unwrap();
        let world = World { _directory: directory, store, rows };
        let labels = BTreeMap::from([("role".to_owned(), "test".to_owned())]);
        let mut base = Record::new(world.rows.allot(), Kind::Committed, "", labels.clone());
        base.own = vec![layer];
        let upper = Record::new(world.rows.allot(), Kind::Committed, "base", labels.clone());
        let live = Record::new(world.rows.allot(), Kind::Active, "upper", labels);
        world.store.new_snapshot_dir(live.number).unwrap();
        let mut batch = Batch::new();
        for (key, record) in [("base", &base), ("upper", &upper), ("live", &live)] {
            world.rows.put(&mut batch, key, record).unwrap();
            if record.is_settled() {
                Rows::pin(&mut batch, record.number, &[layer]).unwrap();
                Rows::put_usage(&mut batch, record.number, Usage::default()).unwrap();
            }
        }
        world.rows.commit(batch).unwrap();
        world.expect(&[]);
        world
    }

    fn record(&self, key: &str) -> Record {
        self.rows.get(key).unwrap().unwrap()
    }

    fn put(&self, family: Family, key: &[u8], value: &[u8]) {
        let mut batch = Batch::new();
        batch.put(family, key, value);
        self.rows.commit(batch).unwrap();
    }

    fn delete(&self, family: Family, key: &[u8]) {
        let mut batch = Batch::new();
        batch.delete(family, key);
        self.rows.commit(batch).unwrap();
    }

    fn edit(&self, key: &str, edit: impl FnOnce(&mut Record)) {
        let mut record = self.record(key);
        edit(&mut record);
        self.put(Family::Snapshots, key.as_bytes(), &serde_json::to_vec(&record).unwrap());
    }

    fn check(&self, repair: bool, served: bool) -> FsckReport {
        let options = FsckOptions { repair, ..FsckOptions::default() };
        self.store.fsck(&options, &[&SnapshotChecks::new(&self.store, served)], &()).unwrap()
    }

    fn expect(&self, names: &[&str]) {
        assert_names(&self.check(false, false), names);
    }

    /// Found without a daemon and beside one; put right only without.
    fn repair(&self, names: &[&str]) {
        self.expect(names);
        assert_names(&self.check(true, true), names);
        assert_names(&self.check(true, false), names);
        self.expect(&[]);
    }

    fn left(&self, names: &[&str]) {
        self.expect(names);
        assert_names(&self.check(true, false), names);
        self.expect(names);
    }
}

fn assert_names(report: &FsckReport, names: &[&str]) {
    let found: Vec<&str> = report.found.iter().map(|found| found.name.as_str()).collect();
    assert_eq!(found, names, "{:#?}", report.found);
}

#[test]
fn check_of_a_damaged_record_is_fatal() {
    let world = World::new();
    let number = world.record("live").number;
    world.delete(Family::Snapshots, b"live");
    world.delete(Family::Children, &child_row("upper", "live"));
    world.delete(Family::Labels, &label_row("role", "test", "live"));
    world.delete(Family::Ops, &number_row(number));
    world.store.remove_snapshot_dir(number).unwrap();
    world.put(Family::Snapshots, b"live", b"{");
    world.left(&["damaged-snapshot"]);
    assert_eq!(world.check(false, false).found[0].severity, Severity::Fatal);
}

#[test]
fn check_of_a_key_that_is_no_number_is_fatal() {
    let world = World::new();
    world.put(Family::Usage, b"x", b"{}");
    world.left(&["damaged-number"]);
    world.delete(Family::Usage, b"x");
    world.put(Family::Pins, b"snapshot/x", b"[]");
    world.left(&["damaged-number"]);
}

#[test]
fn check_of_a_parent_that_is_gone_or_not_committed_is_an_error() {
    let world = World::new();
    world.edit("live", |record| record.parent = "gone".into());
    world.delete(Family::Children, &child_row("upper", "live"));
    world.put(Family::Children, &child_row("gone", "live"), b"");
    world.left(&["missing-parent"]);
    world.delete(Family::Children, &child_row("gone", "live"));
    world.edit("live", |record| record.parent = "live".into());
    world.put(Family::Children, &child_row("live", "live"), b"");
    world.left(&["uncommitted-parent"]);
}

#[test]
fn check_of_the_index_of_children_makes_it_equal_to_the_records() {
    let world = World::new();
    world.delete(Family::Children, &child_row("upper", "live"));
    world.repair(&["missing-child-row"]);
    world.put(Family::Children, &child_row("upper", "gone"), b"");
    world.repair(&["stray-child-row"]);
    assert_eq!(world.rows.children("upper").unwrap(), ["live"]);
}

#[test]
fn check_of_the_index_of_labels_makes_it_equal_to_the_records() {
    let world = World::new();
    world.delete(Family::Labels, &label_row("role", "test", "live"));
    world.repair(&["missing-label-row"]);
    world.put(Family::Labels, &label_row("role", "another", "live"), b"");
    world.repair(&["stray-label-row"]);
    assert_eq!(world.rows.labelled("role", "test").unwrap(), ["base", "live", "upper"]);
}

#[test]
fn check_of_a_number_that_two_snapshots_have_is_fatal() {
    let world = World::new();
    let view = Record { kind: Kind::Active, ..world.record("live") };
    let mut batch = Batch::new();
    world.rows.put(&mut batch, "other", &view).unwrap();
    world.rows.commit(batch).unwrap();
    let report = world.check(false, false);
    assert!(report.found.iter().any(|found| found.name == "shared-number"), "{:?}", report.found);
    // The journal names one of the two only.
    assert_names(&report, &["shared-number", "wrong-op"]);
}

#[test]
fn check_of_a_counter_below_a_number_in_use_raises_it() {
    let world = World::new();
    world.put(Family::System, NUMBER, b"1");
    world.repair(&["low-counter"]);
    assert!(world.rows.allot() > world.record("live").number);
}

#[test]
fn check_of_the_journal_of_mounts_makes_it_equal_to_the_records() {
    let world = World::new();
    let number = world.record("live").number;
    world.put(Family::Ops, &number_row(number), br#"{"key":"another","state":"mounted"}"#);
    world.repair(&["wrong-op"]);
    assert_eq!(world.rows.op(number).unwrap().unwrap().key, "live");
}

#[test]
fn check_of_usage_that_nobody_knows_counts_it() {
    let world = World::new();
    let number = world.record("base").number;
    world.delete(Family::Usage, &number_row(number));
    world.repair(&["missing-usage"]);
    assert!(world.rows.usage(number).unwrap().is_some());
}

#[test]
fn check_of_a_snapshot_that_does_not_keep_its_layers_pins_them() {
    let world = World::new();
    let number = world.record("upper").number;
    world.delete(Family::Pins, &pin_row(number));
    world.repair(&["wrong-pin"]);
    assert_eq!(world.rows.pinned(number).unwrap(), [DiffId(Digest::of(&[0; 1024]))]);
}

#[test]
fn check_of_rows_of_a_number_that_no_snapshot_has_removes_them() {
    let world = World::new();
    for (family, key) in [(Family::Usage, number_row(77).to_vec()), (Family::Pins, pin_row(77))] {
        world.put(family, &key, if family == Family::Pins { b"[]" } else { br#"{"size":0,"inodes":0}"# });
        world.repair(&["stray-number"]);
    }
}

#[test]
fn check_of_folders_finds_those_that_are_gone_and_takes_away_those_of_nobody() {
    let world = World::new();
    world.store.new_snapshot_dir(77).unwrap();
    world.expect(&["stray-folder"]);
    assert_names(&world.check(true, true), &[]);
    assert_names(&world.check(true, false), &["stray-folder"]);
    world.expect(&[]);
    fs::remove_dir(world.store.snapshot_dir(world.record("live").number).join("upper")).unwrap();
    world.left(&["missing-folder"]);
}

#[test]
fn check_of_mounts_of_images_that_have_ended_removes_their_marks() {
    let world = World::new();
    world.put(Family::Pins, b"mount/1-2", b"[]");
    world.repair(&["ended-mount"]);
    let folder = world.store.root().join("mounts");
    fs::create_dir_all(&folder).unwrap();
    let lock = fs::File::create(folder.join("3-4")).unwrap();
    world.expect(&[]);
    lock.set_modified(std::time::SystemTime::now() - Duration::from_secs(60)).unwrap();
    world.repair(&["ended-mount"]);
    assert!(!folder.join("3-4").exists());
}

#[test]
fn check_of_a_record_of_a_daemon_that_does_not_run_removes_it() {
    let world = World::new();
    fs::write(world.store.root().join("daemon.json"), r#"{"address":"unix:///x","pid":1,"state":"/x"}"#).unwrap();
    assert_names(&world.check(true, true), &[]);
    world.expect(&["stale-daemon-record"]);
    assert_names(&world.check(true, false), &["stale-daemon-record"]);
    world.expect(&[]);
}
