//! Open trees: every one that somebody uses, and the few used last.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::digest::Digest;
use crate::tree::Tree;

/// Trees kept open though nobody uses them. Each is a mapping, and an index of hard links once somebody asked.
const KEPT: usize = 16;

/// Trees by the digest that names their layer or chain.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<Digest, Weak<Tree>>,
    kept: VecDeque<(Digest, Arc<Tree>)>,
}

impl Trees {
    pub(crate) fn get(&self, name: Digest) -> Option<Arc<Tree>> {
        let mut state = self.state.lock();
        let tree = state.open.get(&name)?.upgrade()?;
        state.keep(name, &tree);
        Some(tree)
    }

    pub(crate) fn put(&self, name: Digest, tree: &Arc<Tree>) {
        let mut state = self.state.lock();
        state.open.retain(|_, tree| tree.strong_count() > 0);
        state.open.insert(name, Arc::downgrade(tree));
        state.keep(name, tree);
    }

    pub(crate) fn remove(&self, name: Digest) {
        let mut state = self.state.lock();
        state.open.remove(&name);
        state.kept.retain(|(kept, _)| *kept != name);
    }

    /// True if somebody else than this table has the tree.
    pub(crate) fn is_used(&self, name: Digest) -> bool {
        let state = self.state.lock();
        let kept = state.kept.iter().filter(|(kept, _)| *kept == name).count();
        state.open.get(&name).is_some_and(|tree| tree.strong_count() > kept)
    }
}

impl State {
    fn keep(&mut self, name: Digest, tree: &Arc<Tree>) {
        self.kept.retain(|(kept, _)| *kept != name);
        self.kept.push_front((name, Arc::clone(tree)));
        self.kept.truncate(KEPT);
    }
}
