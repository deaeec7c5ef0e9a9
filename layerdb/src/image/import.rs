//! Importing: plan first, then take in the layers, then give the images their names in one step.

use std::cmp::Reverse;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::oci::Config;
use super::rootfs::Files;
use super::source::Source;
use super::{Image, ImportSource, Platform, Reference, docker, oci};
use crate::digest::{BlobDigest, DiffId, Digest, ObjectId};
use crate::error::{Error, Result};
use crate::ingest::{Compression, IngestOptions, Progress, unix_seconds};
use crate::layer::Layer;
use crate::object::Staging;
use crate::store::{Batch, Family, Hold, Store};

/// Layers taken in at once: each has four threads, of which decompression is the slowest.
const PARALLEL: usize = 2;

/// What a source is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportFormat {
    /// An OCI image layout: a directory, or a tar of one.
    Oci,
    /// What `docker save` writes.
    Docker,
    /// A tar of files, compressed or not.
    Tar,
    /// A directory of files.
    Dir,
}

/// How a source is imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportOptions {
    /// What to call the image.
    pub name: Option<String>,
    /// What the source is; `None`: whatever it looks like.
    pub format: Option<ImportFormat>,
    /// `OS/ARCHITECTURE[/VARIANT]`; `None`: this machine's.
    pub platform: Option<String>,
    /// For plain tars and directories: instructions of a Dockerfile that make the configuration.
    pub changes: Vec<String>,
    /// For plain tars and directories: a comment for the history.
    pub message: Option<String>,
}

impl ImportSource {
    fn told(&self) -> (&Path, Option<ImportFormat>) {
        match self {
            ImportSource::OciDir(path) | ImportSource::OciTar(path) => (path, Some(ImportFormat::Oci)),
            ImportSource::DockerTar(path) => (path, Some(ImportFormat::Docker)),
            ImportSource::Detect(path) => (path, None),
        }
    }
}

/// What a source turned out to be.
enum Found {
    Images(Box<Source>, Vec<Candidate>),
    Files(Files),
}

/// An image found in a source.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) names: Vec<String>,
    /// Digest and bytes. `None` if the source has none.
    pub(super) manifest: Option<(Digest, Vec<u8>)>,
    pub(super) config: (Digest, Vec<u8>),
    pub(super) parsed: Config,
    pub(super) layers: Vec<PlannedLayer>,
}

/// A layer to be taken in.
#[derive(Clone, Debug)]
pub(super) struct PlannedLayer {
    pub(super) diff_id: DiffId,
    pub(super) blob: Option<BlobDigest>,
    pub(super) bytes: Option<u64>,
    pub(super) path: String,
}

impl Store {
    /// [`Store::import_with`] of a source for this machine's platform.
    pub fn import(
        self: &Arc<Store>,
        source: &ImportSource,
        name: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        let (path, format) = source.told();
        let options = ImportOptions { name: name.map(ToOwned::to_owned), format, ..ImportOptions::default() };
        self.import_with(path, &options, progress)
    }

    /// Imports the images at `path`, and returns them as they are now in the store. An image that had one of the names
    /// loses it. If anything is wrong with any of them, none is imported.
    ///
    /// With a name, the source must have one image, which gets that name, or one of that name, which alone is
    /// imported. An image without any name is called by its manifest's digest. A plain tar and a plain directory
    /// become an image of one layer, and need a name.
    pub fn import_with(
        self: &Arc<Store>,
        path: &Path,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        self.require_writable()?;
        let platform = options.platform.as_deref().map(Platform::parse).transpose()?;
        let (source, mut candidates) = match self.candidates(path, options.format, platform.as_ref())? {
            Found::Images(source, candidates) => (source, candidates),
            Found::Files(files) => return Ok(vec![self.import_files(path, files, options, platform, progress)?]),
        };
        if !options.changes.is_empty() || options.message.is_some() {
            return Err(source.bad("an image has a configuration; changes are for plain tars and directories"));
        }
        if let Some(name) = &options.name {
            candidates = vec![pick(&source, candidates, name)?];
        }
        let mut wanted: Vec<PlannedLayer> = Vec::new();
        for layer in candidates.iter().flat_map(|candidate| &candidate.layers) {
            if wanted.iter().all(|known| known.diff_id != layer.diff_id) {
                wanted.push(layer.clone());
            }
        }
        let ingested = self.ingest_all(&source, &wanted, progress)?;
        self.name_images(candidates, &ingested)
    }

    /// Takes in one layer from a source that has it. `None` if it hasn't.
    pub(crate) fn ingest_from(
        self: &Arc<Store>,
        source: &ImportSource,
        diff_id: DiffId,
        progress: &dyn Progress,
    ) -> Result<Option<Layer>> {
        self.require_writable()?;
        let (path, format) = source.told();
        let Found::Images(source, candidates) = self.candidates(path, format, None)? else { return Ok(None) };
        let found = candidates.iter().flat_map(|candidate| &candidate.layers).find(|layer| layer.diff_id == diff_id);
        let ingested = found.map(|planned| self.ingest_planned(&source, planned, progress)).transpose()?;
        Ok(ingested.map(|(layer, _hold)| layer))
    }

    fn candidates(
        self: &Arc<Store>,
        path: &Path,
        format: Option<ImportFormat>,
        platform: Option<&Platform>,
    ) -> Result<Found> {
        match format {
            Some(ImportFormat::Tar) => return Ok(Found::Files(Files::Tar)),
            Some(ImportFormat::Dir) => return Ok(Found::Files(Files::Folder)),
            _ => {}
        }
        let source = Source::open(self, path)?;
        let format = match format {
            Some(format) => format,
            None if source.blob("index.json")?.is_some() => ImportFormat::Oci,
            None if source.blob("oci-layout")?.is_some() => {
                return Err(source.bad("it has an oci-layout, but no index.json"));
            }
            None if source.is_directory() => ImportFormat::Dir,
            None if source.blob("manifest.json")?.is_some() => ImportFormat::Docker,
            None => ImportFormat::Tar,
        };
        let candidates = match format {
            ImportFormat::Oci => oci::candidates(&source, platform.unwrap_or(&Platform::host()))?,
            ImportFormat::Docker => docker::candidates(&source, platform)?,
            ImportFormat::Tar => return Ok(Found::Files(Files::Tar)),
            ImportFormat::Dir => return Ok(Found::Files(Files::Folder)),
        };
        Ok(Found::Images(Box::new(source), candidates))
    }

    /// Takes in the layers and holds them. The largest come first, so that none of them is worked on alone at the end.
    fn ingest_all(
        self: &Arc<Store>,
        source: &Source,
        layers: &[PlannedLayer],
        progress: &dyn Progress,
    ) -> Result<Vec<(Layer, Hold)>> {
        let mut order: Vec<usize> = (0..layers.len()).collect();
        order.sort_by_key(|at| Reverse(layers[*at].bytes));
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(Layer, Hold)>> = Mutex::new(Vec::new());
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let work = || {
            while failed.lock().is_none() {
                let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                match self.ingest_planned(source, &layers[at], progress) {
                    Ok(ingested) => done.lock().push(ingested),
                    Err(error) => {
                        let mut failed = failed.lock();
                        if failed.as_ref().is_none_or(|known| is_better_told(&(at, &error), known)) {
                            *failed = Some((at, error));
                        }
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..PARALLEL.min(layers.len()) {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner() {
            Some((_, error)) => Err(error),
            None => Ok(done.into_inner()),
        }
    }

    fn ingest_planned(
        self: &Arc<Store>,
        source: &Source,
        layer: &PlannedLayer,
        progress: &dyn Progress,
    ) -> Result<(Layer, Hold)> {
        let name = layer.blob.map_or_else(|| layer.diff_id.to_string(), |blob| blob.to_string());
        let blob = source.blob(&layer.path)?;
        let blob = blob.ok_or_else(|| source.bad(format!("layer {name}: {} is missing", layer.path)))?;
        if layer.bytes.is_some_and(|bytes| bytes != blob.bytes) {
            let expected = layer.bytes.unwrap_or_default();
            let reason = format!("layer {name}: {} has {} bytes instead of {expected}", layer.path, blob.bytes);
            return Err(source.bad(reason));
        }
        progress.begin(&name, Some(blob.bytes));
        let options = IngestOptions {
            compression: Compression::Detect,
            expect_diff_id: Some(layer.diff_id),
            expect_blob: layer.blob,
            name,
            limits: None,
            pin: None,
        };
        self.ingest_held(&mut Wanted { reader: blob.reader, progress }, &options, progress)
    }

    /// Publishes manifests and configurations, and then the images.
    pub(super) fn name_images(
        self: &Arc<Store>,
        candidates: Vec<Candidate>,
        ingested: &[(Layer, Hold)],
    ) -> Result<Vec<Image>> {
        let mut staging = Staging::new(self, self.claims.hold())?;
        let mut images = Vec::new();
        let mut batch = Batch::new();
        for candidate in candidates {
            let ids = &candidate.parsed.rootfs.diff_ids;
            let layers: Vec<Layer> = ids
                .iter()
                .map(|id| ingested.iter().find(|(layer, _)| layer.diff_id == *id).map(|(layer, _)| layer.clone()))
                .collect::<Option<_>>()
                .ok_or_else(|| Error::NoLayer { diff_id: ids[0] })?;
            let as_tars: Vec<_> = layers.iter().map(oci::as_tar).collect();
            let (manifest, manifest_bytes) =
                candidate.manifest.unwrap_or_else(|| oci::manifest(&candidate.config, &as_tars));
            let (config, config_bytes) = candidate.config;
            staging.add(ObjectId(manifest), &manifest_bytes)?;
            staging.add(ObjectId(config), &config_bytes)?;
            let mut names = candidate.names;
            if names.is_empty() {
                names.push(manifest.to_string());
            }
            for name in names {
                let image = Image {
                    name,
                    manifest,
                    config,
                    layers: ids.clone(),
                    os: candidate.parsed.os.clone(),
                    architecture: candidate.parsed.architecture.clone(),
                    created: candidate.parsed.created.clone(),
                    imported: unix_seconds(),
                };
                batch.put_json(Family::Images, image.name.as_bytes(), &image)?;
                images.push(image);
            }
        }
        staging.publish()?;
        self.db().commit(batch)?;
        Ok(images)
    }
}

/// True if the failure of a layer, by its position, says more than another one: that of the earlier layer does, but a
/// refusal because another thread's sync failed says less than that failure.
fn is_better_told((at, error): &(usize, &Error), (known_at, known): &(usize, Error)) -> bool {
    let refused = |error: &Error| matches!(error, Error::Broken { .. });
    (refused(error), at) < (refused(known), known_at)
}

/// The one image that is meant by `name`: with that name, or with the one it has itself.
fn pick(source: &Source, mut candidates: Vec<Candidate>, name: &str) -> Result<Candidate> {
    let called =
        |wanted: &str| candidates.iter().position(|candidate| candidate.names.iter().any(|known| known == wanted));
    if let Some(at) = called(name) {
        let mut candidate = candidates.swap_remove(at);
        candidate.names = vec![name.to_owned()];
        return Ok(candidate);
    }
    let new_name = Reference::new_name(name)?;
    let at = if candidates.len() == 1 { Some(0) } else { called(&new_name) };
    let Some(at) = at else {
        let names: Vec<&str> = candidates.iter().flat_map(|candidate| &candidate.names).map(String::as_str).collect();
        return Err(source.bad(format!(
            "it has {} images, none of them {name}: {}",
            candidates.len(),
            names.join(", ")
        )));
    };
    let mut candidate = candidates.swap_remove(at);
    candidate.names = vec![new_name];
    Ok(candidate)
}

/// An input that ends with an error when nobody waits for what becomes of it.
pub(super) struct Wanted<'a, R> {
    pub(super) reader: R,
    pub(super) progress: &'a dyn Progress,
}

impl<R: Read> Read for Wanted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.progress.is_abandoned() {
            return Err(io::Error::other("nobody waits for the import any more"));
        }
        self.reader.read(buffer)
    }
}
