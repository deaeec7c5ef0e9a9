//! New images of layers that are in the store, with the configuration of another image.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::config::{Document, Step, rfc3339};
use super::import::Candidate;
use super::oci::{self, Config, RootFs};
use super::{Image, Reference};
use crate::digest::{ChainId, DiffId, Digest};
use crate::error::{Error, Result};
use crate::ingest::unix_seconds;
use crate::store::Store;

/// What a new image is to be.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// What to call it.
    pub name: String,
    /// All its layers, bottom first.
    pub layers: Vec<DiffId>,
    /// How many of them it was built upon: an image with these has the configuration.
    pub below: usize,
    /// The stacks of layers that engines say it was built upon, the nearest first. They find the image if the store has
    /// other layers of the same content, since they were unpacked through a mount.
    pub chains: Vec<ChainId>,
    /// The image that has the configuration, if its layers don't tell.
    pub base: Option<String>,
    /// Who makes it.
    pub author: Option<String>,
    /// A comment for the history.
    pub message: Option<String>,
    /// What made the changes, for the history.
    pub created_by: String,
    /// Instructions of a Dockerfile that change the configuration.
    pub changes: Vec<String>,
}

/// What a configuration says of its platform.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Store {
    /// Makes an image of layers that are in the store. The caller holds them.
    pub fn commit_image(self: &Arc<Store>, commit: &Commit) -> Result<Image> {
        self.require_writable()?;
        let name = Reference::new_name(&commit.name)?;
        let base = self.base_of(commit)?;
        let bad = |reason: String| Error::BadCommit { name: name.clone(), reason };
        let config = self.image_config(&base)?;
        let mut document = Document::parse(&config)
            .map_err(|error| bad(format!("the configuration of {} can't be read: {error}", base.name)))?;
        let told: Told = serde_json::from_slice(&config).unwrap_or_default();
        document.apply(&commit.changes)?;
        let created = rfc3339(unix_seconds());
        document.set_created(&created, commit.author.as_deref());
        document.set_layers(&commit.layers);
        tell_history(&mut document, commit, &base, &created);
        let config = document.bytes();
        let held = commit
            .layers
            .iter()
            .map(|diff_id| {
                let layer = self.layer(*diff_id)?.ok_or(Error::NoLayer { diff_id: *diff_id })?;
                Ok((layer, self.hold(&[*diff_id])?))
            })
            .collect::<Result<Vec<_>>>()?;
        let config = (Digest::of(&config), config);
        let manifest = self.manifest_upon(&base, &config, commit)?;
        let candidate = Candidate {
            names: vec![name.clone()],
            manifest: Some(manifest),
            config,
            parsed: Config {
                os: told.os,
                architecture: told.architecture,
                variant: told.variant,
                created: Some(created),
                rootfs: RootFs { diff_ids: commit.layers.clone() },
            },
            layers: Vec::new(),
        };
        let mut images = self.name_images(vec![candidate], &held)?;
        images.pop().ok_or(Error::NoImage { name })
    }

    /// The image whose configuration the new one takes over: the named one, or the one with the most of its layers.
    fn base_of(&self, commit: &Commit) -> Result<Image> {
        if let Some(base) = &commit.base {
            return self.image(base)?.ok_or_else(|| Error::NoImage { name: base.clone() });
        }
        let below = &commit.layers[..commit.below.min(commit.layers.len())];
        let mut found: Vec<Image> = self.images()?.into_iter().filter(|it| below.starts_with(&it.layers)).collect();
        let most = found.iter().map(|image| image.layers.len()).max().unwrap_or(0);
        found.retain(|image| image.layers.len() == most && most > 0);
        let bad = |reason: String| Err(Error::BadCommit { name: commit.name.clone(), reason });
        if found.is_empty() {
            let images = self.images()?;
            let by_chain = |chain: &ChainId| {
                let named = images.iter().filter(|image| ChainId::of(&image.layers) == Some(*chain));
                let named: Vec<Image> = named.cloned().collect();
                (!named.is_empty()).then_some(named)
            };
            found = commit.chains.iter().find_map(by_chain).unwrap_or_default();
        }
        if found.is_empty() {
            return bad("no image in the store has the layers it is built upon: \
                 name the image whose configuration it is to have with --base"
                .to_owned());
        }
        if found.iter().any(|image| image.config != found[0].config) {
            let names: Vec<&str> = found.iter().map(|image| image.name.as_str()).collect();
            return bad(format!(
                "several images with different configurations have the layers it is built upon ({}): \
                 name one of them with --base",
                names.join(", ")
            ));
        }
        Ok(found.swap_remove(0))
    }

    /// The base's blobs are the new image's; what was added has never been one, and is told as the tar that it is.
    fn manifest_upon(&self, base: &Image, config: &(Digest, Vec<u8>), commit: &Commit) -> Result<(Digest, Vec<u8>)> {
        let manifest: Value = serde_json::from_slice(&self.image_manifest(base)?).unwrap_or_default();
        let known = manifest["layers"].as_array().map_or(&[][..], Vec::as_slice);
        let mut layers = Vec::new();
        for (at, diff_id) in commit.layers.iter().enumerate() {
            let same = known.len() == base.layers.len() && base.layers.get(at) == Some(diff_id);
            if let Some(descriptor) = known.get(at).filter(|_| same) {
                layers.push(as_oci(descriptor));
                continue;
            }
            let layer = self.layer(*diff_id)?.ok_or(Error::NoLayer { diff_id: *diff_id })?;
            layers.push(oci::as_tar(&layer));
        }
        Ok(oci::manifest(config, &layers))
    }
}

/// A history that doesn't speak of just the base's layers would be wrong for the new image's.
fn tell_history(document: &mut Document, commit: &Commit, base: &Image, created: &str) {
    let is_chain = commit.chains.iter().any(|chain| ChainId::of(&base.layers) == Some(*chain));
    let same_layers = commit.layers.starts_with(&base.layers) || is_chain && commit.below == base.layers.len();
    let known = same_layers && document.history_layers() == base.layers.len();
    let upon = if known { base.layers.len() } else { 0 };
    if !known {
        document.clear_history();
    }
    let made = commit.layers.len() > commit.below;
    let unknown = Step { created, created_by: "unknown", author: None, comment: None, empty_layer: false };
    for _ in upon..commit.below {
        document.add_step(&unknown);
    }
    document.add_step(&Step {
        created,
        created_by: &commit.created_by,
        author: commit.author.as_deref(),
        comment: commit.message.as_deref(),
        empty_layer: !made,
    });
}

/// A layer's descriptor with OCI's media type for docker's.
fn as_oci(descriptor: &Value) -> Value {
    let mut descriptor = descriptor.clone();
    let docker =
        descriptor["mediaType"].as_str().and_then(|it| it.strip_prefix("application/vnd.docker.image.rootfs."));
    let suffix = docker.and_then(|it| it.rsplit_once("diff.tar")).map(|(_, suffix)| suffix.replace('.', "+"));
    if let Some(suffix) = suffix {
        descriptor["mediaType"] = format!("application/vnd.oci.image.layer.v1.tar{suffix}").into();
    }
    descriptor
}
