//! Rows: each can be read, has the right key, and names what is there.

use serde::de::DeserializeOwned;

use super::layers::Wrong;
use super::{Fsck, Issue};
use crate::chain::Chain;
use crate::damage::{DamagedLayer, DamagedObject};
use crate::digest::{ChainId, DiffId, Digest, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::image::{Config, Image};
use crate::layer::{self, Layer};
use crate::object;
use crate::quarantine::Damaged;
use crate::store::{Batch, Family, Store};
use crate::verify::{SCRUB_KEY, Scrub, Source, Verdict};

/// Rows read at a time.
const PAGE: usize = 512;

/// The row of the snapshotter's counter.
const SNAPSHOT_NUMBER: &[u8] = b"snapshot-number";

/// What a collection remembers.
#[derive(serde::Deserialize)]
struct GcProgress {
    #[allow(dead_code)] // It is there, and a number.
    shard: u8,
}

/// How a row's key is shown.
pub(super) fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

impl Fsck<'_> {
    /// Hands every row of a family to `visit`, a page at a time. What can't be read is reported.
    pub(super) fn each_row(
        &mut self,
        family: Family,
        mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = match self.store.db().scan_from(family, b"", after.as_deref(), PAGE) {
                Ok(rows) => rows,
                Err(error @ (Error::CorruptMetadata { .. } | Error::Metadata { .. })) => {
                    let issue = Issue::UnreadableMetadata { family: family.name().into(), reason: error.to_string() };
                    self.findings().left(&issue);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            for (key, value) in &rows {
                visit(self, key, value)?;
            }
            match rows.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// The row's value; a damaged one is reported.
    pub(super) fn parse<T: DeserializeOwned>(&mut self, family: Family, key: &[u8], value: &[u8]) -> Option<T> {
        match serde_json::from_slice(value) {
            Ok(value) => Some(value),
            Err(error) => {
                let issue = damaged_row(family, key, &error.to_string());
                self.findings().left(&issue);
                None
            }
        }
    }

    pub(super) fn rows(&mut self) -> Result<()> {
        // Before pins: what a pin names afterwards was a layer's row at this time or is looked up anew.
        self.each_row(Family::Layers, |fsck, key, value| {
            let Some(layer) = fsck.parse::<Layer>(Family::Layers, key, value) else { return Ok(()) };
            if layer::key(layer.diff_id).as_bytes() != key {
                let issue = Issue::MisnamedLayer { key: shown(key), diff_id: layer.diff_id };
                fsck.findings().left(&issue);
                return Ok(());
            }
            // Claimed under the lock of collections: from now on it stays.
            let store = fsck.store;
            if let Some(layer) = fsck.hold.layer(layer.diff_id, || store.layer(layer.diff_id))? {
                fsck.known.insert(layer.diff_id);
                fsck.layers.push(layer);
            }
            Ok(())
        })?;
        self.each_row(Family::Pins, |fsck, key, value| {
            let Some(layers) = fsck.parse::<Vec<DiffId>>(Family::Pins, key, value) else { return Ok(()) };
            for diff_id in layers {
                let pinned =
                    || fsck.store.db().get_json::<Vec<DiffId>>(Family::Pins, key).map(Option::unwrap_or_default);
                if fsck.has_layer(diff_id)? || !pinned()?.contains(&diff_id) {
                    continue;
                }
                fsck.findings().left(&Issue::MissingPinnedLayer { owner: shown(key), diff_id });
            }
            Ok(())
        })?;
        self.each_row(Family::System, |fsck, key, value| {
            fsck.system_row(key, value);
            Ok(())
        })
    }

    fn system_row(&mut self, key: &[u8], value: &[u8]) {
        let store = self.store;
        let derived = if key.starts_with(b"damage/object/") {
            serde_json::from_slice::<DamagedObject>(value).map(drop)
        } else if key.starts_with(b"damage/layer/") {
            serde_json::from_slice::<DamagedLayer>(value).map(drop)
        } else if key == SCRUB_KEY {
            serde_json::from_slice::<Scrub>(value).map(drop)
        } else if key == crate::gc::PROGRESS {
            serde_json::from_slice::<GcProgress>(value).map(drop)
        } else if key == SNAPSHOT_NUMBER {
            self.parse::<u64>(Family::System, key, value);
            return;
        } else {
            self.findings().left(&Issue::UnknownRow { family: Family::System.name().into(), key: shown(key) });
            return;
        };
        if let Err(error) = derived {
            let issue = damaged_row(Family::System, key, &error.to_string());
            self.findings().repairable(&issue, || drop_row(store, Family::System, key));
        }
    }

    /// Whether the store has the layer, be it for a moment only.
    pub(super) fn has_layer(&self, diff_id: DiffId) -> Result<bool> {
        if self.known.contains(&diff_id) {
            return Ok(true);
        }
        match self.store.layer(diff_id) {
            Ok(layer) => Ok(layer.is_some()),
            // Its row is damaged, which has been told.
            Err(Error::CorruptMetadata { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Images: after the layers.
    pub(super) fn images(&mut self) -> Result<()> {
        self.each_row(Family::Images, |fsck, key, value| {
            let Some(image) = fsck.parse::<Image>(Family::Images, key, value) else { return Ok(()) };
            fsck.report.images += 1;
            if image.name.as_bytes() != key {
                fsck.findings().left(&Issue::MisnamedImage { key: shown(key), name: image.name });
                return Ok(());
            }
            let mut found = fsck.image(&image)?;
            if !found.is_empty() && !fsck.is_current(&image)? {
                found.clear();
            }
            for (issue, damaged) in found {
                match damaged {
                    None => fsck.findings().left(&issue),
                    Some((what, finding)) => fsck.quarantine(&issue, what, &finding),
                }
            }
            Ok(())
        })
    }

    /// Whether the image is still what it was when its row was read.
    fn is_current(&self, image: &Image) -> Result<bool> {
        let now = self.store.db().get_json::<Image>(Family::Images, image.name.as_bytes())?;
        Ok(now.as_ref() == Some(image))
    }

    fn image(&mut self, image: &Image) -> Result<Vec<Wrong>> {
        let mut found = Vec::new();
        let name = || image.name.clone();
        for diff_id in &image.layers {
            if !self.has_layer(*diff_id)? {
                found.push((Issue::MissingImageLayer { image: name(), diff_id: *diff_id }, None));
            }
        }
        for id in image.objects() {
            let verdict = self.store.verify_object(id, &self.pace(), Source::Cache, &mut |_| {})?;
            let damaged = verdict.finding(id.0).map(|finding| (Damaged::Object(id), finding));
            match verdict {
                Verdict::Whole(_) => {}
                Verdict::Missing => found.push((Issue::MissingDocument { image: name(), id }, None)),
                Verdict::Corrupt { actual, .. } => {
                    found.push((Issue::CorruptDocument { image: name(), id, actual }, damaged));
                }
                Verdict::Unreadable { reason, .. } => {
                    found.push((Issue::UnreadableObject { id, reason, users: super::Users::default() }, damaged));
                }
            }
        }
        if found.is_empty()
            && let Some(reason) = disagreement(self.store, image)?
        {
            found.push((Issue::WrongConfig { image: name(), reason }, None));
        }
        Ok(found)
    }

    /// A chain's row, if it makes sense; else it is reported, and goes.
    pub(super) fn chain_row(&mut self, key: &[u8], value: &[u8]) -> Option<(ChainId, Chain)> {
        let store = self.store;
        let chain = match serde_json::from_slice::<Chain>(value) {
            Ok(chain) => chain,
            Err(error) => {
                let issue = damaged_row(Family::Chains, key, &error.to_string());
                self.findings().repairable(&issue, || drop_row(store, Family::Chains, key));
                return None;
            }
        };
        match ChainId::of(&chain.layers) {
            Some(id) if crate::chain::key(id).as_bytes() == key => Some((id, chain)),
            _ => {
                let issue = Issue::MisnamedChain { key: shown(key) };
                self.findings().repairable(&issue, || drop_row(store, Family::Chains, key));
                None
            }
        }
    }

    /// Whether an object lies in quarantine.
    pub(super) fn is_quarantined(&self, id: ObjectId) -> Result<bool> {
        let path = std::path::Path::new(crate::quarantine::FOLDER).join(format!("object-{}", id.hex()));
        let found = disk::stat(self.store.disk(), &path).map_err(Error::io("look into quarantine"))?;
        Ok(found.is_some())
    }

    /// Whether an object has a file of this length now.
    pub(super) fn has_object(&self, id: ObjectId, bytes: u64) -> Result<bool> {
        let found = disk::stat(self.store.disk(), &object::path(id)).map_err(Error::io("look for an object"))?;
        Ok(found.is_some_and(|stat| stat.st_size as u64 == bytes))
    }
}

fn damaged_row(family: Family, key: &[u8], reason: &str) -> Issue {
    Issue::DamagedRow { family: family.name().into(), key: shown(key), reason: reason.into() }
}

pub(super) fn drop_row(store: &Store, family: Family, key: &[u8]) -> Result<String> {
    let mut batch = Batch::new();
    batch.delete(family, key);
    store.db().commit(batch)?;
    Ok("the row was dropped".into())
}

/// How an image's configuration differs from its row.
fn disagreement(store: &Store, image: &Image) -> Result<Option<String>> {
    let bytes = match store.image_config(image) {
        Ok(bytes) => bytes,
        // Gone with its image, or damaged since it was looked at.
        Err(Error::NoObject { .. } | Error::DigestMismatch { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let config: Config = match serde_json::from_slice(&bytes) {
        Ok(config) => config,
        Err(error) => return Ok(Some(format!("it is none: {error}"))),
    };
    let told = &config.rootfs.diff_ids;
    if *told == image.layers {
        return Ok(None);
    }
    let show = |layers: &[DiffId]| layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    Ok(Some(format!("it has layers {}, the row {}", show(told), show(&image.layers))))
}

/// The digest in the name of a file in `layers/sha256` or `chains/sha256`.
pub(super) fn digest_in(name: &std::ffi::OsStr) -> Option<(Digest, bool)> {
    let bytes = name.as_encoded_bytes();
    let (hex, recipe) = match bytes.strip_suffix(b".recipe") {
        Some(hex) => (hex, true),
        None => (bytes, false),
    };
    Digest::from_hex(hex).map(|digest| (digest, recipe))
}
