//! Merging a stack of layers into the tree that a container sees.
//!
//! A name of a layer hides the same name of all layers below, unless both are directories: those merge. A
//! whiteout hides and is not there itself; an opaque directory merges with nothing below. A merged directory
//! has the attributes of the topmost layer that states them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use super::graph::{Edge, Graph, Node, NodeBody};
use super::names::Entered;
use super::read::{Inode, Tree};
use super::xattr::{Own, Pair, XattrSet, XattrTable, first_beyond_area, known_namespace};
use super::{Content, FileKind, Nid, Timestamp, Written, encode_device};
use crate::error::{Error, Result};

/// Writes the merged tree of `layers`, bottom first, to `out`, an empty file. Without layers it is an empty
/// root directory.
pub fn merge(layers: &[Arc<Tree>], out: &mut dyn Write) -> Result<Written> {
    let mut merge = Merge::new(layers);
    merge.root()?;
    while let Some(dir) = merge.pending.pop() {
        merge.directory(&dir)?;
    }
    super::write::write(&merge.graph, out)
}

/// A directory of one layer that takes part in a merged one.
#[derive(Clone, Copy)]
struct Source {
    /// Position in the stack, the top layer being 0.
    layer: usize,
    inode: Inode,
}

/// A merged directory whose entries are yet to be found.
struct Pending {
    node: u32,
    /// Topmost first.
    sources: Vec<Source>,
}

/// A name of a source.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    name: &'a [u8],
    layer: usize,
    nid: Nid,
    kind: FileKind,
}

struct Merge<'a> {
    /// Top first.
    layers: Vec<&'a Tree>,
    /// Directories that were taken, for each layer.
    entered: Vec<Entered>,
    graph: Graph<'a>,
    /// Inodes of several names that are in the graph, by layer and number.
    linked: HashMap<(usize, Nid), u32>,
    pending: Vec<Pending>,
    candidates: Vec<Candidate<'a>>,
}

impl<'a> Merge<'a> {
    fn new(layers: &'a [Arc<Tree>]) -> Self {
        let layers: Vec<&Tree> = layers.iter().rev().map(Arc::as_ref).collect();
        Self {
            entered: layers.iter().map(|tree| Entered::of(tree)).collect(),
            layers,
            graph: Graph { nodes: Vec::new(), edges: Vec::new(), xattrs: XattrTable::default() },
            linked: HashMap::new(),
            pending: Vec::new(),
            candidates: Vec::new(),
        }
    }

    fn root(&mut self) -> Result<()> {
        if self.layers.is_empty() {
            self.graph.nodes.push(Node {
                mode: FileKind::Directory.mode_bits() | 0o755,
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                xattrs: XattrSet::EMPTY,
                body: NodeBody::Directory { first: 0, count: 0 },
            });
            return Ok(());
        }
        let roots: Vec<_> = self.layers.iter().map(|tree| (tree.root(), FileKind::Directory)).collect();
        self.merged_directory(roots.into_iter().enumerate().map(|(layer, (nid, kind))| (layer, nid, kind)))?;
        Ok(())
    }

    /// Adds a directory made of the given inodes, topmost first, as far as they merge.
    fn merged_directory(&mut self, from: impl Iterator<Item = (usize, Nid, FileKind)>) -> Result<u32> {
        let mut sources: Vec<Source> = Vec::new();
        let mut stated = None;
        for (layer, nid, kind) in from {
            if kind != FileKind::Directory {
                break;
            }
            let tree = self.layers[layer];
            let inode = tree.inode(nid)?;
            self.entered[layer].enter(tree, &inode)?;
            sources.push(Source { layer, inode });
            if stated.is_none() && !tree.is_implied(&inode)? {
                stated = Some(sources.len() - 1);
            }
            if tree.is_opaque(&inode)? {
                break;
            }
        }
        // Where no layer states the attributes, the lowest one was the first to need the directory.
        let source = sources[stated.unwrap_or(sources.len() - 1)];
        let node = self.add(source.layer, &source.inode, NodeBody::Directory { first: 0, count: 0 })?;
        self.pending.push(Pending { node, sources });
        Ok(node)
    }

    /// Finds the entries of a merged directory.
    fn directory(&mut self, dir: &Pending) -> Result<()> {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        for source in &dir.sources {
            self.collect(source, &mut candidates)?;
        }
        if dir.sources.len() > 1 {
            // Stable, and quick because it is made of ascending runs: of equal names the topmost stays first.
            candidates.sort_by(|one, other| one.name.cmp(other.name));
        }
        let first = self.graph.edges.len();
        for same_name in candidates.chunk_by(|one, other| one.name == other.name) {
            if let Some(node) = self.entry(same_name)? {
                self.graph.edges.push(Edge { name: same_name[0].name, node });
            }
        }
        let count = self.graph.edges.len() - first;
        self.graph.nodes[dir.node as usize].body = NodeBody::Directory { first: index(first)?, count: index(count)? };
        self.candidates = candidates;
        Ok(())
    }

    fn collect(&self, source: &Source, candidates: &mut Vec<Candidate<'a>>) -> Result<()> {
        let tree = self.layers[source.layer];
        let mut previous: &[u8] = b"";
        for entry in tree.entries(&source.inode, 0)? {
            let entry = entry?;
            if entry.name <= previous {
                return Err(tree.corrupt(source.inode.nid, "the directory's names do not ascend"));
            }
            previous = entry.name;
            candidates.push(Candidate { name: entry.name, layer: source.layer, nid: entry.nid, kind: entry.kind });
        }
        Ok(())
    }

    /// Decides what a name leads to, given all inodes that have it, topmost first.
    fn entry(&mut self, same_name: &[Candidate<'a>]) -> Result<Option<u32>> {
        let top = same_name[0];
        if top.kind == FileKind::Directory {
            return self.merged_directory(same_name.iter().map(|c| (c.layer, c.nid, c.kind))).map(Some);
        }
        if let Some(&node) = self.linked.get(&(top.layer, top.nid)) {
            return Ok(Some(node));
        }
        let tree = self.layers[top.layer];
        let inode = tree.inode(top.nid)?;
        if inode.kind != top.kind {
            return Err(tree.corrupt(top.nid, "the inode's type is not the one in its directory"));
        }
        if inode.is_whiteout() {
            return Ok(None);
        }
        let body = match inode.kind {
            FileKind::Symlink => NodeBody::Symlink(tree.target(&inode)?),
            FileKind::Regular => match tree.content(&inode)? {
                Content::Inline(bytes) => NodeBody::Inline(bytes),
                Content::Object(id) => NodeBody::Object { id, size: inode.size },
            },
            _ => NodeBody::Special(encode_device(inode.rdev).unwrap_or(0)),
        };
        let node = self.add(top.layer, &inode, body)?;
        if inode.nlink > 1 {
            self.linked.insert((top.layer, top.nid), node);
        }
        Ok(Some(node))
    }

    fn add(&mut self, layer: usize, inode: &Inode, body: NodeBody<'a>) -> Result<u32> {
        let xattrs = self.user_xattrs(self.layers[layer], inode)?;
        let node = Node { mode: inode.mode, uid: inode.uid, gid: inode.gid, mtime: inode.mtime, xattrs, body };
        self.graph.nodes.push(node);
        index(self.graph.nodes.len() - 1)
    }

    /// The attributes of an inode as the disk has them, without the overlay's own.
    fn user_xattrs(&mut self, tree: &'a Tree, inode: &Inode) -> Result<XattrSet> {
        if inode.has_no_xattrs() {
            return Ok(XattrSet::EMPTY);
        }
        let mut pairs = Vec::new();
        tree.each_xattr(inode, |raw| {
            if Own::of(raw.index, raw.name).is_none() {
                pairs.push(Pair { index: raw.index, name: Cow::Borrowed(raw.name), value: Cow::Borrowed(raw.value) });
            }
            true
        })?;
        if !pairs.iter().all(|pair| known_namespace(pair.index, &pair.name)) || first_beyond_area(&pairs).is_some() {
            return Err(tree.corrupt(inode.nid, "the inode has attributes that no tree can hold"));
        }
        pairs.sort_unstable();
        if pairs.windows(2).any(|pair| (pair[0].index, &pair[0].name) == (pair[1].index, &pair[1].name)) {
            return Err(tree.corrupt(inode.nid, "the inode has an attribute twice"));
        }
        Ok(self.graph.xattrs.intern(pairs))
    }
}

fn index(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::TreeTooLarge { reason: "a tree has at most 2^32 names" })
}
