//! What takes how much space: by kind, down to what `du` counts, and by image.
//!
//! Every file and directory below the store's root is counted once, in one of the [`Kinds`], with its length and with
//! what the disk gives it; on a store at rest the sum is what `du -s` says. For the images, all layers' trees
//! are read once and each object's owners are brought together shard by shard: memory is 8 MiB for that (`sorter`), and
//! some bytes for each layer of each image.

mod kinds;
mod owners;

use std::cell::RefCell;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::gc::UnreadableLayer;
use crate::layer::Layer;
use crate::sorter::{MEMORY_BYTES, Sorted, short_object};
use crate::store::{Family, Store};
use crate::tally::Tally;
use kinds::Census;
use owners::{Index, Set};

/// Space used by a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Df {
    /// All images as if nothing were shared: the sum of their [`ImageDf::logical_bytes`].
    pub logical_bytes: u64,
    /// What images and snapshots are made of: objects, layer trees, recipes and chain trees.
    pub stored: Tally,
    /// What sharing between images saves: the sum of their [`ImageDf::stored`], less each thing once.
    pub shared: Tally,
    /// What [`Store::gc`](crate::Store::gc) would free now.
    pub reclaimable: Tally,
    /// Everything on the disk, by kind.
    pub kinds: Kinds,
    /// The sum of the kinds: what `du -s` counts.
    pub total: Tally,
    /// Layers in the store.
    pub layers: u64,
    /// Each image, by name.
    pub images: Vec<ImageDf>,
    /// The writable parts of snapshots, by number.
    pub snapshots: Vec<SnapshotDf>,
    /// Layers that can't be read: their objects may be counted for too few images, and none is reclaimable.
    #[serde(default)]
    pub unreadable: Vec<UnreadableLayer>,
}

/// What lies on the disk. Each file and directory belongs to one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kinds {
    /// Contents of files, and images' documents.
    pub objects: Tally,
    /// Trees of layers.
    pub layer_trees: Tally,
    /// Recipes of layers.
    pub recipes: Tally,
    /// Merged trees, which can be built anew.
    pub chain_trees: Tally,
    /// Writable parts of snapshots, with their directories.
    pub snapshots: Tally,
    /// Snapshots that were removed and wait for collection.
    pub removed_snapshots: Tally,
    /// RocksDB, with its directory.
    pub metadata: Tally,
    /// Damaged files that were taken out of use, with notes.
    pub quarantine: Tally,
    /// What is being written, below `tmp/`.
    pub temporary: Tally,
    /// The store's own directories.
    pub directories: Tally,
    /// `FORMAT`, locks, the daemon's record, and what is none of Mica's.
    pub other: Tally,
}

impl Kinds {
    /// Each kind with its name.
    pub fn each(&self) -> [(&'static str, Tally); 11] {
        [
            ("objects", self.objects),
            ("layer trees", self.layer_trees),
            ("recipes", self.recipes),
            ("chain trees", self.chain_trees),
            ("snapshots", self.snapshots),
            ("removed snapshots", self.removed_snapshots),
            ("metadata", self.metadata),
            ("quarantine", self.quarantine),
            ("temporary", self.temporary),
            ("directories", self.directories),
            ("other", self.other),
        ]
    }
}

/// Space used by an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDf {
    /// The image's name.
    pub name: String,
    /// The contents of all files of all its layers, each counted wherever it appears.
    pub logical_bytes: u64,
    /// What the disk holds for it: its distinct objects, the trees and recipes of its layers, and its chain trees.
    pub stored: Tally,
    /// The part of `stored` that other images, snapshots or mounts have too.
    pub shared: Tally,
    /// The rest: what removing the image and collecting garbage gives back.
    pub exclusive: Tally,
}

/// Space used by a snapshot itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDf {
    /// Its number.
    pub number: u64,
    /// The engine's name for it, if a record has one.
    pub name: Option<String>,
    /// Its files and directories.
    pub files: Tally,
}

impl Store {
    /// Says what takes how much space. Reads every tree that an image or a pin names, and looks at every file.
    pub fn df(&self) -> Result<Df> {
        let (index, mut ledger, documents) = owners::read(self)?;
        let mut census = Census::new(self);
        census.count_fixed()?;
        let layers = census.count_trees(&index, &mut ledger)?;
        let unreadable = RefCell::new(Vec::new());
        let walk = |visit: &mut dyn FnMut((u64, Set)) -> Result<()>| {
            documents.iter().copied().try_for_each(&mut *visit)?;
            self.name_objects(&index, &unreadable, visit)
        };
        let mut records = Sorted::new(self, MEMORY_BYTES, walk)?;
        let garbage = census.count_objects(&index, &mut ledger, &mut records)?;
        drop(records);
        let unreadable = unreadable.into_inner();
        if unreadable.is_empty() {
            census.reclaimable += garbage;
        }
        ledger.settle();
        let kinds = census.kinds;
        Ok(Df {
            logical_bytes: ledger.images.iter().map(|image| image.logical_bytes).sum(),
            stored: [kinds.objects, kinds.layer_trees, kinds.recipes, kinds.chain_trees].into_iter().sum(),
            shared: ledger.saved,
            reclaimable: census.reclaimable,
            kinds,
            total: kinds.each().into_iter().map(|(_, tally)| tally).sum(),
            layers,
            images: ledger.images,
            snapshots: census.snapshots,
            unreadable,
        })
    }

    /// Visits every object of every layer that somebody has, with who that is.
    fn name_objects(
        &self,
        index: &Index,
        unreadable: &RefCell<Vec<UnreadableLayer>>,
        visit: &mut dyn FnMut((u64, Set)) -> Result<()>,
    ) -> Result<()> {
        self.db().each_json(Family::Layers, |_, layer: Layer| {
            let claimed = || (!self.claims.lock().layer(layer.diff_id)).then_some(index.work);
            let Some(set) = index.of_layer(layer.diff_id).or_else(claimed) else { return Ok(()) };
            let mut visited = Ok(());
            let walked = self.each_layer_object(&layer, |id, _| {
                if visited.is_ok() {
                    visited = visit((short_object(id), set));
                }
            });
            visited?;
            if let Err(error) = walked {
                let mut unreadable = unreadable.borrow_mut();
                if unreadable.iter().all(|known| known.diff_id != layer.diff_id) {
                    let reason = error.to_string();
                    unreadable.push(UnreadableLayer { diff_id: layer.diff_id, reason, images: Vec::new() });
                }
            }
            Ok(())
        })
    }
}
