//! Damaged files go out of use, are kept, and come back whole with the next import.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use mica_layerdb::{Damaged, DiffId, Digest, Finding, IngestOptions, Layer, ObjectId, Store};

struct World {
    directory: tempfile::TempDir,
    store: Arc<Store>,
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        World { directory, store }
    }

    fn ingest(&self, tar: &[u8]) -> Layer {
        let expect_diff_id = Some(DiffId(Digest::of(tar)));
        self.store.ingest(&mut &*tar, &IngestOptions { expect_diff_id, ..Default::default() }, &()).unwrap()
    }

    fn object(&self, id: ObjectId) -> PathBuf {
        self.store.objects_path().join(id.relative_path())
    }

    fn damage(&self, id: ObjectId) -> Finding {
        let path = self.object(id);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let inode = Some(fs::metadata(&path).unwrap().ino());
        Finding { reason: "flipped".into(), expected: Some(id.0), actual: Some(Digest::of(&bytes)), inode }
    }
}

fn tar(files: &[(&str, u8)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, fill) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(10_000);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &vec![*fill; 10_000][..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn object_of(fill: u8) -> ObjectId {
    ObjectId(Digest::of(&vec![fill; 10_000]))
}

#[test]
fn quarantine_of_an_object_marks_the_layers_that_need_it_and_the_next_ingest_repairs_them_all() {
    let world = World::new();
    let (one, other, apart) = (tar(&[("a", 1), ("b", 2)]), tar(&[("c", 1)]), tar(&[("d", 3)]));
    let (one_layer, other_layer, _) = (world.ingest(&one), world.ingest(&other), world.ingest(&apart));
    let bad = object_of(1);
    let finding = world.damage(bad);

    let note = world.store.quarantine(Damaged::Object(bad), &finding).unwrap().unwrap();
    let mut expected = vec![one_layer.diff_id, other_layer.diff_id];
    expected.sort_unstable();
    assert_eq!((note.layers.clone(), note.layers_total), (expected.clone(), 2));
    assert_eq!(note.actual, finding.actual);
    assert!(!world.object(bad).exists());
    assert!(world.directory.path().join("quarantine").join(&note.name).exists());
    assert_eq!(world.store.quarantined().unwrap(), [note]);
    let marked: Vec<DiffId> = world.store.damaged_layers().unwrap().iter().map(|layer| layer.diff_id).collect();
    assert_eq!(marked, expected);

    // A store that is opened anew remembers.
    let World { directory, store } = world;
    drop(store);
    let world = World { store: Store::open(directory.path()).unwrap(), directory };
    assert!(world.store.layer_damage(other_layer.diff_id).unwrap().is_some());
    let again = world.ingest(&one);
    assert_eq!(again.new_bytes, 10_000);
    assert_eq!(fs::read(world.object(bad)).unwrap(), vec![1; 10_000]);
    assert_eq!(world.store.damaged_layers().unwrap(), []);
    assert!(!world.store.has_damage().unwrap());
    assert_eq!(world.ingest(&other).created, other_layer.created, "it is known again");
}

#[test]
fn quarantine_of_a_file_that_was_replaced_since_it_was_looked_at_leaves_it() {
    let world = World::new();
    world.ingest(&tar(&[("a", 1)]));
    let bad = object_of(1);
    let finding = world.damage(bad);
    let path = world.object(bad);
    fs::write(path.with_extension("new"), [1; 10_000]).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    assert_eq!(world.store.quarantine(Damaged::Object(bad), &finding).unwrap(), None);
    assert!(path.exists() && !world.store.has_damage().unwrap());
}

#[test]
fn quarantine_of_a_tree_makes_the_layer_unknown_until_it_is_taken_in_again() {
    let world = World::new();
    let one = tar(&[("a", 1), ("b", 2)]);
    let layer = world.ingest(&one);
    let finding = Finding { reason: "by hand".into(), ..Finding::default() };
    let note = world.store.quarantine(Damaged::Tree(layer.diff_id), &finding).unwrap().unwrap();
    assert_eq!(note.layers, [layer.diff_id]);
    assert!(world.store.layer_tree(layer.diff_id).is_err());
    assert!(world.store.layer_damage(layer.diff_id).unwrap().unwrap().tree);
    let again = world.ingest(&one);
    assert_eq!(again.tree_digest, layer.tree_digest);
    assert!(!world.store.has_damage().unwrap());
    world.store.layer_tree(layer.diff_id).unwrap();
    assert_eq!(world.store.empty_quarantine().unwrap().0, 2);
    assert_eq!(world.store.quarantined().unwrap(), []);
}

#[test]
fn report_of_a_missing_object_marks_its_layer_so_that_the_next_ingest_writes_it() {
    let world = World::new();
    let one = tar(&[("a", 1), ("b", 2)]);
    let layer = world.ingest(&one);
    fs::remove_file(world.object(object_of(2))).unwrap();
    assert_eq!(world.ingest(&one).created, layer.created, "nobody has noticed yet");
    world.store.report_missing(&[(object_of(2), Some(10_000))]).unwrap();
    world.store.report_missing(&[(object_of(1), Some(10_000))]).unwrap();
    assert_eq!(world.store.damaged_objects().unwrap().len(), 1, "one of them is there");
    assert_eq!(world.store.layer_damage(layer.diff_id).unwrap().unwrap().objects, 1);
    assert_eq!(world.ingest(&one).new_bytes, 10_000);
    assert!(world.object(object_of(2)).exists() && !world.store.has_damage().unwrap());
}

#[test]
fn layer_that_is_committed_after_its_object_was_quarantined_is_marked_as_damaged() {
    let world = World::new();
    world.ingest(&tar(&[("a", 1)]));
    let finding = Finding { reason: "by hand".into(), ..Finding::default() };
    let store = Arc::clone(&world.store);
    // The object is found in the store while the tar is read, and is gone when the layer is committed.
    let late = tar(&[("a", 1), ("b", 2)]);
    let mut input = late.as_slice();
    let mut reader = Interrupting {
        rest: &mut input,
        after: 11_000,
        act: Some(Box::new(move || {
            store.quarantine(Damaged::Object(object_of(1)), &finding).unwrap().unwrap();
        })),
    };
    let layer = world.store.ingest(&mut reader, &IngestOptions::default(), &()).unwrap();
    let damaged = world.store.layer_damage(layer.diff_id).unwrap();
    let whole = world.object(object_of(1)).exists();
    assert_eq!(damaged.is_some(), !whole, "either the object was written again, or the layer is marked");
}

struct Interrupting<'a> {
    rest: &'a mut &'a [u8],
    after: usize,
    act: Option<Box<dyn FnOnce() + Send>>,
}

impl std::io::Read for Interrupting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.after == 0
            && let Some(act) = self.act.take()
        {
            std::thread::sleep(std::time::Duration::from_millis(50));
            act();
        }
        let some = buffer.len().min(if self.after > 0 { self.after } else { usize::MAX });
        let read = std::io::Read::read(self.rest, &mut buffer[..some])?;
        self.after = self.after.saturating_sub(read);
        Ok(read)
    }
}
