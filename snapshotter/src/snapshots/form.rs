//! In which form a snapshot is to be mounted.

use std::collections::BTreeMap;

use super::Kind;
use super::core::Core;
use super::labels::TARGET;
use crate::config::Form;
use crate::error::{Error, Result};
use crate::mounts::Wish;
use crate::store::Record;

/// Says it: `fuse`, `kernel` or `auto`.
const FORM: &str = "containerd.io/snapshot/mica.mount";
/// How containerd's keys of snapshots that it unpacks a layer into begin, behind namespace and number.
const EXTRACT: &str = "extract-";

/// Refuses a label that names no form.
pub(super) fn check(labels: &BTreeMap<String, String>) -> Result<()> {
    form_of(labels).map(drop)
}

fn form_of(labels: &BTreeMap<String, String>) -> Result<Option<Form>> {
    let Some(word) = labels.get(FORM) else { return Ok(None) };
    Form::named(word).map(Some).ok_or_else(|| Error::Invalid {
        what: format!("label {FORM}"),
        reason: format!("{word:?} is none of fuse, kernel and auto"),
    })
}

impl Core {
    /// How the snapshot wants to be mounted, and whether it can be.
    pub(super) fn wish(&self, key: &str, record: &Record) -> Result<Wish> {
        // What lies below the kernel's mounts can't be changed, so a layer would have to be written through them.
        if record.kind == Kind::Active && record.own.is_empty() && is_extraction(key, &record.labels) {
            return Ok(Wish::Fuse("a layer is to be applied to it"));
        }
        let form = form_of(&record.labels)?;
        if record.parent.is_empty() && record.own.is_empty() {
            return Ok(Wish::Fuse("nothing lies below it"));
        }
        if !record.parent.is_empty() && !self.record(&record.parent)?.is_settled() {
            // FUSE can begin without its tree, and engines must not wait for one.
            return Ok(Wish::Fuse("what lies below it is not a layer yet"));
        }
        Ok(form.map_or(Wish::Default, Wish::Form))
    }
}

fn is_extraction(key: &str, labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(TARGET) || key.rsplit('/').any(|part| part.starts_with(EXTRACT))
}
