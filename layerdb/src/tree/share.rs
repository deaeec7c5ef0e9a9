//! Which extended attributes of a tree are shared, and what each inode's attribute area holds.
//!
//! An attribute (name and value) that more than one inode has lies once in the shared area. The area of an
//! inode lists its attributes in ascending order of (namespace, name), the first 255 shared ones by number.

use std::collections::HashMap;

use super::format::{XATTR_HEADER_SIZE, XATTR_SHARED_MAX};
use super::graph::{Graph, Node, NodeBody};
use super::xattr::{Pair, XattrTable};
use crate::digest::ObjectId;
use crate::error::{Error, Result};

/// The attributes of a tree, ready to be written.
pub(super) struct Xattrs<'a> {
    table: &'a XattrTable<'a>,
    /// For each attribute of the table its place in the shared area, in units of 4 bytes.
    shared: Vec<Option<u32>>,
    shared_metacopy: Option<u32>,
    shared_redirects: HashMap<ObjectId, u32>,
    shared_bytes: Vec<u8>,
}

/// An attribute that is shared, and who wants to know where.
enum Owner {
    Table(u32),
    Metacopy,
    Redirect(ObjectId),
}

impl<'a> Xattrs<'a> {
    /// Counts the attributes of `nodes` and lays out the shared area.
    pub(super) fn plan(graph: &'a Graph<'_>, nodes: &[u32]) -> Result<Self> {
        let table = &graph.xattrs;
        let mut sets = vec![0_u32; table.set_count()];
        let mut objects: HashMap<ObjectId, u32> = HashMap::new();
        let mut metacopies = 0_u32;
        for &number in nodes {
            let node = &graph.nodes[number as usize];
            sets[node.xattrs.number()] += 1;
            if let NodeBody::Object { id, .. } = node.body {
                *objects.entry(id).or_default() += 1;
                metacopies += 1;
            }
        }
        let mut candidates: Vec<(Pair<'_>, Owner)> = Vec::new();
        for (number, uses) in table.count_uses(&sets).into_iter().enumerate() {
            if uses > 1 {
                candidates.push((table.pair(number as u32).clone(), Owner::Table(number as u32)));
            }
        }
        if metacopies > 1 {
            candidates.push((Pair::metacopy(), Owner::Metacopy));
        }
        for (id, _) in objects.iter().filter(|(_, uses)| **uses > 1) {
            candidates.push((Pair::redirect(&id.relative_path()), Owner::Redirect(*id)));
        }
        candidates.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut xattrs = Self {
            table,
            shared: vec![None; table.pair_count()],
            shared_metacopy: None,
            shared_redirects: HashMap::new(),
            shared_bytes: Vec::new(),
        };
        for (pair, owner) in candidates {
            xattrs.share(&pair, &owner)?;
        }
        Ok(xattrs)
    }

    fn share(&mut self, pair: &Pair<'_>, owner: &Owner) -> Result<()> {
        let id = u32::try_from(self.shared_bytes.len() / 4)
            .map_err(|_| Error::TreeTooLarge { reason: "shared extended attributes have at most 16 GiB" })?;
        pair.encode(&mut self.shared_bytes);
        match *owner {
            Owner::Table(number) => self.shared[number as usize] = Some(id),
            Owner::Metacopy => self.shared_metacopy = Some(id),
            Owner::Redirect(object) => {
                self.shared_redirects.insert(object, id);
            }
        }
        Ok(())
    }

    /// The shared area, not padded.
    pub(super) fn shared_bytes(&self) -> &[u8] {
        &self.shared_bytes
    }

    /// Puts the attribute area of `node` into `area`.
    pub(super) fn area(&self, node: &Node<'_>, area: &mut XattrArea) {
        area.clear();
        let mut own = Vec::new();
        if let NodeBody::Object { id, .. } = &node.body {
            own.push((Pair::metacopy(), self.shared_metacopy));
            own.push((Pair::redirect(&id.relative_path()), self.shared_redirects.get(id).copied()));
        }
        let mut own = own.into_iter().peekable();
        for &number in self.table.members(node.xattrs) {
            let pair = self.table.pair(number);
            while let Some((before, shared)) = own.next_if(|(first, _)| first < pair) {
                area.push(&before, shared);
            }
            area.push(pair, self.shared[number as usize]);
        }
        own.for_each(|(pair, shared)| area.push(&pair, shared));
    }
}

/// The attribute area of one inode.
#[derive(Default)]
pub(super) struct XattrArea {
    shared: Vec<u8>,
    inline: Vec<u8>,
    present: u32,
}

impl XattrArea {
    fn clear(&mut self) {
        self.shared.clear();
        self.inline.clear();
        self.present = 0;
    }

    fn push(&mut self, pair: &Pair<'_>, shared: Option<u32>) {
        self.present |= pair.filter_bit();
        match shared {
            Some(id) if self.shared.len() < 4 * XATTR_SHARED_MAX => self.shared.extend_from_slice(&id.to_le_bytes()),
            _ => pair.encode(&mut self.inline),
        }
    }

    /// Length in bytes; 0 for an inode without attributes.
    pub(super) fn size(&self) -> usize {
        match self.shared.len() + self.inline.len() {
            0 => 0,
            entries => XATTR_HEADER_SIZE + entries,
        }
    }

    /// `i_xattr_icount`.
    pub(super) fn units(&self) -> u16 {
        match self.size() {
            0 => 0,
            size => ((size - XATTR_HEADER_SIZE) / 4 + 1) as u16,
        }
    }

    /// Hands the bytes of the area to `sink`.
    pub(super) fn put(&self, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.size() == 0 {
            return Ok(());
        }
        let mut header = [0; XATTR_HEADER_SIZE];
        header[..4].copy_from_slice(&(!self.present).to_le_bytes());
        header[4] = (self.shared.len() / 4) as u8;
        sink(&header)?;
        sink(&self.shared)?;
        sink(&self.inline)
    }
}
