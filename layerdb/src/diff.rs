//! What layers and images hold, and how they differ.
//!
//! Two stacks of layers are walked side by side, in the order of their names. Nothing is merged in advance: the entries
//! of one directory at a time are held in memory, and what both stacks take from the same place of the same layer is
//! not looked at, so that images with a common base cost what they don't have in common.

mod contents;
mod name;
mod record;
mod stack;
mod walk;

use std::sync::Arc;

use crate::digest::DiffId;
use crate::error::Result;
use crate::store::Store;

pub use contents::Contents;
pub use name::Name;
pub use record::{Change, ChangeKind, Counts, NodeKind, Property, Seen, Summary};
pub use stack::Stack;

/// How stacks are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffOptions {
    /// Whether a time of modification is a difference of its own.
    pub times: bool,
}

/// Shows `visit` how `after` differs from `before`, by path, and counts. A failing visit ends it.
pub fn diff(
    before: &Stack,
    after: &Stack,
    options: DiffOptions,
    visit: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<Summary> {
    walk::Walk::new(before, after, options, visit).run()
}

impl Store {
    /// A stack of layers, bottom first, as a container sees it.
    pub fn stack(&self, layers: &[DiffId]) -> Result<Stack> {
        Ok(Stack::merged(layers.iter().map(|layer| self.layer_tree(*layer)).collect::<Result<Vec<Arc<_>>>>()?))
    }

    /// One layer as it is, with what it hides.
    pub fn single_layer(&self, layer: DiffId) -> Result<Stack> {
        Ok(Stack::single(self.layer_tree(layer)?))
    }
}
