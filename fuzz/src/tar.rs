//! A layer is taken in: an uncompressed tar through the whole of `Store::ingest`.

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use mica_layerdb::{Compression, DiffId, Digest, Error, IngestOptions, Kind, Layer};

use super::store::{World, limits};
use super::walk::walk;

static WORLD: Mutex<Option<World>> = Mutex::new(None);

pub fn run(data: &[u8]) {
    let mut world = world();
    let options = IngestOptions {
        compression: Compression::None,
        name: "hostile".into(),
        limits: Some(limits()),
        ..IngestOptions::default()
    };
    match world.store.ingest(&mut &*data, &options, &()) {
        Ok(layer) => {
            assert_eq!(layer.diff_id, DiffId(Digest::of(data)), "the layer's name is not that of its bytes");
            assert_eq!(layer.tar_bytes, data.len() as u64);
            check(&world, &layer);
            let mut tar = Vec::with_capacity(data.len());
            let bytes = world.store.export_layer(layer.diff_id, &mut tar).expect("a layer that was taken in comes out");
            assert_eq!(bytes, data.len() as u64);
            assert!(tar == data, "another tar came out");
            world.grown();
        }
        Err(error) => refused(&error),
    }
    world.require_no_leftovers();
}

/// The store of this process; whoever doesn't end with [`close`] leaves its folder behind.
pub fn world() -> MappedMutexGuard<'static, World> {
    MutexGuard::map(WORLD.lock(), |world| world.get_or_insert_default())
}

/// Removes the store of this process.
pub fn close() {
    drop(WORLD.lock().take());
}

/// A refusal blames the layer, and is short enough to be shown.
pub fn refused(error: &Error) {
    assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
    let text = error.to_string();
    assert!(text.len() < 8192, "an error of {} bytes", text.len());
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "control characters in {text:?}");
}

/// A layer that was taken in can be read, all of it, by itself and on top of another one.
pub fn check(world: &World, layer: &Layer) {
    let store = &world.store;
    let tree = store.layer_tree(layer.diff_id).expect("the tree of a layer that was taken in");
    let found = walk(&tree);
    assert!(found.errors.is_empty(), "{:?}", found.errors);
    for (id, size) in found.objects {
        let file = store.object(id).expect("an object can be opened").expect("an object that a tree names is there");
        assert_eq!(file.metadata().expect("its length").len(), size);
    }
    let chain = store.chain(&[world.base.diff_id, layer.diff_id]).expect("a layer that was taken in can be merged");
    let found = walk(&chain);
    assert!(found.errors.is_empty(), "merged: {:?}", found.errors);
}
