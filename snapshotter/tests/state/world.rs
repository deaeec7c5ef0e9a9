//! A folder with a store in it, and calls that are short to write.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_layerdb::{BlobDigest, DiffId, Digest, Store};
use mica_snapshotter::error::Kind as ErrorKind;
use mica_snapshotter::{Applied, Error, Incoming, Mount, Mounter, Result, Snapshots};

use super::machine::{FakeMounter, Machine};

pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A daemon on a machine.
pub struct World {
    pub machine: Arc<Machine>,
    snapshots: Option<Arc<Snapshots>>,
    folder: tempfile::TempDir,
}

impl Deref for World {
    type Target = Snapshots;

    fn deref(&self) -> &Snapshots {
        self.snapshots.as_ref().unwrap()
    }
}

impl World {
    pub fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::new(&folder.path().join("state"));
        let mut world = World { machine, snapshots: None, folder };
        world.start();
        world
    }

    /// For another thread, which must have ended when the daemon stops.
    pub fn shared(&self) -> Arc<Snapshots> {
        Arc::clone(self.snapshots.as_ref().unwrap())
    }

    pub fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("root")
    }

    pub fn stop(&mut self) {
        if let Some(snapshots) = self.snapshots.take() {
            snapshots.close().unwrap();
        }
    }

    pub fn start(&mut self) {
        let store = Store::open(&self.root()).unwrap();
        let mounter: Arc<dyn Mounter> = Arc::new(FakeMounter(Arc::clone(&self.machine)));
        self.snapshots = Some(Snapshots::open(store, mounter).unwrap());
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Changes the store while no daemon has it.
    pub fn tamper(&mut self, change: impl FnOnce(&Arc<Store>)) {
        self.stop();
        change(&Store::open(&self.root()).unwrap());
    }

    pub fn number(&self, key: &str) -> u64 {
        number_of(&self.mounts(key).unwrap())
    }

    pub fn active(&self, key: &str, parent: &str) -> u64 {
        number_of(&self.prepare(key, parent, labels(&[])).unwrap())
    }

    /// A program writes into the mount.
    pub fn write(&self, number: u64, name: &str, content: &str) {
        fs::write(self.store().snapshot_dir(number).join("upper").join(name), content).unwrap();
    }

    pub fn committed(&self, name: &str, key: &str) {
        self.commit(name, key, labels(&[]), None).unwrap();
    }

    /// A committed snapshot with one applied layer that holds one file.
    pub fn layer(&self, name: &str, parent: &str, file: &str) -> DiffId {
        let mounts = self.prepare("extract", parent, labels(&[])).unwrap();
        let applied = self.apply(&mounts, incoming(TAR, &tar(&[(file, name)]))).unwrap().unwrap();
        self.committed(name, "extract");
        applied.diff_id
    }

    pub fn apply_to(&self, key: &str, layer: Incoming) -> Result<Option<Applied>> {
        self.apply(&self.mounts(key)?, layer)
    }

    /// The names in the root of what lies below a mount.
    pub fn names_below(&self, key: &str) -> Vec<String> {
        let tree = self.machine.look(self.number(key)).unwrap();
        let root = tree.inode(tree.root()).unwrap();
        let entries = tree.entries(&root, 0).unwrap();
        entries.map(|entry| String::from_utf8(entry.unwrap().name.to_vec()).unwrap()).collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.list(&[]).unwrap().into_iter().map(|info| info.name).collect()
    }

    /// Removes all snapshots and collects; nothing may be left then.
    pub fn remove_all(&self) {
        let mut names = self.names();
        while !names.is_empty() {
            let before = names.len();
            names.retain(|name| self.remove(name).is_err());
            assert!(names.len() < before, "{names:?} can't be removed");
        }
        self.cleanup().unwrap();
        self.assert_empty();
    }

    pub fn assert_empty(&self) {
        eventually("mounts have ended", || self.machine.mounted().is_empty());
        eventually("folders are gone", || self.store().snapshot_dirs().unwrap().is_empty());
        self.cleanup().unwrap();
        let root = self.root();
        for folder in ["objects", "layers/sha256", "chains/sha256", "tmp", "snapshots"] {
            assert_eq!(files(&root.join(folder)), [""; 0], "left in {folder}");
        }
        for family in FAMILIES {
            let rows = self.store().db().scan(family, b"").unwrap();
            assert!(rows.is_empty(), "left in {family:?}: {rows:?}");
        }
    }
}

const FAMILIES: [mica_layerdb::Family; 8] = [
    mica_layerdb::Family::Layers,
    mica_layerdb::Family::Chains,
    mica_layerdb::Family::Pins,
    mica_layerdb::Family::Snapshots,
    mica_layerdb::Family::Children,
    mica_layerdb::Family::Labels,
    mica_layerdb::Family::Usage,
    mica_layerdb::Family::Ops,
];

/// The files below a folder; empty folders don't count.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

pub fn number_of(mounts: &[Mount]) -> u64 {
    mounts[0].source.rsplit_once('/').unwrap().1.parse().unwrap()
}

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
}

pub fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Names that the library would refuse, too.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn incoming(media_type: &str, bytes: &[u8]) -> Incoming {
    reading(media_type, bytes, Cursor::new(bytes.to_vec()))
}

pub fn reading(media_type: &str, bytes: &[u8], reader: impl Read + Send + 'static) -> Incoming {
    Incoming {
        reader: Box::new(reader),
        media_type: media_type.into(),
        blob: Some(BlobDigest(Digest::of(bytes))),
        size: bytes.len() as u64,
        diff_id: None,
    }
}

pub fn diff_id(tar: &[u8]) -> DiffId {
    DiffId(Digest::of(tar))
}

/// The error's kind, once its text is known to name what it is about.
#[track_caller]
pub fn kind<T: std::fmt::Debug>(result: Result<T>, named: &str) -> ErrorKind {
    let error: Error = result.unwrap_err();
    assert!(error.to_string().contains(named), "{error} does not name {named}");
    error.kind()
}

#[track_caller]
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
