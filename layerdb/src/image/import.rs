//! Importing: plan first, then take in the layers, then give the images their names in one step.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use super::oci::Config;
use super::source::Source;
use super::{Image, ImportSource, docker, oci};
use crate::digest::{BlobDigest, DiffId, Digest, ObjectId};
use crate::error::{Error, Result};
use crate::ingest::{Compression, IngestOptions, Limits, Progress, unix_seconds};
use crate::layer::Layer;
use crate::object::Staging;
use crate::store::{Batch, Family, Hold, Store};

/// Layers taken in at once: each has three threads, of which decompression is the slowest.
const PARALLEL: usize = 2;

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
    /// Imports the images of a source for this machine's architecture, and returns them as they are now in the
    /// store. An image that had one of the names loses it. If anything is wrong with any of them, none is imported.
    ///
    /// With `name`, the source must have one image, which gets that name, or one of that name, which alone is
    /// imported. An image without any name is called by its manifest's digest.
    pub fn import(
        self: &Arc<Store>,
        source: &ImportSource,
        name: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        self.require_writable()?;
        let (source, mut candidates) = self.candidates(source)?;
        if let Some(name) = name {
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
        let (source, candidates) = self.candidates(source)?;
        let found = candidates.iter().flat_map(|candidate| &candidate.layers).find(|layer| layer.diff_id == diff_id);
        let ingested = found.map(|planned| self.ingest_planned(&source, planned, progress)).transpose()?;
        Ok(ingested.map(|(layer, _hold)| layer))
    }

    fn candidates(&self, source: &ImportSource) -> Result<(Source, Vec<Candidate>)> {
        let open = |path: &Path| Source::open(self, path);
        let (source, docker) = match source {
            ImportSource::OciDir(path) | ImportSource::OciTar(path) => (open(path)?, false),
            ImportSource::DockerTar(path) => (open(path)?, true),
            ImportSource::Detect(path) => {
                let source = open(path)?;
                let layout = source.blob("index.json")?.is_some();
                if !layout && (source.is_directory() || source.blob("manifest.json")?.is_none()) {
                    return Err(source.bad("it is neither an OCI image layout nor from docker save"));
                }
                (source, !layout)
            }
        };
        let candidates = if docker { docker::candidates(&source)? } else { oci::candidates(&source)? };
        Ok((source, candidates))
    }

    /// Takes in the layers and holds them.
    fn ingest_all(
        self: &Arc<Store>,
        source: &Source,
        layers: &[PlannedLayer],
        progress: &dyn Progress,
    ) -> Result<Vec<(Layer, Hold)>> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(Layer, Hold)>> = Mutex::new(Vec::new());
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let work = || {
            while failed.lock().is_none() {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(layer) = layers.get(at) else { return };
                match self.ingest_planned(source, layer, progress) {
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
        let mut blob = blob.ok_or_else(|| source.bad(format!("layer {name}: {} is missing", layer.path)))?;
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
            limits: Limits::default(),
            pin: None,
        };
        self.ingest_held(&mut blob.reader, &options, progress)
    }

    /// Publishes manifests and configurations, and then the images.
    fn name_images(self: &Arc<Store>, candidates: Vec<Candidate>, ingested: &[(Layer, Hold)]) -> Result<Vec<Image>> {
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
            let (manifest, manifest_bytes) =
                candidate.manifest.unwrap_or_else(|| docker::manifest(&candidate.config, &layers));
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

/// The one image that is meant by `name`, with that name.
fn pick(source: &Source, mut candidates: Vec<Candidate>, name: &str) -> Result<Candidate> {
    let at = if candidates.len() == 1 {
        Some(0)
    } else {
        candidates.iter().position(|candidate| candidate.names.iter().any(|known| known == name))
    };
    let Some(at) = at else {
        let names: Vec<&str> = candidates.iter().flat_map(|candidate| &candidate.names).map(String::as_str).collect();
        return Err(source.bad(format!(
            "it has {} images, none of them {name}: {}",
            candidates.len(),
            names.join(", ")
        )));
    };
    let mut candidate = candidates.swap_remove(at);
    candidate.names = vec![name.to_owned()];
    Ok(candidate)
}
