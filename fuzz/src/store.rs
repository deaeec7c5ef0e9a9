//! A store in memory for inputs that are to be taken in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_layerdb::{IngestOptions, Layer, Limits, Store, StoreOptions};

/// Layers and images taken in before the store is made anew.
const KEPT: u32 = 500;

/// A store that lives as long as its inputs are few.
pub struct World {
    pub store: Arc<Store>,
    /// A layer below the ones that are tried.
    pub base: Layer,
    taken: u32,
    directory: tempfile::TempDir,
}

impl World {
    pub fn new() -> World {
        let directory = tempfile::Builder::new().prefix("mica-fuzz-").tempdir_in(memory()).expect("a directory");
        let options = StoreOptions { limits: limits(), ..StoreOptions::default() };
        let store = Store::open_with(&directory.path().join("store"), options).expect("a store");
        let base = include_bytes!("base.tar");
        let base = store.ingest(&mut &base[..], &IngestOptions::default(), &()).expect("the base layer is good");
        World { store, base, taken: 0, directory }
    }

    /// A place for other files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// To be called when something was taken in.
    pub fn grown(&mut self) {
        self.taken += 1;
        if self.taken == KEPT {
            *self = World::new();
        }
    }

    /// Whatever was done, nothing temporary may stay.
    pub fn require_no_leftovers(&self) {
        let left: Vec<_> = std::fs::read_dir(self.store.root().join("tmp")).expect("tmp/").collect();
        assert!(left.is_empty(), "left in tmp/: {left:?}");
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

/// Where stores are made: what the caller removes afterwards, or else the fastest filesystem there is.
pub fn memory() -> PathBuf {
    let given = std::env::var_os("MICA_FUZZ_MEMORY").map(PathBuf::from);
    given
        .or_else(|| Some(PathBuf::from("/dev/shm")).filter(|shared| shared.is_dir()))
        .unwrap_or_else(std::env::temp_dir)
}

/// Limits that keep a single input quick; each of them can be reached by an input of ordinary length.
pub fn limits() -> Limits {
    Limits {
        entries: 2000,
        depth: 64,
        segments: 1000,
        metadata_bytes: 1 << 20,
        tar_bytes: 8 << 20,
        content_bytes: 8 << 20,
        hole_bytes: 4 << 20,
        expansion: 100,
        expansion_free_bytes: 4 << 20,
        zstd_window_log: 22,
        layers: 20,
        document_bytes: 64 << 10,
        documents_bytes: 128 << 10,
        documents: 64,
        archive_entries: 500,
        ..Limits::default()
    }
}
