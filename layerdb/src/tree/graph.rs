//! What a tree is made from: inodes and names that refer to each other, as builder and merge hand it to the writer.

use super::Timestamp;
use super::xattr::{XattrSet, XattrTable};
use crate::digest::ObjectId;

/// All of a tree's inodes and names. Inode 0 is the root; inodes that no name leads to are not written.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    pub nodes: Vec<Node<'a>>,
    pub edges: Vec<Edge<'a>>,
    pub xattrs: XattrTable<'a>,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge<'a> {
    pub name: &'a [u8],
    pub node: u32,
}

/// An inode.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: XattrSet,
    pub body: NodeBody<'a>,
}

#[derive(Clone, Debug)]
pub(super) enum NodeBody<'a> {
    /// A directory with these `edges`, in ascending order of names.
    Directory { first: u32, count: u32 },
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
    /// A regular file with these contents.
    Inline(&'a [u8]),
    /// A regular file with its contents elsewhere.
    Object { id: ObjectId, size: u64 },
    /// A device with this number in the kernel's 32-bit form, a pipe or a socket.
    Special(u32),
}

impl<'a> Graph<'a> {
    /// The names in a directory; none for other inodes.
    pub(super) fn children(&self, node: u32) -> &[Edge<'a>] {
        match self.nodes[node as usize].body {
            NodeBody::Directory { first, count } => &self.edges[first as usize..][..count as usize],
            _ => &[],
        }
    }
}
