//! Layers come back as the tars they were, byte for byte.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "recipe/damage.rs"]
mod damage;
#[path = "recipe/forge.rs"]
mod forge;
#[path = "recipe/forms.rs"]
mod forms;
#[path = "recipe/generated.rs"]
mod generated;

#[path = "recipe/golden.rs"]
mod golden;
#[path = "recipe/real.rs"]
mod real;
#[path = "recipe/tools.rs"]
mod tools;

use std::sync::Arc;

use mica_layerdb::{Batch, DiffId, Digest, Family, IngestOptions, Layer, Store};

/// A store in a directory of its own.
struct Scene {
    directory: tempfile::TempDir,
    store: Option<Arc<Store>>,
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let store = Some(Store::open(directory.path()).unwrap());
        Scene { directory, store }
    }

    fn store(&self) -> &Arc<Store> {
        self.store.as_ref().unwrap()
    }

    /// Takes in a tar and pins it.
    fn ingest(&self, tar: &[u8]) -> Layer {
        let options = IngestOptions { name: "a layer".into(), pin: Some(b"test".to_vec()), ..Default::default() };
        let layer = self.store().ingest(&mut &*tar, &options, &()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(layer.diff_id, DiffId(Digest::of(tar)));
        layer
    }

    /// Takes the tar in and compares it with what comes back.
    #[track_caller]
    fn returns(&self, tar: &[u8]) -> Layer {
        let layer = self.ingest(tar);
        same(&self.export(layer.diff_id), tar);
        layer
    }

    /// What the tar is refused for.
    fn refused(&self, tar: &[u8]) -> String {
        self.store().ingest(&mut &*tar, &IngestOptions::default(), &()).unwrap_err().to_string()
    }

    fn export(&self, diff_id: DiffId) -> Vec<u8> {
        let mut out = Vec::new();
        let bytes = self.store().export_layer(diff_id, &mut out).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(bytes, out.len() as u64);
        out
    }

    /// Lets go of every layer.
    fn unpin(&self) {
        let mut batch = Batch::new();
        batch.delete(Family::Pins, b"test");
        self.store().db().commit(batch).unwrap();
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open(self.directory.path()).unwrap());
    }
}

#[track_caller]
fn same(actual: &[u8], expected: &[u8]) {
    if let Some(at) = actual.iter().zip(expected).position(|(one, other)| one != other) {
        panic!("byte {at} of {} is {} instead of {}", expected.len(), actual[at], expected[at]);
    }
    assert_eq!(actual.len(), expected.len());
}
