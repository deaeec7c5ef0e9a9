//! Reading every object again and again, slowly, so that damage is found while there is another copy somewhere.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::{Pace, Source, Verdict};
use crate::digest::ObjectId;
use crate::error::{Error, Result};
use crate::ingest::{Progress, unix_seconds};
use crate::quarantine::{Damaged, Quarantined};
use crate::store::{Batch, Family, Store};

/// The row that says how far the last scrub came.
pub(crate) const KEY: &[u8] = b"scrub";

/// How a scrub goes on.
#[derive(Debug, Default)]
pub struct ScrubOptions {
    /// Bytes read in a second at most; 0 is no limit.
    pub bytes_per_second: u64,
    /// Begin with the first object, wherever an earlier scrub stopped.
    pub restart: bool,
}

/// How far the scrubbing of a store has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// When the round began, in seconds since the epoch.
    pub began: u64,
    /// When the last round was completed, in seconds since the epoch.
    pub completed: Option<u64>,
    /// The directory of objects (their first byte) to go on with; `None` if no round is under way.
    pub next: Option<u8>,
    /// Objects read in this round.
    pub objects: u64,
    /// Bytes read in this round.
    pub bytes: u64,
    /// Objects found damaged in this round.
    pub damaged: u64,
}

/// What a scrub did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// How far the round came; with earlier scrubs, if it was resumed.
    pub scrub: Scrub,
    /// Whether every object has been read now.
    pub complete: bool,
    /// Whether it went on where an earlier one stopped.
    pub resumed: bool,
    /// Objects that were found damaged and taken out of use, this time.
    pub quarantined: Vec<Quarantined>,
}

impl Store {
    /// How far scrubbing has come. `None` if it never began.
    pub fn scrubbed(&self) -> Result<Option<Scrub>> {
        self.db().get_json(Family::System, KEY)
    }

    /// Reads every object from the disk and takes those out of use that are damaged. Goes on where an earlier scrub
    /// stopped; ends early, to be resumed, once `stop` is set. [`Error::Scrubbing`] while another scrub is at it.
    pub fn scrub(&self, options: &ScrubOptions, stop: &AtomicBool, progress: &dyn Progress) -> Result<ScrubReport> {
        self.require_writable()?;
        let _scrubbing = self.scrubbing.try_lock().ok_or(Error::Scrubbing)?;
        let earlier = self.scrubbed()?.unwrap_or_default();
        let first = earlier.next.filter(|_| !options.restart);
        let fresh = Scrub { began: unix_seconds(), completed: earlier.completed, ..Scrub::default() };
        let mut report = ScrubReport {
            scrub: if first.is_some() { earlier } else { fresh },
            resumed: first.is_some(),
            ..ScrubReport::default()
        };
        let pace = Pace::new(options.bytes_per_second);
        progress.begin("scrub", None);
        for shard in first.unwrap_or(0)..=u8::MAX {
            report.scrub.next = Some(shard);
            let before = report.scrub.clone();
            if !self.scrub_shard(shard, &pace, stop, progress, &mut report)? {
                // The directory is read again from its beginning.
                report.scrub = before;
                self.note_scrub(&report.scrub)?;
                progress.end("scrub", false);
                return Ok(report);
            }
            report.scrub.next = shard.checked_add(1);
            self.note_scrub(&report.scrub)?;
        }
        report.scrub.completed = Some(unix_seconds());
        report.complete = true;
        self.note_scrub(&report.scrub)?;
        progress.end("scrub", false);
        Ok(report)
    }

    /// False if it was stopped.
    fn scrub_shard(
        &self,
        shard: u8,
        pace: &Pace,
        stop: &AtomicBool,
        progress: &dyn Progress,
        report: &mut ScrubReport,
    ) -> Result<bool> {
        for id in self.objects_of_shard(shard)? {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let mut each = |bytes| {
                progress.read("scrub", bytes);
                if stop.load(Ordering::Relaxed) {
                    pace.stop();
                }
            };
            let verdict = match self.verify_object(id, pace, Source::Disk, &mut each) {
                Err(_) if stop.load(Ordering::Relaxed) => return Ok(false),
                verdict => verdict?,
            };
            match &verdict {
                Verdict::Missing => continue,
                Verdict::Whole(bytes) => report.scrub.bytes += bytes,
                _ => {}
            }
            report.scrub.objects += 1;
            if let Some(finding) = verdict.finding(id.0) {
                report.scrub.damaged += 1;
                report.quarantined.extend(self.quarantine(Damaged::Object(id), &finding)?);
            }
        }
        Ok(true)
    }

    /// The objects whose digests begin with this byte, in order.
    pub(crate) fn objects_of_shard(&self, shard: u8) -> Result<Vec<ObjectId>> {
        let (mut ids, _) = self.list_shard(shard)?;
        ids.sort_unstable();
        Ok(ids)
    }

    fn note_scrub(&self, scrub: &Scrub) -> Result<()> {
        let mut batch = Batch::new();
        batch.put_json(Family::System, KEY, scrub)?;
        self.db().commit(batch)
    }
}
