//! OCI image layouts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Layer, digest_of};
use crate::failure::{Context as _, Result};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A folder that is an OCI image layout.
#[derive(Debug)]
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// An empty layout in a new folder.
    pub fn create(folder: &Path) -> Result<Layout> {
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        fs::write(folder.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
        let index = json!({ "schemaVersion": 2, "manifests": [] });
        fs::write(folder.join("index.json"), index.to_string())?;
        Ok(Layout { folder: folder.to_path_buf() })
    }

    /// The layout in an archive, unpacked into a new folder.
    pub fn unpack(archive: &Path, folder: &Path) -> Result<Layout> {
        tar::Archive::new(File::open(archive)?).unpack(folder)?;
        Ok(Layout { folder: folder.to_path_buf() })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Adds an image of these layers; `name` is its tag and what engines call it.
    pub fn add_image(&self, name: &str, layers: &[Layer]) -> Result {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": [] },
        });
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "layers": [] });
        self.put_image(name, manifest, config, layers)
    }

    /// Adds an image that is the only one of this layout plus layers; returns the number of layers it has.
    pub fn add_layers(&self, name: &str, layers: &[Layer]) -> Result<usize> {
        let index = read_json(&self.folder.join("index.json"))?;
        let manifest = self.manifest_of(&index["manifests"][0])?;
        let config = self.blob_json(&manifest["config"]["digest"])?;
        let below = manifest["layers"].as_array().map_or(0, Vec::len);
        self.put_image(name, manifest, config, layers)?;
        Ok(below + layers.len())
    }

    /// Writes the layout as an archive that holds the index and every blob.
    pub fn archive(&self, to: &Path) -> Result {
        let mut builder = tar::Builder::new(File::create(to)?);
        builder.append_dir_all("", &self.folder)?;
        builder.finish()?;
        Ok(())
    }

    /// Stores a blob under a digest that need not be its own.
    pub fn put_blob(&self, digest: &str, bytes: &[u8]) -> Result {
        Ok(fs::write(self.blob_path(digest), bytes)?)
    }

    /// The file of a blob.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap_or(digest))
    }

    fn put_image(&self, name: &str, mut manifest: Value, mut config: Value, layers: &[Layer]) -> Result {
        for layer in layers {
            self.put_blob(&layer.digest, &layer.blob)?;
            let described = json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.blob.len() });
            push(&mut manifest["layers"], described)?;
            push(&mut config["rootfs"]["diff_ids"], json!(layer.diff_id))?;
        }
        // An optional list with an entry for each layer: right or absent.
        config.as_object_mut().map(|config| config.remove("history"));
        manifest["config"] = self.put_json(&config, CONFIG)?;
        let mut entry = self.put_json(&manifest, MANIFEST)?;
        entry["annotations"] = json!({
            "org.opencontainers.image.ref.name": name, "io.containerd.image.name": name,
        });
        fs::write(self.folder.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string())?;
        Ok(())
    }

    /// The manifest that an index entry leads to, through an index of platforms if there is one.
    fn manifest_of(&self, entry: &Value) -> Result<Value> {
        let document = self.blob_json(&entry["digest"])?;
        match document.get("manifests") {
            Some(platforms) => self.manifest_of(&platforms[0]),
            None => Ok(document),
        }
    }

    fn put_json(&self, value: &Value, media_type: &str) -> Result<Value> {
        let bytes = serde_json::to_vec(value)?;
        let digest = digest_of(&bytes);
        self.put_blob(&digest, &bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
    }

    fn blob_json(&self, digest: &Value) -> Result<Value> {
        read_json(&self.blob_path(digest.as_str().context("a descriptor has a digest")?))
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).context(path.display())?;
    serde_json::from_slice(&bytes).context(path.display())
}

fn push(list: &mut Value, value: Value) -> Result {
    list.as_array_mut().context("an image's document has a list of layers")?.push(value);
    Ok(())
}
