//! The documents of an export.

use serde_json::{Map, Value, json};

use super::encode::Encoding;
use super::{BlobState, ExportedLayer};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Image, Reference};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Annotations of layers that speak of the bytes of one blob (zstd:chunked, eStargz): they are wrong for another.
const OF_THE_BLOB: [&str; 3] =
    ["io.github.containers.zstd-chunked.", "containerd.io/snapshot/stargz/", "io.containers.estargz."];

/// What a manifest says of its layers.
pub(super) struct Described {
    document: Map<String, Value>,
    /// In the order of the image's layers; empty if the manifest doesn't have as many.
    pub(super) layers: Vec<DescribedLayer>,
    is_oci: bool,
}

pub(super) struct DescribedLayer {
    pub(super) digest: Digest,
    pub(super) encoding: Encoding,
}

impl Described {
    pub(super) fn of(manifest: &[u8], image: &Image) -> Described {
        let document: Map<String, Value> = serde_json::from_slice(manifest).unwrap_or_default();
        let descriptors = document.get("layers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let layer = |descriptor: &Value| {
            let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
            let digest = Digest::parse(descriptor["digest"].as_str()?).ok()?;
            Some(DescribedLayer { digest, encoding: Encoding::of(media_type) })
        };
        let layers: Option<Vec<_>> = descriptors.iter().map(layer).collect();
        let layers = layers.filter(|layers| layers.len() == image.layers.len()).unwrap_or_default();
        let is = |value: &Value, wanted: &str| value.as_str() == Some(wanted);
        let is_oci = document.get("mediaType").is_none_or(|kind| is(kind, MANIFEST))
            && document.get("config").is_some_and(|config| is(&config["mediaType"], CONFIG))
            && descriptors
                .iter()
                .all(|it| it["mediaType"].as_str().is_some_and(|kind| kind.starts_with("application/vnd.oci.")));
        Described { document, layers, is_oci }
    }

    /// The manifest with these blobs: itself, if nothing about it changes.
    pub(super) fn manifest_with(
        &self,
        original: Vec<u8>,
        layers: &[(ExportedLayer, Encoding)],
        image: &Image,
        config_bytes: u64,
    ) -> Result<Vec<u8>> {
        if self.is_oci && layers.iter().all(|(layer, _)| layer.blob == BlobState::Original) {
            return Ok(original);
        }
        let mut document = self.document.clone();
        document.insert("schemaVersion".into(), 2.into());
        document.insert("mediaType".into(), MANIFEST.into());
        let config = json!({ "mediaType": CONFIG, "digest": image.config, "size": config_bytes });
        document.insert("config".into(), config);
        let described = self.document.get("layers").and_then(Value::as_array);
        let layers = layers.iter().enumerate().map(|(at, (layer, encoding))| {
            let known = self.layers.get(at).and(described).and_then(|described| described.get(at));
            described_blob(known, self.layers.get(at).map(|known| known.digest), layer, *encoding)
        });
        document.insert("layers".into(), layers.collect());
        let annotations = document.entry("annotations").or_insert_with(|| json!({}));
        if let Value::Object(annotations) = annotations {
            annotations.insert("mica.manifest.original".into(), json!(image.manifest));
        }
        serde_json::to_vec(&document).map_err(|error| Error::BadExport {
            name: image.name.clone(),
            reason: format!("its manifest can't be written: {error}"),
        })
    }
}

/// A layer's descriptor in an export.
fn described_blob(known: Option<&Value>, original: Option<Digest>, layer: &ExportedLayer, encoding: Encoding) -> Value {
    let remade = layer.blob == BlobState::Remade;
    let mut annotations = match known.map(|known| &known["annotations"]) {
        Some(Value::Object(annotations)) => annotations.clone(),
        _ => Map::new(),
    };
    if remade {
        annotations.retain(|key, _| !OF_THE_BLOB.iter().any(|prefix| key.starts_with(prefix)));
        if let Some(original) = original {
            annotations.insert("mica.blob.original".into(), json!(original));
        }
    }
    annotations.insert("mica.blob".into(), json!(layer.blob));
    json!({
        "mediaType": encoding.media_type(),
        "digest": layer.digest,
        "size": layer.bytes,
        "annotations": annotations,
    })
}

/// `index.json` of a layout with one image.
pub(super) fn index(image: &Image, manifest: Digest, bytes: u64) -> Vec<u8> {
    let mut annotations = Map::new();
    if !is_digest(&image.name) {
        annotations.insert("mica.image.name".into(), json!(image.name));
        let reference = Reference::parse(&image.name).ok();
        let tag = reference.as_ref().map_or(image.name.as_str(), |it| it.tag.as_deref().unwrap_or(&image.name));
        annotations.insert("org.opencontainers.image.ref.name".into(), json!(tag));
        if let Some(reference) = &reference {
            annotations.insert("io.containerd.image.name".into(), json!(reference.full_name()));
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest,
            "size": bytes,
            "platform": { "os": image.os, "architecture": image.architecture },
            "annotations": annotations,
        }],
    });
    index.to_string().into_bytes()
}

/// `manifest.json` of docker's archives.
pub(super) fn docker(image: &Image, config: &str, layers: &[String]) -> Vec<u8> {
    let reference = if is_digest(&image.name) { None } else { Reference::parse(&image.name).ok() };
    let tags: Vec<String> = reference.iter().map(Reference::familiar_name).collect();
    let item = json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]);
    item.to_string().into_bytes()
}

/// Images without a name are called by their manifest.
fn is_digest(name: &str) -> bool {
    Digest::parse(name).is_ok()
}
