//! What `docker save` writes: `manifest.json` beside configurations and layers, in the layouts of all versions
//! (a directory for each layer with `layer.tar`, links among them, or blobs as in an OCI layout).

use serde::Deserialize;

use super::Platform;
use super::import::{Candidate, PlannedLayer};
use super::oci::{self, Config};
use super::source::Source;
use crate::digest::{BlobDigest, Digest};
use crate::error::{Error, Result};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of the archive; only those for the platform, if one is wanted.
pub(super) fn candidates(source: &Source, platform: Option<&Platform>) -> Result<Vec<Candidate>> {
    let manifest = source.document("manifest.json")?.ok_or_else(|| source.bad("it has no manifest.json"))?;
    let items: Vec<Item> = oci::parse(source, "manifest.json", &manifest)?;
    if items.is_empty() {
        return Err(source.bad("its manifest.json lists no images"));
    }
    let mut candidates: Vec<Candidate> =
        items.into_iter().map(|item| candidate(source, item)).collect::<Result<_>>()?;
    if let Some(platform) = platform {
        candidates.retain(|Candidate { parsed, .. }| {
            platform.fits(&parsed.os, &parsed.architecture, parsed.variant.as_deref())
        });
        if candidates.is_empty() {
            return Err(source.bad(format!("it has no image for {platform}")));
        }
    }
    Ok(candidates)
}

fn candidate(source: &Source, item: Item) -> Result<Candidate> {
    let config = source.document(&item.config)?.ok_or_else(|| source.bad(format!("{} is missing", item.config)))?;
    let actual = Digest::of(&config);
    if let Some(expected) = digest_in(&item.config)
        && expected != actual
    {
        return Err(Error::DigestMismatch { what: item.config, expected, actual });
    }
    let parsed: Config = oci::parse(source, &item.config, &config)?;
    source.require_layers(item.layers.len())?;
    if parsed.rootfs.diff_ids.len() != item.layers.len() {
        let (ids, count) = (parsed.rootfs.diff_ids.len(), item.layers.len());
        return Err(source.bad(format!("manifest.json has {count} layers, {} has {ids}", item.config)));
    }
    let layers = item.layers.into_iter().zip(&parsed.rootfs.diff_ids).map(|(path, diff_id)| PlannedLayer {
        diff_id: *diff_id,
        blob: path.starts_with("blobs/").then(|| digest_in(&path)).flatten().map(BlobDigest),
        bytes: None,
        path,
    });
    let layers = layers.collect();
    Ok(Candidate {
        names: item.repo_tags.unwrap_or_default(),
        manifest: None,
        config: (actual, config),
        parsed,
        layers,
    })
}

/// The digest that a file is named after.
fn digest_in(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next()?;
    Digest::from_hex(name.strip_suffix(".json").unwrap_or(name).as_bytes())
}
