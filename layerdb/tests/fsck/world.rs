//! A small store with everything in it, and ways to damage it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_layerdb::fsck::{FsckOptions, FsckReport};
use mica_layerdb::{Batch, ChainId, DiffId, Digest, Family, Image, ImportSource, ObjectId, Store};
use serde_json::{Value, json};

pub struct World {
    pub directory: tempfile::TempDir,
    pub store: Arc<Store>,
    pub image: Image,
}

/// The two layers of the image `app`: each has an object of its own, they share one, and the upper hides a file.
pub fn tars() -> [Vec<u8>; 2] {
    let mut lower = tar::Builder::new(Vec::new());
    add(&mut lower, "bin/one", &[1; 10_000]);
    add(&mut lower, "bin/shared", &vec![9; 20_000]);
    add(&mut lower, "etc/small", b"inline");
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Link);
    link.set_size(0);
    lower.append_link(&mut link, "bin/again", "bin/one").unwrap();
    let mut symlink = tar::Header::new_gnu();
    symlink.set_entry_type(tar::EntryType::Symlink);
    symlink.set_size(0);
    lower.append_link(&mut symlink, "bin/soft", "one").unwrap();
    let mut upper = tar::Builder::new(Vec::new());
    add(&mut upper, "bin/two", &vec![2; 30_000]);
    add(&mut upper, "opt/shared", &vec![9; 20_000]);
    add(&mut upper, "etc/.wh.small", b"");
    [lower.into_inner().unwrap(), upper.into_inner().unwrap()]
}

pub fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, contents: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    builder.append_data(&mut header, name, contents).unwrap();
}

pub fn object_of(fill: u8, bytes: usize) -> ObjectId {
    ObjectId(Digest::of(&vec![fill; bytes]))
}

/// Writes an OCI image layout with these layers.
pub fn layout(path: &Path, tars: &[Vec<u8>]) {
    fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(path.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({ "digest": digest, "size": bytes.len() })
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let of_type = |mut descriptor: Value, media_type: &str| {
        descriptor["mediaType"] = json!(media_type);
        descriptor
    };
    let layers: Vec<Value> =
        tars.iter().map(|tar| of_type(blob(tar), "application/vnd.oci.image.layer.v1.tar")).collect();
    let config = of_type(blob(config.to_string().as_bytes()), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
    });
    let manifest = of_type(blob(manifest.to_string().as_bytes()), "application/vnd.oci.image.manifest.v1+json");
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(path.join("index.json"), index.to_string()).unwrap();
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

impl World {
    pub fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        layout(&directory.path().join("layout"), &tars());
        let store = Store::open(&directory.path().join("store")).unwrap();
        let image = import(&store, &directory.path().join("layout"));
        let mut batch = Batch::new();
        batch.put_json(Family::Pins, b"test/1", &image.layers).unwrap();
        store.db().commit(batch).unwrap();
        store.chain(&image.layers).unwrap();
        let world = World { directory, store, image };
        world.expect_clean();
        world
    }

    pub fn import(&self) {
        import(&self.store, &self.directory.path().join("layout"));
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.store.root().join(path)
    }

    pub fn object(&self, id: ObjectId) -> PathBuf {
        self.store.objects_path().join(id.relative_path())
    }

    pub fn tree(&self, diff_id: DiffId) -> PathBuf {
        self.path("layers/sha256").join(diff_id.hex())
    }

    pub fn recipe(&self, diff_id: DiffId) -> PathBuf {
        self.tree(diff_id).with_extension("recipe")
    }

    pub fn chain(&self) -> ChainId {
        ChainId::of(&self.image.layers).unwrap()
    }

    pub fn chain_tree(&self) -> PathBuf {
        self.path("chains/sha256").join(self.chain().hex())
    }

    pub fn put(&self, family: Family, key: &[u8], value: &[u8]) {
        let mut batch = Batch::new();
        batch.put(family, key, value);
        self.store.db().commit(batch).unwrap();
    }

    pub fn delete(&self, family: Family, key: &[u8]) {
        let mut batch = Batch::new();
        batch.delete(family, key);
        self.store.db().commit(batch).unwrap();
    }

    /// Changes members of a row.
    pub fn edit(&self, family: Family, key: &[u8], edit: impl FnOnce(&mut Value)) {
        let mut row: Value = self.store.db().get_json(family, key).unwrap().unwrap();
        edit(&mut row);
        self.put(family, key, row.to_string().as_bytes());
    }

    pub fn check(&self, options: &FsckOptions) -> FsckReport {
        self.store.fsck(options, &[], &()).unwrap()
    }

    /// Everything that can be checked finds this and nothing else.
    pub fn expect(&self, names: &[&str]) -> FsckReport {
        let report = self.check(&FsckOptions { data: true, deep: true, ..FsckOptions::default() });
        assert_names(&report, names);
        report
    }

    pub fn expect_clean(&self) {
        let report = self.expect(&[]);
        assert!(report.layers >= 2 && report.objects >= 5 && report.images == 1, "{report:?}");
    }

    /// A check that repairs finds these; the next finds those.
    pub fn repair(&self, found: &[&str], left: &[&str]) -> FsckReport {
        self.expect(found);
        let report = self.check(&FsckOptions { data: true, deep: true, repair: true, ..FsckOptions::default() });
        assert_names(&report, found);
        self.expect(left);
        report
    }

    /// What only a person can decide stays as it is.
    pub fn left(&self, found: &[&str]) {
        self.repair(found, found);
    }
}

pub fn assert_names(report: &FsckReport, names: &[&str]) {
    let mut found: Vec<&str> = report.found.iter().map(|found| found.name.as_str()).collect();
    found.sort_unstable();
    let mut names = names.to_vec();
    names.sort_unstable();
    assert_eq!(found, names, "{:#?}", report.found);
}

pub fn import(store: &Arc<Store>, path: &Path) -> Image {
    store.import(&ImportSource::OciDir(path.to_path_buf()), Some("app:1"), &()).unwrap().remove(0)
}

/// Changes a byte in place: the inode stays.
pub fn flip(path: &Path, at: u64) {
    let mode = fs::metadata(path).unwrap().permissions().mode();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let at = usize::try_from(at).unwrap().min(bytes.len() - 1);
    bytes[at] ^= 1;
    let inode = fs::metadata(path).unwrap().ino();
    std::os::unix::fs::FileExt::write_all_at(&fs::File::options().write(true).open(path).unwrap(), &bytes, 0).unwrap();
    assert_eq!(fs::metadata(path).unwrap().ino(), inode);
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Makes a sealed file of these bytes, over what is there.
pub fn write_sealed(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
}

pub fn replace_by_directory(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
}
