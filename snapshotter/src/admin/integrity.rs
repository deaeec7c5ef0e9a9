//! What is asked of a store's integrity.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use mica_layerdb::fsck::{FsckOptions, FsckReport};
use mica_layerdb::verify::{LayerCheck, RepairSource, ScrubOptions, ScrubReport, VerifyOptions};
use mica_layerdb::{DiffId, Progress};
use serde::{Deserialize, Serialize};

use super::Admin;
use crate::error::{Error, Result};
use crate::fsck::SnapshotChecks;

/// How a store is to be checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckCall {
    /// Read all contents.
    pub data: bool,
    /// Merge every chain again.
    pub deep: bool,
    /// Put right what leaves no choice.
    pub repair: bool,
    /// Delete what lies in quarantine, first.
    pub empty_quarantine: bool,
    /// Contents read in a second at most; 0 is no limit.
    pub bytes_per_second: u64,
}

/// Which layers are to be verified, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyCall {
    /// Diff-ids, blob digests or unique prefixes of one; all layers if there are none.
    pub digests: Vec<String>,
    /// Take what is damaged out of use.
    pub repair: bool,
    /// An image or another store's root to repair from, absolute.
    pub from: Option<PathBuf>,
    /// Contents read in a second at most; 0 is no limit.
    pub bytes_per_second: u64,
}

impl Admin {
    pub(super) fn fsck(&self, call: &FsckCall, progress: &dyn Progress) -> Result<FsckReport> {
        if call.empty_quarantine {
            self.store.empty_quarantine()?;
        }
        let options = FsckOptions {
            data: call.data,
            deep: call.deep,
            repair: call.repair,
            bytes_per_second: call.bytes_per_second,
        };
        let checks = SnapshotChecks::new(&self.store, self.daemon.is_some());
        Ok(self.store.fsck(&options, &[&checks], progress)?)
    }

    pub(super) fn verify(&self, call: VerifyCall, progress: &dyn Progress) -> Result<Vec<LayerCheck>> {
        let layers: Vec<DiffId> = if call.digests.is_empty() {
            self.store.layers()?.into_iter().map(|layer| layer.diff_id).collect()
        } else {
            let found = call.digests.iter().map(|digest| Ok(self.layer(digest)?.diff_id));
            found.collect::<Result<_>>()?
        };
        if let Some(path) = call.from.as_ref().filter(|path| !path.is_absolute()) {
            return Err(Error::Invalid {
                what: format!("source {}", path.display()),
                reason: "it is no absolute path".to_owned(),
            });
        }
        let options = VerifyOptions {
            repair: call.repair,
            from: call.from.map(RepairSource::detect),
            bytes_per_second: call.bytes_per_second,
        };
        Ok(self.store.verify_layers(&layers, &options, progress)?)
    }

    pub(super) fn scrub(&self, bytes_per_second: u64, restart: bool, progress: &dyn Progress) -> Result<ScrubReport> {
        let options = ScrubOptions { bytes_per_second, restart };
        Ok(self.store.scrub(&options, &AtomicBool::new(false), progress)?)
    }
}
