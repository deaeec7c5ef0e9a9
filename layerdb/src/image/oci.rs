//! Documents of the OCI image specification, and the choice among them.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::import::{Candidate, PlannedLayer};
use super::platform::Platform;
use super::source::Source;
use crate::digest::{BlobDigest, DiffId, Digest};
use crate::error::{Error, Result};
use crate::layer::Layer;

/// Indexes within indexes.
const DEPTH_MAX: u32 = 4;

const NAMES: [&str; 3] = ["mica.image.name", "io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// OCI image-spec, "OCI Content Descriptors".
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Told>,
}

/// The platform that a descriptor tells.
#[derive(Clone, Debug, Deserialize)]
struct Told {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// An image index or an image manifest, whichever members are there.
#[derive(Debug, Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// OCI image-spec, "Image Configuration": what matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
    pub(super) created: Option<String>,
    pub(crate) rootfs: RootFs,
}

/// The layers of a configuration.
#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    pub(crate) diff_ids: Vec<DiffId>,
}

/// The images of a layout: of each name, the one for this platform.
pub(super) fn candidates(source: &Source, platform: &Platform) -> Result<Vec<Candidate>> {
    let index = source.document("index.json")?.ok_or_else(|| source.bad("it has no index.json"))?;
    let index: Document = parse(source, "index.json", &index)?;
    let manifests = index.manifests.ok_or_else(|| source.bad("its index.json lists no manifests"))?;
    let mut groups: Vec<(Option<String>, Vec<Descriptor>)> = Vec::new();
    for descriptor in manifests.into_iter().filter(is_image) {
        let name = NAMES.iter().find_map(|key| descriptor.annotations.get(*key)).cloned();
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, group)) => group.push(descriptor),
            None => groups.push((name, vec![descriptor])),
        }
    }
    if groups.is_empty() {
        return Err(source.bad("its index.json lists no images"));
    }
    let mut candidates = Vec::new();
    for (name, group) in groups {
        let mut others = Vec::new();
        let chosen = choose(source, &group, platform, DEPTH_MAX, &mut others)?.ok_or_else(|| {
            let found = if others.is_empty() { "nothing".into() } else { others.join(", ") };
            source.bad(format!("it has no image for {platform}, but {found}"))
        })?;
        candidates.push(Candidate { names: name.into_iter().collect(), ..chosen });
    }
    Ok(candidates)
}

/// Attestations stand among an index's manifests, for a platform of their own.
fn is_image(descriptor: &Descriptor) -> bool {
    !descriptor.annotations.contains_key("vnd.docker.reference.type")
        && descriptor.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
}

/// The first of the descriptors that leads to an image for this platform.
fn choose(
    source: &Source,
    descriptors: &[Descriptor],
    platform: &Platform,
    depth: u32,
    others: &mut Vec<String>,
) -> Result<Option<Candidate>> {
    for descriptor in descriptors.iter().filter(|descriptor| is_image(descriptor)) {
        if let Some(Told { os, architecture, variant }) = &descriptor.platform
            && !platform.fits(os, architecture, variant.as_deref())
        {
            others.push(Platform::show(os, architecture, variant.as_deref()));
            continue;
        }
        let digest = Digest::parse(&descriptor.digest)?;
        let bytes = blob_document(source, descriptor)?;
        let document: Document = parse(source, &descriptor.digest, &bytes)?;
        let found = match document {
            Document { manifests: Some(nested), .. } => {
                if depth == 0 {
                    return Err(source.bad("its indexes are nested too deep"));
                }
                choose(source, &nested, platform, depth - 1, others)?
            }
            Document { config: Some(config), layers: Some(layers), .. } => {
                image(source, (digest, bytes), &config, &layers, platform, others)?
            }
            _ => return Err(source.bad(format!("{digest} is neither an index nor a manifest"))),
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn image(
    source: &Source,
    manifest: (Digest, Vec<u8>),
    config: &Descriptor,
    layers: &[Descriptor],
    platform: &Platform,
    others: &mut Vec<String>,
) -> Result<Option<Candidate>> {
    let config_digest = Digest::parse(&config.digest)?;
    let config_bytes = blob_document(source, config)?;
    let parsed: Config = parse(source, &config.digest, &config_bytes)?;
    if !platform.fits(&parsed.os, &parsed.architecture, parsed.variant.as_deref()) {
        others.push(Platform::show(&parsed.os, &parsed.architecture, parsed.variant.as_deref()));
        return Ok(None);
    }
    source.require_layers(layers.len())?;
    if parsed.rootfs.diff_ids.len() != layers.len() {
        let (ids, count) = (parsed.rootfs.diff_ids.len(), layers.len());
        return Err(source.bad(format!("manifest {} has {count} layers, its configuration {ids}", manifest.0)));
    }
    let mut planned = Vec::new();
    for (descriptor, diff_id) in layers.iter().zip(&parsed.rootfs.diff_ids) {
        require_layer_type(source, descriptor)?;
        let digest = Digest::parse(&descriptor.digest)?;
        planned.push(PlannedLayer {
            diff_id: *diff_id,
            blob: Some(BlobDigest(digest)),
            bytes: Some(descriptor.size),
            path: blob_path(digest),
        });
    }
    Ok(Some(Candidate {
        names: Vec::new(),
        manifest: Some(manifest),
        config: (config_digest, config_bytes),
        parsed,
        layers: planned,
    }))
}

fn require_layer_type(source: &Source, descriptor: &Descriptor) -> Result<()> {
    let Some(media_type) = &descriptor.media_type else { return Ok(()) };
    let layer = media_type.contains(".layer.")
        || media_type.contains(".rootfs.diff.")
        || media_type.contains(".rootfs.foreign.diff.");
    if layer && media_type.contains("tar") && !media_type.contains("encrypted") {
        return Ok(());
    }
    Err(source.bad(format!("layer {} has media type {media_type}, which is no plain tar layer", descriptor.digest)))
}

pub(super) fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads a document by its descriptor and checks it.
fn blob_document(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let expected = Digest::parse(&descriptor.digest)?;
    let path = blob_path(expected);
    let bytes = source.document(&path)?.ok_or_else(|| source.bad(format!("{path} is missing")))?;
    let actual = Digest::of(&bytes);
    if actual != expected {
        return Err(Error::DigestMismatch { what: path, expected, actual });
    }
    if bytes.len() as u64 != descriptor.size {
        return Err(source.bad(format!("{path} has {} bytes instead of {}", bytes.len(), descriptor.size)));
    }
    Ok(bytes)
}

pub(super) fn parse<'a, T: Deserialize<'a>>(source: &Source, name: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| source.bad(format!("{name}: {error}")))
}

/// The descriptor of a layer as the tar that it is, which Mica can give back whatever became of its blob.
pub(super) fn as_tar(layer: &Layer) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": layer.diff_id,
        "size": layer.tar_bytes,
    })
}

/// A manifest for an image that has none: its configuration, and the descriptors of its layers, bottom first.
pub(super) fn manifest(config: &(Digest, Vec<u8>), layers: &[Value]) -> (Digest, Vec<u8>) {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.0,
            "size": config.1.len(),
        },
        "layers": layers,
    });
    let bytes = manifest.to_string().into_bytes();
    (Digest::of(&bytes), bytes)
}
