//! The inodes that the kernel knows.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::inode::{Ino, ROOT};

/// Something of a branch: a file, or one of the directories that are shown as one.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The branch's number.
    pub(super) branch: u16,
    /// A directory open for reading, or a descriptor that only names a file.
    pub(super) fd: Arc<OwnedFd>,
    /// Device and number on the disk.
    pub(super) host: (u64, u64),
}

/// What an inode is made of.
#[derive(Debug)]
enum Body {
    File(Part),
    Dir {
        /// Top first.
        parts: Arc<Vec<Part>>,
        /// For which state of the branches.
        generation: u64,
    },
    /// A directory without a name, by what was its topmost part.
    Gone(Part),
}

/// An inode.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) lookups: u64,
    /// The names under which it was found; none of the root, and of what has none any more.
    pub(super) names: Vec<(Ino, Vec<u8>)>,
    /// Of a merged directory: how many subdirectories show, and as of which state of branches and directories.
    pub(super) counted: Option<((u64, u64), u32)>,
    body: Body,
}

impl Node {
    pub(super) fn new_file(part: Part) -> Node {
        Node { lookups: 0, names: Vec::new(), counted: None, body: Body::File(part) }
    }

    pub(super) fn new_dir(parts: Vec<Part>, generation: u64) -> Node {
        Node { lookups: 0, names: Vec::new(), counted: None, body: Body::Dir { parts: Arc::new(parts), generation } }
    }

    pub(super) fn is_dir(&self) -> bool {
        !matches!(self.body, Body::File(_))
    }

    pub(super) fn file(&self) -> Option<&Part> {
        match &self.body {
            Body::File(part) => Some(part),
            Body::Dir { .. } | Body::Gone(_) => None,
        }
    }

    /// What is left of a directory that was removed.
    pub(super) fn gone(&self) -> Option<&Part> {
        match &self.body {
            Body::Gone(part) => Some(part),
            _ => None,
        }
    }

    /// The parts of a directory, if they were found out since the branches changed.
    pub(super) fn parts(&self, now: u64) -> Option<Arc<Vec<Part>>> {
        match &self.body {
            Body::Dir { parts, generation } if *generation == now => Some(Arc::clone(parts)),
            Body::Gone(_) => Some(Arc::default()),
            _ => None,
        }
    }

    pub(super) fn set_parts(&mut self, parts: Arc<Vec<Part>>, generation: u64) {
        self.body = Body::Dir { parts, generation };
    }

    /// A directory has lost its name.
    pub(super) fn end(&mut self) {
        if let Body::Dir { parts, .. } = &self.body
            && let Some(part) = parts.first()
        {
            self.body = Body::Gone(part.clone());
        }
    }

    pub(super) fn set_file(&mut self, part: Part) {
        self.body = Body::File(part);
    }

    /// Whether one of its known parts is on a branch; `only`: all of them.
    pub(super) fn is_on(&self, branch: u16, only: bool) -> bool {
        match &self.body {
            Body::File(part) | Body::Gone(part) => part.branch == branch,
            Body::Dir { parts, .. } if only => !parts.is_empty() && parts.iter().all(|part| part.branch == branch),
            Body::Dir { parts, .. } => parts.iter().any(|part| part.branch == branch),
        }
    }

    pub(super) fn add_name(&mut self, parent: Ino, name: &[u8]) {
        if !self.names.iter().any(|(at, known)| *at == parent && known == name) {
            self.names.push((parent, name.to_vec()));
        }
    }

    pub(super) fn drop_name(&mut self, parent: Ino, name: &[u8]) {
        self.names.retain(|(at, known)| *at != parent || known != name);
    }
}

/// A table of [`Node`]s. The root is always there.
#[derive(Debug)]
pub(super) struct Nodes(HashMap<Ino, Node>);

impl Default for Nodes {
    fn default() -> Nodes {
        // The first generation of branches is 1.
        Nodes(HashMap::from([(ROOT, Node::new_dir(Vec::new(), 0))]))
    }
}

impl Nodes {
    pub(super) fn get(&self, ino: Ino) -> Result<&Node> {
        self.0.get(&ino).ok_or(Error::Stale { ino })
    }

    pub(super) fn get_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.0.get_mut(&ino).ok_or(Error::Stale { ino })
    }

    pub(super) fn insert(&mut self, ino: Ino, node: Node) -> &mut Node {
        self.0.entry(ino).or_insert(node)
    }

    pub(super) fn forget(&mut self, ino: Ino, lookups: u64) {
        let Some(node) = self.0.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 && ino != ROOT {
            self.0.remove(&ino);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Ino, &Node)> {
        self.0.iter().map(|(ino, node)| (*ino, node))
    }
}
