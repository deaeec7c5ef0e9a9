//! Checking a store: everything in its directory is known, and everything that is needed is there and whole.
//!
//! A check works on a store that is in use. What it looks at it claims, as an ingest does, so that no collection takes
//! it away meanwhile; what comes while it runs is not looked at; and what seems wrong is looked at once more before
//! it is reported. Nothing is changed unless [`FsckOptions::repair`] says so, and then only what leaves no choice:
//! what is derived goes and is built again, what is damaged moves to quarantine, what belongs to nothing is removed.
//!
//! Memory is bounded: the objects that trees name are sorted by digest, on the disk if they are many, and compared
//! with the directories of `objects/` one by one. Only the layers' names and a bounded list of findings are kept.

mod chains;
mod files;
mod issue;
mod layers;
mod objects;
mod rows;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use issue::{Defect, Issue, Severity, Users};
pub(crate) use layers::check_layer;

use crate::digest::DiffId;
use crate::error::{Error, Result};
use crate::ingest::Progress;
use crate::layer::Layer;
use crate::quarantine::{Damaged, Finding, Quarantined};
use crate::store::{Hold, Store};
use crate::verify::Pace;

/// Findings that a report lists; the rest is counted.
const LISTED_MAX: usize = 10_000;

/// How a store is to be checked.
#[derive(Clone, Debug, Default)]
pub struct FsckOptions {
    /// Read all contents, and compare them with their digests.
    pub data: bool,
    /// Merge the layers of every chain again, and compare the tree with the chain's.
    pub deep: bool,
    /// Put right what leaves no choice.
    pub repair: bool,
    /// Contents read in a second at most; 0 is no limit.
    pub bytes_per_second: u64,
}

/// What became of a defect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "how")]
pub enum Outcome {
    /// It is as it was.
    Left,
    /// It is no more.
    Repaired(String),
    /// It does no more harm, and something is still missing.
    Contained(String),
    /// It should have been repaired, and couldn't be.
    Failed(String),
}

/// A defect that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What defects of this kind are called.
    pub name: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in a sentence.
    pub text: String,
    /// What a person can do about it.
    pub advice: String,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Its parts.
    pub details: serde_json::Value,
}

impl Found {
    /// A defect as it goes into a report.
    pub fn new(defect: &dyn Defect, outcome: Outcome) -> Found {
        Found {
            name: defect.name(),
            severity: defect.severity(),
            text: defect.to_string(),
            advice: defect.advice().to_owned(),
            outcome,
            details: defect.details(),
        }
    }

    /// Whether it is still there.
    pub fn remains(&self) -> bool {
        !matches!(self.outcome, Outcome::Repaired(_))
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckReport {
    /// The defects; not all if they are very many.
    pub found: Vec<Found>,
    /// Warnings that remain.
    pub warnings: u64,
    /// Errors that remain.
    pub errors: u64,
    /// Fatal defects that remain.
    pub fatals: u64,
    /// Defects that were repaired.
    pub repaired: u64,
    /// Layers that were looked at.
    pub layers: u64,
    /// Chain trees that were looked at.
    pub chains: u64,
    /// Images that were looked at.
    pub images: u64,
    /// Objects that were looked at.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Objects that nothing names; they go with the next collection of garbage.
    pub unused_objects: u64,
    /// Bytes of contents that were read.
    pub read_bytes: u64,
    /// What lies in quarantine.
    pub quarantined: Vec<Quarantined>,
}

impl FsckReport {
    /// Whether nothing remains that is worse than a warning.
    pub fn is_sound(&self) -> bool {
        self.errors == 0 && self.fatals == 0
    }

    fn add(&mut self, found: Found) {
        match (found.remains(), found.severity) {
            (false, _) => self.repaired += 1,
            (true, Severity::Warning) => self.warnings += 1,
            (true, Severity::Error) => self.errors += 1,
            (true, Severity::Fatal) => self.fatals += 1,
        }
        if self.found.len() < LISTED_MAX {
            self.found.push(found);
        }
    }
}

/// Checks what others keep in the store.
pub trait Extension: Send + Sync {
    /// Looks at everything of its own and adds what is wrong.
    fn check(&self, findings: &mut Findings<'_>) -> Result<()>;
}

/// Where an [`Extension`] puts what it found.
pub struct Findings<'a> {
    report: &'a mut FsckReport,
    repair: bool,
}

impl fmt::Debug for Findings<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Findings").field("repair", &self.repair).finish_non_exhaustive()
    }
}

impl Findings<'_> {
    /// A defect that only a person can do something about.
    pub fn left(&mut self, defect: &dyn Defect) {
        self.report.add(Found::new(defect, Outcome::Left));
    }

    /// A defect that `repair` puts right, if that is wanted; it says what it did.
    pub fn repairable(&mut self, defect: &dyn Defect, repair: impl FnOnce() -> Result<String>) {
        let outcome = match self.repair.then(repair) {
            None => Outcome::Left,
            Some(Ok(how)) => Outcome::Repaired(how),
            Some(Err(error)) => Outcome::Failed(error.to_string()),
        };
        self.report.add(Found::new(defect, outcome));
    }

    /// The same, for a repair that keeps the defect from doing harm without undoing it.
    pub fn containable(&mut self, defect: &dyn Defect, contain: impl FnOnce() -> Result<String>) {
        let outcome = match self.repair.then(contain) {
            None => Outcome::Left,
            Some(Ok(how)) => Outcome::Contained(how),
            Some(Err(error)) => Outcome::Failed(error.to_string()),
        };
        self.report.add(Found::new(defect, outcome));
    }
}

impl Store {
    /// Checks the store. Ingests, collections of garbage and mounts go on meanwhile.
    pub fn fsck(
        self: &Arc<Store>,
        options: &FsckOptions,
        extensions: &[&dyn Extension],
        progress: &dyn Progress,
    ) -> Result<FsckReport> {
        if options.repair {
            self.require_writable()?;
            match self.settle_damage() {
                Err(Error::CorruptMetadata { .. }) => {}
                settled => settled?,
            }
        }
        let mut fsck = Fsck {
            store: self,
            options,
            progress,
            hold: self.claims.hold(),
            layers: Vec::new(),
            known: HashSet::new(),
            report: FsckReport::default(),
        };
        fsck.step("files", Fsck::files)?;
        fsck.step("rows", Fsck::rows)?;
        fsck.step("layers", Fsck::layers)?;
        fsck.step("chains", Fsck::chains)?;
        fsck.step("images", Fsck::images)?;
        fsck.step("objects", Fsck::objects)?;
        for extension in extensions {
            let checked = extension.check(&mut fsck.findings());
            fsck.stepped("extension", checked)?;
        }
        let mut report = fsck.report;
        report.quarantined = self.quarantined()?;
        Ok(report)
    }
}

struct Fsck<'a> {
    store: &'a Arc<Store>,
    options: &'a FsckOptions,
    progress: &'a dyn Progress,
    /// Keeps collections from the layers that are looked at.
    hold: Hold,
    /// Layers whose trees and recipes are sound.
    layers: Vec<Layer>,
    /// All layers that have a row.
    known: HashSet<DiffId>,
    report: FsckReport,
}

impl Fsck<'_> {
    fn step(&mut self, name: &str, step: fn(&mut Self) -> Result<()>) -> Result<()> {
        self.progress.begin(name, None);
        let stepped = step(self);
        self.progress.end(name, false);
        self.stepped(name, stepped)
    }

    /// Metadata that can't be read is a finding, and no reason not to look at the rest.
    fn stepped(&mut self, name: &str, stepped: Result<()>) -> Result<()> {
        match stepped {
            Err(Error::CorruptMetadata { action, reason }) => {
                let reason = format!("{action}: {reason}");
                self.findings().left(&Issue::UnreadableMetadata { family: format!("(step {name})"), reason });
                Ok(())
            }
            stepped => stepped,
        }
    }

    fn findings(&mut self) -> Findings<'_> {
        Findings { report: &mut self.report, repair: self.options.repair }
    }

    fn pace(&self) -> Pace {
        Pace::new(self.options.bytes_per_second)
    }

    /// Reports a damaged file, and takes it out of use.
    fn quarantine(&mut self, issue: &Issue, what: Damaged, finding: &Finding) {
        let store = self.store;
        self.findings().containable(issue, || {
            let moved = store.quarantine(what, finding)?;
            Ok(moved.map_or("it is gone".into(), |note| format!("moved to quarantine/{}", note.name)))
        });
    }
}
