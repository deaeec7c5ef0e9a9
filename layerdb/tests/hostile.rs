//! Layers and images made to do harm: refused by the limit or the entry concerned, and nothing of them stays.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, missing_docs)]

#[path = "recipe/forge.rs"]
#[allow(dead_code)]
mod forge;
#[path = "hostile/images.rs"]
mod images;
#[path = "hostile/layers.rs"]
mod layers;
#[path = "hostile/limits.rs"]
mod limits;
#[path = "hostile/memory.rs"]
mod memory;

use std::path::Path;
use std::sync::Arc;

use mica_layerdb::{IngestOptions, Kind, Layer, Limits, Store, StoreOptions};

/// A store in a folder of its own, beside which nothing may appear.
struct Scene {
    folder: tempfile::TempDir,
    store: Arc<Store>,
}

impl Scene {
    fn new(limits: Limits) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions { limits, ..StoreOptions::default() };
        let store = Store::open_with(&folder.path().join("store"), options).unwrap();
        Scene { folder, store }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ingest(&self, tar: &[u8]) -> mica_layerdb::Result<Layer> {
        let options = IngestOptions { name: "hostile".into(), ..IngestOptions::default() };
        let taken_in = self.store.ingest(&mut &*tar, &options, &());
        assert_eq!(std::fs::read_dir(self.store.root().join("tmp")).unwrap().count(), 0, "tmp/ is empty");
        taken_in
    }

    /// The layer must be refused, for a reason that has all of these words.
    #[track_caller]
    fn refuses(&self, tar: &[u8], words: &[&str]) {
        let error = self.ingest(tar).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
        let text = error.to_string();
        for word in words.iter().chain(&["hostile", "at offset"]) {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
        assert!(self.store.layers().unwrap().is_empty());
    }
}
