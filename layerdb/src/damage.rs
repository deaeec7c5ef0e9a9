//! What is known to be damaged, and which layers suffer from it.
//!
//! Rows of [`Family::System`]: `damage/object/` and the digest for each object that was found missing or taken out of
//! use, until its file is there again; `damage/layer/` and the diff-id for each layer that lacks something. The rows come
//! first and the damaged file goes after, so that a power cut between the two forgets nothing. A layer that is marked
//! is not taken for known: importing or pulling it again writes what it lacks.

use std::collections::{HashMap, HashSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, ObjectId};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::ingest::unix_seconds;
use crate::layer::{self, Layer};
use crate::object;
use crate::store::{Batch, Family, Store};

const ALL: &[u8] = b"damage/";
const OBJECT: &str = "damage/object/";
const LAYER: &str = "damage/layer/";

/// An object that the store should have and hasn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedObject {
    /// The object.
    pub id: ObjectId,
    /// Its length, if a tree that names it was at hand.
    pub bytes: Option<u64>,
    /// When that was found, in seconds since the epoch.
    pub since: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// A layer that lacks something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedLayer {
    /// The layer.
    pub diff_id: DiffId,
    /// When that was found, in seconds since the epoch.
    pub since: u64,
    /// Its tree is damaged or gone.
    #[serde(default)]
    pub tree: bool,
    /// Its recipe is damaged or gone: it can be used, and not be given back as a tar.
    #[serde(default)]
    pub recipe: bool,
    /// How many of its objects are missing.
    #[serde(default)]
    pub objects: u64,
}

impl DamagedLayer {
    pub(crate) fn new(diff_id: DiffId) -> DamagedLayer {
        DamagedLayer { diff_id, since: unix_seconds(), tree: false, recipe: false, objects: 0 }
    }

    fn is_whole(&self) -> bool {
        !self.tree && !self.recipe && self.objects == 0
    }
}

impl Store {
    /// The objects that are missing, or were taken out of use and not written again since.
    pub fn damaged_objects(&self) -> Result<Vec<DamagedObject>> {
        let rows = self.db().scan_json(Family::System, OBJECT.as_bytes())?;
        Ok(rows.into_iter().map(|(_, object)| object).collect())
    }

    /// The layers that are marked as damaged.
    pub fn damaged_layers(&self) -> Result<Vec<DamagedLayer>> {
        let rows = self.db().scan_json(Family::System, LAYER.as_bytes())?;
        Ok(rows.into_iter().map(|(_, layer)| layer).collect())
    }

    /// What is known to be wrong with a layer.
    pub fn layer_damage(&self, diff_id: DiffId) -> Result<Option<DamagedLayer>> {
        self.db().get_json(Family::System, layer_key(diff_id).as_bytes())
    }

    /// Whether anything at all is known to be damaged.
    pub fn has_damage(&self) -> Result<bool> {
        Ok(!self.db().scan_from(Family::System, ALL, None, 1)?.is_empty())
    }

    /// Takes note that objects which layers or images name have no file (of their length), and marks the layers.
    pub fn report_missing(&self, objects: &[(ObjectId, Option<u64>)]) -> Result<()> {
        let mut missing = HashSet::new();
        {
            let _damage = self.damage.lock();
            let mut batch = Batch::new();
            for (id, bytes) in objects {
                if !self.has_object(*id, *bytes)? && self.damaged_object(*id)?.is_none() {
                    put_object(&mut batch, *id, *bytes, "it is missing")?;
                    missing.insert(*id);
                }
            }
            self.db().commit(batch)?;
        }
        for (id, touched) in self.mark_layers(&missing)? {
            let (layers, images) = (touched.layers(), touched.images());
            tracing::error!(object = %id, layers, images, "an object is missing");
        }
        Ok(())
    }

    /// Marks a layer whose tree or recipe is not there.
    pub(crate) fn report_lost(&self, diff_id: DiffId) -> Result<()> {
        self.forget_layer_tree(diff_id);
        let missing = self.missing_objects()?;
        self.examine(diff_id, &missing).map(drop)
    }

    pub(crate) fn damaged_object(&self, id: ObjectId) -> Result<Option<DamagedObject>> {
        self.db().get_json(Family::System, object_key(id).as_bytes())
    }

    /// Whether the object has a file of this length.
    fn has_object(&self, id: ObjectId, bytes: Option<u64>) -> Result<bool> {
        let found = disk::stat(self.disk(), &object::path(id)).map_err(Error::io(format!("look for object {id}")))?;
        Ok(found.is_some_and(|stat| bytes.is_none_or(|bytes| stat.st_size as u64 == bytes)))
    }

    /// Looks at every mark again, and takes away those of layers and objects that are whole. To be called when
    /// something was written anew.
    pub fn settle_damage(&self) -> Result<()> {
        if !self.has_damage()? {
            return Ok(());
        }
        let missing = self.missing_objects()?;
        for mark in self.damaged_layers()? {
            self.examine(mark.diff_id, &missing)?;
        }
        Ok(())
    }

    /// Whether nothing is known to be wrong with the layer. Its mark is brought up to date.
    pub(crate) fn is_whole(&self, diff_id: DiffId) -> Result<bool> {
        if !self.has_damage()? {
            return Ok(true);
        }
        self.examine(diff_id, &self.missing_objects()?)
    }

    /// The objects that are still missing; forgets the others.
    fn missing_objects(&self) -> Result<HashSet<ObjectId>> {
        let _damage = self.damage.lock();
        let mut missing = HashSet::new();
        let mut batch = Batch::new();
        for object in self.damaged_objects()? {
            if self.has_object(object.id, object.bytes)? {
                batch.delete(Family::System, object_key(object.id).as_bytes());
            } else {
                missing.insert(object.id);
            }
        }
        self.db().commit(batch)?;
        Ok(missing)
    }

    /// Finds out what a layer lacks, and sets or removes its mark. True if it lacks nothing.
    fn examine(&self, diff_id: DiffId, missing: &HashSet<ObjectId>) -> Result<bool> {
        let earlier = self.layer_damage(diff_id)?;
        let mut mark = DamagedLayer::new(diff_id);
        mark.since = earlier.as_ref().map_or(mark.since, |earlier| earlier.since);
        // A layer that is gone needs nothing.
        if let Some(layer) = self.layer(diff_id)? {
            mark.tree = self.lacks_tree(&layer)?;
            mark.recipe = self.lacks_recipe(&layer);
            mark.objects = match self.count_needed(&layer, missing) {
                // Its tree or recipe doesn't say; one of the two is marked.
                Err(error) if error.kind() == Kind::Corrupt => 0,
                counted => counted?,
            };
        }
        if (!mark.is_whole()).then_some(&mark) != earlier.as_ref() {
            let mut batch = Batch::new();
            put_layer(&mut batch, &mark)?;
            self.db().commit(batch)?;
        }
        Ok(mark.is_whole())
    }

    /// Whether the layer's tree can't be used, or its file is gone or of another length.
    fn lacks_tree(&self, layer: &Layer) -> Result<bool> {
        let path = layer::path(layer.diff_id);
        let found = disk::stat(self.disk(), &path)
            .map_err(Error::io(format!("look for the tree of layer {}", layer.diff_id)))?;
        let there = found.is_some_and(|stat| stat.st_size as u64 == layer.tree_bytes);
        Ok(!there || self.layer_tree(layer.diff_id).is_err())
    }

    /// Whether the layer had a recipe and has none that can be read.
    fn lacks_recipe(&self, layer: &Layer) -> bool {
        layer.recipe.as_ref().is_some_and(|recipe| self.open_recipe(layer, recipe).is_err())
    }

    /// How many of these objects a layer needs.
    fn count_needed(&self, layer: &Layer, objects: &HashSet<ObjectId>) -> Result<u64> {
        Ok(self.needed(layer, objects)?.len() as u64)
    }

    /// Which of these objects a layer needs.
    fn needed(&self, layer: &Layer, objects: &HashSet<ObjectId>) -> Result<HashSet<ObjectId>> {
        let mut needed = HashSet::new();
        if !objects.is_empty() {
            self.each_layer_object(layer, |id, _| {
                if objects.contains(&id) {
                    needed.insert(id);
                }
            })?;
        }
        Ok(needed)
    }

    /// Which layers and images need these objects. Walks over all trees, if there are objects.
    pub(crate) fn needed_by(&self, objects: &HashSet<ObjectId>) -> Result<HashMap<ObjectId, Touched>> {
        let mut touched: HashMap<ObjectId, Touched> = HashMap::new();
        if objects.is_empty() {
            return Ok(touched);
        }
        let mut needing: HashMap<DiffId, HashSet<ObjectId>> = HashMap::new();
        for layer in self.readable::<Layer>(Family::Layers)? {
            // One whose tree is damaged has a mark of its own.
            let Ok(needed) = self.needed(&layer, objects) else { continue };
            for id in &needed {
                touched.entry(*id).or_default().layers.push(layer.diff_id);
            }
            if !needed.is_empty() {
                needing.insert(layer.diff_id, needed);
            }
        }
        for image in self.readable::<Image>(Family::Images)? {
            let documents = image.objects();
            let documents = documents.iter().filter(|id| objects.contains(id));
            let needed: HashSet<&ObjectId> =
                image.layers.iter().filter_map(|layer| needing.get(layer)).flatten().chain(documents).collect();
            for id in needed {
                touched.entry(*id).or_default().images.push(image.name.clone());
            }
        }
        Ok(touched)
    }

    /// The rows of a family that make sense.
    fn readable<T: DeserializeOwned>(&self, family: Family) -> Result<Vec<T>> {
        let rows = self.db().scan(family, b"")?;
        Ok(rows.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
    }

    /// Marks the layers that need any of these objects, and says which layers and images need which.
    pub(crate) fn mark_layers(&self, objects: &HashSet<ObjectId>) -> Result<HashMap<ObjectId, Touched>> {
        let touched = self.needed_by(objects)?;
        let layers: HashSet<DiffId> = touched.values().flat_map(|touched| &touched.layers).copied().collect();
        if !layers.is_empty() {
            let missing = self.missing_objects()?;
            layers.into_iter().try_for_each(|layer| self.examine(layer, &missing).map(drop))?;
        }
        Ok(touched)
    }

    /// The images that have this layer.
    pub(crate) fn touched_by_layer(&self, diff_id: DiffId) -> Result<Touched> {
        let images =
            self.readable::<Image>(Family::Images)?.into_iter().filter(|image| image.layers.contains(&diff_id));
        Ok(Touched { layers: vec![diff_id], images: images.map(|image| image.name).collect() })
    }
}

/// The layers and images that something is needed by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) layers: Vec<DiffId>,
    pub(crate) images: Vec<String>,
}

impl Touched {
    /// The layers, for a log.
    pub(crate) fn layers(&self) -> String {
        listed(self.layers.iter().map(ToString::to_string), self.layers.len())
    }

    /// The images, for a log.
    pub(crate) fn images(&self) -> String {
        listed(self.images.iter().cloned(), self.images.len())
    }
}

/// Names in one line, not all of them if they are many.
pub(crate) fn listed(names: impl Iterator<Item = String>, count: usize) -> String {
    const SHOWN: usize = 10;
    let text = names.take(SHOWN).collect::<Vec<_>>().join(", ");
    match count {
        0 => "none".to_owned(),
        count if count > SHOWN => format!("{text} and {} more", count - SHOWN),
        _ => text,
    }
}

pub(crate) fn object_key(id: ObjectId) -> String {
    format!("{OBJECT}{}", id.hex())
}

pub(crate) fn layer_key(diff_id: DiffId) -> String {
    format!("{LAYER}{}", diff_id.hex())
}

pub(crate) fn put_object(batch: &mut Batch, id: ObjectId, bytes: Option<u64>, reason: &str) -> Result<()> {
    let row = DamagedObject { id, bytes, since: unix_seconds(), reason: reason.to_owned() };
    batch.put_json(Family::System, object_key(id).as_bytes(), &row)
}

/// Sets the mark, or takes it away if it says that nothing is wrong.
pub(crate) fn put_layer(batch: &mut Batch, mark: &DamagedLayer) -> Result<()> {
    let key = layer_key(mark.diff_id);
    if mark.is_whole() {
        batch.delete(Family::System, key.as_bytes());
        return Ok(());
    }
    batch.put_json(Family::System, key.as_bytes(), mark)
}
