//! From an inode back to its names.

use super::read::{Inode, Tree};
use super::{FileKind, Nid};
use crate::error::Result;

/// A set of inode numbers of one tree.
#[derive(Debug)]
pub(super) struct NidSet(Vec<u64>);

impl NidSet {
    /// An empty set with room for every number of `tree`.
    pub(super) fn for_tree(tree: &Tree) -> Self {
        Self(vec![0; (tree.len_bytes() / (64 * super::format::SLOT as u64) + 1) as usize])
    }

    /// Adds a number of an inode that was read; false when it was there.
    pub(super) fn insert(&mut self, nid: Nid) -> bool {
        let (word, bit) = ((nid.0 / 64) as usize, 1 << (nid.0 % 64));
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }
}

/// The directories of one tree that a walk has come to.
///
/// A walk over a whole tree ends only if each directory is listed once, and takes a time in proportion to the file only
/// if no two are made of the same bytes; a damaged tree may promise neither.
#[derive(Debug)]
pub(crate) struct Entered {
    seen: NidSet,
    /// Bytes of the file that are no directory's yet.
    left_bytes: u64,
}

impl Entered {
    /// None yet.
    pub(crate) fn of(tree: &Tree) -> Self {
        Self { seen: NidSet::for_tree(tree), left_bytes: tree.len_bytes() }
    }

    /// Takes note of a directory that is about to be listed; an error if the walk has been there, or if its directories
    /// would be larger together than the file that they are in.
    pub(crate) fn enter(&mut self, tree: &Tree, directory: &Inode) -> Result<()> {
        tree.expect_directory(directory)?;
        if !self.seen.insert(directory.nid) {
            return Err(tree.corrupt(directory.nid, "the directory has more than one name"));
        }
        match self.left_bytes.checked_sub(directory.size) {
            Some(left) => self.left_bytes = left,
            None => return Err(tree.corrupt(directory.nid, "directories are made of the same bytes")),
        }
        Ok(())
    }
}

/// One name of an inode that has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    nid: Nid,
    parent: Nid,
    /// `Tree::entries` continues with this name.
    before: u64,
}

/// The names of all inodes that have more than one, ordered by inode.
#[derive(Debug)]
pub(super) struct LinkIndex(Vec<Link>);

impl Tree {
    /// The directory that holds the inode's first name; the root is its own.
    pub fn parent(&self, inode: &Inode) -> Result<Nid> {
        let parent = self.inode(Nid(u64::from(inode.parent)))?;
        if parent.kind == FileKind::Directory {
            Ok(parent.nid)
        } else {
            Err(self.corrupt(inode.nid, "the inode's parent is not a directory"))
        }
    }

    /// The inode's first name in its [`parent`](Self::parent); `None` for the root. Reads that directory.
    pub fn name_of(&self, nid: Nid) -> Result<Option<Vec<u8>>> {
        if nid == self.root() {
            return Ok(None);
        }
        let parent = self.inode(self.parent(&self.inode(nid)?)?)?;
        for entry in self.entries(&parent, 0)? {
            let entry = entry?;
            if entry.nid == nid {
                return Ok(Some(entry.name.to_vec()));
            }
        }
        Err(self.corrupt(nid, "the inode's parent does not have it"))
    }

    /// The names from the root to the inode's first name; empty for the root.
    pub fn path_of(&self, nid: Nid) -> Result<Vec<Vec<u8>>> {
        let mut path = Vec::new();
        let mut at = nid;
        while let Some(name) = self.name_of(at)? {
            if path.len() as u64 >= self.inode_count() {
                return Err(self.corrupt(nid, "the inode's parents form a circle"));
            }
            path.push(name);
            at = self.parent(&self.inode(at)?)?;
        }
        path.reverse();
        Ok(path)
    }

    /// All names of an inode, as pairs of directory and name. The first call for an inode with several names
    /// reads every directory of the tree and remembers what it found.
    pub fn links(&self, nid: Nid) -> Result<Vec<(Nid, Vec<u8>)>> {
        let inode = self.inode(nid)?;
        if inode.nlink <= 1 || inode.kind == FileKind::Directory {
            let name = self.name_of(nid)?;
            return name.map(|name| Ok((self.parent(&inode)?, name))).into_iter().collect();
        }
        let index = self.link_index()?;
        let first = index.0.partition_point(|link| link.nid < nid);
        let links = index.0[first..].iter().take_while(|link| link.nid == nid);
        links
            .map(|link| {
                let entry = self.entries(&self.inode(link.parent)?, link.before)?.next().transpose()?;
                entry
                    .map(|entry| (link.parent, entry.name.to_vec()))
                    .ok_or_else(|| self.corrupt(nid, "the inode's name has gone"))
            })
            .collect()
    }
}

impl Tree {
    fn link_index(&self) -> Result<&LinkIndex> {
        if let Some(index) = self.links.get() {
            return Ok(index);
        }
        let built = LinkIndex::build(self)?;
        Ok(self.links.get_or_init(|| built))
    }
}

impl LinkIndex {
    fn build(tree: &Tree) -> Result<Self> {
        let mut found = Vec::new();
        let mut entered = Entered::of(tree);
        let mut pending = vec![tree.root()];
        while let Some(nid) = pending.pop() {
            let directory = tree.inode(nid)?;
            entered.enter(tree, &directory)?;
            let mut before = 0;
            for entry in tree.entries(&directory, 0)? {
                let entry = entry?;
                let inode = tree.inode(entry.nid)?;
                if inode.kind == FileKind::Directory {
                    pending.push(entry.nid);
                } else if inode.nlink > 1 {
                    found.push(Link { nid: entry.nid, parent: nid, before });
                }
                before = entry.cookie;
            }
        }
        found.sort_unstable();
        Ok(Self(found))
    }
}
