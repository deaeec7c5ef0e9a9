//! Merging against a simple model: a map of paths that layers are applied to one after the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use mica_layerdb::tree::{Attributes, Body, Content, FileKind, Nid, Timestamp, Tree, merge};
use proptest::prelude::*;

use crate::erofs_utils;
use crate::sample::{
    Item, What, attributes, build, bytes_of, dir, file, item, link, object, split, symlink, tree_of, with, with_xattrs,
    written,
};

pub type Path = Vec<Vec<u8>>;

/// What the model knows of an inode.
#[derive(Clone, Debug, PartialEq)]
enum Inode {
    Directory {
        mode: u32,
    },
    /// A number of its own, and its contents.
    File {
        number: usize,
        contents: Vec<u8>,
    },
}

#[derive(Clone, Debug)]
struct Named {
    inode: Inode,
    /// The last layer that has this name.
    layer: usize,
    /// The last layer that states its attributes.
    stated: usize,
}

/// The filesystem after some layers, by path.
#[derive(Debug)]
pub struct Model {
    names: BTreeMap<Path, Named>,
    layer: usize,
    files: usize,
}

const IMPLIED: Inode = Inode::Directory { mode: 0o40_755 };

#[derive(Clone, Debug)]
pub enum Operation {
    Directory(Path, u32),
    File(Path),
    /// New name, old name.
    Link(Path, Path),
    Whiteout(Path),
    Opaque(Path),
}

impl Model {
    fn new() -> Self {
        let root = Named { inode: IMPLIED, layer: 0, stated: 0 };
        Self { names: BTreeMap::from([(Vec::new(), root)]), layer: 0, files: 0 }
    }

    fn is_directory(&self, path: &[Vec<u8>]) -> bool {
        matches!(self.names.get(path), Some(Named { inode: Inode::Directory { .. }, .. }))
    }

    fn remove(&mut self, path: &[Vec<u8>]) {
        self.names.retain(|name, _| !name.starts_with(path));
    }

    fn put(&mut self, path: &Path, inode: Inode) {
        self.names.insert(path.clone(), Named { inode, layer: self.layer, stated: self.layer });
    }

    /// The directories above `path` exist, in this layer too.
    fn parents(&mut self, path: &[Vec<u8>]) {
        for length in 0..path.len() {
            self.imply(&path[..length]);
        }
    }

    fn imply(&mut self, path: &[Vec<u8>]) {
        if self.is_directory(path) {
            self.names.get_mut(path).unwrap().layer = self.layer;
        } else {
            self.remove(path);
            // No layer has stated anything; what later says "below this layer" must not mean it.
            self.put(&path.to_vec(), IMPLIED);
        }
    }

    /// Takes away what lower layers have at and below `path`. A directory that this layer has there as well
    /// stays, without the attributes that lower layers gave it.
    fn hide(&mut self, path: &[Vec<u8>]) {
        let layer = self.layer;
        self.names.retain(|name, named| !name.starts_with(path) || named.layer == layer);
        for (_, named) in self.names.iter_mut().filter(|(name, _)| name.starts_with(path)) {
            if named.stated < layer {
                named.inode = IMPLIED;
            }
        }
    }

    /// Applies an operation and gives the item that says the same to a builder; `None` if it makes no sense.
    fn apply(&mut self, operation: &Operation) -> Option<Item> {
        let make = |path: &Path, what| Some(Item { path: path.clone(), what });
        match operation {
            Operation::Directory(path, mode) => {
                self.parents(path);
                self.imply(path);
                let named = self.names.get_mut(path).unwrap();
                (named.inode, named.stated) = (Inode::Directory { mode: *mode }, self.layer);
                let attributes = with(dir(""), |dir| dir.mode = *mode);
                make(path, attributes.what)
            }
            Operation::File(path) if !path.is_empty() => {
                self.parents(path);
                self.remove(path);
                self.files += 1;
                let contents = format!("file {}", self.files).into_bytes();
                self.put(path, Inode::File { number: self.files, contents: contents.clone() });
                make(path, file("", contents).what)
            }
            Operation::Link(path, old) if !path.is_empty() && !path.starts_with(old) => {
                let target = self.names.get(old)?.clone();
                if target.layer != self.layer || matches!(target.inode, Inode::Directory { .. }) {
                    return None;
                }
                self.parents(path);
                self.names.get(old)?;
                self.remove(path);
                self.put(path, target.inode);
                make(path, What::Link(old.clone()))
            }
            Operation::Whiteout(path) if !path.is_empty() => {
                self.parents(path);
                self.hide(path);
                make(path, What::Whiteout)
            }
            Operation::Opaque(path) => {
                self.parents(path);
                self.imply(path);
                self.hide(path);
                make(path, What::Opaque)
            }
            _ => None,
        }
    }

    /// Path, mode, number of names and contents of everything; equal numbers mean one inode.
    fn listing(&self) -> BTreeMap<Path, Seen> {
        let names_of = |number: usize| self.names.values().filter(|named| is_file(&named.inode, number)).count();
        let subdirectories = |path: &Path| {
            let inside =
                |name: &&Path| name.len() == path.len() + 1 && name.starts_with(path) && self.is_directory(name);
            self.names.keys().filter(inside).count()
        };
        self.names
            .iter()
            .map(|(path, named)| {
                let seen = match &named.inode {
                    Inode::Directory { mode } => (*mode, 2 + subdirectories(path), None),
                    Inode::File { number, contents } => (0o100_644, names_of(*number), Some(contents.clone())),
                };
                (path.clone(), seen)
            })
            .collect()
    }
}

pub type Seen = (u32, usize, Option<Vec<u8>>);

fn is_file(inode: &Inode, wanted: usize) -> bool {
    matches!(inode, Inode::File { number, .. } if *number == wanted)
}

pub fn listing_of(tree: &Tree) -> BTreeMap<Path, Seen> {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<Vec<u8>, Nid> = BTreeMap::new();
    let mut pending = vec![(Path::new(), tree.root())];
    while let Some((path, nid)) = pending.pop() {
        let inode = tree.inode(nid).unwrap();
        let contents = (inode.kind == FileKind::Regular).then(|| match tree.content(&inode).unwrap() {
            Content::Inline(bytes) => bytes.to_vec(),
            Content::Object(id) => id.hex().into_bytes(),
        });
        if let Some(contents) = &contents {
            // Contents are unique in the model: names with the same ones are of one inode.
            assert_eq!(*inodes.entry(contents.clone()).or_insert(nid), nid, "{path:?}");
        } else {
            for entry in tree.entries(&inode, 0).unwrap() {
                let entry = entry.unwrap();
                pending.push(([path.as_slice(), &[entry.name.to_vec()]].concat(), entry.nid));
            }
            assert!(!tree.is_opaque(&inode).unwrap() && !tree.is_implied(&inode).unwrap(), "{path:?}");
        }
        found.insert(path, (inode.mode, inode.nlink as usize, contents));
    }
    found
}

pub fn merged(layers: &[Arc<Tree>]) -> (Tree, File) {
    let mut out = tempfile::tempfile().unwrap();
    let written = merge(layers, &mut out).unwrap();
    let tree = Tree::open(&out, "merged").unwrap();
    assert_eq!((tree.len_bytes(), tree.inode_count(), tree.digest()), (written.bytes, written.inodes, written.digest));
    (tree, out)
}

fn layer(items: &[Item]) -> Arc<Tree> {
    Arc::new(tree_of(items))
}

fn paths() -> impl Strategy<Value = Path> {
    let name = prop::sample::select(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
    prop::collection::vec(name, 0..=3)
}

pub fn operations() -> impl Strategy<Value = Vec<Vec<Operation>>> {
    let operation = prop_oneof![
        2 => (paths(), prop::sample::select(vec![0o40_700, 0o40_711, 0o41_777])).prop_map(|(path, mode)| Operation::Directory(path, mode)),
        4 => paths().prop_map(Operation::File),
        3 => (paths(), paths()).prop_map(|(path, old)| Operation::Link(path, old)),
        2 => paths().prop_map(Operation::Whiteout),
        1 => paths().prop_map(Operation::Opaque),
    ];
    prop::collection::vec(prop::collection::vec(operation, 0..8), 0..5)
}

/// A layer as a tree and as its bytes.
pub type Written = (Arc<Tree>, Vec<u8>);

/// Applies operations to the model, and gives the layers as trees and as bytes.
pub fn apply(layers: &[Vec<Operation>]) -> (Model, Vec<Written>) {
    let mut model = Model::new();
    let mut trees = Vec::new();
    for operations in layers {
        model.layer += 1;
        let items: Vec<_> = operations.iter().filter_map(|operation| model.apply(operation)).collect();
        let bytes = bytes_of(&items);
        trees.push((Arc::new(Tree::from_vec(bytes.clone(), "layer").unwrap()), bytes));
    }
    (model, trees)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merge_of_random_layers_is_what_the_model_says(layers in operations()) {
        let (model, trees) = apply(&layers);
        let trees: Vec<_> = trees.into_iter().map(|(tree, _)| tree).collect();
        let (tree, _) = merged(&trees);
        prop_assert_eq!(listing_of(&tree), model.listing());
    }

    #[test]
    fn merge_in_two_steps_gives_the_same_bytes(layers in operations(), cut in 0..5_usize) {
        // Without layers above, whiteouts have done their work: only the lower part may be merged first.
        let (_, trees) = apply(&layers);
        let trees: Vec<_> = trees.into_iter().map(|(tree, _)| tree).collect();
        let cut = cut.min(trees.len());
        let (lower, _) = merged(&trees[..cut]);
        let two_steps: Vec<_> = std::iter::once(Arc::new(lower)).chain(trees[cut..].iter().cloned()).collect();
        prop_assert_eq!(merged(&two_steps).0.digest(), merged(&trees).0.digest());
    }
}

#[test]
fn merge_of_nothing_is_an_empty_root() {
    let (tree, _) = merged(&[]);
    let root = tree.inode(tree.root()).unwrap();
    assert_eq!((root.mode, root.nlink, root.uid, root.mtime), (0o40_755, 2, 0, Timestamp::default()));
    assert_eq!(tree.entries(&root, 0).unwrap().count(), 0);
}

#[test]
fn merge_keeps_every_kind_of_inode() {
    let items: Vec<_> =
        crate::sample::everything().into_iter().filter(|item| !item.path.ends_with(&split("whiteout"))).collect();
    let tree = layer(&items);
    let (again, _) = merged(&[layer(&[]), tree.clone()]);
    assert_eq!(again.digest(), tree.digest(), "one layer without whiteouts is its own merge");
}

#[test]
fn merge_takes_a_directorys_attributes_from_the_topmost_layer_that_states_them() {
    let stated = with_xattrs(with(dir("d"), |dir| (dir.mode, dir.uid) = (0o40_700, 5)), &[(b"user.x", b"1")]);
    let (tree, _) = merged(&[layer(&[stated, file("d/lower", "l")]), layer(&[file("d/upper", "u")])]);
    let root = tree.inode(tree.root()).unwrap();
    let dir = tree.inode(tree.lookup(&root, b"d").unwrap().unwrap().nid).unwrap();
    assert_eq!((dir.mode, dir.uid, tree.xattr(&dir, b"user.x").unwrap()), (0o40_700, 5, Some(&b"1"[..])));
    assert_eq!(tree.entries(&dir, 0).unwrap().count(), 2);
}

#[test]
fn merge_counts_the_names_that_are_left() {
    let lower = layer(&[file("a", "x"), link("b", "a"), link("d/c", "a"), object("o", "o", 9000), link("p", "o")]);
    let whiteout = |path| Item { path: split(path), what: What::Whiteout };
    let upper = layer(&[whiteout("a"), whiteout("d"), file("p", "replaced")]);
    let (tree, out) = merged(&[lower, upper]);
    let root = tree.inode(tree.root()).unwrap();
    let inode = |name: &[u8]| tree.inode(tree.lookup(&root, name).unwrap().unwrap().nid).unwrap();
    assert_eq!(tree.entries(&root, 0).unwrap().count(), 3);
    assert_eq!((inode(b"b").nlink, inode(b"o").nlink, inode(b"p").nlink), (1, 1, 1));
    assert_eq!(tree.links(inode(b"b").nid).unwrap(), vec![(tree.root(), b"b".to_vec())]);
    drop(out);
}

#[test]
fn merge_of_a_users_overlay_attribute_keeps_it_and_does_not_obey_it() {
    let lower = layer(&[file("d/below", "b")]);
    let upper = layer(&[with_xattrs(dir("d"), &[(b"trusted.overlay.opaque", b"y")])]);
    let (tree, _) = merged(&[lower, upper]);
    let root = tree.inode(tree.root()).unwrap();
    let dir = tree.inode(tree.lookup(&root, b"d").unwrap().unwrap().nid).unwrap();
    assert_eq!(tree.xattr(&dir, b"trusted.overlay.opaque").unwrap(), Some(&b"y"[..]));
    assert!(tree.lookup(&dir, b"below").unwrap().is_some());
}

#[test]
fn merge_of_a_directory_listed_twice_is_refused() {
    // Names of the same length: exchanging the numbers in the root's entries leaves all else intact.
    let mut bytes = bytes_of(&[dir("d"), file("d/f", "f"), dir("e")]);
    let nid = |bytes: &[u8], name: &[u8]| {
        let tree = Tree::from_vec(bytes.to_vec(), "t").unwrap();
        let root = tree.inode(tree.root()).unwrap();
        tree.lookup(&root, name).unwrap().unwrap().nid.0
    };
    let (one, other) = (nid(&bytes, b"d"), nid(&bytes, b"e"));
    let at = bytes.windows(8).position(|window| window == other.to_le_bytes()).unwrap();
    bytes[at..at + 8].copy_from_slice(&one.to_le_bytes());
    reseal(&mut bytes);
    let tree = Arc::new(Tree::from_vec(bytes, "twice").unwrap());
    let error = merge(std::slice::from_ref(&tree), &mut tempfile::tempfile().unwrap()).unwrap_err();
    assert!(error.to_string().contains("tree twice") && error.to_string().contains("more than one name"), "{error}");
}

/// Puts the right checksum into a changed first block.
pub fn reseal(bytes: &mut [u8]) {
    bytes[1028..1032].fill(0);
    let sum = !crc32c::crc32c(&bytes[1024..4096]);
    bytes[1028..1032].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn merged_tree_passes_fsck() {
    let whiteout: Attributes = mica_layerdb::tree::whiteout();
    let lower = crate::sample::everything();
    let upper = [item("many", whiteout, Body::None), symlink("names/~", "changed"), dir("contents")];
    let (_, mut out) = merged(&[layer(&lower), layer(&upper)]);
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut out).unwrap();
    std::io::Read::read_to_end(&mut out, &mut bytes).unwrap();
    erofs_utils::assert_sound(&bytes);
}

#[test]
fn builder_follows_the_order_of_entries_with_one_name() {
    let (mut out, _) = written(build(&[
        file("d/x", "gone with the directory"),
        file("d", "a file now"),
        with(dir("d"), |dir| dir.mode = attributes(FileKind::Directory, 0o700).mode),
        file("e", "first"),
        file("e", "last"),
    ]));
    let tree = Tree::open(&out, "layer").unwrap();
    let root = tree.inode(tree.root()).unwrap();
    let dir = tree.inode(tree.lookup(&root, b"d").unwrap().unwrap().nid).unwrap();
    assert!(tree.is_opaque(&dir).unwrap(), "the file had hidden what is below");
    assert_eq!(tree.entries(&dir, 0).unwrap().count(), 0);
    let last = tree.inode(tree.lookup(&root, b"e").unwrap().unwrap().nid).unwrap();
    assert_eq!(tree.content(&last).unwrap(), Content::Inline(b"last"));
    std::io::Seek::rewind(&mut out).unwrap();
}
