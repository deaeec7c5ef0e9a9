//! One layer, looked at in every way there is.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Pace, RepairSource, Repaired, Source, Verdict, repair};
use crate::digest::{DiffId, ObjectId};
use crate::error::{Error, Kind, Result};
use crate::fsck::{Defect as _, Found, Issue, Outcome, Users, check_layer};
use crate::ingest::Progress;
use crate::layer::Layer;
use crate::quarantine::{Damaged, Finding};
use crate::store::Store;

/// Objects remembered as whole while several layers are verified; beyond, some are read again.
const REMEMBERED: usize = 1 << 20;

/// Times that a layer is looked at while it is repaired.
const ROUNDS: usize = 3;

/// How layers are verified.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Take what is damaged out of use, so that the next import or pull writes it anew.
    pub repair: bool,
    /// Where whole copies are taken from at once.
    pub from: Option<RepairSource>,
    /// Contents read in a second at most; 0 is no limit.
    pub bytes_per_second: u64,
}

/// What was found of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCheck {
    /// The layer.
    pub diff_id: DiffId,
    /// Whether it is whole now.
    pub whole: bool,
    /// Its distinct objects.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Whether the tar that was made of it has the diff-id. `None` if it could not be made: the layer has no recipe, or
    /// a part is damaged.
    pub tar: Option<bool>,
    /// What was wrong.
    pub found: Vec<Found>,
    /// What was tried to repair, one by one.
    pub repaired: Vec<Repaired>,
}

impl Store {
    /// Verifies layers: digest and structure of the tree, the recipe, the digest of every object, and that the tar
    /// made of them is the one the layer is named after. [`Error::NoLayer`] if the store doesn't have one of them.
    pub fn verify_layers(
        self: &Arc<Store>,
        layers: &[DiffId],
        options: &VerifyOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<LayerCheck>> {
        if options.repair {
            self.require_writable()?;
        }
        let mut verify = Verify { store: self, options, progress, whole: HashSet::new() };
        layers.iter().map(|diff_id| verify.layer(*diff_id)).collect()
    }
}

struct Verify<'a> {
    store: &'a Arc<Store>,
    options: &'a VerifyOptions,
    progress: &'a dyn Progress,
    whole: HashSet<ObjectId>,
}

impl Verify<'_> {
    fn layer(&mut self, diff_id: DiffId) -> Result<LayerCheck> {
        let hold = self.store.hold(&[diff_id])?;
        let layer = self.store.layer(diff_id)?.ok_or(Error::NoLayer { diff_id })?;
        self.progress.begin(&diff_id.to_string(), Some(layer.content_bytes));
        let mut check = LayerCheck {
            diff_id,
            whole: false,
            objects: 0,
            object_bytes: 0,
            tar: None,
            found: Vec::new(),
            repaired: Vec::new(),
        };
        // A tree that was repaired may name objects that have to be repaired in turn.
        for _ in 0..ROUNDS {
            let wrong = self.look(diff_id, &mut check)?;
            check.whole = wrong.is_empty();
            let damaged: Vec<Damaged> = wrong.iter().filter_map(|(issue, _)| damaged(issue)).collect();
            for (issue, finding) in wrong {
                let found = self.dispose(diff_id, &issue, finding.as_ref());
                let known = check.found.iter().any(|known| known.name == found.name && known.details == found.details);
                if !known {
                    check.found.push(found);
                }
            }
            let Some(source) = self.options.from.as_ref().filter(|_| self.options.repair && !damaged.is_empty()) else {
                break;
            };
            let repaired = repair::repair(self.store, &layer, &damaged, source, self.progress)?;
            let any = repaired.iter().any(|repaired| repaired.failure.is_none());
            check.repaired.retain(|earlier| !damaged.contains(&earlier.what));
            check.repaired.extend(repaired);
            self.whole.clear();
            if !any {
                break;
            }
        }
        if self.options.repair {
            self.store.settle_damage()?;
        }
        for found in check.found.iter_mut().filter(|_| check.whole) {
            found.outcome = Outcome::Repaired("written anew".into());
        }
        drop(hold);
        self.progress.end(&diff_id.to_string(), false);
        Ok(check)
    }

    /// Everything that is wrong with the layer as it is now.
    fn look(&mut self, diff_id: DiffId, check: &mut LayerCheck) -> Result<Vec<Wrong>> {
        let layer = self.store.layer(diff_id)?.ok_or(Error::NoLayer { diff_id })?;
        (check.objects, check.object_bytes, check.tar) = (0, 0, None);
        let mut wrong = check_layer(self.store, &layer)?;
        if !wrong.iter().any(|(issue, _)| concerns_tree(issue)) {
            self.objects(&layer, check, &mut wrong)?;
        }
        if wrong.is_empty() {
            self.tar(&layer, check, &mut wrong)?;
        }
        Ok(wrong)
    }

    fn objects(&mut self, layer: &Layer, check: &mut LayerCheck, wrong: &mut Vec<Wrong>) -> Result<()> {
        let mut needed: Vec<(ObjectId, u64)> = Vec::new();
        match self.store.each_layer_object(layer, |id, bytes| needed.push((id, bytes))) {
            // The recipe's damage is among what is wrong already.
            Err(error) if error.kind() != Kind::Corrupt => return Err(error),
            _ => {}
        }
        needed.sort_unstable();
        needed.dedup();
        let pace = Pace::new(self.options.bytes_per_second);
        let name = layer.diff_id.to_string();
        for (id, expected) in needed {
            check.objects += 1;
            check.object_bytes += expected;
            if self.whole.contains(&id) {
                continue;
            }
            let mut each = |bytes| self.progress.read(&name, bytes);
            let verdict = self.store.verify_object(id, &pace, Source::Disk, &mut each)?;
            let finding = verdict.finding(id.0).map(|finding| (Damaged::Object(id), finding));
            let users = || -> Result<Users> {
                Ok(self.store.needed_by(&[id].into())?.remove(&id).map(Users::from).unwrap_or_default())
            };
            match verdict {
                Verdict::Whole(found) if found == expected => {
                    if self.whole.len() >= REMEMBERED {
                        self.whole.clear();
                    }
                    self.whole.insert(id);
                }
                // It has the right digest, so it is the tree that is wrong.
                Verdict::Whole(found) => {
                    let issue = Issue::WrongLength { id, expected, found, users: users()? };
                    wrong.push((issue, None));
                }
                Verdict::Missing => {
                    let quarantined = self.store.damaged_object(id)?.is_some();
                    wrong.push((Issue::MissingObject { id, bytes: expected, quarantined, users: users()? }, None));
                }
                Verdict::Corrupt { actual, .. } => {
                    wrong.push((Issue::CorruptObject { id, actual, users: users()? }, finding));
                }
                Verdict::Unreadable { reason, .. } => {
                    wrong.push((Issue::UnreadableObject { id, reason, users: users()? }, finding));
                }
            }
        }
        Ok(())
    }

    fn tar(&self, layer: &Layer, check: &mut LayerCheck, wrong: &mut Vec<Wrong>) -> Result<()> {
        let diff_id = layer.diff_id;
        if layer.recipe.is_none() {
            return Ok(());
        }
        match self.store.export_layer(diff_id, &mut io::sink()) {
            Ok(_) => check.tar = Some(true),
            Err(Error::NoRecipe { .. }) => {}
            Err(error) if error.kind() == Kind::Unavailable => return Err(error),
            Err(error) => {
                check.tar = Some(false);
                wrong.push((Issue::WrongTar { diff_id, reason: error.to_string() }, None));
            }
        }
        Ok(())
    }

    /// Takes a damaged file out of use, or marks the layer that lacks one.
    fn dispose(&self, diff_id: DiffId, issue: &Issue, finding: Option<&(Damaged, Finding)>) -> Found {
        if !self.options.repair {
            return Found::new(issue, Outcome::Left);
        }
        let done = match (finding, issue) {
            (Some((what, finding)), _) => self.store.quarantine(*what, finding).map(|moved| match moved {
                Some(note) => Outcome::Contained(format!("moved to quarantine/{}", note.name)),
                None => Outcome::Contained("it is gone".into()),
            }),
            (None, Issue::MissingObject { id, bytes, .. }) => self
                .store
                .report_missing(&[(*id, Some(*bytes))])
                .map(|()| Outcome::Contained("the layers were marked".into())),
            (None, Issue::MissingTree { .. } | Issue::MissingRecipe { .. }) => {
                self.store.report_lost(diff_id).map(|()| Outcome::Contained("the layer was marked".into()))
            }
            _ => Ok(Outcome::Left),
        };
        Found::new(issue, done.unwrap_or_else(|error| Outcome::Failed(error.to_string())))
    }
}

type Wrong = (Issue, Option<(Damaged, Finding)>);

fn concerns_tree(issue: &Issue) -> bool {
    matches!(damaged(issue), Some(Damaged::Tree(_)))
}

/// What a whole copy of would undo the defect.
fn damaged(issue: &Issue) -> Option<Damaged> {
    match issue {
        Issue::MissingObject { id, .. } | Issue::CorruptObject { id, .. } | Issue::UnreadableObject { id, .. } => {
            Some(Damaged::Object(*id))
        }
        Issue::MissingTree { diff_id }
        | Issue::WrongTreeLength { diff_id, .. }
        | Issue::CorruptTree { diff_id, .. }
        | Issue::InvalidTree { diff_id, .. }
        | Issue::UnreadableTree { diff_id, .. } => Some(Damaged::Tree(*diff_id)),
        Issue::MissingRecipe { diff_id } | Issue::CorruptRecipe { diff_id, .. } => Some(Damaged::Recipe(*diff_id)),
        other => {
            tracing::debug!(issue = other.name(), "no copy of anything would help");
            None
        }
    }
}
