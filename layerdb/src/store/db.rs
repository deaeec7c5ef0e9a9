//! The store's metadata: rows in column families, changed by atomic, synced batches.
//!
//! One [`Batch`] per change of state; when [`Db::commit`] has returned, the change survives a power cut, and before
//! that nobody can see a part of it. Values are JSON.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use parking_lot::{MappedRwLockReadGuard, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, Direction, IteratorMode, LogLevel, Options, ReadOptions,
    WriteBatch, WriteOptions,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::DiffId;
use crate::error::{Error, Result};

/// The kinds of rows. The name of each column family is the lower-case name of its variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// What belongs to the store as a whole.
    System,
    /// Diff-id (hexadecimal) -> [`crate::Layer`].
    Layers,
    /// Chain id (hexadecimal) -> the record of a published chain tree.
    Chains,
    /// Name -> [`crate::Image`].
    Images,
    /// Owner -> JSON list of the diff-ids it needs. Garbage collection starts from these rows and the images.
    Pins,
    /// The snapshotter's snapshots.
    Snapshots,
    /// The snapshotter's children of a snapshot.
    Children,
    /// The snapshotter's index of labels.
    Labels,
    /// The snapshotter's resource usage.
    Usage,
    /// The snapshotter's journal of live mounts.
    Ops,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 10] = [
        Family::System,
        Family::Layers,
        Family::Chains,
        Family::Images,
        Family::Pins,
        Family::Snapshots,
        Family::Children,
        Family::Labels,
        Family::Usage,
        Family::Ops,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Family::System => "system",
            Family::Layers => "layers",
            Family::Chains => "chains",
            Family::Images => "images",
            Family::Pins => "pins",
            Family::Snapshots => "snapshots",
            Family::Children => "children",
            Family::Labels => "labels",
            Family::Usage => "usage",
            Family::Ops => "ops",
        }
    }
}

/// Changes that become visible and durable together, or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<(Family, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Sets a row. The last change of a row counts.
    pub fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.changes.push((family, key.to_vec(), Some(value.to_vec())));
    }

    /// Sets a row to a value's JSON.
    pub fn put_json<T: Serialize>(&mut self, family: Family, key: &[u8], value: &T) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(|error| corrupt(family, key, &error))?;
        self.changes.push((family, key.to_vec(), Some(json)));
        Ok(())
    }

    /// Removes a row; a missing one is no error.
    pub fn delete(&mut self, family: Family, key: &[u8]) {
        self.changes.push((family, key.to_vec(), None));
    }

    /// True if nothing would change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn bytes(&self) -> u64 {
        self.changes.iter().map(|(_, key, value)| (key.len() + value.as_ref().map_or(0, Vec::len)) as u64).sum()
    }

    fn moves_roots(&self) -> bool {
        self.changes.iter().any(|(family, ..)| matches!(family, Family::Pins | Family::Images))
    }

    /// Adds the layers that the batch's pins and images name.
    fn note_named(&self, named: &mut Named) {
        let roots = self.changes.iter().filter(|(family, ..)| matches!(family, Family::Pins | Family::Images));
        for value in roots.filter_map(|(.., value)| value.as_ref()) {
            match serde_json::from_slice::<Root>(value) {
                Ok(Root::Pin(layers) | Root::Image { layers }) => named.layers.extend(layers),
                Err(_) => named.anything = true,
            }
        }
    }

    fn grows(&self) -> bool {
        self.changes.iter().any(|(_, _, value)| value.is_some())
    }
}

/// What pins and images named since somebody began to watch.
#[derive(Debug, Default)]
struct Named {
    layers: HashSet<DiffId>,
    /// A row made no sense.
    anything: bool,
}

/// The part of a pin or an image that keeps layers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Root {
    Pin(Vec<DiffId>),
    Image { layers: Vec<DiffId> },
}

/// A row: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// The database of a store's metadata.
pub struct Db {
    path: PathBuf,
    /// `None` after a failed write and a failed attempt to open anew: the next use tries again.
    rocksdb: RwLock<Option<DB>>,
    /// Held by commits that change what garbage collection starts from, and by garbage collection between reading
    /// those rows for the last time and deleting what they don't name. Taken before the table of claims and `rocksdb`.
    /// `Some` while a collection watches.
    roots: Mutex<Option<Named>>,
}

impl fmt::Debug for Db {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Db").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Bytes that must be free before a commit that adds rows: a failing write leaves RocksDB unusable until it is
/// opened anew, so a full disk is better noticed before.
const HEADROOM_BYTES: u64 = 1 << 20;

/// Rows read at a time by [`Db::each_json`].
const PAGE_ROWS: usize = 256;

impl Db {
    /// Opens the database in a directory, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Db> {
        let db = open_rocksdb(path)?;
        Ok(Db { path: path.to_path_buf(), rocksdb: RwLock::new(Some(db)), roots: Mutex::new(None) })
    }

    /// Applies a batch. When this returns, the change is durable. After an error it is either wholly there or not at
    /// all, and reads say which.
    pub fn commit(&self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        if batch.grows() {
            self.require_space(batch.bytes())?;
        }
        let mut roots = batch.moves_roots().then(|| self.roots.lock());
        if let Some(named) = roots.as_mut().and_then(|roots| roots.as_mut()) {
            batch.note_named(named);
        }
        self.write(batch)
    }

    /// Remembers from now on which layers pins and images come to name, until the guard is dropped. One at a time.
    pub(crate) fn watch_roots(&self) -> WatchedRoots<'_> {
        *self.roots.lock() = Some(Named::default());
        WatchedRoots { db: self }
    }

    fn write(&self, batch: Batch) -> Result<()> {
        let failure = {
            let guard = self.opened()?;
            let db = &*guard;
            let mut rows = WriteBatch::default();
            for (family, key, value) in batch.changes {
                let family = column(db, family)?;
                match value {
                    Some(value) => rows.put_cf(family, key, value),
                    None => rows.delete_cf(family, key),
                }
            }
            let mut options = WriteOptions::default();
            options.set_sync(true);
            match db.write_opt(rows, &options) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            }
        };
        self.reopen();
        Err(self.error("commit metadata", &failure))
    }

    /// RocksDB refuses everything after a failed write; opening it anew recovers what is on the disk. If that fails
    /// too, on a full disk for example, every later use tries again.
    fn reopen(&self) {
        let mut guard = self.rocksdb.write();
        *guard = None;
        match open_rocksdb(&self.path) {
            Ok(db) => *guard = Some(db),
            Err(error) => tracing::error!(path = %self.path.display(), %error, "metadata cannot be opened anew"),
        }
    }

    fn opened(&self) -> Result<MappedRwLockReadGuard<'_, DB>> {
        if let Ok(db) = RwLockReadGuard::try_map(self.rocksdb.read(), Option::as_ref) {
            return Ok(db);
        }
        let mut guard = self.rocksdb.write();
        if guard.is_none() {
            *guard = Some(open_rocksdb(&self.path)?);
        }
        RwLockReadGuard::try_map(RwLockWriteGuard::downgrade(guard), Option::as_ref).map_err(|_| Error::Metadata {
            action: format!("use metadata in {}", self.path.display()),
            reason: "an earlier write failed".into(),
        })
    }

    fn require_space(&self, batch_bytes: u64) -> Result<()> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|error| Error::io(format!("ask for free space in {}", self.path.display()))(error.into()))?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) < HEADROOM_BYTES + batch_bytes {
            let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
            return Err(Error::io("commit metadata")(full));
        }
        Ok(())
    }

    /// The value of a row. `None` if there is no such row.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let db = self.opened()?;
        db.get_cf(column(&db, family)?, key).map_err(|error| self.error("read metadata", &error))
    }

    /// The JSON value of a row. `None` if there is no such row.
    pub fn get_json<T: DeserializeOwned>(&self, family: Family, key: &[u8]) -> Result<Option<T>> {
        self.get(family, key)?
            .map(|value| serde_json::from_slice(&value).map_err(|error| corrupt(family, key, &error)))
            .transpose()
    }

    /// All rows whose key starts with `prefix`, in the order of their keys.
    pub fn scan(&self, family: Family, prefix: &[u8]) -> Result<Vec<Row>> {
        self.scan_from(family, prefix, None, usize::MAX)
    }

    /// Up to `limit` rows whose key starts with `prefix` and lies behind `after`, in the order of their keys.
    pub fn scan_from(&self, family: Family, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        let db = self.opened()?;
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let start = after.filter(|after| *after >= prefix).unwrap_or(prefix);
        let mode = IteratorMode::From(start, Direction::Forward);
        let mut rows = Vec::new();
        for row in db.iterator_cf_opt(column(&db, family)?, options, mode) {
            let (key, value) = row.map_err(|error| self.error("read metadata", &error))?;
            if rows.len() >= limit || !key.starts_with(prefix) {
                break;
            }
            if after.is_none_or(|after| &key[..] > after) {
                rows.push((key.into_vec(), value.into_vec()));
            }
        }
        Ok(rows)
    }

    /// The JSON values of all rows whose key starts with `prefix`, in the order of their keys.
    pub fn scan_json<T: DeserializeOwned>(&self, family: Family, prefix: &[u8]) -> Result<Vec<(Vec<u8>, T)>> {
        let parse = |(key, value): Row| match serde_json::from_slice(&value) {
            Ok(value) => Ok((key, value)),
            Err(error) => Err(corrupt(family, &key, &error)),
        };
        self.scan(family, prefix)?.into_iter().map(parse).collect()
    }

    /// Shows the JSON values of all rows, in the order of their keys, a page at a time: rows that come or go
    /// meanwhile may be among them or not.
    pub fn each_json<T: DeserializeOwned>(
        &self,
        family: Family,
        mut visit: impl FnMut(&[u8], T) -> Result<()>,
    ) -> Result<()> {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let rows = self.scan_from(family, b"", last.as_deref(), PAGE_ROWS)?;
            let more = rows.len() == PAGE_ROWS;
            for (key, value) in &rows {
                visit(key, serde_json::from_slice(value).map_err(|error| corrupt(family, key, &error))?)?;
            }
            last = rows.into_iter().next_back().map(|(key, _)| key).or(last);
            if !more {
                return Ok(());
            }
        }
    }

    fn error(&self, action: &str, error: &rocksdb::Error) -> Error {
        metadata_error(action, &self.path, error)
    }
}

/// See [`Db::watch_roots`].
#[derive(Debug)]
pub(crate) struct WatchedRoots<'a> {
    db: &'a Db,
}

impl WatchedRoots<'_> {
    /// Keeps pins and images as they are until the guard is dropped.
    pub(crate) fn freeze(&self) -> FrozenRoots<'_> {
        FrozenRoots { db: self.db, guard: self.db.roots.lock() }
    }
}

impl Drop for WatchedRoots<'_> {
    fn drop(&mut self) {
        *self.db.roots.lock() = None;
    }
}

/// See [`WatchedRoots::freeze`].
pub(crate) struct FrozenRoots<'a> {
    db: &'a Db,
    guard: MutexGuard<'a, Option<Named>>,
}

impl FrozenRoots<'_> {
    /// Whether a pin or an image that was written since the watch began may name the layer.
    pub(crate) fn names(&self, layer: DiffId) -> bool {
        self.guard.as_ref().is_none_or(|named| named.anything || named.layers.contains(&layer))
    }

    /// [`Db::commit`] for the holder of the guard.
    pub(crate) fn commit(&self, batch: Batch) -> Result<()> {
        if batch.is_empty() { Ok(()) } else { self.db.write(batch) }
    }
}

fn open_rocksdb(path: &Path) -> Result<DB> {
    let cache = Cache::new_lru_cache(2 << 20);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_max_open_files(64);
    options.set_db_write_buffer_size(8 << 20);
    options.set_max_total_wal_size(8 << 20);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    // Commands open it for one look: with the few files that there are, threads to open them and figures of them cost more.
    options.set_max_file_opening_threads(1);
    options.set_skip_stats_update_on_db_open(true);
    let columns = Family::ALL.map(|family| {
        let mut tables = BlockBasedOptions::default();
        tables.set_block_cache(&cache);
        let mut options = Options::default();
        options.set_write_buffer_size(1 << 20);
        options.set_block_based_table_factory(&tables);
        ColumnFamilyDescriptor::new(family.name(), options)
    });
    DB::open_cf_descriptors(&options, path, columns).map_err(|error| metadata_error("open metadata", path, &error))
}

fn column(db: &DB, family: Family) -> Result<&rocksdb::ColumnFamily> {
    db.cf_handle(family.name()).ok_or_else(|| Error::Metadata {
        action: "use metadata".into(),
        reason: format!("column family {} is missing", family.name()),
    })
}

fn metadata_error(action: &str, path: &Path, error: &rocksdb::Error) -> Error {
    let action = format!("{action} in {}", path.display());
    let text = error.to_string();
    if text.contains("No space left on device") || text.contains("Disk quota exceeded") {
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        return Error::io(action)(full);
    }
    match error.kind() {
        rocksdb::ErrorKind::Corruption => Error::CorruptMetadata { action, reason: text },
        _ => Error::Metadata { action, reason: text },
    }
}

fn corrupt(family: Family, key: &[u8], error: &serde_json::Error) -> Error {
    Error::CorruptMetadata {
        action: format!("read row \"{}\" of {}", key.escape_ascii(), family.name()),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn commit_survives_reopening_and_keeps_families_apart() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(directory.path()).unwrap();
        let mut batch = Batch::new();
        batch.put(Family::Pins, b"a", b"1");
        batch.put(Family::Images, b"a", b"2");
        batch.put(Family::Images, b"b", b"3");
        batch.delete(Family::Images, b"b");
        db.commit(batch).unwrap();
        drop(db);
        let db = Db::open(directory.path()).unwrap();
        assert_eq!(db.get(Family::Pins, b"a").unwrap().unwrap(), b"1");
        assert_eq!(db.get(Family::Images, b"a").unwrap().unwrap(), b"2");
        assert_eq!(db.get(Family::Images, b"b").unwrap(), None);
    }

    #[test]
    fn scan_in_pages_gives_each_row_of_the_prefix_once() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(directory.path()).unwrap();
        let mut batch = Batch::new();
        for key in ["a/1", "a/2", "a/3", "b/1", "a"] {
            batch.put(Family::Ops, key.as_bytes(), b"x");
        }
        db.commit(batch).unwrap();
        let keys = |rows: Vec<Row>| rows.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(db.scan(Family::Ops, b"a/").unwrap()), [b"a/1", b"a/2", b"a/3"]);
        let first = keys(db.scan_from(Family::Ops, b"a/", None, 2).unwrap());
        assert_eq!(first, [b"a/1", b"a/2"]);
        let second = keys(db.scan_from(Family::Ops, b"a/", Some(&first[1]), 2).unwrap());
        assert_eq!(second, [b"a/3"]);
        assert!(db.scan_from(Family::Ops, b"a/", Some(b"a/3"), 2).unwrap().is_empty());
    }

    #[test]
    fn damaged_row_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(directory.path()).unwrap();
        let mut batch = Batch::new();
        batch.put(Family::Images, b"web:1", b"{");
        db.commit(batch).unwrap();
        let error = db.get_json::<u32>(Family::Images, b"web:1").unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Corrupt);
        assert!(error.to_string().contains("web:1"), "{error}");
    }
}
