//! The upper inodes that the kernel knows.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::inode::{Ino, ROOT};

/// A name and the directory it is in.
pub(super) type Name = (Ino, Vec<u8>);

/// Where an upper inode is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The upper's root directory.
    Root,
    /// Under these names; there may be more that nobody asked for yet.
    Named(Vec<Name>),
    /// Under no known name: held by a descriptor until the kernel forgets it.
    Held(Arc<OwnedFd>),
    /// Without a name but open: kept in the work directory under this one, so that it survives the process.
    Orphan(Arc<OwnedFd>, Vec<u8>),
}

/// An upper inode.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    /// Its number on the upper's disk.
    pub(super) host: u64,
    /// The lower directory that it merges with.
    pub(super) lower: Option<Ino>,
    /// References that the kernel holds.
    pub(super) lookups: u64,
    /// Stays when the kernel forgets it, since lower inodes below find their place by it or since the kernel's references
    /// are not known.
    pub(super) keep: bool,
    /// Whether the disk says that entries may have other numbers than their own.
    pub(super) impure: bool,
    /// Whether some or all of its contents may be the lower's; see `union/complete.rs` and `union/partial.rs`.
    pub(super) partial: bool,
    /// Number of visible subdirectories of a merged directory, once it was counted.
    pub(super) subdirectories: Option<u32>,
    /// How often that count became void: one that was begun before is not to be kept.
    pub(super) recounts: u32,
}

/// A table of [`Node`]s.
#[derive(Debug)]
pub(super) struct Nodes {
    table: HashMap<Ino, Node>,
    /// The numbers of copied-up inodes that can't carry a mark which says them, by their number on the disk.
    unmarked: HashMap<u64, Ino>,
}

impl Nodes {
    /// A table that knows the root, if there is an upper.
    pub(super) fn new(with_upper: bool) -> Nodes {
        let mut nodes = HashMap::new();
        if with_upper {
            let mut root = Node::new(Place::Root, 0, Some(ROOT));
            root.keep = true;
            root.impure = true;
            nodes.insert(ROOT, root);
        }
        Nodes { table: nodes, unmarked: HashMap::new() }
    }

    pub(super) fn contains(&self, ino: Ino) -> bool {
        self.table.contains_key(&ino)
    }

    pub(super) fn get(&self, ino: Ino) -> Option<&Node> {
        self.table.get(&ino)
    }

    pub(super) fn get_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        self.table.get_mut(&ino)
    }

    pub(super) fn remove(&mut self, ino: Ino) -> Option<Node> {
        let node = self.table.remove(&ino)?;
        if self.unmarked.get(&node.host) == Some(&ino) {
            self.unmarked.remove(&node.host);
        }
        Some(node)
    }

    /// Puts a node in the place of another of the same inode.
    pub(super) fn replace(&mut self, ino: Ino, node: Node) {
        self.table.insert(ino, node);
    }

    /// The number of a copied-up inode whose disk can't say it.
    pub(super) fn unmarked(&self, host: u64) -> Option<Ino> {
        self.unmarked.get(&host).copied()
    }

    /// Remembers the number of a copied-up inode, as long as its node is there.
    pub(super) fn remember_unmarked(&mut self, host: u64, ino: Ino) {
        self.unmarked.insert(host, ino);
    }

    /// Forgets it when nothing came of the copy.
    pub(super) fn forget_unmarked(&mut self, ino: Ino) {
        if !self.table.contains_key(&ino) {
            self.unmarked.retain(|_, known| *known != ino);
        }
    }

    /// Enters an inode that was found under a name, or adds the name to what is known of it.
    pub(super) fn enter(&mut self, ino: Ino, found: Node) -> &mut Node {
        let node = self.table.entry(ino).or_insert_with(|| found.clone());
        if let Place::Named(mut new) = found.place {
            match &mut node.place {
                Place::Named(names) if node.host == found.host => {
                    new.retain(|name| !names.contains(name));
                    names.append(&mut new);
                }
                Place::Root => {}
                place => *place = Place::Named(new),
            }
            node.host = found.host;
        }
        node
    }

    /// Takes a name away; returns how many known ones are left.
    pub(super) fn drop_name(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> usize {
        let Some(Node { place: Place::Named(names), .. }) = self.table.get_mut(&ino) else { return 0 };
        names.retain(|(at, known)| *at != parent || known != name);
        names.len()
    }

    /// Puts another name in the place of one.
    pub(super) fn rename(&mut self, ino: Ino, from: (Ino, &[u8]), to: (Ino, &[u8])) {
        self.drop_name(ino, from.0, from.1);
        if let Some(Node { place: Place::Named(names), .. }) = self.table.get_mut(&ino) {
            names.push((to.0, to.1.to_vec()));
        }
    }

    pub(super) fn numbers(&self) -> Vec<Ino> {
        self.table.keys().copied().collect()
    }
}

impl Node {
    pub(super) fn new(place: Place, host: u64, lower: Option<Ino>) -> Node {
        let (keep, impure, partial) = (false, false, false);
        Node { place, host, lower, lookups: 0, keep, impure, partial, subdirectories: None, recounts: 0 }
    }

    pub(super) fn named(parent: Ino, name: &[u8], host: u64, lower: Option<Ino>) -> Node {
        Node::new(Place::Named(vec![(parent, name.to_vec())]), host, lower)
    }
}
