//! The reader: inodes, attributes and contents of a mapped tree.

use std::borrow::Cow;
use std::fs::File;
use std::sync::OnceLock;

use super::directory::DirectoryBlock;
use super::format::{
    BLOCK, INODE_SIZE, Layout, RawInode, Rejected, SLOT, Superblock, VERSION, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE,
    align, u16_at, u32_at,
};
use super::map::Bytes;
use super::names::LinkIndex;
use super::xattr::{self, Own};
use super::{Content, FileKind, INLINE_MAX, Nid, ROOT_NID, TARGET_MAX, Timestamp, decode_device};
use crate::digest::{Digest, ObjectId};
use crate::error::{Error, Result};

/// A published tree, mapped into memory.
///
/// Nothing is read in advance and nothing is remembered but the index behind [`Tree::links`]; every access
/// checks what it follows, whatever the bytes are.
pub struct Tree {
    bytes: Bytes,
    name: Box<str>,
    inodes: u64,
    xattr_offset: u64,
    pub(super) links: OnceLock<LinkIndex>,
}

/// One inode, as read from a tree.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    /// Its number.
    pub nid: Nid,
    /// What it is.
    pub kind: FileKind,
    /// `st_mode`, with the type bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names; for a directory 2 and one for each directory in it.
    pub nlink: u32,
    /// Length in bytes: of the contents, of a link's target, of a directory's entries.
    pub size: u64,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Device number as Linux' `dev_t` has it; 0 unless the inode is a device.
    pub rdev: u64,
    pub(super) parent: u32,
    layout: Layout,
    union: u32,
    xattr_area: u32,
}

impl Inode {
    /// Whether this is a whiteout: in a layer tree, a name that hides what lower layers have.
    pub fn is_whiteout(&self) -> bool {
        self.kind == FileKind::CharDevice && self.rdev == 0
    }

    /// Whether the inode has no extended attributes at all, the overlay's own included.
    pub fn has_no_xattrs(&self) -> bool {
        self.xattr_area == 0
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tree").field("name", &self.name).field("inodes", &self.inodes).finish_non_exhaustive()
    }
}

/// One attribute of an inode as the disk has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawXattr<'a> {
    pub index: u8,
    pub name: &'a [u8],
    pub value: &'a [u8],
}

impl Tree {
    /// Maps `file`; `name` is how errors call the tree. The file must be sealed: nobody may change it.
    pub fn open(file: &File, name: &str) -> Result<Self> {
        let bytes = Bytes::map(file).map_err(Error::io(format!("cannot map tree {name}")))?;
        Self::check(bytes, name)
    }

    /// A tree from bytes in memory, with the same checks.
    pub fn from_vec(bytes: Vec<u8>, name: &str) -> Result<Self> {
        Self::check(Bytes::Owned(bytes), name)
    }

    fn check(bytes: Bytes, name: &str) -> Result<Self> {
        let damaged = |reason| Error::CorruptTreeFile { tree: name.to_owned(), reason };
        if bytes.len() < BLOCK {
            return Err(damaged("it is shorter than one block"));
        }
        let superblock = Superblock::decode(&bytes).map_err(|rejected| match rejected {
            Rejected::Damaged(reason) => damaged(reason),
            Rejected::Version(found) => Error::TreeVersion { tree: name.to_owned(), found, supported: VERSION },
        })?;
        let (expected_bytes, actual_bytes) = (u64::from(superblock.blocks) * BLOCK as u64, bytes.len() as u64);
        if expected_bytes != actual_bytes {
            return Err(Error::TreeLength { tree: name.to_owned(), expected_bytes, actual_bytes });
        }
        if superblock.inodes > actual_bytes / INODE_SIZE as u64 {
            return Err(damaged("it claims more inodes than it has room for"));
        }
        let tree = Self {
            bytes,
            name: name.into(),
            inodes: superblock.inodes,
            xattr_offset: u64::from(superblock.xattr_block) * BLOCK as u64,
            links: OnceLock::new(),
        };
        match tree.inode(tree.root())?.kind {
            FileKind::Directory => Ok(tree),
            _ => Err(tree.corrupt(tree.root(), "the root is not a directory")),
        }
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        ROOT_NID
    }

    /// How errors call this tree.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of inodes, the root included.
    pub fn inode_count(&self) -> u64 {
        self.inodes
    }

    /// Length of the file in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Digest of all bytes of the file; reads all of it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    pub(super) fn corrupt(&self, nid: Nid, reason: &'static str) -> Error {
        Error::CorruptTree { tree: self.name.to_string(), nid: nid.0, reason }
    }

    fn wrong_kind(&self, nid: Nid, wanted: &'static str) -> Error {
        Error::WrongKind { tree: self.name.to_string(), nid: nid.0, wanted }
    }

    /// The bytes `[offset, offset + length)`, if the file has them.
    fn slice(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let end = offset.checked_add(length)?;
        self.bytes.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
    }

    /// Reads an inode.
    pub fn inode(&self, nid: Nid) -> Result<Inode> {
        let offset = nid.0.checked_mul(SLOT as u64);
        let bytes: &[u8; INODE_SIZE] = offset
            .and_then(|offset| self.slice(offset, INODE_SIZE as u64)?.try_into().ok())
            .ok_or_else(|| self.corrupt(nid, "the inode lies outside the file"))?;
        let raw = RawInode::decode(bytes).ok_or_else(|| self.corrupt(nid, "there is no inode of a tree's format"))?;
        let mode = u32::from(raw.mode);
        let kind = FileKind::from_mode(mode).ok_or_else(|| self.corrupt(nid, "the inode has no valid type"))?;
        if raw.mtime_nanos >= 1_000_000_000 {
            return Err(self.corrupt(nid, "the inode's time has more than 10^9 nanoseconds"));
        }
        if raw.size > i64::MAX as u64 {
            return Err(self.corrupt(nid, "the inode's size is negative"));
        }
        Ok(Inode {
            nid,
            kind,
            mode,
            uid: raw.uid,
            gid: raw.gid,
            nlink: raw.nlink,
            size: raw.size,
            mtime: Timestamp { secs: raw.mtime_secs, nanos: raw.mtime_nanos },
            rdev: if kind.is_device() { decode_device(raw.union) } else { 0 },
            parent: raw.parent,
            layout: raw.layout,
            union: raw.union,
            xattr_area: raw.xattr_area() as u32,
        })
    }

    fn xattrs_offset(inode: &Inode) -> u64 {
        inode.nid.0.saturating_mul(SLOT as u64).saturating_add(INODE_SIZE as u64)
    }

    /// Bytes `[from, from + length)` of the inode's data, which must lie in one piece.
    fn data(&self, inode: &Inode, from: u64, length: u64) -> Result<&[u8]> {
        let tail = inode.size - inode.size % BLOCK as u64;
        let start = match inode.layout {
            Layout::Inline if from >= tail => {
                Self::xattrs_offset(inode).checked_add(u64::from(inode.xattr_area) + (from - tail))
            }
            Layout::Inline if from + length > tail => None,
            Layout::Plain | Layout::Inline => Some(u64::from(inode.union) * BLOCK as u64 + from),
            Layout::Chunked => None,
        };
        start
            .and_then(|start| self.slice(start, length))
            .ok_or_else(|| self.corrupt(inode.nid, "the inode's data lies outside the file"))
    }

    /// Block `number` of a directory.
    pub(super) fn directory_block(&self, dir: &Inode, number: u64) -> Result<DirectoryBlock<'_>> {
        let from = number.saturating_mul(BLOCK as u64);
        let length = dir.size.saturating_sub(from).min(BLOCK as u64);
        DirectoryBlock::new(self.data(dir, from, length)?).map_err(|reason| self.corrupt(dir.nid, reason))
    }

    /// Checks that an inode is a directory, for those who are about to look into it.
    pub(super) fn expect_directory(&self, inode: &Inode) -> Result<()> {
        if inode.kind == FileKind::Directory { Ok(()) } else { Err(self.wrong_kind(inode.nid, "directory")) }
    }

    /// The target of a symbolic link.
    pub fn link_target(&self, inode: &Inode) -> Result<Cow<'_, [u8]>> {
        self.target(inode).map(Cow::Borrowed)
    }

    pub(super) fn target(&self, inode: &Inode) -> Result<&[u8]> {
        if inode.kind != FileKind::Symlink {
            return Err(self.wrong_kind(inode.nid, "symbolic link"));
        }
        if inode.size == 0 || inode.size > TARGET_MAX as u64 {
            return Err(self.corrupt(inode.nid, "the link's target has an impossible length"));
        }
        let target = self.data(inode, 0, inode.size)?;
        if target.contains(&0) {
            return Err(self.corrupt(inode.nid, "the link's target contains NUL"));
        }
        Ok(target)
    }

    /// Where the contents of a regular file are.
    pub fn content(&self, inode: &Inode) -> Result<Content<'_>> {
        if inode.kind != FileKind::Regular {
            return Err(self.wrong_kind(inode.nid, "regular file"));
        }
        match inode.layout {
            _ if inode.size == 0 => Ok(Content::Inline(&[])),
            Layout::Plain | Layout::Inline if inode.size > INLINE_MAX => {
                Err(self.corrupt(inode.nid, "the file's contents are too long to be in the tree"))
            }
            Layout::Plain | Layout::Inline => self.data(inode, 0, inode.size).map(Content::Inline),
            Layout::Chunked => {
                let (index, name) = Own::Redirect.disk_name();
                let object = self.raw_xattr(inode, index, name)?.and_then(redirect_object);
                object
                    .map(Content::Object)
                    .ok_or_else(|| self.corrupt(inode.nid, "the file has neither contents nor an object"))
            }
        }
    }

    /// The value of the extended attribute of this full name (`user.mime_type`); the overlay's own attributes
    /// are not found.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<&[u8]>> {
        match xattr::to_disk(name) {
            Some((index, disk)) => self.raw_xattr(inode, index, &disk),
            None => Ok(None),
        }
    }

    /// All extended attributes by full name, the overlay's own left out.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, &[u8])>> {
        let mut found = Vec::new();
        self.each_xattr(inode, |raw| {
            if let Some(full) = xattr::from_disk(raw.index, raw.name) {
                found.push((full, raw.value));
            }
            true
        })?;
        Ok(found)
    }

    /// Whether a directory of a layer tree hides what lower layers have there.
    pub fn is_opaque(&self, dir: &Inode) -> Result<bool> {
        let (index, name) = Own::Opaque.disk_name();
        Ok(self.raw_xattr(dir, index, name)? == Some(b"y"))
    }

    /// Whether a directory of a layer tree is there only because something in it is: its attributes are those
    /// of the same directory in a lower layer, if one has it.
    pub fn is_implied(&self, dir: &Inode) -> Result<bool> {
        let (index, name) = Own::Implied.disk_name();
        Ok(self.raw_xattr(dir, index, name)?.is_some())
    }

    /// The value of the attribute of this name on the disk; the name filter answers most misses.
    fn raw_xattr(&self, inode: &Inode, index: u8, name: &[u8]) -> Result<Option<&[u8]>> {
        if inode.xattr_area == 0 {
            return Ok(None);
        }
        let filter = self.xattr_area(inode)?;
        if u32_at(filter, 0) & xattr::filter_bit(index, name) != 0 {
            return Ok(None);
        }
        let mut found = None;
        self.each_xattr(inode, |raw| {
            if (raw.index, raw.name) == (index, name) {
                found = Some(raw.value);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    fn xattr_area(&self, inode: &Inode) -> Result<&[u8]> {
        self.slice(Self::xattrs_offset(inode), u64::from(inode.xattr_area))
            .ok_or_else(|| self.corrupt(inode.nid, "the inode's attributes lie outside the file"))
    }

    /// Shows the attributes of an inode, shared ones first, until `visit` answers false.
    pub(super) fn each_xattr<'a>(&'a self, inode: &Inode, mut visit: impl FnMut(RawXattr<'a>) -> bool) -> Result<()> {
        if inode.xattr_area == 0 {
            return Ok(());
        }
        let area = self.xattr_area(inode)?;
        let malformed = || self.corrupt(inode.nid, "the inode's attributes are malformed");
        let inline = XATTR_HEADER_SIZE + 4 * usize::from(area[4]);
        for id in area.get(XATTR_HEADER_SIZE..inline).ok_or_else(malformed)?.chunks_exact(4) {
            let start = self.xattr_offset + 4 * u64::from(u32_at(id, 0));
            let rest = usize::try_from(start).ok().and_then(|start| self.bytes.get(start..));
            let (raw, _) = rest.and_then(decode_xattr).ok_or_else(malformed)?;
            if !visit(raw) {
                return Ok(());
            }
        }
        let mut rest = &area[inline..];
        while !rest.is_empty() {
            let (raw, size) = decode_xattr(rest).ok_or_else(malformed)?;
            if !visit(raw) {
                return Ok(());
            }
            rest = &rest[size.min(rest.len())..];
        }
        Ok(())
    }
}

/// The entry at the start of `bytes` and its padded size.
fn decode_xattr(bytes: &[u8]) -> Option<(RawXattr<'_>, usize)> {
    let header = bytes.get(..XATTR_ENTRY_SIZE)?;
    let name_end = XATTR_ENTRY_SIZE + usize::from(header[0]);
    let value_end = name_end + usize::from(u16_at(header, 2));
    let name = bytes.get(XATTR_ENTRY_SIZE..name_end)?;
    let value = bytes.get(name_end..value_end)?;
    Some((RawXattr { index: header[1], name, value }, align(value_end, 4)))
}

/// The object that a redirect names: `/ab/cdef...`.
pub(super) fn redirect_object(value: &[u8]) -> Option<ObjectId> {
    let (first, rest) = value.strip_prefix(b"/")?.split_at_checked(2)?;
    let mut hex = [0; 64];
    hex[..2].copy_from_slice(first);
    let rest: &[u8; 62] = rest.strip_prefix(b"/")?.try_into().ok()?;
    hex[2..].copy_from_slice(rest);
    Digest::from_hex(&hex).map(ObjectId)
}
