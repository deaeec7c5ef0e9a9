//! Who refers to something: why it is kept, or that it goes.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Roots;
use crate::chain::Chain;
use crate::digest::{BlobDigest, ChainId, DiffId, Digest, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layer::Layer;
use crate::object;
use crate::store::{Family, Store};
use crate::tally::Tally;
use crate::tree::{Content, Entered, FileKind, Tree};
use crate::walk;

/// Fewest digits that stand for a digest.
const DIGITS_MIN: usize = 4;

/// Paths that are told of one object in one layer.
const PATHS_MAX: usize = 20;

/// Everything that has a digest, and why it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The digest.
    pub digest: Digest,
    /// What has it; nothing if it is empty.
    pub found: Vec<Explained>,
}

/// Something in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Explained {
    /// A content.
    Object {
        /// Its file; `None` if it is missing.
        file: Option<Tally>,
        /// Layers whose tree or recipe names it.
        layers: Vec<ObjectUse>,
        /// Images whose manifest it is.
        manifest_of: Vec<String>,
        /// Images whose configuration it is.
        config_of: Vec<String>,
        /// Whether it is kept.
        kept: bool,
        /// Layers that can't be read: nobody knows whether they need it, so it is kept.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unreadable: Vec<DiffId>,
    },
    /// A layer, by its diff-id or its blob's digest.
    Layer {
        /// The layer.
        diff_id: DiffId,
        /// Who has it.
        keepers: Vec<Keeper>,
        /// Whether it is kept.
        kept: bool,
    },
    /// A merged tree.
    Chain {
        /// Its layers, bottom first.
        layers: Vec<DiffId>,
        /// Who has these layers as the lowest of theirs.
        keepers: Vec<Keeper>,
        /// Whether it is kept.
        kept: bool,
    },
}

impl Explained {
    /// Whether it is kept.
    pub fn is_kept(&self) -> bool {
        match self {
            Explained::Object { kept, .. } | Explained::Layer { kept, .. } | Explained::Chain { kept, .. } => *kept,
        }
    }
}

/// A layer that needs an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectUse {
    /// The layer.
    pub diff_id: DiffId,
    /// Names of files in the layer whose contents it is, escaped; not all if they are many.
    pub paths: Vec<String>,
    /// How many names there are. If there are none, only the layer's recipe names it: a later entry of the same layer has
    /// taken the place of the file.
    pub paths_total: u64,
    /// Who has the layer.
    pub keepers: Vec<Keeper>,
    /// Whether the layer is kept.
    pub kept: bool,
}

/// Why layers are kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "by", content = "name", rename_all = "kebab-case")]
pub enum Keeper {
    /// An image.
    Image(String),
    /// A snapshot, by the engine's name for it, or by its number if there is none.
    Snapshot(String),
    /// A mount of an image, by its lock.
    Mount(String),
    /// Another pin.
    Pin(String),
    /// Work under way, an open tree.
    Work,
}

/// The digits of a digest or of the beginning of one.
struct Prefix<'a>(&'a str);

impl Prefix<'_> {
    fn of(text: &str) -> Option<Prefix<'_>> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let fits = (DIGITS_MIN..=64).contains(&digits.len());
        let hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (fits && hex).then_some(Prefix(digits))
    }

    fn fits(&self, digest: Digest) -> bool {
        digest.hex().starts_with(self.0)
    }
}

/// What a digest may belong to.
#[derive(Default)]
struct Candidates {
    objects: Vec<ObjectId>,
    layers: Vec<(Digest, Layer)>,
    chains: Vec<(ChainId, Chain)>,
}

impl Store {
    /// Says who refers to the objects, layers, chains and documents of images that have this digest, or the only one
    /// that begins with these four or more digits. [`Error::Ambiguous`] if several do. `None` if nothing does. Finding
    /// who refers to an object takes a walk over all trees.
    pub fn explain(&self, text: &str) -> Result<Option<Explanation>> {
        let Some(prefix) = Prefix::of(text) else { return Err(Error::InvalidDigest { text: text.to_owned() }) };
        let candidates = self.candidates_for(&prefix)?;
        let mut digests: Vec<Digest> = candidates.objects.iter().map(|id| id.0).collect();
        digests.extend(candidates.layers.iter().map(|(digest, _)| *digest));
        digests.extend(candidates.chains.iter().map(|(id, _)| id.0));
        // A missing object can be asked for by its whole name.
        digests.extend(Digest::from_hex(prefix.0.as_bytes()));
        digests.sort_unstable();
        digests.dedup();
        let Some(&digest) = digests.first() else { return Ok(None) };
        if digests.len() > 1 {
            let matches = digests.iter().map(ToString::to_string).collect();
            return Err(Error::Ambiguous { name: text.into(), matches });
        }
        let keepers = Keepers::read(self)?;
        let mut found = Vec::new();
        for (_, layer) in candidates.layers {
            let (keepers, kept) = keepers.of_layer(self, layer.diff_id);
            found.push(Explained::Layer { diff_id: layer.diff_id, keepers, kept });
        }
        for (id, chain) in candidates.chains {
            let (keepers, kept) = keepers.of_chain(self, id, &chain);
            found.push(Explained::Chain { layers: chain.layers, keepers, kept });
        }
        found.extend(self.explain_object(ObjectId(digest), &keepers)?);
        Ok((!found.is_empty()).then_some(Explanation { digest, found }))
    }

    fn candidates_for(&self, prefix: &Prefix<'_>) -> Result<Candidates> {
        let mut candidates = Candidates::default();
        self.db().each_json(Family::Layers, |_, layer: Layer| {
            let blob = layer.blob.map(|BlobDigest(blob)| blob);
            let named = [Some(layer.diff_id.0), blob].into_iter().flatten().find(|digest| prefix.fits(*digest));
            candidates.layers.extend(named.map(|digest| (digest, layer)));
            Ok(())
        })?;
        for (_, chain) in self.db().scan_json::<Chain>(Family::Chains, prefix.0.as_bytes())? {
            candidates.chains.extend(ChainId::of(&chain.layers).map(|id| (id, chain)));
        }
        let directory = Path::new("objects").join(&prefix.0[..2]);
        let action = format!("read {}", self.root().join(&directory).display());
        let names = walk::names(self.disk().root(), &directory).and_then(|names| {
            let fits = |name: &[u8]| name.starts_with(&prefix.0.as_bytes()[2..]);
            names
                .filter(|name| name.as_ref().map_or(true, |(name, _)| fits(name.as_encoded_bytes())))
                .collect::<std::io::Result<Vec<_>>>()
        });
        for (name, _) in names.map_err(Error::io(action))? {
            let hex = [&prefix.0.as_bytes()[..2], name.as_encoded_bytes()].concat();
            candidates.objects.extend(Digest::from_hex(&hex).map(ObjectId));
        }
        Ok(candidates)
    }

    /// `None` if there is no such object and nothing names it.
    fn explain_object(&self, id: ObjectId, keepers: &Keepers) -> Result<Option<Explained>> {
        let stat = disk::stat(self.disk(), &object::path(id)).map_err(Error::io(format!("look for object {id}")))?;
        let (mut manifest_of, mut config_of) = (Vec::new(), Vec::new());
        self.db().each_json(Family::Images, |_, image: Image| {
            if image.manifest == id.0 {
                manifest_of.push(image.name);
            } else if image.config == id.0 {
                config_of.push(image.name);
            }
            Ok(())
        })?;
        let (mut layers, mut unreadable) = (Vec::new(), Vec::new());
        self.db().each_json(Family::Layers, |_, layer: Layer| {
            let mut named = false;
            let found = self.each_layer_object(&layer, |other, _| named |= other == id);
            let keeper = || keepers.of_layer(self, layer.diff_id);
            match found.and_then(|()| if named { self.paths_of(&layer, id) } else { Ok((Vec::new(), 0)) }) {
                Err(_) if keeper().1 => unreadable.push(layer.diff_id),
                Ok((paths, paths_total)) if named => {
                    let (keepers, kept) = keeper();
                    layers.push(ObjectUse { diff_id: layer.diff_id, paths, paths_total, keepers, kept });
                }
                _ => {}
            }
            Ok(())
        })?;
        let named = !(layers.is_empty() && manifest_of.is_empty() && config_of.is_empty());
        if stat.is_none() && !named {
            return Ok(None);
        }
        let kept = layers.iter().any(|layer| layer.kept)
            || !manifest_of.is_empty()
            || !config_of.is_empty()
            || !unreadable.is_empty()
            || !self.claims.lock().object(id);
        let file = stat.as_ref().map(Tally::of);
        Ok(Some(Explained::Object { file, layers, manifest_of, config_of, kept, unreadable }))
    }

    fn paths_of(&self, layer: &Layer, id: ObjectId) -> Result<(Vec<String>, u64)> {
        let tree = self.layer_tree(layer.diff_id)?;
        paths_in(&tree, id)
    }
}

/// Names of regular files with these contents, and how many there are.
fn paths_in(tree: &Tree, id: ObjectId) -> Result<(Vec<String>, u64)> {
    let mut directories = vec![(tree.root(), Vec::new())];
    let (mut entered, mut paths, mut total) = (Entered::of(tree), Vec::new(), 0);
    while let Some((nid, path)) = directories.pop() {
        let directory = tree.inode(nid)?;
        entered.enter(tree, &directory)?;
        for entry in tree.entries(&directory, 0)? {
            let entry = entry?;
            let inner = || [&path[..], b"/", entry.name].concat();
            match entry.kind {
                FileKind::Directory => directories.push((entry.nid, inner())),
                FileKind::Regular if tree.content(&tree.inode(entry.nid)?)? == Content::Object(id) => {
                    total += 1;
                    if paths.len() < PATHS_MAX {
                        paths.push(inner().escape_ascii().to_string());
                    }
                }
                _ => {}
            }
        }
    }
    paths.sort_unstable();
    Ok((paths, total))
}

/// All stacks of layers that somebody keeps.
struct Keepers {
    stacks: Vec<(Keeper, Vec<DiffId>)>,
    roots: Roots,
}

#[derive(Deserialize)]
struct Numbered {
    number: u64,
}

impl Keepers {
    fn read(store: &Store) -> Result<Keepers> {
        let mut names: HashMap<u64, String> = HashMap::new();
        store.db().each_json(Family::Snapshots, |key, Numbered { number }| {
            names.insert(number, String::from_utf8_lossy(key).into_owned());
            Ok(())
        })?;
        let mut stacks = Vec::new();
        store.db().each_json(Family::Images, |_, image: Image| {
            stacks.push((Keeper::Image(image.name), image.layers));
            Ok(())
        })?;
        store.db().each_json(Family::Pins, |key, layers: Vec<DiffId>| {
            let owner = String::from_utf8_lossy(key).into_owned();
            let keeper = if let Some(number) = owner.strip_prefix("snapshot/") {
                let name = number.parse().ok().and_then(|number| names.get(&number).cloned());
                Keeper::Snapshot(name.unwrap_or_else(|| number.to_owned()))
            } else if let Some(lock) = owner.strip_prefix("mount/") {
                Keeper::Mount(lock.to_owned())
            } else {
                Keeper::Pin(owner)
            };
            stacks.push((keeper, layers));
            Ok(())
        })?;
        Ok(Keepers { stacks, roots: Roots::read(store)? })
    }

    fn having(&self, has: impl Fn(&[DiffId]) -> bool) -> Vec<Keeper> {
        let mut keepers: Vec<Keeper> =
            self.stacks.iter().filter(|(_, layers)| has(layers)).map(|(keeper, _)| keeper.clone()).collect();
        keepers.sort_unstable();
        keepers.dedup();
        keepers
    }

    fn of_layer(&self, store: &Store, diff_id: DiffId) -> (Vec<Keeper>, bool) {
        let mut keepers = self.having(|layers| layers.contains(&diff_id));
        if !store.claims.lock().layer(diff_id) {
            keepers.push(Keeper::Work);
        }
        let kept = !keepers.is_empty() || self.roots.has_layer(diff_id);
        (keepers, kept)
    }

    fn of_chain(&self, store: &Store, id: ChainId, chain: &Chain) -> (Vec<Keeper>, bool) {
        let mut keepers = self.having(|layers| layers.starts_with(&chain.layers));
        if store.chains.trees.is_used(id.0) {
            keepers.push(Keeper::Work);
        }
        let kept = !keepers.is_empty() || self.roots.wants(id);
        (keepers, kept)
    }
}
