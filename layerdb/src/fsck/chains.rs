//! Chains: each has the tree that its row describes. All of it is derived: what is wrong goes and is built again.

use std::io;
use std::path::Path;

use super::{Fsck, Issue};
use crate::chain::{self, Chain};
use crate::digest::ChainId;
use crate::disk;
use crate::error::{Error, Result};
use crate::store::{Batch, Family, Store};
use crate::tree::{self, Form, Tree, Written};
use crate::verify::{Pace, Source, Verdict};

impl Fsck<'_> {
    pub(super) fn chains(&mut self) -> Result<()> {
        self.each_row(Family::Chains, |fsck, key, value| {
            let Some((id, chain)) = fsck.chain_row(key, value) else { return Ok(()) };
            fsck.report.chains += 1;
            let mut wrong = fsck.chain(id, &chain)?;
            if wrong.is_some() {
                // It may have been built anew meanwhile, or collected. Whoever builds it has its turn.
                let _turn = fsck.store.chains.building.take(id);
                let Some(now) = fsck.store.chain_record(id)? else { return Ok(()) };
                wrong = fsck.chain(id, &now)?;
            }
            fsck.progress.read("chains", chain.tree_bytes);
            if let Some(issue) = wrong {
                let store = fsck.store;
                fsck.findings().repairable(&issue, || drop_chain(store, id));
            }
            Ok(())
        })
    }

    fn chain(&self, id: ChainId, chain: &Chain) -> Result<Option<Issue>> {
        if let Some(issue) = check_tree(self.store, id, chain)? {
            return Ok(Some(issue));
        }
        for diff_id in &chain.layers {
            // A mount may still use the tree; that is no defect.
            if !self.has_layer(*diff_id)? && !self.store.chains.trees.is_used(id.0) {
                return Ok(Some(Issue::UselessChain { chain: id, diff_id: *diff_id }));
            }
        }
        if self.options.deep && chain.layers.iter().all(|layer| self.layers.iter().any(|sound| sound.diff_id == *layer))
        {
            return self.compare(id, chain);
        }
        Ok(None)
    }

    /// Merges the layers again.
    fn compare(&self, id: ChainId, chain: &Chain) -> Result<Option<Issue>> {
        let layers = chain.layers.iter().map(|layer| self.store.layer_tree(*layer)).collect::<Result<Vec<_>>>()?;
        let mut file = self.store.appender(self.store.scratch()?);
        let Written { digest, .. } = tree::merge(&layers, &mut file)?;
        let differs = digest != chain.tree_digest;
        Ok(differs.then_some(Issue::StaleChainTree { chain: id, expected: digest, actual: chain.tree_digest }))
    }
}

fn check_tree(store: &Store, id: ChainId, chain: &Chain) -> Result<Option<Issue>> {
    let path = chain::path(id);
    let corrupt = |reason: String| Ok(Some(Issue::CorruptChainTree { chain: id, reason }));
    match store.verify_file(&path, chain.tree_digest, &Pace::default(), Source::Cache, &mut |_| {})? {
        Verdict::Missing => return Ok(Some(Issue::MissingChainTree { chain: id })),
        Verdict::Unreadable { reason, .. } => return corrupt(reason),
        Verdict::Corrupt { actual, .. } => {
            return corrupt(format!("its digest is {actual} instead of {}", chain.tree_digest));
        }
        Verdict::Whole(found) if found != chain.tree_bytes => {
            return corrupt(format!("its row says that it has {} bytes", chain.tree_bytes));
        }
        Verdict::Whole(_) => {}
    }
    let Some(file) = disk::open(store.disk(), &path).map_err(Error::io(format!("open {}", path.display())))? else {
        return Ok(Some(Issue::MissingChainTree { chain: id }));
    };
    match Tree::open(&file, &id.to_string()).and_then(|tree| tree.examine(Form::Chain, |_, _| ())) {
        Ok(()) => Ok(None),
        Err(error) => corrupt(error.to_string()),
    }
}

/// Takes a chain away. Mounts that have its tree open go on with it.
fn drop_chain(store: &Store, id: ChainId) -> Result<String> {
    let _turn = store.chains.building.take(id);
    let mut batch = Batch::new();
    batch.delete(Family::Chains, chain::key(id).as_bytes());
    store.db().commit(batch)?;
    store.chains.trees.remove(id.0);
    let path: &Path = &chain::path(id);
    match disk::remove_tree(store.disk(), path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", store.root().join(path).display()))(error))
        }
        _ => Ok("it was dropped, and is built again when it is needed".into()),
    }
}
