//! The records of snapshots in the layer database.
//!
//! | family | key | value |
//! |---|---|---|
//! | `snapshots` | name | [`Record`] |
//! | `children` | length of the parent's name, it, the child's name | nothing |
//! | `labels` | half a digest of label and value, the name | nothing |
//! | `usage` | number | [`Usage`] of a committed snapshot |
//! | `ops` | number | [`Op`]: what lies on the disk or is mounted under that number, and for whom |
//! | `pins` | `snapshot/` and the number | layers to keep; of a settled committed snapshot its whole stack, bottom first |
//! | `system` | `snapshot-number` | at least the highest number given away |
//!
//! A snapshot's number is its own for ever; names change at commit. Every change of state is one batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use mica_layerdb::{Batch, Db, DiffId, Digest, Family, Store};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::snapshots::{Info, Kind, Usage};

pub(crate) const NUMBER: &[u8] = b"snapshot-number";
/// Rows read at a time by scans that answer with many.
const PAGE: usize = 512;

/// What is stored of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Names its folder, mountpoint and pin.
    pub number: u64,
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Nanoseconds since the epoch.
    pub created: u64,
    /// Nanoseconds since the epoch.
    pub updated: u64,
    /// The layers that it has and its parent doesn't, bottom first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<DiffId>,
    /// The root of an active snapshot's upper as it was when nobody had changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<UpperRoot>,
    /// Set while a committed snapshot's stack of layers is not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settling: Option<Settling>,
}

/// Attributes of the root of an upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpperRoot {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What a committed snapshot waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settling {
    /// Whether its folder holds changes that are to become its topmost layer; else it waits for its parent alone.
    pub changes: bool,
    /// Whether these changes are on the disk for sure.
    pub synced: bool,
    /// Whether it got its parent only when it was committed, so that its changes are none of the parent's.
    pub rebased: bool,
    /// The boot in which it was committed.
    pub boot: String,
}

/// Why a number has something on the disk or is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Op {
    pub key: String,
    pub state: OpState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OpState {
    /// An active snapshot or a view: mounted whenever it was asked for.
    Mounted,
    /// A committed snapshot whose stack is not complete.
    Settling,
}

impl Record {
    pub(crate) fn new(number: u64, kind: Kind, parent: &str, labels: BTreeMap<String, String>) -> Record {
        let created = now();
        let parent = parent.to_owned();
        Record { number, kind, parent, labels, created, updated: created, own: Vec::new(), root: None, settling: None }
    }

    pub(crate) fn info(&self, key: &str) -> Info {
        Info {
            kind: self.kind,
            name: key.to_owned(),
            parent: self.parent.clone(),
            labels: self.labels.clone(),
            created: time(self.created),
            updated: time(self.updated),
        }
    }

    /// Whether its stack of layers is complete and will not change.
    pub(crate) fn is_settled(&self) -> bool {
        self.kind == Kind::Committed && self.settling.is_none()
    }

    pub(crate) fn op(&self, key: &str) -> Option<Op> {
        let state = match self.kind {
            Kind::Active | Kind::View => OpState::Mounted,
            Kind::Committed if self.settling.is_some() => OpState::Settling,
            Kind::Committed => return None,
        };
        Some(Op { key: key.to_owned(), state })
    }
}

/// Now, in nanoseconds since the epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_nanos() as u64)
}

fn time(nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

/// The rows of all snapshots.
#[derive(Debug)]
pub(crate) struct Rows {
    store: Arc<Store>,
    next: AtomicU64,
}

impl Rows {
    pub(crate) fn open(store: Arc<Store>) -> Result<Rows> {
        let recorded: u64 = store.db().get_json(Family::System, NUMBER)?.unwrap_or(0);
        let folders = store.snapshot_dirs()?.last().copied().unwrap_or(0);
        let rows = Rows { store, next: AtomicU64::new(0) };
        let in_use = rows.ops()?.last().map_or(0, |(number, _)| *number);
        rows.next.store(recorded.max(folders).max(in_use) + 1, Ordering::Relaxed);
        Ok(rows)
    }

    fn db(&self) -> &Db {
        self.store.db()
    }

    /// A number that no snapshot has had. It is remembered by the batch that [`Rows::put`] goes into.
    pub(crate) fn allot(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Record>> {
        Ok(self.db().get_json(Family::Snapshots, key.as_bytes())?)
    }

    /// Adds a snapshot that was not there under this name, with what leads to it.
    pub(crate) fn put(&self, batch: &mut Batch, key: &str, record: &Record) -> Result<()> {
        batch.put_json(Family::Snapshots, key.as_bytes(), record)?;
        if !record.parent.is_empty() {
            batch.put(Family::Children, &child_row(&record.parent, key), b"");
        }
        for (label, value) in &record.labels {
            batch.put(Family::Labels, &label_row(label, value, key), b"");
        }
        if let Some(op) = record.op(key) {
            batch.put_json(Family::Ops, &number_row(record.number), &op)?;
        }
        batch.put_json(Family::System, NUMBER, &(self.next.load(Ordering::Relaxed) - 1))?;
        Ok(())
    }

    /// Takes a snapshot away, with what leads to it. The rows of its number stay, except for its op.
    pub(crate) fn delete(batch: &mut Batch, key: &str, record: &Record) {
        batch.delete(Family::Snapshots, key.as_bytes());
        if !record.parent.is_empty() {
            batch.delete(Family::Children, &child_row(&record.parent, key));
        }
        for (label, value) in &record.labels {
            batch.delete(Family::Labels, &label_row(label, value, key));
        }
        batch.delete(Family::Ops, &number_row(record.number));
    }

    /// Takes away what is stored under a number.
    pub(crate) fn delete_number(batch: &mut Batch, number: u64) {
        batch.delete(Family::Pins, &pin_row(number));
        batch.delete(Family::Usage, &number_row(number));
    }

    pub(crate) fn commit(&self, batch: Batch) -> Result<()> {
        Ok(self.db().commit(batch)?)
    }

    /// A child of the snapshot, if it has any.
    pub(crate) fn any_child(&self, parent: &str) -> Result<Option<String>> {
        let prefix = child_row(parent, "");
        let rows = self.db().scan_from(Family::Children, &prefix, None, 1)?;
        Ok(rows.first().map(|(row, _)| text(&row[prefix.len()..])))
    }

    pub(crate) fn children(&self, parent: &str) -> Result<Vec<String>> {
        let prefix = child_row(parent, "");
        Ok(self.db().scan(Family::Children, &prefix)?.iter().map(|(row, _)| text(&row[prefix.len()..])).collect())
    }

    /// The snapshots that have this label with this value, and perhaps some that haven't.
    pub(crate) fn labelled(&self, label: &str, value: &str) -> Result<Vec<String>> {
        let prefix = label_row(label, value, "");
        Ok(self.db().scan(Family::Labels, &prefix)?.iter().map(|(row, _)| text(&row[prefix.len()..])).collect())
    }

    /// Hands every snapshot to `each`, by name.
    pub(crate) fn each(&self, mut each: impl FnMut(&str, &Record)) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.db().scan_from(Family::Snapshots, b"", after.as_deref(), PAGE)?;
            for (key, value) in &rows {
                let key = text(key);
                match serde_json::from_slice(value) {
                    Ok(record) => each(&key, &record),
                    Err(error) => tracing::error!(key, %error, "the record of a snapshot is damaged"),
                }
            }
            match rows.last() {
                Some((key, _)) if rows.len() == PAGE => after = Some(key.clone()),
                _ => return Ok(()),
            }
        }
    }

    pub(crate) fn op(&self, number: u64) -> Result<Option<Op>> {
        Ok(self.db().get_json(Family::Ops, &number_row(number))?)
    }

    /// All numbers that have something on the disk or are mounted, ascending.
    pub(crate) fn ops(&self) -> Result<Vec<(u64, Op)>> {
        let rows = self.db().scan_json(Family::Ops, b"")?;
        Ok(rows.into_iter().filter_map(|(row, op)| Some((u64::from_be_bytes(row.try_into().ok()?), op))).collect())
    }

    /// The layers pinned for a number.
    pub(crate) fn pinned(&self, number: u64) -> Result<Vec<DiffId>> {
        Ok(self.db().get_json(Family::Pins, &pin_row(number))?.unwrap_or_default())
    }

    pub(crate) fn pin(batch: &mut Batch, number: u64, layers: &[DiffId]) -> Result<()> {
        Ok(batch.put_json(Family::Pins, &pin_row(number), &layers)?)
    }

    /// What a committed snapshot takes, once that is known.
    pub(crate) fn usage(&self, number: u64) -> Result<Option<Usage>> {
        Ok(self.db().get_json(Family::Usage, &number_row(number))?)
    }

    pub(crate) fn put_usage(batch: &mut Batch, number: u64, usage: Usage) -> Result<()> {
        Ok(batch.put_json(Family::Usage, &number_row(number), &usage)?)
    }
}

pub(crate) fn number_row(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(crate) fn pin_row(number: u64) -> Vec<u8> {
    format!("snapshot/{number}").into_bytes()
}

/// The length comes first, since names may hold any character.
pub(crate) fn child_row(parent: &str, child: &str) -> Vec<u8> {
    let length = (parent.len() as u64).to_be_bytes();
    [&length[..], parent.as_bytes(), child.as_bytes()].concat()
}

pub(crate) fn label_row(label: &str, value: &str, key: &str) -> Vec<u8> {
    let length = (label.len() as u64).to_be_bytes();
    let digest = Digest::of(&[&length[..], label.as_bytes(), value.as_bytes()].concat());
    [&digest.as_bytes()[..16], key.as_bytes()].concat()
}

/// Names come from gRPC, which allows UTF-8 only.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rows(directory: &std::path::Path) -> Rows {
        Rows::open(Store::open(directory).unwrap()).unwrap()
    }

    fn put(rows: &Rows, key: &str, parent: &str, label: &str) -> Record {
        let labels = BTreeMap::from([("l".to_owned(), label.to_owned())]);
        let record = Record::new(rows.allot(), Kind::Active, parent, labels);
        let mut batch = Batch::new();
        rows.put(&mut batch, key, &record).unwrap();
        rows.commit(batch).unwrap();
        record
    }

    #[test]
    fn index_of_children_keeps_names_apart_that_begin_alike() {
        let directory = tempfile::tempdir().unwrap();
        let rows = rows(directory.path());
        put(&rows, "c", "a", "");
        put(&rows, "bc", "a", "");
        put(&rows, "x", "ab", "");
        put(&rows, "y\0z", "a\0", "");
        assert_eq!(rows.children("a").unwrap(), ["bc", "c"]);
        assert_eq!(rows.any_child("ab").unwrap().unwrap(), "x");
        assert_eq!(rows.any_child("a\0").unwrap().unwrap(), "y\0z");
        assert_eq!(rows.any_child("").unwrap(), None);
        assert_eq!(rows.any_child("abc").unwrap(), None);
    }

    #[test]
    fn index_of_labels_follows_records() {
        let directory = tempfile::tempdir().unwrap();
        let rows = rows(directory.path());
        let one = put(&rows, "one", "", "x");
        put(&rows, "two", "", "x");
        put(&rows, "three", "", "y");
        assert_eq!(rows.labelled("l", "x").unwrap(), ["one", "two"]);
        let mut batch = Batch::new();
        Rows::delete(&mut batch, "one", &one);
        Rows::delete_number(&mut batch, one.number);
        rows.commit(batch).unwrap();
        assert_eq!(rows.labelled("l", "x").unwrap(), ["two"]);
        assert_eq!(rows.labelled("lx", "").unwrap(), [""; 0]);
        assert_eq!(rows.get("one").unwrap(), None);
        assert_eq!(rows.ops().unwrap().len(), 2);
    }

    #[test]
    fn numbers_are_never_given_twice_even_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let first = {
            let rows = rows(directory.path());
            put(&rows, "a", "", "");
            let gone = put(&rows, "b", "", "");
            let mut batch = Batch::new();
            Rows::delete(&mut batch, "b", &gone);
            rows.commit(batch).unwrap();
            gone.number
        };
        let rows = rows(directory.path());
        assert!(rows.allot() > first);
        rows.store.new_snapshot_dir(4711).unwrap();
        assert_eq!(Rows::open(Arc::clone(&rows.store)).unwrap().allot(), 4712);
    }

    #[test]
    fn each_hands_out_every_record_once_over_pages() {
        let directory = tempfile::tempdir().unwrap();
        let rows = rows(directory.path());
        let mut batch = Batch::new();
        for at in 0..PAGE * 2 {
            let record = Record::new(rows.allot(), Kind::View, "", BTreeMap::new());
            rows.put(&mut batch, &format!("{at:05}"), &record).unwrap();
        }
        batch.put(Family::Snapshots, b"00003", b"damaged");
        rows.commit(batch).unwrap();
        let mut seen = Vec::new();
        rows.each(|key, _| seen.push(key.to_owned())).unwrap();
        assert_eq!(seen.len(), PAGE * 2 - 1);
        assert!(seen.is_sorted() && !seen.contains(&"00003".to_owned()));
    }
}
