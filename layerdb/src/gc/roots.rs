//! What collection starts from.

use std::collections::HashSet;

use crate::digest::{ChainId, DiffId};
use crate::error::Result;
use crate::image::Image;
use crate::sorter::short;
use crate::store::{Family, Store};

/// The layers that pins and images name, and the chains that are a part of theirs. Both by the first eight bytes of
/// their digest, so that a layer costs some 30 bytes here, however many images have it; a collision spares one.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    layers: HashSet<u64>,
    chains: HashSet<u64>,
}

impl Roots {
    /// Reads all pins and images, a page at a time.
    pub(crate) fn read(store: &Store) -> Result<Roots> {
        let mut roots = Roots::default();
        store.db().each_json(Family::Images, |_, image: Image| {
            roots.add(&image.layers);
            Ok(())
        })?;
        store.db().each_json(Family::Pins, |_, layers: Vec<DiffId>| {
            roots.add(&layers);
            Ok(())
        })?;
        Ok(roots)
    }

    fn add(&mut self, stack: &[DiffId]) {
        self.layers.extend(stack.iter().map(|layer| short(layer.0)));
        self.chains.extend(ChainId::prefixes(stack).map(|chain| short(chain.0)));
    }

    pub(crate) fn has_layer(&self, diff_id: DiffId) -> bool {
        self.layers.contains(&short(diff_id.0))
    }

    pub(crate) fn wants(&self, id: ChainId) -> bool {
        self.chains.contains(&short(id.0))
    }
}
