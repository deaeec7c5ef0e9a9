//! Collecting garbage: layers that neither an image nor a pin names, objects that no layer names, chain trees that
//! nobody has use for, and removed snapshots.
//!
//! Why nothing in use goes: see `store::claims` for objects and layers of work in flight. In short, a layer's row and
//! files go in one step under two locks, one that keeps pins and images as they are, one that keeps anybody from
//! claiming; and every layer that is left is marked in full before the first object is swept. If a layer that is left
//! can't be read, nothing is swept.
//!
//! A crash on the way leaves files without rows at most; the next collection takes them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::chain::{self, Chain};
use crate::digest::{ChainId, DiffId, Digest, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::layer::{self, Layer};
use crate::object::{self, StoredObject};
use crate::store::claims::Collection;
use crate::store::{Batch, Family, Store};

/// Objects removed between two moments at which ingests may go on.
const SWEEP: usize = 64;

/// What a collection may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcOptions {
    /// Remove nothing, only say what would go.
    pub dry_run: bool,
}

/// What a collection removed, or would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Objects.
    pub objects_removed: u64,
    /// Bytes of objects, layer trees and chain trees; removed snapshots are not counted.
    pub bytes_removed: u64,
    /// Layers.
    pub layers_removed: u64,
    /// Chain trees.
    pub chains_removed: u64,
    /// Directories of snapshots that were removed before.
    pub snapshots_removed: u64,
}

/// What is kept because somebody named it.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    pub(crate) layers: HashSet<DiffId>,
    /// Stacks of layers, bottom first.
    stacks: Vec<Vec<DiffId>>,
    pub(crate) objects: HashSet<ObjectId>,
}

impl Roots {
    pub(crate) fn read(store: &Store) -> Result<Roots> {
        let mut roots = Roots::default();
        for image in store.images()? {
            roots.objects.extend(image.objects());
            roots.add(image.layers);
        }
        for (_, layers) in store.db().scan_json::<Vec<DiffId>>(Family::Pins, b"")? {
            roots.add(layers);
        }
        Ok(roots)
    }

    fn add(&mut self, stack: Vec<DiffId>) {
        self.layers.extend(&stack);
        self.stacks.push(stack);
    }

    fn wants(&self, chain: &Chain) -> bool {
        self.stacks.iter().any(|stack| stack.starts_with(&chain.layers))
    }
}

impl Store {
    /// Collects garbage. Ingests and mounts go on meanwhile. [`Error::Collecting`] if another collection runs.
    pub fn gc(self: &Arc<Store>, options: GcOptions) -> Result<GcReport> {
        let collection = self.claims.collect().ok_or(Error::Collecting)?;
        if !options.dry_run {
            self.require_writable()?;
        }
        let mut gc = Gc { store: self, options, collection, report: GcReport::default() };
        gc.remove_snapshots()?;
        gc.remove_chains()?;
        let kept = gc.remove_layers()?;
        gc.remove_strays()?;
        gc.sweep_objects(&kept)?;
        Ok(gc.report)
    }
}

struct Gc<'a> {
    store: &'a Arc<Store>,
    options: GcOptions,
    collection: Collection,
    report: GcReport,
}

impl Gc<'_> {
    fn remove_snapshots(&mut self) -> Result<()> {
        for path in self.store.removed_snapshot_dirs()? {
            if !self.options.dry_run {
                disk::remove_tree(self.store.disk(), &path)
                    .map_err(Error::io(format!("remove {}", self.store.root().join(&path).display())))?;
            }
            self.report.snapshots_removed += 1;
        }
        Ok(())
    }

    /// Chain trees cost space only; a wrong guess costs the time to build one anew.
    fn remove_chains(&mut self) -> Result<()> {
        let roots = Roots::read(self.store)?;
        for (key, chain) in self.store.db().scan_json::<Chain>(Family::Chains, b"")? {
            let Some(id) = ChainId::of(&chain.layers) else { continue };
            if roots.wants(&chain) || self.store.chains.trees.is_used(id.0) {
                continue;
            }
            // Not while somebody builds it.
            let Some(_turn) = self.store.chains.building.try_take(id) else { continue };
            if !self.options.dry_run {
                let mut batch = Batch::new();
                batch.delete(Family::Chains, &key);
                self.store.db().commit(batch)?;
                self.store.chains.trees.remove(id.0);
                self.remove(&chain::path(id))?;
            }
            self.report.chains_removed += 1;
            self.report.bytes_removed += chain.tree_bytes;
        }
        Ok(())
    }

    /// Returns the layers that stay.
    fn remove_layers(&mut self) -> Result<Kept> {
        let frozen = self.store.db().freeze_roots();
        let unclaimed = self.collection.lock();
        let roots = Roots::read(self.store)?;
        let (mut kept, mut gone): (Vec<Layer>, Vec<Layer>) = (Vec::new(), Vec::new());
        for layer in self.store.layers()? {
            let used = roots.layers.contains(&layer.diff_id) || !unclaimed.layer(layer.diff_id);
            if used { kept.push(layer) } else { gone.push(layer) }
        }
        if !self.options.dry_run {
            let mut batch = Batch::new();
            for layer in &gone {
                batch.delete(Family::Layers, layer::key(layer.diff_id).as_bytes());
            }
            frozen.commit(batch)?;
            for layer in &gone {
                self.store.forget_layer_tree(layer.diff_id);
                self.remove(&layer::path(layer.diff_id))?;
                self.remove(&layer::recipe_path(layer.diff_id))?;
            }
        }
        self.report.layers_removed += gone.len() as u64;
        self.report.bytes_removed += gone.iter().map(|layer| layer.tree_bytes).sum::<u64>();
        Ok(Kept { layers: kept, objects: roots.objects })
    }

    /// Tree files without a row, which a crash left.
    fn remove_strays(&mut self) -> Result<()> {
        for name in self.list("layers/sha256")? {
            let path = Path::new("layers/sha256").join(&name);
            let Some(digest) = Digest::from_hex(name.as_bytes()) else { continue };
            let unclaimed = self.collection.lock();
            if self.store.layer(DiffId(digest))?.is_none() && unclaimed.layer(DiffId(digest)) {
                self.report.bytes_removed += self.remove_stray(&path)?;
            }
        }
        for name in self.list("chains/sha256")? {
            let path = Path::new("chains/sha256").join(&name);
            let Some(id) = Digest::from_hex(name.as_bytes()).map(ChainId) else { continue };
            let Some(_turn) = self.store.chains.building.try_take(id) else { continue };
            if self.store.chain_record(id)?.is_none() {
                self.report.bytes_removed += self.remove_stray(&path)?;
            }
        }
        Ok(())
    }

    fn remove_stray(&self, path: &Path) -> Result<u64> {
        let action = || format!("stat {}", path.display());
        let Some(stat) = disk::stat(self.store.disk(), path).map_err(Error::io(action()))? else { return Ok(0) };
        if !self.options.dry_run {
            self.remove(path)?;
        }
        Ok(stat.st_size as u64)
    }

    fn sweep_objects(&mut self, kept: &Kept) -> Result<()> {
        let mut marked = kept.objects.clone();
        for layer in &kept.layers {
            self.store.each_layer_object(layer, |id, _| {
                marked.insert(id);
            })?;
        }
        let garbage: Vec<StoredObject> =
            self.store.stored_objects()?.into_iter().filter(|object| !marked.contains(&object.id)).collect();
        for some in garbage.chunks(SWEEP) {
            let unclaimed = self.collection.lock();
            for object in some.iter().filter(|object| unclaimed.object(object.id)) {
                if !self.options.dry_run {
                    self.remove(&object::path(object.id))?;
                }
                self.report.objects_removed += 1;
                self.report.bytes_removed += object.bytes;
            }
        }
        Ok(())
    }

    fn list(&self, directory: &str) -> Result<Vec<OsString>> {
        let action = format!("read {}", self.store.root().join(directory).display());
        disk::list(self.store.disk(), Path::new(directory)).map_err(Error::io(action))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match self.store.disk().remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(Error::io(format!("remove {}", self.store.root().join(path).display()))),
        }
    }
}

/// What stays.
struct Kept {
    layers: Vec<Layer>,
    objects: HashSet<ObjectId>,
}
