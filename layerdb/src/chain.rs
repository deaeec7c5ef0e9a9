//! Chains: a stack of layers merged into one tree, built on first use and shared by everybody.
//!
//! A chain tree is derived: it may be deleted at any time and is built again, byte for byte the same. So a missing,
//! torn or damaged one is no error here, but a reason to build.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::digest::{ChainId, DiffId, Digest};
use crate::error::{Error, Result};
use crate::object::Staging;
use crate::quarantine::{Damaged, Finding};
use crate::store::{Batch, Family, Store, Trees, Turns};
use crate::tree::{self, Tree, Written};

/// The record of a published chain tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Its layers, bottom first.
    pub layers: Vec<DiffId>,
    /// Digest of its tree file.
    pub tree_digest: Digest,
    /// Length of its tree file.
    pub tree_bytes: u64,
    /// When it was built, in seconds since the epoch.
    pub created: u64,
}

/// The open chains of a store.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    pub(crate) trees: Trees,
    pub(crate) building: Turns<ChainId>,
    empty: Mutex<Option<Arc<Tree>>>,
}

pub(crate) fn key(chain: ChainId) -> String {
    chain.hex()
}

/// Where a chain's tree lies below the store's root.
pub(crate) fn path(chain: ChainId) -> PathBuf {
    Path::new("chains/sha256").join(chain.hex())
}

impl Store {
    /// The merged tree of a stack of layers, bottom first, with whiteouts resolved. It is built and published if the
    /// store doesn't have it; callers who want the same one wait for the first of them.
    ///
    /// Without layers it is the empty tree. [`Error::NoLayer`] if a layer is missing.
    pub fn chain(self: &Arc<Store>, layers: &[DiffId]) -> Result<Arc<Tree>> {
        let Some(id) = ChainId::of(layers) else { return self.empty_tree() };
        if let Some(tree) = self.chains.trees.get(id.0) {
            return Ok(tree);
        }
        let _turn = self.chains.building.take(id);
        if let Some(tree) = self.chains.trees.get(id.0) {
            return Ok(tree);
        }
        let tree = match self.published_chain(id)? {
            Some(tree) => tree,
            None => self.build_chain(id, layers)?,
        };
        self.chains.trees.put(id.0, &tree);
        Ok(tree)
    }

    /// The record of a chain whose tree was built. `None` if it wasn't.
    pub fn chain_record(&self, id: ChainId) -> Result<Option<Chain>> {
        self.db().get_json(Family::Chains, key(id).as_bytes())
    }

    /// The records of all chains whose trees are published.
    pub fn chain_records(&self) -> Result<Vec<Chain>> {
        Ok(self.db().scan_json(Family::Chains, b"")?.into_iter().map(|(_, chain)| chain).collect())
    }

    /// Where the chain's tree file lies. The file is there once [`Store::chain`] has returned.
    pub fn chain_path(&self, id: ChainId) -> PathBuf {
        self.root().join(path(id))
    }

    fn published_chain(&self, id: ChainId) -> Result<Option<Arc<Tree>>> {
        let Some(record) = self.chain_record(id)? else { return Ok(None) };
        match self.open_tree(&path(id), &id.to_string(), record.tree_bytes, record.tree_digest) {
            Ok(tree) => Ok(Some(tree)),
            Err(error) => {
                tracing::warn!(chain = %id, %error, "a damaged chain tree is built anew");
                Ok(None)
            }
        }
    }

    fn build_chain(self: &Arc<Store>, id: ChainId, layers: &[DiffId]) -> Result<Arc<Tree>> {
        self.require_writable()?;
        let hold = self.hold(layers)?;
        let trees = layers.iter().map(|layer| self.layer_tree(*layer)).collect::<Result<Vec<_>>>()?;
        let mut staging = Staging::new(self, hold)?;
        let mut file = self.appender(staging.create(path(id))?);
        let (whole, merged) = thread::scope(|scope| {
            // That takes as long as the merge itself. Nothing is published before both are done.
            let check = || layers.iter().zip(&trees).try_for_each(|(layer, tree)| self.require_whole(*layer, tree));
            let whole = thread::Builder::new().name("tree-check".into()).spawn_scoped(scope, check);
            let merged = tree::merge(&trees, &mut file);
            let whole = match whole {
                Ok(whole) => whole.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => check(),
            };
            (whole, merged)
        });
        whole?;
        let Written { digest, bytes, .. } = merged?;
        drop(file);
        staging.publish()?;
        let record = Chain {
            layers: layers.to_vec(),
            tree_digest: digest,
            tree_bytes: bytes,
            created: crate::ingest::unix_seconds(),
        };
        let mut batch = Batch::new();
        batch.put_json(Family::Chains, key(id).as_bytes(), &record)?;
        self.db().commit(batch)?;
        self.open_tree(&path(id), &id.to_string(), bytes, digest)
    }

    /// Compares a layer's tree with its digest: what a merge makes of damage would look sound.
    fn require_whole(&self, diff_id: DiffId, tree: &Tree) -> Result<()> {
        let expected = self.layer(diff_id)?.ok_or(Error::NoLayer { diff_id })?.tree_digest;
        let actual = tree.digest();
        if actual == expected {
            return Ok(());
        }
        let finding = Finding {
            reason: "its digest is another".into(),
            expected: Some(expected),
            actual: Some(actual),
            inode: None,
        };
        self.quarantine(Damaged::Tree(diff_id), &finding)?;
        let what = format!("tree {diff_id}");
        Err(Error::CorruptLayer { diff_id, source: Box::new(Error::DigestMismatch { what, expected, actual }) })
    }

    fn empty_tree(&self) -> Result<Arc<Tree>> {
        let mut empty = self.chains.empty.lock();
        if let Some(tree) = &*empty {
            return Ok(Arc::clone(tree));
        }
        let mut file = self.appender(self.scratch()?);
        tree::merge(&[], &mut file)?;
        let tree = Arc::new(Tree::open(file.file(), "without layers")?);
        *empty = Some(Arc::clone(&tree));
        Ok(tree)
    }
}
