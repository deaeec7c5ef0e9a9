//! The writer: from a graph of inodes to the bytes of a tree file.
//!
//! Order on the disk: superblock and inodes (with inline data), blocks of data that is not inline, shared xattrs.

use std::io::Write;

use super::format::{
    BLOCK, CHUNK_SIZE, DIRENT_SIZE, INODE_SIZE, Layout, NULL_CHUNK, RawInode, SLOT, SUPER_OFFSET, SUPER_SIZE,
    Superblock, chunk_count, chunk_format, dirent_code,
};
use super::graph::{Edge, Graph, Node, NodeBody};
use super::place::{Place, Placer};
use super::share::{XattrArea, Xattrs};
use super::sink::Sink;
use super::{FileKind, Nid, NodeId, Written};
use crate::digest::ObjectId;
use crate::error::{Error, Result};

/// Writes the tree of `graph` to `out`, an empty file.
pub(super) fn write(graph: &Graph<'_>, out: &mut dyn Write) -> Result<Written> {
    write_then(graph, out, |_| Ok(())).map(|(written, ())| written)
}

/// Writes the tree, then does what needs to know where everything went.
pub(super) fn write_then<T>(
    graph: &Graph<'_>,
    out: &mut dyn Write,
    then: impl FnOnce(&Placement<'_>) -> Result<T>,
) -> Result<(Written, T)> {
    let order = Order::of(graph);
    let xattrs = Xattrs::plan(graph, &order.nodes)?;
    let plan = Plan::new(graph, &order, &xattrs)?;
    let written = Image { graph, order: &order, xattrs: &xattrs, plan: &plan }.write(out)?;
    Ok((written, then(&Placement { graph, plan: &plan })?))
}

/// Where the inodes of a tree went.
#[derive(Debug)]
pub struct Placement<'a> {
    graph: &'a Graph<'a>,
    plan: &'a Plan,
}

/// What became of the contents of a regular file that a builder took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents<'a> {
    /// The tree has the file.
    Placed(Nid),
    /// No name leads to the file any more; it had these bytes.
    LeftInline(&'a [u8]),
    /// No name leads to the file any more; its bytes are an object.
    LeftObject {
        /// The object.
        id: ObjectId,
        /// Its length in bytes.
        size: u64,
    },
}

impl Placement<'_> {
    /// The contents of a regular file. `None` for inodes of other kinds.
    pub fn contents(&self, node: NodeId) -> Option<Contents<'_>> {
        let number = node.number();
        let nid = self.plan.placed[number].nid;
        match &self.graph.nodes[number].body {
            NodeBody::Inline(_) | NodeBody::Object { .. } if nid != 0 => Some(Contents::Placed(Nid(nid.into()))),
            NodeBody::Inline(bytes) => Some(Contents::LeftInline(bytes)),
            NodeBody::Object { id, size } => Some(Contents::LeftObject { id: *id, size: *size }),
            _ => None,
        }
    }

    /// The objects of all regular files that no name leads to, with their sizes.
    pub fn left_objects(&self) -> impl Iterator<Item = (ObjectId, u64)> {
        let nodes = self.graph.nodes.iter().zip(&self.plan.placed);
        nodes.filter(|(_, placed)| placed.nid == 0).filter_map(|(node, _)| match node.body {
            NodeBody::Object { id, size } => Some((id, size)),
            _ => None,
        })
    }
}

/// The canonical order: the root; then, for a directory, all its entries by name, then each of its
/// subdirectories by name in the same way.
struct Order {
    /// Inodes by first appearance.
    nodes: Vec<u32>,
    /// For each inode of the graph, the directory of its first name.
    parent: Vec<u32>,
    nlink: Vec<u32>,
}

impl Order {
    fn of(graph: &Graph<'_>) -> Self {
        let count = graph.nodes.len();
        let mut order = Self { nodes: Vec::with_capacity(count), parent: vec![0; count], nlink: vec![0; count] };
        order.nodes.push(0);
        order.nlink[0] = 2;
        let mut pending = vec![0];
        while let Some(dir) = pending.pop() {
            let below = pending.len();
            for edge in graph.children(dir) {
                let node = edge.node as usize;
                if order.nlink[node] == 0 {
                    order.nodes.push(edge.node);
                    order.parent[node] = dir;
                }
                if matches!(graph.nodes[node].body, NodeBody::Directory { .. }) {
                    order.nlink[node] = 2;
                    order.nlink[dir as usize] += 1;
                    pending.push(edge.node);
                } else {
                    order.nlink[node] += 1;
                }
            }
            pending[below..].reverse();
        }
        order
    }
}

/// Where everything goes.
#[derive(Debug)]
struct Plan {
    /// For each inode of the graph.
    placed: Vec<Placed>,
    /// Inodes with blocks of their own, in the order of these blocks.
    with_blocks: Vec<u32>,
    /// First block of data that is not inline, and first block of the shared xattrs.
    data_block: u32,
    xattr_block: u32,
    blocks: u32,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    /// 0 if no name leads to the inode.
    nid: u32,
    layout: Layout,
    /// First block of data that is not inline.
    block: u32,
    size: u64,
}

impl Plan {
    fn new(graph: &Graph<'_>, order: &Order, xattrs: &Xattrs<'_>) -> Result<Self> {
        let mut placed = vec![Placed { nid: 0, layout: Layout::Plain, block: 0, size: 0 }; graph.nodes.len()];
        let mut with_blocks = Vec::new();
        let mut placer = None;
        let mut area = XattrArea::default();
        for &number in &order.nodes {
            let node = &graph.nodes[number as usize];
            xattrs.area(node, &mut area);
            let size = data_size(graph, number);
            let chunked = matches!(node.body, NodeBody::Object { .. });
            let head = INODE_SIZE + area.size() + if chunked { chunk_table_size(size)? } else { 0 };
            let tail = if chunked { 0 } else { (size % BLOCK as u64) as usize };
            let place = match &mut placer {
                None => {
                    let (started, place) = Placer::with_root(head, tail);
                    placer = Some(started);
                    place
                }
                Some(placer) => placer.place(head, tail, matches!(node.body, NodeBody::Symlink(_))),
            };
            let here = &mut placed[number as usize];
            *here = Placed { nid: nid_of(place)?, layout: layout(chunked, place), block: 0, size };
            if own_blocks(here) > 0 {
                with_blocks.push(number);
            }
        }
        let inodes_end = placer.map_or(0, |placer| placer.end());
        let data_block = block_number(inodes_end)?;
        let mut next = inodes_end;
        for &number in &with_blocks {
            let here = &mut placed[number as usize];
            here.block = block_number(next)?;
            next += own_blocks(here) as usize * BLOCK;
        }
        let xattr_block = block_number(next)?;
        let blocks = block_number(next + xattrs.shared_bytes().len().next_multiple_of(BLOCK))?;
        Ok(Self { placed, with_blocks, data_block, xattr_block, blocks })
    }
}

fn layout(chunked: bool, place: Place) -> Layout {
    match (chunked, place.with_tail) {
        (true, _) => Layout::Chunked,
        (false, true) => Layout::Inline,
        (false, false) => Layout::Plain,
    }
}

/// Number of blocks of data that is not inline.
fn own_blocks(placed: &Placed) -> u64 {
    match placed.layout {
        Layout::Plain => placed.size.div_ceil(BLOCK as u64),
        Layout::Inline => placed.size / BLOCK as u64,
        Layout::Chunked => 0,
    }
}

fn nid_of(place: Place) -> Result<u32> {
    u32::try_from(place.offset / SLOT).map_err(|_| Error::TreeTooLarge { reason: "inode numbers have 32 bits" })
}

fn block_number(offset: usize) -> Result<u32> {
    u32::try_from(offset / BLOCK).map_err(|_| Error::TreeTooLarge { reason: "block numbers have 32 bits" })
}

fn chunk_table_size(size: u64) -> Result<usize> {
    if size > i64::MAX as u64 {
        return Err(Error::TreeTooLarge { reason: "a file has less than 2^63 bytes" });
    }
    Ok(chunk_count(size) as usize * CHUNK_SIZE)
}

fn data_size(graph: &Graph<'_>, number: u32) -> u64 {
    match &graph.nodes[number as usize].body {
        NodeBody::Directory { .. } => directory_size(graph.children(number)),
        NodeBody::Symlink(bytes) | NodeBody::Inline(bytes) => bytes.len() as u64,
        NodeBody::Object { size, .. } => *size,
        NodeBody::Special(_) => 0,
    }
}

/// A directory's names with `.` and `..` among them; those two have no edge.
fn names_with_dots<'a>(edges: &'a [Edge<'a>]) -> impl Iterator<Item = (&'a [u8], Option<&'a Edge<'a>>)> {
    const DOTS: [&[u8]; 2] = [b".", b".."];
    let before = edges.partition_point(|edge| edge.name < DOTS[0]);
    // No name sorts between `.` and `..` but those that begin with a dot and a byte below it.
    let between = edges[before..].partition_point(|edge| edge.name < DOTS[1]);
    let named = |edge: &'a Edge<'a>| (edge.name, Some(edge));
    let (first, rest) = edges.split_at(before);
    let (second, third) = rest.split_at(between);
    first
        .iter()
        .map(named)
        .chain([(DOTS[0], None)])
        .chain(second.iter().map(named))
        .chain([(DOTS[1], None)])
        .chain(third.iter().map(named))
}

fn directory_size(edges: &[Edge<'_>]) -> u64 {
    let (mut full, mut used) = (0, 0);
    for (name, _) in names_with_dots(edges) {
        let needed = DIRENT_SIZE + name.len();
        if used + needed > BLOCK {
            (full, used) = (full + BLOCK as u64, 0);
        }
        used += needed;
    }
    full + used as u64
}

struct Image<'a> {
    graph: &'a Graph<'a>,
    order: &'a Order,
    xattrs: &'a Xattrs<'a>,
    plan: &'a Plan,
}

impl Image<'_> {
    fn write(&self, out: &mut dyn Write) -> Result<Written> {
        let mut sink = Sink::new(out);
        let inodes = self.order.nodes.len() as u64;
        let shared = self.xattrs.shared_bytes();
        let xattr_block = if shared.is_empty() { 0 } else { self.plan.xattr_block };
        sink.put(&Superblock { inodes, blocks: self.plan.blocks, xattr_block }.encode())?;
        debug_assert_eq!(sink.offset(), (SUPER_OFFSET + SUPER_SIZE) as u64);
        let mut by_place = self.order.nodes.clone();
        by_place.sort_unstable_by_key(|&number| self.plan.placed[number as usize].nid);
        let mut scratch = Scratch::default();
        for number in by_place {
            self.put_inode(number, &mut sink, &mut scratch)?;
        }
        sink.pad_to(u64::from(self.plan.data_block) * BLOCK as u64)?;
        for &number in &self.plan.with_blocks {
            self.put_blocks(number, &mut sink, &mut scratch)?;
        }
        sink.put(shared)?;
        sink.pad_to(u64::from(self.plan.blocks) * BLOCK as u64)?;
        sink.finish(inodes)
    }

    fn put_inode(&self, number: u32, sink: &mut Sink<'_>, scratch: &mut Scratch) -> Result<()> {
        let node = &self.graph.nodes[number as usize];
        let placed = self.plan.placed[number as usize];
        sink.pad_to(u64::from(placed.nid) * SLOT as u64)?;
        self.xattrs.area(node, &mut scratch.area);
        let parent = self.order.parent[number as usize];
        let raw = RawInode {
            layout: placed.layout,
            xattr_units: scratch.area.units(),
            mode: node.mode as u16,
            size: placed.size,
            union: match node.body {
                NodeBody::Special(device) => device,
                NodeBody::Object { size, .. } => chunk_format(size),
                _ => placed.block,
            },
            parent: self.plan.placed[parent as usize].nid,
            uid: node.uid,
            gid: node.gid,
            mtime_secs: node.mtime.secs,
            mtime_nanos: node.mtime.nanos,
            nlink: self.order.nlink[number as usize],
        };
        sink.put(&raw.encode())?;
        scratch.area.put(|bytes| sink.put(bytes))?;
        match (placed.layout, &node.body) {
            (Layout::Inline, _) => {
                let data = self.data(number, node, &mut scratch.data);
                sink.put(&data[own_blocks(&placed) as usize * BLOCK..])
            }
            (Layout::Chunked, _) => (0..chunk_count(placed.size)).try_for_each(|_| sink.put(&NULL_CHUNK.to_le_bytes())),
            (Layout::Plain, _) => Ok(()),
        }
    }

    fn put_blocks(&self, number: u32, sink: &mut Sink<'_>, scratch: &mut Scratch) -> Result<()> {
        let placed = self.plan.placed[number as usize];
        let length = own_blocks(&placed) as usize * BLOCK;
        let data = self.data(number, &self.graph.nodes[number as usize], &mut scratch.data);
        debug_assert_eq!(sink.offset(), u64::from(placed.block) * BLOCK as u64);
        sink.put(&data[..length.min(data.len())])?;
        sink.pad_to(u64::from(placed.block) * BLOCK as u64 + length as u64)
    }

    /// All data of an inode.
    fn data<'d>(&'d self, number: u32, node: &'d Node<'_>, buffer: &'d mut Vec<u8>) -> &'d [u8] {
        match node.body {
            NodeBody::Symlink(bytes) | NodeBody::Inline(bytes) => bytes,
            NodeBody::Directory { .. } => {
                buffer.clear();
                self.encode_directory(number, buffer);
                buffer
            }
            NodeBody::Object { .. } | NodeBody::Special(_) => &[],
        }
    }

    fn encode_directory(&self, number: u32, out: &mut Vec<u8>) {
        let nid = |node: u32| u64::from(self.plan.placed[node as usize].nid);
        let mut block: Vec<(&[u8], u64, FileKind)> = Vec::new();
        let mut used = 0;
        for (name, edge) in names_with_dots(self.graph.children(number)) {
            let (target, kind) = match edge {
                Some(edge) => (nid(edge.node), kind_of(&self.graph.nodes[edge.node as usize])),
                None if name == b"." => (nid(number), FileKind::Directory),
                None => (nid(self.order.parent[number as usize]), FileKind::Directory),
            };
            if used + DIRENT_SIZE + name.len() > BLOCK {
                encode_directory_block(&block, out);
                out.resize(out.len().next_multiple_of(BLOCK), 0);
                block.clear();
                used = 0;
            }
            used += DIRENT_SIZE + name.len();
            block.push((name, target, kind));
        }
        encode_directory_block(&block, out);
    }
}

fn encode_directory_block(entries: &[(&[u8], u64, FileKind)], out: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT_SIZE;
    for (name, nid, kind) in entries {
        out.extend_from_slice(&nid.to_le_bytes());
        out.extend_from_slice(&(name_offset as u16).to_le_bytes());
        out.extend_from_slice(&[dirent_code(*kind), 0]);
        name_offset += name.len();
    }
    for (name, ..) in entries {
        out.extend_from_slice(name);
    }
}

fn kind_of(node: &Node<'_>) -> FileKind {
    // The mode was checked when the node was made.
    FileKind::from_mode(node.mode).unwrap_or(FileKind::Regular)
}

/// Buffers that are used again for each inode.
#[derive(Default)]
struct Scratch {
    area: XattrArea,
    data: Vec<u8>,
}
