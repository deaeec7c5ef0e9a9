//! Applying layers: they go into the store, not through the mount.

use std::sync::Arc;

use mica_layerdb::{Batch, Compression, DiffId, IngestOptions};

use super::core::Core;
use super::labels::DIFF_ID;
use super::stack::Below;
use super::{Applied, Incoming, Kind, Mount, upper};
use crate::error::{Error, Result};
use crate::store::{Record, Rows};

impl Core {
    pub(super) fn apply(&self, mounts: &[Mount], mut layer: Incoming) -> Result<Option<Applied>> {
        self.require_open()?;
        let Some(compression) = compression_of(&layer.media_type) else { return Ok(None) };
        let Some((key, record)) = self.snapshot_of(mounts)? else { return Ok(None) };
        if record.kind != Kind::Active {
            return Err(Error::NotActive { key, kind: record.kind.name() });
        }
        // Without its mount, an engine that went on by itself would fill a bare directory.
        let Some(below) = self.live.below(record.number).filter(|_| self.live.is_serving(record.number)) else {
            return Err(Error::Unavailable {
                reason: format!("snapshot {key} is not mounted; ask for its mounts first"),
            });
        };
        if below.is_touched() || upper::has_changes(&self.folder(record.number), &record)? {
            // What is there already lies above any lower: the layer has to be written over it.
            return Ok(None);
        }
        let options = IngestOptions {
            compression,
            expect_diff_id: expected_diff_id(&layer, &record),
            expect_blob: layer.blob,
            name: layer.blob.map_or_else(|| format!("for snapshot {key}"), |blob| blob.to_string()),
            ..IngestOptions::default()
        };
        // The hold keeps the layer until the snapshot's own pin does.
        let (taken_in, _hold) = self.store.ingest_held(&mut *layer.reader, &options, &())?;
        self.attach_applied(&key, record.number, &below, taken_in.diff_id)?;
        Ok(Some(Applied { diff_id: taken_in.diff_id, size: taken_in.tar_bytes }))
    }

    /// Whose mounts these are. `None` if they are not ours at all.
    pub(super) fn snapshot_of(&self, mounts: &[Mount]) -> Result<Option<(String, Record)>> {
        let [mount] = mounts else { return Ok(None) };
        let number = mount.source.rsplit_once('/').and_then(|(_, name)| name.parse::<u64>().ok());
        let Some(number) = number else { return Ok(None) };
        let ours = self.live.mounter().mountpoint(number);
        if mount.kind != "bind" || !mount.target.is_empty() || ours != std::path::Path::new(&mount.source) {
            return Ok(None);
        }
        let gone = || Error::NoSnapshot { key: format!("at {}", mount.source) };
        let op = self.rows.op(number)?.ok_or_else(gone)?;
        let record = self.rows.get(&op.key)?.filter(|record| record.number == number).ok_or_else(gone)?;
        Ok(Some((op.key, record)))
    }

    /// One batch: the layer belongs to the snapshot and is pinned.
    fn attach_applied(&self, key: &str, number: u64, below: &Arc<Below>, layer: DiffId) -> Result<()> {
        let _turn = self.keys.lock(key)?;
        let record = self.rows.get(key)?.filter(|record| record.number == number && record.kind == Kind::Active);
        let mut record = record.ok_or_else(|| Error::NoSnapshot { key: key.into() })?;
        // Held, so that nobody looks into the mount between the batch and what the mount is told of it.
        let mut state = below.state.lock();
        if state.touched || upper::has_changes(&self.folder(number), &record)? {
            return Err(Error::Unavailable { reason: format!("snapshot {key} was used while a layer came in") });
        }
        record.own.push(layer);
        let mut batch = Batch::new();
        self.rows.put(&mut batch, key, &record)?;
        Rows::pin(&mut batch, number, &record.own)?;
        self.rows.commit(batch)?;
        state.applied.push(layer);
        Ok(())
    }
}

/// The engine's word for it, or the label it gave to the snapshot.
fn expected_diff_id(layer: &Incoming, record: &Record) -> Option<DiffId> {
    layer.diff_id.or_else(|| record.labels.get(DIFF_ID).and_then(|text| DiffId::parse(text).ok()))
}

/// How a layer of this media type is compressed; `None` if it is no layer that can be read here (an encrypted one, say).
fn compression_of(media_type: &str) -> Option<Compression> {
    const OCI: [&str; 2] =
        ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
    const DOCKER: [&str; 2] =
        ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
    let suffix = |kinds: [&str; 2]| kinds.iter().find_map(|kind| media_type.strip_prefix(kind));
    match (suffix(OCI), suffix(DOCKER)) {
        // Docker's plain type is used for compressed layers too.
        (_, Some("")) => Some(Compression::Detect),
        (Some(""), _) => Some(Compression::None),
        (Some("+gzip"), _) | (_, Some(".gzip")) => Some(Compression::Gzip),
        (Some("+zstd"), _) | (_, Some(".zstd")) => Some(Compression::Zstd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_follows_the_media_type() {
        let table = [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::Detect)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tar.gzip", None),
            ("application/vnd.erofs.layer.v1", None),
            ("application/octet-stream", None),
            ("", None),
        ];
        for (media_type, expected) in table {
            assert_eq!(compression_of(media_type), expected, "{media_type}");
        }
    }
}
