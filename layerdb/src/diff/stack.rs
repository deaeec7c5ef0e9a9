//! Layers seen as one, without being merged: see `tree::merge` for the rules.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::error::Result;
use crate::tree::{FileKind, Inode, Nid, Tree};

/// A stack of layers that is looked at.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Top first.
    layers: Vec<Arc<Tree>>,
    /// Whether whiteouts are shown instead of being obeyed.
    raw: bool,
}

impl Stack {
    /// Layers, bottom first, as a container sees them.
    pub fn merged(mut layers: Vec<Arc<Tree>>) -> Stack {
        layers.reverse();
        Stack { layers, raw: false }
    }

    /// One layer as it is, with what it hides.
    pub fn single(layer: Arc<Tree>) -> Stack {
        Stack { layers: vec![layer], raw: true }
    }

    pub(super) fn is_raw(&self) -> bool {
        self.raw
    }

    pub(super) fn root(&self) -> Result<Option<Dir<'_>>> {
        let roots = self.layers.iter().map(|tree| (&**tree, tree.root(), FileKind::Directory));
        Dir::of(roots)
    }

    /// The visible entries of a directory, by name.
    pub(super) fn entries<'a>(&'a self, dir: &Dir<'a>) -> Result<Vec<Entry<'a>>> {
        let mut candidates: Vec<Candidate<'a>> = Vec::new();
        for source in &dir.sources {
            for entry in source.tree.entries(&source.inode, 0)? {
                let entry = entry?;
                candidates.push(Candidate { name: entry.name, tree: source.tree, nid: entry.nid, kind: entry.kind });
            }
        }
        if dir.sources.len() > 1 {
            // Stable: of equal names the topmost stays first.
            candidates.sort_by(|one, other| one.name.cmp(other.name));
        }
        let mut entries = Vec::with_capacity(candidates.len());
        for same_name in candidates.chunk_by(|one, other| one.name == other.name) {
            if let Some(item) = self.visible(same_name)? {
                entries.push(Entry { name: same_name[0].name, item });
            }
        }
        Ok(entries)
    }

    /// What a name leads to, given all inodes that have it, topmost first.
    fn visible<'a>(&'a self, same_name: &[Candidate<'a>]) -> Result<Option<Item<'a>>> {
        let top = same_name[0];
        if top.kind == FileKind::Directory {
            let dir = Dir::of(same_name.iter().map(|candidate| (candidate.tree, candidate.nid, candidate.kind)))?;
            return Ok(dir.map(Item::Directory));
        }
        let inode = top.tree.inode(top.nid)?;
        Ok((self.raw || !inode.is_whiteout()).then_some(Item::File(Source { tree: top.tree, inode })))
    }
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    name: &'a [u8],
    tree: &'a Tree,
    nid: Nid,
    kind: FileKind,
}

/// A visible name.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) item: Item<'a>,
}

/// What a name leads to.
pub(super) enum Item<'a> {
    Directory(Dir<'a>),
    /// Anything else.
    File(Source<'a>),
}

/// An inode of a layer.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) tree: &'a Tree,
    pub(super) inode: Inode,
}

impl Source<'_> {
    pub(super) fn is(&self, other: &Source<'_>) -> bool {
        std::ptr::eq(self.tree, other.tree) && self.inode.nid == other.inode.nid
    }

    /// Tells the inode from all others of all layers.
    pub(super) fn identity(&self) -> (usize, Nid) {
        (std::ptr::from_ref(self.tree) as usize, self.inode.nid)
    }
}

/// A merged directory.
pub(super) struct Dir<'a> {
    /// Topmost first; never empty.
    sources: Vec<Source<'a>>,
    /// The one whose attributes count.
    stated: usize,
}

impl<'a> Dir<'a> {
    /// The directories of these inodes that merge. `None` if there are none at all.
    fn of(inodes: impl Iterator<Item = (&'a Tree, Nid, FileKind)>) -> Result<Option<Dir<'a>>> {
        let mut sources: Vec<Source<'a>> = Vec::new();
        let mut stated = None;
        for (tree, nid, kind) in inodes {
            if kind != FileKind::Directory {
                break;
            }
            let inode = tree.inode(nid)?;
            sources.push(Source { tree, inode });
            if stated.is_none() && !tree.is_implied(&inode)? {
                stated = Some(sources.len() - 1);
            }
            if tree.is_opaque(&inode)? {
                break;
            }
        }
        let stated = stated.unwrap_or(sources.len().saturating_sub(1));
        Ok((!sources.is_empty()).then_some(Dir { sources, stated }))
    }

    /// The directories that it is made of, topmost first.
    pub(super) fn sources(&self) -> &[Source<'a>] {
        &self.sources
    }

    /// Where its attributes come from.
    pub(super) fn attributes(&self) -> Source<'a> {
        self.sources[self.stated]
    }

    /// True if everything in it is the same by origin.
    pub(super) fn is(&self, other: &Dir<'_>) -> bool {
        self.sources.len() == other.sources.len()
            && self.sources.iter().zip(&other.sources).all(|(one, other)| one.is(other))
    }
}

impl<'a> Item<'a> {
    /// Where its attributes come from.
    pub(super) fn attributes(&self) -> Source<'a> {
        match self {
            Item::Directory(dir) => dir.attributes(),
            Item::File(source) => *source,
        }
    }
}

/// Puts the entries of two directories side by side, by name.
pub(super) fn pair<'a>(before: Vec<Entry<'a>>, after: Vec<Entry<'a>>) -> impl Iterator<Item = Pair<'a>> {
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    std::iter::from_fn(move || {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.name.cmp(other.name),
        };
        let one = if order.is_le() { before.next() } else { None };
        let other = if order.is_ge() { after.next() } else { None };
        let name = one.as_ref().or(other.as_ref()).map_or(&b""[..], |entry| entry.name);
        Some(Pair { name, before: one.map(|entry| entry.item), after: other.map(|entry| entry.item) })
    })
}

/// What a name leads to before and after.
pub(super) struct Pair<'a> {
    pub(super) name: &'a [u8],
    pub(super) before: Option<Item<'a>>,
    pub(super) after: Option<Item<'a>>,
}
