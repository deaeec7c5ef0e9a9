//! What takes how much space.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, ObjectId};
use crate::error::{Error, Result};
use crate::gc::GcOptions;
use crate::layer::{Layer, each_object};
use crate::store::Store;

/// Space used by a store. All numbers are bytes of files' lengths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Df {
    /// All images as if nothing were shared: the sum of their [`ImageDf::logical_bytes`].
    pub logical_bytes: u64,
    /// Everything on the disk but snapshots and metadata: objects, layer trees and chain trees.
    pub stored_bytes: u64,
    /// What sharing between images saves: the sum of their [`ImageDf::stored_bytes`], less each thing once.
    pub shared_bytes: u64,
    /// What [`Store::gc`] would free now.
    pub reclaimable_bytes: u64,
    /// The part of `stored_bytes` that are objects.
    pub object_bytes: u64,
    /// The part of `stored_bytes` that are layer trees.
    pub layer_tree_bytes: u64,
    /// The part of `stored_bytes` that are chain trees, which can be built anew.
    pub chain_tree_bytes: u64,
    /// Objects on the disk.
    pub objects: u64,
    /// Layers in the store.
    pub layers: u64,
    /// Each image, by name.
    pub images: Vec<ImageDf>,
}

/// Space used by an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDf {
    /// The image's name.
    pub name: String,
    /// The contents of all files of all its layers, each counted wherever it appears.
    pub logical_bytes: u64,
    /// What the disk holds for it: its distinct objects and the trees of its layers.
    pub stored_bytes: u64,
    /// The part of `stored_bytes` that other images have too.
    pub shared_bytes: u64,
}

/// How an object or a layer tree is shared.
struct Share {
    bytes: u64,
    /// The image that was seen with it last.
    last: usize,
    images: u64,
}

#[derive(Hash, PartialEq, Eq, Clone, Copy)]
enum Thing {
    Object(ObjectId),
    LayerTree(DiffId),
}

impl Store {
    /// Says what takes how much space. Reads every tree that an image names.
    pub fn df(self: &Arc<Store>) -> Result<Df> {
        let images = self.images()?;
        let layers: HashMap<DiffId, Layer> = self.layers()?.into_iter().map(|layer| (layer.diff_id, layer)).collect();
        let mut df = Df { layers: layers.len() as u64, ..Df::default() };
        let mut shares: HashMap<Thing, Share> = HashMap::new();
        for (at, image) in images.iter().enumerate() {
            let mut note = |thing, bytes| {
                let share = shares.entry(thing).or_insert(Share { bytes, last: at, images: 1 });
                if share.last != at {
                    share.last = at;
                    share.images += 1;
                }
            };
            let mut logical_bytes = 0;
            for object in image.objects() {
                note(Thing::Object(object), self.object_bytes(object)?);
            }
            for diff_id in &image.layers {
                let layer = layers.get(diff_id).ok_or(Error::NoLayer { diff_id: *diff_id })?;
                logical_bytes += layer.content_bytes;
                note(Thing::LayerTree(*diff_id), layer.tree_bytes);
                let tree = self.layer_tree(*diff_id)?;
                each_object(&tree, |id, bytes| note(Thing::Object(id), bytes))
                    .map_err(|source| Error::CorruptLayer { diff_id: *diff_id, source: Box::new(source) })?;
            }
            df.logical_bytes += logical_bytes;
            df.images.push(ImageDf { name: image.name.clone(), logical_bytes, ..ImageDf::default() });
        }
        for (image, row) in images.iter().zip(&mut df.images) {
            let mut seen = HashSet::new();
            let mut add = |thing| {
                if let Some(share) = shares.get(&thing).filter(|_| seen.insert(thing)) {
                    row.stored_bytes += share.bytes;
                    row.shared_bytes += if share.images > 1 { share.bytes } else { 0 };
                }
            };
            image.objects().into_iter().for_each(|object| add(Thing::Object(object)));
            for diff_id in &image.layers {
                add(Thing::LayerTree(*diff_id));
                each_object(&*self.layer_tree(*diff_id)?, |id, _| add(Thing::Object(id)))?;
            }
        }
        df.shared_bytes = shares.values().map(|share| share.bytes * (share.images - 1)).sum();
        self.measure(&mut df, layers.values())?;
        Ok(df)
    }

    fn measure<'a>(self: &Arc<Store>, df: &mut Df, layers: impl Iterator<Item = &'a Layer>) -> Result<()> {
        let objects = self.stored_objects()?;
        df.objects = objects.len() as u64;
        df.object_bytes = objects.iter().map(|object| object.bytes).sum();
        df.layer_tree_bytes = layers.map(|layer| layer.tree_bytes).sum();
        df.chain_tree_bytes = self.chain_records()?.iter().map(|chain| chain.tree_bytes).sum();
        df.stored_bytes = df.object_bytes + df.layer_tree_bytes + df.chain_tree_bytes;
        df.reclaimable_bytes = self.gc(GcOptions { dry_run: true })?.bytes_removed;
        Ok(())
    }

    fn object_bytes(&self, id: ObjectId) -> Result<u64> {
        let file = self.object(id)?.ok_or(Error::NoObject { id })?;
        Ok(file.metadata().map_err(Error::io(format!("stat object {id}")))?.len())
    }
}
