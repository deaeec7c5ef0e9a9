//! What is asked of layers.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use mica_layerdb::diff::Contents;
use mica_layerdb::{DiffId, Family, Layer, Store};
use serde::{Deserialize, Serialize};

use super::Admin;
use crate::error::{Error, Result};
use crate::store::Rows;

/// A layer, what is in it, and who needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer.
    pub layer: Layer,
    /// What its tree holds.
    pub contents: Contents,
    /// Who needs it.
    pub used_by: LayerUsers,
}

/// Who needs a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerUsers {
    /// Names of images.
    pub images: Vec<String>,
    /// Engines' names of snapshots.
    pub snapshots: Vec<String>,
    /// Locks of images that are mounted.
    pub mounts: Vec<String>,
}

impl LayerReport {
    pub(super) fn of(store: &Arc<Store>, layer: Layer) -> Result<LayerReport> {
        let contents = Contents::of(&*store.layer_tree(layer.diff_id)?)?;
        let used_by = LayerUsers::of(store, layer.diff_id)?;
        Ok(LayerReport { layer, contents, used_by })
    }
}

impl LayerUsers {
    fn of(store: &Arc<Store>, diff_id: DiffId) -> Result<LayerUsers> {
        let mut users = LayerUsers::default();
        for image in store.images()? {
            if image.layers.contains(&diff_id) {
                users.images.push(image.name);
            }
        }
        let mut names = HashMap::new();
        Rows::open(Arc::clone(store))?.each(|key, record| {
            names.insert(record.number.to_string(), key.to_owned());
        })?;
        for (owner, layers) in store.db().scan_json::<Vec<DiffId>>(Family::Pins, b"")? {
            if !layers.contains(&diff_id) {
                continue;
            }
            let owner = String::from_utf8_lossy(&owner).into_owned();
            if let Some(number) = owner.strip_prefix("snapshot/") {
                users.snapshots.push(names.get(number).cloned().unwrap_or_else(|| format!("number {number}")));
            } else {
                users.mounts.push(owner.strip_prefix("mount/").unwrap_or(&owner).to_owned());
            }
        }
        users.snapshots.sort();
        Ok(users)
    }
}

impl Admin {
    pub(super) fn layer(&self, digest: &str) -> Result<Layer> {
        let layer = self.store.find_layer(digest)?;
        layer.ok_or_else(|| Error::Store(mica_layerdb::Error::NoLayerNamed { name: digest.to_owned() }))
    }

    pub(super) fn export_layer(&self, digest: &str, out: &mut dyn Write) -> Result<Layer> {
        let layer = self.layer(digest)?;
        // Garbage collection must not take what is being read.
        let _hold = self.store.hold(&[layer.diff_id])?;
        self.store.export_layer(layer.diff_id, out)?;
        Ok(layer)
    }
}
