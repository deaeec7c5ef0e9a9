//! A store with a few layers that share contents.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use mica_layerdb::disk::{FaultyDisk, RealDisk};
use mica_layerdb::{
    Batch, DiffId, Digest, Error, Family, GcOptions, GcReport, Hold, Image, IngestOptions, ObjectId, Store,
    StoreOptions,
};
use tempfile::TempDir;

pub struct Shop {
    pub directory: TempDir,
    pub disk: Arc<FaultyDisk>,
    pub store: Arc<Store>,
}

/// Contents number `number`, too long to be kept in a tree.
pub fn content(number: usize) -> Vec<u8> {
    let line = format!("contents number {number}\n");
    line.bytes().cycle().take(5000 + number * 1000).collect()
}

pub fn object(number: usize) -> ObjectId {
    ObjectId(Digest::of(&content(number)))
}

/// A tar of files that have these contents. The name tells the layer from another one of the same contents.
pub fn tar(name: &str, contents: &[usize]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes).unwrap();
    };
    add(format!("name/{name}"), b"small");
    for number in contents {
        add(format!("data/{number}"), &content(*number));
    }
    tar.into_inner().unwrap()
}

impl Shop {
    /// In memory if the machine can: syncs of a busy disk are not what is tested.
    pub fn new() -> Shop {
        let shm = Path::new("/dev/shm");
        let directory = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        Shop::open(directory)
    }

    pub fn on_disk() -> Shop {
        Shop::open(tempfile::tempdir().unwrap())
    }

    fn open(directory: TempDir) -> Shop {
        let disk = Arc::new(FaultyDisk::new(RealDisk::open(directory.path()).unwrap()));
        let options = StoreOptions { disk: Some(disk.clone()), ..StoreOptions::default() };
        let store = loop {
            match Store::open_with(directory.path(), options.clone()) {
                // A program that another test starts has the lock too, from fork(2) to execve(2).
                Err(Error::Locked { .. }) => std::thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        Shop { directory, disk, store }
    }

    /// As after the end of the process.
    pub fn reopen(self) -> Shop {
        let Shop { directory, disk, store } = self;
        drop(store);
        drop(disk);
        Shop::open(directory)
    }

    pub fn ingest(&self, name: &str, contents: &[usize]) -> DiffId {
        self.ingest_held(name, contents).0
    }

    pub fn ingest_held(&self, name: &str, contents: &[usize]) -> (DiffId, Hold) {
        let bytes = tar(name, contents);
        let options = IngestOptions { expect_diff_id: Some(DiffId(Digest::of(&bytes))), ..IngestOptions::default() };
        let (layer, hold) = self.store.ingest_held(&mut &bytes[..], &options, &()).unwrap();
        (layer.diff_id, hold)
    }

    /// An image whose documents are contents of layers, since they need to be some objects.
    pub fn put_image(&self, name: &str, layers: &[DiffId], documents: [usize; 2]) {
        let image = Image {
            name: name.to_owned(),
            manifest: object(documents[0]).0,
            config: object(documents[1]).0,
            layers: layers.to_vec(),
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            created: None,
            imported: 0,
        };
        let mut batch = Batch::new();
        batch.put_json(Family::Images, name.as_bytes(), &image).unwrap();
        self.store.db().commit(batch).unwrap();
    }

    pub fn pin(&self, owner: &str, layers: &[DiffId]) {
        let mut batch = Batch::new();
        batch.put_json(Family::Pins, owner.as_bytes(), &layers).unwrap();
        self.store.db().commit(batch).unwrap();
    }

    pub fn unpin(&self, owner: &str) {
        let mut batch = Batch::new();
        batch.delete(Family::Pins, owner.as_bytes());
        self.store.db().commit(batch).unwrap();
    }

    pub fn gc(&self) -> GcReport {
        self.store.gc(GcOptions::default()).unwrap()
    }

    pub fn dry_run(&self) -> GcReport {
        self.store.gc(GcOptions { dry_run: true, ..GcOptions::default() }).unwrap()
    }

    pub fn objects(&self) -> BTreeSet<ObjectId> {
        let mut found = BTreeSet::new();
        for shard in std::fs::read_dir(self.store.objects_path()).unwrap() {
            let shard = shard.unwrap();
            for file in std::fs::read_dir(shard.path()).unwrap() {
                let hex = format!("{}{}", shard.file_name().display(), file.unwrap().file_name().display());
                found.insert(ObjectId(Digest::from_hex(hex.as_bytes()).unwrap()));
            }
        }
        found
    }

    /// The names of the files in a directory of the store.
    pub fn names(&self, directory: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.directory.path().join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}
