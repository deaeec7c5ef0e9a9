//! Answers that are put together from several places.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mica_layerdb::{Image, Layer, Store};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::snapshots::{Info, Kind, Snapshots, Usage};
use crate::store::Rows;

/// An image with what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageReport {
    /// The image.
    pub image: Image,
    /// Its layers, bottom first.
    pub layers: Vec<Layer>,
    /// Its configuration (OCI image-spec, "Image Configuration").
    pub config: Value,
    /// Its manifest (OCI image-spec, "Image Manifest").
    pub manifest: Value,
}

impl ImageReport {
    pub(super) fn of(store: &Store, image: Image) -> Result<ImageReport> {
        let layers = image
            .layers
            .iter()
            .map(|diff_id| store.layer(*diff_id)?.ok_or(mica_layerdb::Error::NoLayer { diff_id: *diff_id }))
            .collect::<mica_layerdb::Result<_>>()?;
        let config = document(&store.image_config(&image)?);
        let manifest = document(&store.image_manifest(&image)?);
        Ok(ImageReport { image, layers, config, manifest })
    }
}

/// A document that somebody else wrote; as text if it is no JSON.
fn document(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// A snapshot in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// The engine's key or name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What it builds upon; empty for nothing.
    pub parent: String,
    /// When it became what it is, in seconds since the epoch.
    pub created: u64,
    /// When it or its labels last changed, in seconds since the epoch.
    pub updated: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl SnapshotRow {
    pub(super) fn all(snapshots: &Snapshots) -> Result<Vec<SnapshotRow>> {
        Ok(snapshots.list(&[])?.into_iter().map(SnapshotRow::from).collect())
    }
}

impl From<Info> for SnapshotRow {
    fn from(info: Info) -> SnapshotRow {
        let Info { kind, name, parent, labels, created, updated } = info;
        SnapshotRow { name, kind, parent, created: seconds(created), updated: seconds(updated), labels }
    }
}

/// A snapshot in detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// What a list says of it.
    #[serde(flatten)]
    pub row: SnapshotRow,
    /// What it takes itself; `None` if nobody has counted.
    pub usage: Option<Usage>,
    /// Where a daemon has mounted it; a committed snapshot isn't.
    pub mountpoints: Vec<PathBuf>,
}

impl SnapshotReport {
    pub(super) fn of(snapshots: &Snapshots, key: &str) -> Result<SnapshotReport> {
        let row = SnapshotRow::from(snapshots.stat(key)?);
        let usage = Some(snapshots.usage(key)?);
        let mountpoints = match row.kind {
            Kind::Committed => Vec::new(),
            Kind::View | Kind::Active => {
                snapshots.mounts(key)?.into_iter().map(|mount| PathBuf::from(mount.source)).collect()
            }
        };
        Ok(SnapshotReport { row, usage, mountpoints })
    }
}

/// All snapshots of a store that no daemon serves.
pub(super) fn recorded(store: &Arc<Store>) -> Result<Vec<SnapshotRow>> {
    let mut found = Vec::new();
    Rows::open(Arc::clone(store))?.each(|key, record| found.push(record.info(key).into()))?;
    Ok(found)
}

/// One snapshot of a store that no daemon serves.
pub(super) fn recorded_one(store: &Arc<Store>, key: &str) -> Result<SnapshotReport> {
    let rows = Rows::open(Arc::clone(store))?;
    let record = rows.get(key)?.ok_or_else(|| Error::NoSnapshot { key: key.to_owned() })?;
    let usage = rows.usage(record.number)?;
    Ok(SnapshotReport { row: record.info(key).into(), usage, mountpoints: Vec::new() })
}

/// What a daemon serves where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Folder of the store.
    pub root: PathBuf,
    /// Folder of sockets and mountpoints.
    pub state: PathBuf,
    /// Address of its socket.
    pub address: String,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
