//! Layers: their records and their trees.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::ObjectId;
use crate::digest::{BlobDigest, DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::recipe::RecipeRecord;
use crate::store::{Family, Hold, Store};
use crate::tree::{Content, Entered, FileKind, Tree};

/// A layer in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// Length of its uncompressed tar.
    pub tar_bytes: u64,
    /// Digest of the blob it came from, if that was checked.
    pub blob: Option<BlobDigest>,
    /// Bytes that were read to take it in.
    pub blob_bytes: u64,
    /// Entries of its tar.
    pub entries: u64,
    /// Bytes of all its files, holes included.
    pub content_bytes: u64,
    /// Bytes of objects that the store didn't have before.
    pub new_bytes: u64,
    /// Length of its tree file.
    pub tree_bytes: u64,
    /// Digest of its tree file.
    pub tree_digest: Digest,
    /// How the blob was compressed. `None` for layers of older programs, which didn't record it.
    #[serde(default)]
    pub blob_compression: Option<BlobCompression>,
    /// From what its tar can be rebuilt. `None` for layers of older programs; taking the layer in again adds it.
    #[serde(default)]
    pub recipe: Option<RecipeRecord>,
    /// When it was taken in, in seconds since the epoch.
    pub created: u64,
}

/// How a layer's blob was compressed when it was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobCompression {
    /// Not at all: the blob is the tar.
    None,
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// One or more zstd frames (RFC 8878).
    Zstd,
}

/// How the blob that a layer came from can be had again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobOrigin {
    /// [`Store::export_layer`] gives it, byte for byte: it was the uncompressed tar.
    Exact,
    /// Its tar can be compressed again. What other programs compressed comes out with another digest then, though
    /// with the same diff-id: who needs the original has to fetch it by [`Layer::blob`]. What Mica itself
    /// compressed comes out the same.
    Remade,
    /// It can only be fetched: the store can't rebuild the tar, see [`Error::NoRecipe`].
    Fetched,
}

impl Layer {
    /// How the blob that the layer came from can be had again.
    pub fn blob_origin(&self) -> BlobOrigin {
        match (&self.recipe, self.blob_compression) {
            (None, _) => BlobOrigin::Fetched,
            (Some(_), Some(BlobCompression::None)) => BlobOrigin::Exact,
            (Some(_), _) => BlobOrigin::Remade,
        }
    }
}

/// Key of a layer's row.
pub(crate) fn key(diff_id: DiffId) -> String {
    diff_id.hex()
}

/// Where a layer's tree lies below the store's root.
pub(crate) fn path(diff_id: DiffId) -> PathBuf {
    Path::new("layers/sha256").join(diff_id.hex())
}

/// Where a layer's recipe lies below the store's root.
pub(crate) fn recipe_path(diff_id: DiffId) -> PathBuf {
    path(diff_id).with_extension("recipe")
}

impl Store {
    /// A layer's record. `None` if the store doesn't have it.
    pub fn layer(&self, diff_id: DiffId) -> Result<Option<Layer>> {
        self.db().get_json(Family::Layers, key(diff_id).as_bytes())
    }

    /// All layers, by diff-id.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        Ok(self.db().scan_json(Family::Layers, b"")?.into_iter().map(|(_, layer)| layer).collect())
    }

    /// The layer whose diff-id or blob digest is `text`, or begins with it (at least four digits, `sha256:` may be
    /// left out). `None` if there is none; several are [`Error::Ambiguous`].
    pub fn find_layer(&self, text: &str) -> Result<Option<Layer>> {
        const SHORTEST: usize = 4;
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.len() < SHORTEST || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let matches = |layer: &Layer| {
            layer.diff_id.hex().starts_with(prefix) || layer.blob.is_some_and(|blob| blob.hex().starts_with(prefix))
        };
        let mut found: Vec<Layer> = self.layers()?.into_iter().filter(matches).collect();
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(Error::Ambiguous {
                name: text.into(),
                matches: found.iter().map(|layer| layer.diff_id.to_string()).collect(),
            }),
        }
    }

    /// Keeps garbage collection from these layers until the hold is dropped, so that they can be named in a pin or an
    /// image. [`Error::NoLayer`] if one is missing.
    pub fn hold(&self, layers: &[DiffId]) -> Result<Hold> {
        let hold = self.claims.hold();
        for diff_id in layers {
            if hold.layer(*diff_id, || self.layer(*diff_id))?.is_none() {
                return Err(Error::NoLayer { diff_id: *diff_id });
            }
        }
        Ok(hold)
    }

    /// A layer's tree. [`Error::NoLayer`] if the store doesn't have the layer, [`Error::CorruptLayer`] if its tree
    /// file is damaged or gone.
    pub fn layer_tree(&self, diff_id: DiffId) -> Result<Arc<Tree>> {
        if let Some(tree) = self.trees.get(diff_id.0) {
            return Ok(tree);
        }
        let layer = self.layer(diff_id)?.ok_or(Error::NoLayer { diff_id })?;
        let tree = self
            .open_tree(&path(diff_id), &diff_id.to_string(), layer.tree_bytes, layer.tree_digest)
            .map_err(|source| Error::CorruptLayer { diff_id, source: Box::new(source) })?;
        self.trees.put(diff_id.0, &tree);
        Ok(tree)
    }

    /// Calls `visit` with every object that the layer needs, and its size: those its tree names, and those that only
    /// its recipe names (contents that a later entry of the same tar replaced). An object that several inodes have
    /// is visited for each.
    ///
    /// Errors: [`Error::CorruptLayer`] and [`Error::CorruptRecipe`]; some objects may not have been visited then.
    pub fn each_layer_object(&self, layer: &Layer, mut visit: impl FnMut(ObjectId, u64)) -> Result<()> {
        let diff_id = layer.diff_id;
        let tree = self.layer_tree(diff_id)?;
        each_object(&tree, &mut visit).map_err(|source| Error::CorruptLayer { diff_id, source: Box::new(source) })?;
        match &layer.recipe {
            Some(recipe) if recipe.objects > 0 => self.open_recipe(layer, recipe)?.each_object(visit),
            _ => Ok(()),
        }
    }

    /// Opens a tree file and compares it with its record.
    pub(crate) fn open_tree(&self, path: &Path, name: &str, bytes: u64, digest: Digest) -> Result<Arc<Tree>> {
        let shown = self.root().join(path);
        let file = disk::open(self.disk(), path)
            .and_then(|file| file.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
            .map_err(Error::io(format!("open {}", shown.display())))?;
        let tree = Tree::open(&file, name)?;
        if tree.len_bytes() != bytes {
            return Err(Error::TreeLength { tree: name.into(), expected_bytes: bytes, actual_bytes: tree.len_bytes() });
        }
        if self.options().verify_trees {
            let actual = tree.digest();
            if actual != digest {
                return Err(Error::DigestMismatch { what: format!("tree {name}"), expected: digest, actual });
            }
        }
        Ok(Arc::new(tree))
    }

    pub(crate) fn forget_layer_tree(&self, diff_id: DiffId) {
        self.trees.remove(diff_id.0);
    }
}

/// Calls `visit` with every object that a tree names, once per inode, and with its size.
pub(crate) fn each_object(tree: &Tree, mut visit: impl FnMut(ObjectId, u64)) -> Result<()> {
    let mut directories = vec![tree.root()];
    let (mut entered, mut seen) = (Entered::of(tree), std::collections::HashSet::new());
    while let Some(nid) = directories.pop() {
        let directory = tree.inode(nid)?;
        entered.enter(tree, &directory)?;
        for entry in tree.entries(&directory, 0)? {
            let entry = entry?;
            match entry.kind {
                FileKind::Directory => directories.push(entry.nid),
                FileKind::Regular => {
                    let inode = tree.inode(entry.nid)?;
                    if inode.nlink > 1 && !seen.insert(entry.nid) {
                        continue;
                    }
                    if let Content::Object(id) = tree.content(&inode)? {
                        visit(id, inode.size);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}
