//! Layers and chain trees.

use std::path::{Path, PathBuf};

use super::{Gc, Halt, STEP};
use crate::chain::{self, Chain};
use crate::damage;
use crate::digest::{ChainId, DiffId, Digest};
use crate::error::{Error, Result};
use crate::layer::{self, Layer};
use crate::store::{Batch, Family};
use crate::tally::Tally;
use crate::walk;

const LAYERS: &str = "layers/sha256";
const CHAINS: &str = "chains/sha256";

impl Gc<'_> {
    /// Chain trees cost space only; a wrong guess costs the time to build one anew.
    pub(super) fn remove_chains(&mut self) -> Result<(), Halt> {
        let mut unwanted: Vec<ChainId> = Vec::new();
        self.store.db().each_json(Family::Chains, |_, chain: Chain| {
            let id = ChainId::of(&chain.layers).filter(|id| !self.roots.wants(*id));
            let top = chain.layers.last().copied();
            unwanted.extend(id.filter(|_| top.is_some_and(|top| !self.watch.freeze().names(top))));
            Ok(())
        })?;
        for some in unwanted.chunks(STEP) {
            let removed = self.remove_some_chains(some)?;
            self.report.chain_trees += removed;
            self.pace.spend(removed)?;
        }
        Ok(())
    }

    fn remove_some_chains(&self, ids: &[ChainId]) -> Result<Tally> {
        let chains = &self.store.chains;
        let unused = ids.iter().filter(|id| !chains.trees.is_used(id.0));
        // Not while somebody builds one.
        let turns: Vec<_> = unused.filter_map(|id| Some((*id, chains.building.try_take(*id)?))).collect();
        if !self.dry_run {
            let mut batch = Batch::new();
            for (id, _) in &turns {
                batch.delete(Family::Chains, chain::key(*id).as_bytes());
            }
            self.store.db().commit(batch)?;
        }
        let mut removed = Tally::default();
        for (id, _turn) in &turns {
            if !self.dry_run {
                chains.trees.remove(id.0);
            }
            removed += self.remove(&chain::path(*id))?;
        }
        Ok(removed)
    }

    pub(super) fn remove_layers(&mut self) -> Result<(), Halt> {
        let mut unnamed: Vec<DiffId> = Vec::new();
        self.store.db().each_json(Family::Layers, |_, layer: Layer| {
            if !self.roots.has_layer(layer.diff_id) {
                unnamed.push(layer.diff_id);
            }
            Ok(())
        })?;
        for some in unnamed.chunks(STEP) {
            let mut removed = Tally::default();
            for diff_id in self.delete_layer_rows(some)? {
                let (tree, recipe) = self.remove_layer_files(diff_id)?;
                self.report.layer_trees += tree;
                self.report.recipes += recipe;
                removed += tree;
                removed += recipe;
            }
            self.pace.spend(removed)?;
        }
        Ok(())
    }

    /// Returns those that nobody names or claims; their rows are gone then.
    fn delete_layer_rows(&self, layers: &[DiffId]) -> Result<Vec<DiffId>> {
        let frozen = self.watch.freeze();
        let unclaimed = self.collection.lock();
        let gone: Vec<DiffId> =
            layers.iter().copied().filter(|id| !frozen.names(*id) && unclaimed.layer(*id)).collect();
        if !self.dry_run {
            let mut batch = Batch::new();
            for diff_id in &gone {
                batch.delete(Family::Layers, layer::key(*diff_id).as_bytes());
                batch.delete(Family::System, damage::layer_key(*diff_id).as_bytes());
            }
            frozen.commit(batch)?;
            for diff_id in &gone {
                self.store.forget_layer_tree(*diff_id);
            }
        }
        Ok(gone)
    }

    /// Removes the files of a layer that has no row, unless somebody is taking it in: tree and recipe.
    fn remove_layer_files(&self, diff_id: DiffId) -> Result<(Tally, Tally)> {
        let unclaimed = self.collection.lock();
        if !self.dry_run && (!unclaimed.layer(diff_id) || self.store.layer(diff_id)?.is_some()) {
            return Ok((Tally::default(), Tally::default()));
        }
        // A layer counts, even if its tree is in quarantine.
        let tree = Tally { count: 1, ..self.remove(&layer::path(diff_id))? };
        Ok((tree, self.remove(&layer::recipe_path(diff_id))?))
    }

    /// True if the layer would be gone by now if this were no dry run.
    pub(super) fn would_be_gone(&self, diff_id: DiffId) -> bool {
        self.dry_run
            && !self.roots.has_layer(diff_id)
            && !self.watch.freeze().names(diff_id)
            && self.collection.lock().layer(diff_id)
    }

    /// Files without a row that needs them, which a crash left.
    pub(super) fn remove_strays(&mut self) -> Result<(), Halt> {
        self.each_stray(LAYERS, |gc, name, path| {
            let (hex, is_recipe) = name.strip_suffix(".recipe").map_or((name, false), |hex| (hex, true));
            let Some(diff_id) = Digest::from_hex(hex.as_bytes()).map(DiffId) else { return Ok(Tally::default()) };
            let unclaimed = gc.collection.lock();
            let needed = gc.store.layer(diff_id)?.is_some_and(|layer| !is_recipe || layer.recipe.is_some());
            let removed = if needed || !unclaimed.layer(diff_id) { Tally::default() } else { gc.remove(path)? };
            drop(unclaimed);
            *(if is_recipe { &mut gc.report.recipes } else { &mut gc.report.layer_trees }) += removed;
            Ok(removed)
        })?;
        self.each_stray(CHAINS, |gc, name, path| {
            let Some(id) = Digest::from_hex(name.as_bytes()).map(ChainId) else { return Ok(Tally::default()) };
            let Some(_turn) = gc.store.chains.building.try_take(id) else { return Ok(Tally::default()) };
            let removed = if gc.store.chain_record(id)?.is_some() { Tally::default() } else { gc.remove(path)? };
            gc.report.chain_trees += removed;
            Ok(removed)
        })
    }

    /// Calls `look` with each name in a directory and its path below the root; it says what it removed.
    fn each_stray(
        &mut self,
        directory: &str,
        look: impl Fn(&mut Self, &str, &Path) -> Result<Tally>,
    ) -> Result<(), Halt> {
        let action = || format!("read {}", self.store.root().join(directory).display());
        let store = self.store;
        for name in walk::names(store.disk().root(), Path::new(directory)).map_err(Error::io(action()))? {
            let (name, _) = name.map_err(Error::io(format!("read {directory}")))?;
            let path: PathBuf = Path::new(directory).join(&name);
            let Ok(name) = name.into_string() else { continue };
            let removed = look(self, &name, &path)?;
            self.pace.spend(removed)?;
        }
        Ok(())
    }
}
