//! Looking at every file below the store's root, once.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::owners::{Index, Ledger, Set};
use super::{Kinds, SnapshotDf};
use crate::digest::{ChainId, DiffId, Digest, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::gc::measure;
use crate::object;
use crate::sorter::{SHARDS, Sorted, short_object};
use crate::store::{self, Family, Store};
use crate::tally::Tally;
use crate::walk;

/// The directories whose contents are counted by [`Census::count_trees`] and [`Census::count_objects`].
const BY_NAME: [&str; 4] = ["objects", "layers", "chains", "snapshots"];

pub(super) struct Census<'a> {
    store: &'a Store,
    pub(super) kinds: Kinds,
    /// What a collection would free; objects not among it.
    pub(super) reclaimable: Tally,
    pub(super) snapshots: Vec<SnapshotDf>,
}

#[derive(Deserialize)]
struct Numbered {
    number: u64,
}

impl<'a> Census<'a> {
    pub(super) fn new(store: &'a Store) -> Census<'a> {
        Census { store, kinds: Kinds::default(), reclaimable: Tally::default(), snapshots: Vec::new() }
    }

    /// Everything but objects and trees.
    pub(super) fn count_fixed(&mut self) -> Result<()> {
        self.kinds.directories += self.look(Path::new("."))?.unwrap_or_default();
        for entry in self.names(Path::new("."))? {
            let (path, _) = entry?;
            let path = path.strip_prefix(".").unwrap_or(&path);
            match path {
                _ if BY_NAME.iter().any(|known| path == Path::new(known)) => {}
                _ if path == Path::new("meta") => self.kinds.metadata += self.measure(path)?,
                _ if path == Path::new("quarantine") => {
                    self.kinds.directories += self.look(path)?.unwrap_or_default();
                    for entry in self.names(Path::new("quarantine"))? {
                        let (path, _) = entry?;
                        self.kinds.quarantine += self.measure(&path)?;
                    }
                }
                _ if path == Path::new("tmp") => self.count_temporary()?,
                _ => self.kinds.other += self.measure(path)?,
            }
        }
        self.count_snapshots()
    }

    fn count_temporary(&mut self) -> Result<()> {
        self.kinds.directories += self.look(Path::new("tmp"))?.unwrap_or_default();
        for entry in self.names(Path::new("tmp"))? {
            let (path, name) = entry?;
            let size = self.measure(&path)?;
            if store::is_removed(OsStr::new(&name)) {
                self.kinds.removed_snapshots += size;
                self.reclaimable += Tally { count: 1, ..size };
            } else {
                self.kinds.temporary += size;
            }
        }
        Ok(())
    }

    fn count_snapshots(&mut self) -> Result<()> {
        self.kinds.directories += self.look(Path::new("snapshots"))?.unwrap_or_default();
        for entry in self.names(Path::new("snapshots"))? {
            let (path, name) = entry?;
            let files = self.measure(&path)?;
            match name.to_str().and_then(|name| name.parse().ok()) {
                None => self.kinds.other += files,
                Some(number) => {
                    self.kinds.snapshots += files;
                    self.snapshots.push(SnapshotDf { number, name: None, files });
                }
            }
        }
        self.snapshots.sort_unstable_by_key(|snapshot| snapshot.number);
        let places: HashMap<u64, usize> =
            self.snapshots.iter().enumerate().map(|(at, snapshot)| (snapshot.number, at)).collect();
        self.store.db().each_json(Family::Snapshots, |key, Numbered { number }| {
            if let Some(at) = places.get(&number) {
                self.snapshots[*at].name = Some(String::from_utf8_lossy(key).into_owned());
            }
            Ok(())
        })
    }

    /// Returns how many layers there are.
    pub(super) fn count_trees(&mut self, index: &Index, ledger: &mut Ledger) -> Result<u64> {
        let mut layers = 0;
        self.count_folder("layers")?;
        for entry in self.names(Path::new("layers/sha256"))? {
            let (path, name) = entry?;
            let Some(size) = self.look(&path)? else { continue };
            let name = name.as_encoded_bytes();
            let (hex, is_recipe) = name.strip_suffix(b".recipe").map_or((name, false), |hex| (hex, true));
            let Some(diff_id) = Digest::from_hex(hex).map(DiffId) else {
                self.kinds.other += size;
                continue;
            };
            *(if is_recipe { &mut self.kinds.recipes } else { &mut self.kinds.layer_trees }) += size;
            let row = self.store.layer(diff_id)?;
            layers += u64::from(row.is_some() && !is_recipe);
            let needed = row.is_some_and(|layer| !is_recipe || layer.recipe.is_some());
            let set = index.of_layer(diff_id).filter(|_| needed);
            self.book(ledger, set.or_else(|| self.layer_in_work(index, diff_id)), size);
        }
        self.count_folder("chains")?;
        for entry in self.names(Path::new("chains/sha256"))? {
            let (path, name) = entry?;
            let Some(size) = self.look(&path)? else { continue };
            let Some(id) = Digest::from_hex(name.as_encoded_bytes()).map(ChainId) else {
                self.kinds.other += size;
                continue;
            };
            self.kinds.chain_trees += size;
            let has_row = self.store.chain_record(id)?.is_some();
            let in_use = || (has_row && self.store.chains.trees.is_used(id.0)).then_some(index.work);
            let set = index.of_chain(id).filter(|_| has_row).or_else(in_use);
            self.book(ledger, set, size);
        }
        Ok(layers)
    }

    fn layer_in_work(&self, index: &Index, diff_id: DiffId) -> Option<Set> {
        (!self.store.claims.lock().layer(diff_id)).then_some(index.work)
    }

    /// `layers` or `chains`, less what is in their `sha256`.
    fn count_folder(&mut self, folder: &str) -> Result<()> {
        self.kinds.directories += self.look(Path::new(folder))?.unwrap_or_default();
        for entry in self.names(Path::new(folder))? {
            let (path, name) = entry?;
            if name == "sha256" {
                self.kinds.directories += self.look(&path)?.unwrap_or_default();
            } else {
                self.kinds.other += self.measure(&path)?;
            }
        }
        Ok(())
    }

    /// Returns those that nobody has.
    pub(super) fn count_objects(
        &mut self,
        index: &Index,
        ledger: &mut Ledger,
        records: &mut Sorted<'_, (u64, Set)>,
    ) -> Result<Tally> {
        self.kinds.directories += self.look(Path::new("objects"))?.unwrap_or_default();
        let mut garbage = Tally::default();
        let mut is_shard = [false; SHARDS];
        for entry in self.names(Path::new("objects"))? {
            let (path, name) = entry?;
            let shard = shard_of(&name);
            match shard.filter(|shard| object::shard_path(*shard) == path) {
                Some(shard) => is_shard[usize::from(shard)] = true,
                None => self.kinds.other += self.measure(&path)?,
            }
        }
        for shard in (0..SHARDS).filter(|shard| is_shard[*shard]) {
            let path = object::shard_path(shard as u8);
            self.kinds.directories += self.look(&path)?.unwrap_or_default();
            let parts = records.parts(shard);
            for part in 0..parts {
                let had = records.part(shard, part, parts)?;
                let keys = Sorted::<(u64, Set)>::keys(shard, part, parts);
                for entry in self.names(&path)? {
                    let (path, name) = entry?;
                    let id = object::id_of(shard as u8, &name);
                    if !id.map_or(part == 0, |id| keys(short_object(id))) {
                        continue;
                    }
                    match id {
                        None => self.kinds.other += self.measure(&path)?,
                        Some(id) => garbage += self.count_object(id, &path, &had, index, ledger)?,
                    }
                }
            }
        }
        Ok(garbage)
    }

    /// Returns its size if nobody has it.
    fn count_object(
        &mut self,
        id: ObjectId,
        path: &Path,
        had: &[(u64, Set)],
        index: &Index,
        ledger: &mut Ledger,
    ) -> Result<Tally> {
        let Some(size) = self.look(path)? else { return Ok(Tally::default()) };
        self.kinds.objects += size;
        let key = short_object(id);
        let first = had.partition_point(|(other, _)| *other < key);
        let sets = had[first..].iter().take_while(move |(other, _)| *other == key).map(|(_, set)| *set);
        if sets.clone().next().is_some() {
            ledger.give(sets, size);
            return Ok(Tally::default());
        }
        if !self.store.claims.lock().object(id) {
            ledger.give(std::iter::once(index.work), size);
            return Ok(Tally::default());
        }
        Ok(size)
    }

    /// Something belongs to these owners, or goes with the next collection.
    fn book(&mut self, ledger: &mut Ledger, owners: Option<Set>, size: Tally) {
        match owners {
            Some(set) => ledger.give(std::iter::once(set), size),
            None => self.reclaimable += size,
        }
    }

    /// The names in a directory, and their paths below the root.
    fn names(&self, directory: &Path) -> Result<impl Iterator<Item = Result<(PathBuf, OsString)>> + use<>> {
        let directory = directory.to_path_buf();
        let shown = self.store.root().join(&directory);
        let failed = move |error| Error::io(format!("read {}", shown.display()))(error);
        let names = walk::names(self.store.disk().root(), &directory).map_err(&failed)?;
        Ok(names.map(move |name| name.map(|(name, _)| (directory.join(&name), name)).map_err(&failed)))
    }

    fn failed(&self, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        Error::io(format!("read {}", self.store.root().join(path).display()))
    }

    /// What a file or directory takes itself.
    fn look(&self, path: &Path) -> Result<Option<Tally>> {
        let stat = disk::stat(self.store.disk(), path).map_err(self.failed(path))?;
        Ok(stat.as_ref().map(Tally::of))
    }

    fn measure(&self, path: &Path) -> Result<Tally> {
        measure(self.store.disk(), path).map_err(self.failed(path))
    }
}

/// The number of a directory below `objects/`.
fn shard_of(name: &OsStr) -> Option<u8> {
    u8::from_str_radix(name.to_str()?, 16).ok()
}
