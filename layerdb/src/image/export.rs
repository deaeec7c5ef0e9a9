//! Exporting: an image as one stream of bytes, in a form that other programs take.
//!
//! Layers come back as the tars they were (`Store::export_layer`). A blob that was compressed is compressed again, always
//! in the same way: it has the digest of the original if Mica made that one too, else another one. A manifest whose
//! blobs are all original is written as it came; any other one is derived from it and says of each blob what it is:
//!
//! | annotation | on | value |
//! |---|---|---|
//! | `mica.blob` | layers | `original`: the bytes that the image was made of; `remade`: the same tar in another wrapping |
//! | `mica.blob.original` | remade layers | digest of the original blob |
//! | `mica.manifest.original` | the manifest | digest of the manifest that it was derived from |
//! | `mica.image.name` | the manifest's entry in `index.json` | what Mica calls the image |

mod archive;
mod encode;
mod manifest;

use std::io::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::archive::Archive;
use super::{Image, oci};
use crate::digest::{DiffId, Digest};
use crate::error::{Error, Result};
use crate::ingest::Progress;
use crate::store::Store;
use crate::tar::{Told, write_tree};
pub use encode::Encoding;
use manifest::Described;

/// The form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportForm {
    /// A tar of an OCI image layout and nothing else.
    OciLayout,
    /// The same with the `manifest.json` of docker's archives beside it, so that `docker load` of every version takes it.
    OciArchive,
    /// What `docker save` wrote before it knew OCI: uncompressed layers.
    DockerArchive,
    /// The files that a container sees, in one tar.
    Tar,
}

/// How an image is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportOptions {
    /// In what form.
    pub form: ExportForm,
    /// How its layers are compressed; `None`: as the image has them.
    pub compression: Option<Encoding>,
}

/// Where the bytes of a blob come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobState {
    /// It is the blob that the image was made of.
    Original,
    /// It holds the same tar, but is another blob.
    Remade,
}

/// A layer that was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedLayer {
    /// The layer.
    pub diff_id: DiffId,
    /// Digest of its blob in the export.
    pub digest: Digest,
    /// Length of its blob in the export.
    pub bytes: u64,
    /// What its blob is.
    pub blob: BlobState,
}

/// An image that was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// What it is called.
    pub name: String,
    /// Digest of its manifest in the export; of what has none, of that in the store.
    pub manifest: Digest,
    /// Digest of its configuration.
    pub config: Digest,
    /// Its layers, bottom first; empty if they were merged.
    pub layers: Vec<ExportedLayer>,
    /// Files that the form can't hold.
    pub left_out: u64,
}

impl Store {
    /// Writes an image to `out`. **What was written counts only if this returns without an error.**
    pub fn export_image(
        self: &Arc<Store>,
        image: &Image,
        options: &ExportOptions,
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<Exported> {
        let _hold = self.hold(&image.layers)?;
        let export = Export { store: self, image, options, progress };
        match options.form {
            ExportForm::Tar => export.flat(out),
            ExportForm::DockerArchive => export.docker(out),
            ExportForm::OciLayout | ExportForm::OciArchive => export.oci(out),
        }
    }
}

struct Export<'a> {
    store: &'a Arc<Store>,
    image: &'a Image,
    options: &'a ExportOptions,
    progress: &'a dyn Progress,
}

impl Export<'_> {
    fn flat(&self, out: &mut dyn Write) -> Result<Exported> {
        if self.options.compression.is_some_and(|compression| compression != Encoding::Plain) {
            return Err(self.bad("a tar of its files has no layers to compress"));
        }
        let tree = self.store.chain(&self.image.layers)?;
        self.progress.begin(&self.image.name, None);
        let mut out = Counted { out, name: &self.image.name, progress: self.progress };
        let Told { left_out, .. } = write_tree(&tree, &|id| self.store.open_object(id), &mut out)?;
        self.progress.end(&self.image.name, false);
        Ok(self.exported(self.image.manifest, Vec::new(), left_out))
    }

    fn docker(&self, out: &mut dyn Write) -> Result<Exported> {
        if self.options.compression.is_some_and(|compression| compression != Encoding::Plain) {
            return Err(self.bad("the layers of a docker archive are not compressed"));
        }
        let config = self.store.image_config(self.image)?;
        let mut archive = Archive::new(self.store, out, self.progress);
        let path = |diff_id: DiffId| format!("{}.tar", diff_id.hex());
        let config_path = format!("{}.json", self.image.config.hex());
        let paths: Vec<String> = self.image.layers.iter().map(|diff_id| path(*diff_id)).collect();
        archive.file("manifest.json", &manifest::docker(self.image, &config_path, &paths))?;
        archive.file(&config_path, &config)?;
        let mut layers = Vec::new();
        for diff_id in &self.image.layers {
            let blob = archive.layer(*diff_id, Encoding::Plain, Some(&path(*diff_id)))?;
            let state = BlobState::Original;
            layers.push(ExportedLayer { diff_id: *diff_id, digest: blob.digest, bytes: blob.bytes, blob: state });
        }
        archive.finish()?;
        Ok(self.exported(self.image.manifest, layers, 0))
    }

    fn oci(&self, out: &mut dyn Write) -> Result<Exported> {
        let (manifest, config) = (self.store.image_manifest(self.image)?, self.store.image_config(self.image)?);
        let original = Described::of(&manifest, self.image);
        let mut archive = Archive::new(self.store, out, self.progress);
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.folder("blobs/")?;
        archive.folder("blobs/sha256/")?;
        let mut layers = Vec::new();
        for (at, diff_id) in self.image.layers.iter().enumerate() {
            let known = original.layers.get(at);
            let encoding = self.options.compression.or(known.map(|known| known.encoding)).unwrap_or(Encoding::Gzip);
            let blob = archive.layer(*diff_id, encoding, None)?;
            let is_original = known.is_some_and(|known| known.digest == blob.digest);
            let state = if is_original { BlobState::Original } else { BlobState::Remade };
            let layer = ExportedLayer { diff_id: *diff_id, digest: blob.digest, bytes: blob.bytes, blob: state };
            layers.push((layer, encoding));
        }
        let manifest = original.manifest_with(manifest, &layers, self.image, config.len() as u64)?;
        let digest = Digest::of(&manifest);
        archive.blob(self.image.config, &config)?;
        archive.blob(digest, &manifest)?;
        if self.options.form == ExportForm::OciArchive {
            let paths: Vec<String> = layers.iter().map(|(layer, _)| oci::blob_path(layer.digest)).collect();
            let config_path = oci::blob_path(self.image.config);
            archive.file("manifest.json", &manifest::docker(self.image, &config_path, &paths))?;
        }
        archive.file("index.json", &manifest::index(self.image, digest, manifest.len() as u64))?;
        archive.finish()?;
        Ok(self.exported(digest, layers.into_iter().map(|(layer, _)| layer).collect(), 0))
    }

    fn exported(&self, manifest: Digest, layers: Vec<ExportedLayer>, left_out: u64) -> Exported {
        Exported { name: self.image.name.clone(), manifest, config: self.image.config, layers, left_out }
    }

    fn bad(&self, reason: &str) -> Error {
        Error::BadExport { name: self.image.name.clone(), reason: reason.into() }
    }
}

/// Tells how many bytes went by.
struct Counted<'a> {
    out: &'a mut dyn Write,
    name: &'a str,
    progress: &'a dyn Progress,
}

impl Write for Counted<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.progress.read(self.name, written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
