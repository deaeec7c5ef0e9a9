//! Layers and images to take in.

use std::fs;
use std::path::{Path, PathBuf};

use mica_layerdb::{DiffId, Digest, ObjectId};

/// A layer's tar.
#[derive(Debug)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub diff_id: DiffId,
}

/// What the scenario takes in.
#[derive(Debug)]
pub struct Material {
    folder: tempfile::TempDir,
    /// Small contents, in the tree, and three objects.
    pub base: Layer,
    /// More objects than are synced one by one, one of them as in `base`, a large one, a sparse end.
    pub wide: Layer,
    /// Hides and replaces what `base` has.
    pub top: Layer,
    /// One object of its own, one of `wide`.
    pub other: Layer,
    /// The contents of `other` under other names.
    pub other_again: Layer,
    /// A content that only `wide` has.
    pub renewed: ObjectId,
}

impl Material {
    pub fn new() -> Material {
        let base = Layer::of(|tar| {
            tar.directory("etc");
            tar.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n");
            tar.file("etc/empty", b"");
            for number in 0..3 {
                tar.file(&format!("lib-{number}"), &noise(number, 6000));
            }
            tar.link("lib-again", "lib-0");
        });
        let wide = Layer::of(|tar| {
            for number in 10..23 {
                tar.file(&format!("usr/{number}"), &noise(number, 4097 + number as usize));
            }
            tar.file("usr/same-as-base", &noise(1, 6000));
            tar.file("usr/large", &noise(99, (1 << 20) + 12345));
            tar.file("usr/10", &noise(98, 5000));
        });
        let top = Layer::of(|tar| {
            tar.file("etc/.wh.passwd", b"");
            tar.file("lib-1", &noise(40, 7000));
        });
        let other = Layer::of(|tar| {
            tar.file("one", &noise(50, 9000));
            tar.file("two", &noise(11, 4108));
        });
        let other_again = Layer::of(|tar| {
            tar.file("three", &noise(50, 9000));
            tar.file("four", &noise(11, 4108));
        });
        let folder = super::folder();
        let renewed = ObjectId(Digest::of(&noise(12, 4097 + 12)));
        let material = Material { folder, base, wide, top, other, other_again, renewed };
        material.layout("one", &[&material.base, &material.top]);
        material.layout("two", &[&material.base, &material.other]);
        material
    }

    /// Makes an image of `base` and of a layer that only this `number` has.
    pub fn many(&self, name: &str, number: usize) {
        let seed = 1000 + (number as u64 % 1_000_000) * 100;
        let own = Layer::of(|tar| {
            for file in 0..40 {
                tar.file(&format!("own/{file}"), &noise(seed + file, 100 + (file as usize * 331) % 12_000));
            }
            tar.file("own/large", &noise(seed + 99, 1_500_000));
        });
        self.layout(name, &[&self.base, &own]);
    }

    /// An OCI layout by its name.
    pub fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn layout(&self, name: &str, layers: &[&Layer]) {
        let root = self.image(name);
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>()},
        });
        let config = blob(&root, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers: Vec<_> =
            layers.iter().map(|layer| blob(&root, "application/vnd.oci.image.layer.v1.tar", &layer.tar)).collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut manifest = blob(&root, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(root.join("index.json"), index.to_string()).unwrap();
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

fn blob(root: &Path, media_type: &str, bytes: &[u8]) -> serde_json::Value {
    let digest = Digest::of(bytes);
    fs::create_dir_all(root.join("blobs/sha256")).unwrap();
    fs::write(root.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

impl Layer {
    fn of(fill: impl FnOnce(&mut Tar)) -> Layer {
        let mut tar = Tar(tar::Builder::new(Vec::new()));
        fill(&mut tar);
        let tar = tar.0.into_inner().unwrap();
        Layer { diff_id: DiffId(Digest::of(&tar)), tar }
    }
}

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn header(kind: tar::EntryType, size: usize) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
        header.set_mtime(1_700_000_000);
        header.set_size(size as u64);
        header
    }

    fn file(&mut self, name: &str, contents: &[u8]) {
        let mut header = Tar::header(tar::EntryType::Regular, contents.len());
        self.0.append_data(&mut header, name, contents).unwrap();
    }

    fn directory(&mut self, name: &str) {
        self.0.append_data(&mut Tar::header(tar::EntryType::Directory, 0), name, &[][..]).unwrap();
    }

    fn link(&mut self, name: &str, target: &str) {
        self.0.append_link(&mut Tar::header(tar::EntryType::Link, 0), name, target).unwrap();
    }
}

/// Bytes that don't compress and differ by `seed`.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
