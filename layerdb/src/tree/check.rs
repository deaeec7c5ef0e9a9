//! Looking at everything in a tree, as a reader one day might.

use std::collections::HashMap;

use super::names::{Entered, NidSet};
use super::read::{Inode, Tree};
use super::{Content, FileKind, Nid};
use crate::digest::ObjectId;
use crate::error::Result;

/// What a tree describes: each form has what the other must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One layer.
    Layer,
    /// A merged stack of layers: nothing in it hides anything.
    Chain,
}

impl Tree {
    /// Follows every name, inode, attribute and inline content of the tree, and shows `visit` the object of each
    /// inode that has one, and its size. An error tells the first thing that is wrong.
    pub fn examine(&self, form: Form, visit: impl FnMut(ObjectId, u64)) -> Result<()> {
        Check {
            tree: self,
            form,
            seen: NidSet::for_tree(self),
            entered: Entered::of(self),
            inodes: 0,
            links: HashMap::new(),
            visit,
        }
        .run()
    }
}

struct Check<'a, V> {
    tree: &'a Tree,
    form: Form,
    seen: NidSet,
    entered: Entered,
    inodes: u64,
    /// Of inodes with several names: how many the inode claims, and how many were found.
    links: HashMap<Nid, (u32, u32)>,
    visit: V,
}

impl<V: FnMut(ObjectId, u64)> Check<'_, V> {
    fn run(mut self) -> Result<()> {
        let tree = self.tree;
        let mut pending = vec![tree.root()];
        self.note(tree.root());
        while let Some(nid) = pending.pop() {
            let directory = tree.inode(nid)?;
            self.inode(&directory)?;
            self.directory(&directory, &mut pending)?;
        }
        if let Some((nid, _)) = self.links.iter().find(|(_, (claimed, found))| claimed != found) {
            return Err(tree.corrupt(*nid, "the inode has another number of names than it says"));
        }
        if self.inodes != tree.inode_count() {
            return Err(tree.corrupt(tree.root(), "another number of inodes has a name than the superblock says"));
        }
        Ok(())
    }

    fn note(&mut self, nid: Nid) -> bool {
        let fresh = self.seen.insert(nid);
        self.inodes += u64::from(fresh);
        fresh
    }

    fn directory(&mut self, directory: &Inode, pending: &mut Vec<Nid>) -> Result<()> {
        let tree = self.tree;
        self.entered.enter(tree, directory)?;
        let mut last: &[u8] = b"";
        let mut subdirectories = 0_u32;
        for entry in tree.entries(directory, 0)? {
            let entry = entry?;
            if entry.name <= last {
                return Err(tree.corrupt(directory.nid, "the directory's names are not in order"));
            }
            last = entry.name;
            let inode = tree.inode(entry.nid)?;
            if inode.kind != entry.kind {
                return Err(tree.corrupt(entry.nid, "the inode is of another kind than its name says"));
            }
            let fresh = self.note(entry.nid);
            if inode.kind == FileKind::Directory {
                if !fresh {
                    return Err(tree.corrupt(entry.nid, "the directory has more than one name"));
                }
                if tree.parent(&inode)? != directory.nid {
                    return Err(tree.corrupt(entry.nid, "the directory lies in another one than it says"));
                }
                subdirectories = subdirectories.saturating_add(1);
                pending.push(entry.nid);
                continue;
            }
            if inode.nlink != 1 {
                self.links.entry(entry.nid).or_insert((inode.nlink, 0)).1 += 1;
            } else if !fresh {
                return Err(tree.corrupt(entry.nid, "the inode has another number of names than it says"));
            }
            if fresh {
                tree.parent(&inode)?;
                self.inode(&inode)?;
            }
        }
        if directory.nlink != subdirectories.saturating_add(2) {
            return Err(tree.corrupt(directory.nid, "the directory has another number of links than it says"));
        }
        Ok(())
    }

    /// What an inode has apart from names.
    fn inode(&mut self, inode: &Inode) -> Result<()> {
        let tree = self.tree;
        tree.xattrs(inode)?;
        match inode.kind {
            FileKind::Regular => {
                if let Content::Object(id) = tree.content(inode)? {
                    (self.visit)(id, inode.size);
                }
            }
            FileKind::Symlink => drop(tree.link_target(inode)?),
            FileKind::Directory
                if self.form == Form::Chain && (tree.is_opaque(inode)? || tree.is_implied(inode)?) =>
            {
                return Err(tree.corrupt(inode.nid, "a merged tree has a directory of a layer"));
            }
            _ if self.form == Form::Chain && inode.is_whiteout() => {
                return Err(tree.corrupt(inode.nid, "a merged tree has a whiteout"));
            }
            _ => {}
        }
        Ok(())
    }
}
