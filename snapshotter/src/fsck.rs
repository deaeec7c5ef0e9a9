//! Checks of what the snapshotter keeps in a store: snapshots and what leads to them, their folders, and mounts of
//! images.
//!
//! Rows of one change are written together but read one after the other, so beside a daemon a difference counts only
//! if it is still there a while later. What is derived from records is put right only where no daemon works with it.

mod issue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mica_layerdb::fsck::{Extension, Findings};
use mica_layerdb::{Batch, DiffId, Error, Family, Result, Store};
use serde::de::DeserializeOwned;

pub use issue::SnapshotIssue;
use issue::SnapshotIssue as I;

use crate::server::Record as DaemonRecord;
use crate::snapshots::{Kind, Usage};
use crate::store::{NUMBER, Op, Record, child_row, label_row, number_row, pin_row};

/// Looks before a difference counts.
const LOOKS: usize = 4;
/// Time between two of them.
const BETWEEN: Duration = Duration::from_millis(100);
const PAGE: usize = 512;

/// The checks, to be given to [`Store::fsck`].
#[derive(Debug)]
pub struct SnapshotChecks {
    store: Arc<Store>,
    /// A daemon works with the snapshots meanwhile.
    served: bool,
}

impl SnapshotChecks {
    /// Checks of a store that a daemon serves, or not.
    pub fn new(store: &Arc<Store>, served: bool) -> SnapshotChecks {
        SnapshotChecks { store: Arc::clone(store), served }
    }
}

impl Extension for SnapshotChecks {
    fn check(&self, findings: &mut Findings<'_>) -> Result<()> {
        let mut issues = self.look()?;
        for _ in 1..LOOKS {
            if issues.is_empty() || !self.served {
                break;
            }
            thread::sleep(BETWEEN);
            let again = self.look()?;
            issues.retain(|issue| again.contains(issue));
        }
        for issue in issues {
            if self.served || !issue.is_derived() {
                findings.left(&issue);
            } else {
                findings.repairable(&issue, || self.repair(&issue));
            }
        }
        Ok(())
    }
}

/// Everything that was read at once.
#[derive(Default)]
struct Seen {
    records: BTreeMap<String, Record>,
    children: BTreeSet<Vec<u8>>,
    labels: BTreeSet<Vec<u8>>,
    usage: BTreeMap<u64, Option<Usage>>,
    ops: BTreeMap<u64, Option<Op>>,
    pins: BTreeMap<u64, Vec<DiffId>>,
}

impl SnapshotChecks {
    fn look(&self) -> Result<Vec<SnapshotIssue>> {
        let mut issues = Vec::new();
        let seen = self.read(&mut issues)?;
        self.numbers(&seen, &mut issues)?;
        for (key, record) in &seen.records {
            parent(&seen, key, record, &mut issues);
            indexes(&seen, key, record, &mut issues);
            self.number(&seen, key, record, &mut issues);
        }
        strays(&seen, &mut issues);
        self.folders(&seen, &mut issues)?;
        self.mounts(&mut issues)?;
        if !self.served && DaemonRecord::read(self.store.root()).is_some() {
            issues.push(I::StaleDaemonRecord {});
        }
        Ok(issues)
    }

    fn read(&self, issues: &mut Vec<SnapshotIssue>) -> Result<Seen> {
        let mut seen = Seen::default();
        self.each(Family::Snapshots, |key, value| match (std::str::from_utf8(key), parse::<Record>(value)) {
            (Ok(key), Ok(record)) => drop(seen.records.insert(key.to_owned(), record)),
            (_, Err(reason)) => issues.push(I::DamagedSnapshot { key: shown(key), reason }),
            _ => issues.push(I::DamagedSnapshot { key: shown(key), reason: "its key is no UTF-8".to_owned() }),
        })?;
        self.each(Family::Children, |key, _| {
            seen.children.insert(key.to_vec());
        })?;
        self.each(Family::Labels, |key, _| {
            seen.labels.insert(key.to_vec());
        })?;
        let mut damaged = |family: &str, key: &[u8]| {
            issues.push(I::DamagedNumber { family: family.to_owned(), key: shown(key) });
        };
        self.each(Family::Usage, |key, value| match number_in(key) {
            Some(number) => drop(seen.usage.insert(number, parse(value).ok())),
            None => damaged("usage", key),
        })?;
        self.each(Family::Ops, |key, value| match number_in(key) {
            Some(number) => drop(seen.ops.insert(number, parse(value).ok())),
            None => damaged("ops", key),
        })?;
        self.each(Family::Pins, |key, value| {
            let number = key.strip_prefix(b"snapshot/").map(|number| std::str::from_utf8(number).ok()?.parse().ok());
            match number {
                // What can't be read was told by the layer database.
                Some(Some(number)) => drop(parse(value).map(|layers| seen.pins.insert(number, layers))),
                Some(None) => damaged("pins", key),
                None => {}
            }
        })?;
        Ok(seen)
    }

    /// Hands every row of a family to `visit`, a page at a time.
    fn each(&self, family: Family, mut visit: impl FnMut(&[u8], &[u8])) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.store.db().scan_from(family, b"", after.as_deref(), PAGE)?;
            for (key, value) in &rows {
                visit(key, value);
            }
            match rows.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    fn numbers(&self, seen: &Seen, issues: &mut Vec<SnapshotIssue>) -> Result<()> {
        let mut owners: HashMap<u64, &str> = HashMap::new();
        for (key, record) in &seen.records {
            if let Some(other) = owners.insert(record.number, key) {
                issues.push(I::SharedNumber { number: record.number, key: key.clone(), other: other.to_owned() });
            }
        }
        let counter = self.store.db().get(Family::System, NUMBER)?;
        // One that can't be read was told by the layer database.
        let counter = counter.map(|value| parse::<u64>(&value)).transpose().unwrap_or(Some(u64::MAX)).unwrap_or(0);
        let highest = owners.keys().copied().max().unwrap_or(0);
        if counter < highest {
            issues.push(I::LowCounter { counter, highest });
        }
        Ok(())
    }

    /// What is kept under a snapshot's number.
    fn number(&self, seen: &Seen, key: &str, record: &Record, issues: &mut Vec<SnapshotIssue>) {
        let number = record.number;
        let key = || key.to_owned();
        if seen.ops.get(&number) != record.op(&key()).map(Some).as_ref() {
            issues.push(I::WrongOp { key: key(), number });
        }
        let writable = record.kind == Kind::Active || record.settling.as_ref().is_some_and(|settling| settling.changes);
        if writable && !self.store.snapshot_dir(number).join("upper").is_dir() {
            issues.push(I::MissingFolder { key: key(), number });
        }
        if !record.is_settled() {
            return;
        }
        if !matches!(seen.usage.get(&number), Some(Some(_))) {
            issues.push(I::MissingUsage { key: key(), number });
        }
        let below = match record.parent.as_str() {
            "" => Some(Vec::new()),
            parent => seen.records.get(parent).and_then(|parent| seen.pins.get(&parent.number)).cloned(),
        };
        if let Some(mut expected) = below {
            expected.extend(&record.own);
            if seen.pins.get(&number).cloned().unwrap_or_default() != expected {
                issues.push(I::WrongPin { key: key(), number, expected });
            }
        }
    }

    fn folders(&self, seen: &Seen, issues: &mut Vec<SnapshotIssue>) -> Result<()> {
        // A daemon makes a folder before its row, and clears strays away when it starts.
        if self.served {
            return Ok(());
        }
        let strays = self.store.snapshot_dirs()?.into_iter().filter(|number| !seen.ops.contains_key(number));
        issues.extend(strays.map(|number| I::StrayFolder { number }));
        Ok(())
    }

    /// Mounts of images: a row for each file that somebody holds, and the other way round.
    fn mounts(&self, issues: &mut Vec<SnapshotIssue>) -> Result<()> {
        for name in crate::admin::ended_mounts(&self.store).map_err(told)? {
            issues.push(I::EndedMount { name });
        }
        Ok(())
    }

    fn repair(&self, issue: &SnapshotIssue) -> Result<String> {
        let mut batch = Batch::new();
        let said = match issue {
            I::MissingChildRow { parent, child } => {
                batch.put(Family::Children, &child_row(parent, child), b"");
                "the row was written"
            }
            I::MissingLabelRow { key, label } => {
                let record = self.record(key)?;
                if let Some(value) = record.as_ref().and_then(|record| record.labels.get(label)) {
                    batch.put(Family::Labels, &label_row(label, value, key), b"");
                }
                "the row was written"
            }
            I::StrayChildRow { row } => {
                batch.delete(Family::Children, row);
                "the row was removed"
            }
            I::StrayLabelRow { row } => {
                batch.delete(Family::Labels, row);
                "the row was removed"
            }
            I::StrayNumber { number } => {
                batch.delete(Family::Usage, &number_row(*number));
                batch.delete(Family::Ops, &number_row(*number));
                batch.delete(Family::Pins, &pin_row(*number));
                "its rows were removed"
            }
            I::WrongOp { key, number } => {
                match self.record(key)?.and_then(|record| record.op(key)) {
                    Some(op) => batch.put_json(Family::Ops, &number_row(*number), &op)?,
                    None => batch.delete(Family::Ops, &number_row(*number)),
                }
                "the row was written anew"
            }
            I::MissingUsage { key, number } => {
                let mut usage = Usage::default();
                for diff_id in self.record(key)?.map(|record| record.own).unwrap_or_default() {
                    let layer = self.store.layer(diff_id)?.ok_or(Error::NoLayer { diff_id })?;
                    usage.size += layer.content_bytes;
                    usage.inodes += layer.entries;
                }
                batch.put_json(Family::Usage, &number_row(*number), &usage)?;
                "it was counted anew"
            }
            I::WrongPin { number, expected, .. } => {
                let _hold = self.store.hold(expected)?;
                batch.put_json(Family::Pins, &pin_row(*number), expected)?;
                self.store.db().commit(batch)?;
                return Ok("the row was written anew".to_owned());
            }
            I::LowCounter { highest, .. } => {
                batch.put_json(Family::System, NUMBER, highest)?;
                "it was raised"
            }
            I::StrayFolder { number } => {
                self.store.remove_snapshot_dir(*number)?;
                "it waits for the next collection of garbage"
            }
            I::EndedMount { name } => {
                crate::admin::forget_mount(&self.store, name).map_err(told)?;
                "it was removed"
            }
            I::StaleDaemonRecord {} => {
                let path = self.store.root().join(DaemonRecord::NAME);
                std::fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))?;
                "it was removed"
            }
            I::DamagedSnapshot { .. }
            | I::DamagedNumber { .. }
            | I::MissingParent { .. }
            | I::UncommittedParent { .. }
            | I::SharedNumber { .. }
            | I::MissingFolder { .. } => "nothing was done",
        };
        self.store.db().commit(batch)?;
        Ok(said.to_owned())
    }

    fn record(&self, key: &str) -> Result<Option<Record>> {
        self.store.db().get_json(Family::Snapshots, key.as_bytes())
    }
}

fn parent(seen: &Seen, key: &str, record: &Record, issues: &mut Vec<SnapshotIssue>) {
    let (key, parent) = (key.to_owned(), record.parent.clone());
    match seen.records.get(&parent) {
        _ if parent.is_empty() => {}
        None => issues.push(I::MissingParent { key, parent }),
        Some(found) if found.kind != Kind::Committed => issues.push(I::UncommittedParent { key, parent }),
        Some(_) => {}
    }
}

/// Rows that lead to a snapshot.
fn indexes(seen: &Seen, key: &str, record: &Record, issues: &mut Vec<SnapshotIssue>) {
    if !record.parent.is_empty() && !seen.children.contains(&child_row(&record.parent, key)) {
        issues.push(I::MissingChildRow { parent: record.parent.clone(), child: key.to_owned() });
    }
    for (label, value) in &record.labels {
        if !seen.labels.contains(&label_row(label, value, key)) {
            issues.push(I::MissingLabelRow { key: key.to_owned(), label: label.clone() });
        }
    }
}

/// Rows that lead to nothing.
fn strays(seen: &Seen, issues: &mut Vec<SnapshotIssue>) {
    let (mut children, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let mut numbers = BTreeSet::new();
    for (key, record) in &seen.records {
        if !record.parent.is_empty() {
            children.insert(child_row(&record.parent, key));
        }
        labels.extend(record.labels.iter().map(|(label, value)| label_row(label, value, key)));
        numbers.insert(record.number);
    }
    issues.extend(seen.children.difference(&children).map(|row| I::StrayChildRow { row: row.clone() }));
    issues.extend(seen.labels.difference(&labels).map(|row| I::StrayLabelRow { row: row.clone() }));
    let kept: BTreeSet<u64> = seen.usage.keys().chain(seen.ops.keys()).chain(seen.pins.keys()).copied().collect();
    issues.extend(kept.difference(&numbers).map(|number| I::StrayNumber { number: *number }));
}

fn parse<T: DeserializeOwned>(value: &[u8]) -> std::result::Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

fn number_in(row: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(row.try_into().ok()?))
}

fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

fn told(error: crate::error::Error) -> Error {
    Error::io("look at mounts of images")(std::io::Error::other(error))
}
