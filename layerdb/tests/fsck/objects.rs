//! Contents.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use mica_layerdb::fsck::{FsckOptions, Issue, Outcome};
use mica_layerdb::verify::ScrubOptions;
use mica_layerdb::{Error, Kind, Progress, Store};

use crate::world::{World, flip, object_of, replace_by_directory, write_sealed};

#[test]
fn fsck_of_a_missing_object_names_layers_and_images_and_the_next_import_repairs_it() {
    let world = World::new();
    fs::remove_file(world.object(object_of(9, 20_000))).unwrap();
    let report = world.expect(&["missing-object"]);
    let issue: Issue = serde_json::from_value(report.found[0].details.clone()).unwrap();
    let Issue::MissingObject { id, bytes, quarantined, users } = issue else { panic!("{issue:?}") };
    assert_eq!((id, bytes, quarantined), (object_of(9, 20_000), 20_000, false));
    assert_eq!((users.layers_total, users.images.as_slice()), (2, &["app:1".to_owned()][..]));
    world.import();
    world.expect(&["missing-object"]);
    let report = world.repair(&["missing-object"], &["missing-object"]);
    assert!(matches!(report.found[0].outcome, Outcome::Contained(_)));
    assert_eq!(world.store.damaged_layers().unwrap().len(), 2);
    world.import();
    world.expect_clean();
    assert!(!world.store.has_damage().unwrap());
}

#[test]
fn fsck_of_an_object_of_another_length_moves_it_to_quarantine() {
    let world = World::new();
    write_sealed(&world.object(object_of(1, 10_000)), &[1; 9_999]);
    // Its content is another too; that is one defect.
    world.repair(&["wrong-length"], &["missing-object"]);
    let notes = world.store.quarantined().unwrap();
    assert_eq!((notes.len(), notes[0].bytes), (1, 9_999));
    assert_eq!(notes[0].images, ["app:1"]);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_a_corrupt_object_finds_it_by_its_content_only() {
    let world = World::new();
    let id = object_of(2, 30_000);
    flip(&world.object(id), 12_345);
    assert_eq!(world.check(&FsckOptions::default()).found, [], "its length is right");
    let report = world.repair(&["corrupt-object"], &["missing-object"]);
    assert_eq!(report.quarantined[0].expected, Some(id.0));
    assert!(report.quarantined[0].actual.is_some());
    let left = world.expect(&["missing-object"]);
    assert!(left.found[0].text.contains("in quarantine"), "{}", left.found[0].text);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_a_corrupt_object_that_nothing_names_finds_it_too() {
    let world = World::new();
    world.store.remove_image("app:1").unwrap();
    world.delete(mica_layerdb::Family::Pins, b"test/1");
    for layer in &world.image.layers {
        world.delete(mica_layerdb::Family::Layers, layer.hex().as_bytes());
        fs::remove_file(world.tree(*layer)).unwrap();
        let _ = fs::remove_file(world.recipe(*layer));
    }
    world.delete(mica_layerdb::Family::Chains, world.chain().hex().as_bytes());
    fs::remove_file(world.chain_tree()).unwrap();
    assert_eq!(world.expect(&[]).unused_objects, 5);
    flip(&world.object(object_of(2, 30_000)), 0);
    // Nobody misses it.
    world.repair(&["corrupt-object"], &[]);
}

#[test]
fn fsck_of_an_object_that_is_no_file_moves_it_to_quarantine() {
    let world = World::new();
    replace_by_directory(&world.object(object_of(1, 10_000)));
    world.repair(&["unreadable-object"], &["missing-object"]);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_several_defects_finds_each() {
    let world = World::new();
    flip(&world.object(object_of(2, 30_000)), 0);
    fs::remove_file(world.object(object_of(1, 10_000))).unwrap();
    fs::write(world.path("objects/mine"), "").unwrap();
    world.repair(&["corrupt-object", "missing-object", "foreign-file"], &["missing-object", "missing-object"]);
    world.import();
    world.expect_clean();
}

#[test]
fn scrub_takes_corrupt_objects_out_of_use_and_goes_on_where_it_stopped() {
    let world = World::new();
    let go = AtomicBool::new(false);
    let first = world.store.scrub(&ScrubOptions::default(), &go, &()).unwrap();
    assert!(first.complete && !first.resumed && first.quarantined.is_empty());
    assert_eq!(first.scrub.objects, 5);
    flip(&world.object(object_of(2, 30_000)), 0);
    let stopped = world.store.scrub(&ScrubOptions::default(), &AtomicBool::new(true), &()).unwrap();
    assert!(!stopped.complete && stopped.scrub.objects < 5);
    assert_eq!(stopped.scrub.completed, first.scrub.completed);
    let second = world.store.scrub(&ScrubOptions::default(), &go, &()).unwrap();
    assert!(second.complete && second.resumed);
    assert_eq!((second.scrub.objects, second.scrub.damaged, second.quarantined.len()), (5, 1, 1));
    assert_eq!(world.store.damaged_layers().unwrap().len(), 1);
    world.import();
    world.expect_clean();
}

/// Scrubs while it is told of a scrub.
struct Second<'a>(&'a std::sync::Arc<Store>, Mutex<Vec<Error>>);

impl Progress for Second<'_> {
    fn read(&self, _: &str, _: u64) {
        let second = self.0.scrub(&ScrubOptions::default(), &AtomicBool::new(false), &());
        self.1.lock().unwrap().push(second.unwrap_err());
    }
}

#[test]
fn scrub_beside_another_is_refused_and_leaves_it_alone() {
    let world = World::new();
    let second = Second(&world.store, Mutex::default());
    let first = world.store.scrub(&ScrubOptions::default(), &AtomicBool::new(false), &second).unwrap();
    assert!(first.complete);
    assert_eq!(first.scrub.objects, 5);
    let refused = second.1.lock().unwrap();
    assert!(!refused.is_empty() && refused.iter().all(|error| error.kind() == Kind::Busy), "{refused:?}");
    assert_eq!(world.store.scrubbed().unwrap(), Some(first.scrub));
}
