//! Growing a layer's tree from the entries of its tar.
//!
//! An entry's name never becomes a path of the host: it is a walk through the tree being built. A parent that is a
//! symbolic link in this layer is followed there, as an engine that unpacks the layer into a directory of its own
//! does; `..` in a link's target stops at the root. A parent that the layer doesn't list is implied: it takes its
//! attributes from the layers below when they are merged.

use std::collections::{HashMap, VecDeque};

use super::contents;
use super::delivery::Deliveries;
use super::entry::{Entries, Entry, EntryKind};
use super::fault::{Fault, Result, shown};
use crate::error::Error;
use crate::limits::{Limits, over};
use crate::tree::{Attributes, Body, Builder, FileKind, NAME_MAX, NodeId, representable, whiteout};

/// Symbolic links followed for one name, as in path_resolution(7).
const LINKS_FOLLOWED_MAX: u32 = 40;

/// Memory counted for an entry beside its name: while it is collected and while it is written.
const ENTRY_BYTES: u64 = 256;
/// Memory counted for a folder that an entry implies.
const FOLDER_BYTES: u64 = 512;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Where aufs keeps files that hard links of the same tar refer to.
const LINKS: &[u8] = b".wh..wh.plnk";

/// Longest value of an extended attribute (`XATTR_SIZE_MAX` of Linux). EROFS holds one byte less.
const XATTR_VALUE_MAX: usize = 65536;

/// A layer's tree, growing.
pub(super) struct Plant<'a> {
    builder: Builder,
    limits: &'a Limits,
    /// Targets of the symbolic links so far.
    symlinks: HashMap<NodeId, Box<[u8]>>,
    /// Files of [`LINKS`], by their name there.
    aufs_links: HashMap<Box<[u8]>, NodeId>,
    /// Hard links whose target hasn't come yet.
    pending: Vec<Pending>,
    /// Bytes of names, targets, attributes and inodes, to be limited.
    metadata_bytes: u64,
    hole_bytes: u64,
    pub(super) content_bytes: u64,
    /// The first attribute that was left out.
    pub(super) dropped_xattr: Option<String>,
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Why a target isn't there yet.
enum Missing {
    /// A name that a hard link may still make.
    Name(NodeId, Box<[u8]>),
    /// Its way leads nowhere.
    Way,
}

struct Pending {
    dir: NodeId,
    name: Box<[u8]>,
    target: Box<[u8]>,
    path: Box<[u8]>,
    offset: u64,
}

impl<'a> Plant<'a> {
    pub(super) fn new(builder: Builder, limits: &'a Limits) -> Plant<'a> {
        Plant {
            builder,
            limits,
            symlinks: HashMap::new(),
            aufs_links: HashMap::new(),
            pending: Vec::new(),
            metadata_bytes: 0,
            hole_bytes: 0,
            content_bytes: 0,
            dropped_xattr: None,
        }
    }

    /// Takes in an entry and its contents.
    pub(super) fn add(&mut self, entry: Entry, entries: &mut Entries<'_>, objects: &mut Deliveries) -> Result<()> {
        let (path, offset) = (entry.path.clone(), entry.offset);
        self.place(entry, entries, objects).map_err(|fault| locate(fault, &path, offset))
    }

    fn place(&mut self, mut entry: Entry, entries: &mut Entries<'_>, objects: &mut Deliveries) -> Result<()> {
        self.count(&entry, entries)?;
        let xattrs = std::mem::take(&mut entry.xattrs);
        let parts =
            split(&entry.path, self.limits.name_bytes).map_err(|reason| Fault::bad(b"", entry.offset, reason))?;
        let Some((name, parents)) = parts.split_last() else { return self.place_root(&entry, xattrs) };
        if parts.iter().any(|part| part.starts_with(WHITEOUT_META) && *part != OPAQUE) {
            if parents == [LINKS] && entry.kind == EntryKind::File {
                let node = self.file(&entry, xattrs, entries, objects, |plant, attributes, body| {
                    plant.builder.insert_unnamed(attributes, body)
                })?;
                self.aufs_links.insert((*name).into(), node);
                return Ok(());
            }
            // Other bookkeeping of aufs.
            return entries.skip_contents(&entry);
        }
        let dir = self.directory(self.builder.root(), parents, &mut 0, entry.offset)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.place_whiteout(dir, name, hidden, entry.offset)?;
            return entries.skip_contents(&entry);
        }
        if entry.kind == EntryKind::HardLink {
            return self.place_link(dir, name, &entry);
        }
        if entry.kind == EntryKind::File {
            let insert = |plant: &mut Self, attributes, body| plant.builder.insert(dir, name, attributes, body);
            return self.file(&entry, xattrs, entries, objects, insert).map(|_| ());
        }
        let attributes = self.attributes(&entry, xattrs)?;
        if entry.kind == EntryKind::Symlink {
            let node = self.builder.insert(dir, name, attributes, Body::Symlink(entry.link.clone()))?;
            self.symlinks.insert(node, entry.link.into_boxed_slice());
        } else {
            self.builder.insert(dir, name, attributes, Body::None)?;
        }
        Ok(())
    }

    /// Takes in a regular file.
    fn file(
        &mut self,
        entry: &Entry,
        xattrs: Xattrs,
        entries: &mut Entries<'_>,
        objects: &mut Deliveries,
        insert: impl FnOnce(&mut Self, Attributes, Body) -> Result<NodeId, Error>,
    ) -> Result<NodeId> {
        let body = contents::read(entry, entries, objects)?;
        self.content_bytes += entry.size;
        let attributes = self.attributes(entry, xattrs)?;
        let node = insert(self, attributes, body)?;
        entries.placed(entry, node)?;
        Ok(node)
    }

    fn count(&mut self, entry: &Entry, entries: &Entries<'_>) -> Result<()> {
        let limits = self.limits;
        let bad = |reason| Err(Fault::bad(b"", entry.offset, reason));
        if entries.count() > limits.entries {
            return bad(over("entries", limits.entries, "entries"));
        }
        if entry.link.len() as u64 > limits.link_bytes {
            let limit = over("link_bytes", limits.link_bytes, "bytes");
            return bad(format!("the link's target has {} bytes, {limit}", entry.link.len()));
        }
        let xattrs = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() as u64;
        if xattrs > limits.xattr_bytes {
            let limit = over("xattr_bytes", limits.xattr_bytes, "bytes");
            return bad(format!("the extended attributes have {xattrs} bytes, {limit}"));
        }
        self.take_memory((entry.path.len() + entry.link.len()) as u64 + xattrs + ENTRY_BYTES, entry.offset)?;
        if entry.kind != EntryKind::File {
            return Ok(());
        }
        if self.content_bytes.saturating_add(entry.size) > limits.content_bytes {
            let limit = over("content_bytes", limits.content_bytes, "bytes of file contents");
            return bad(format!("{} bytes: {limit}", entry.size));
        }
        self.hole_bytes = self.hole_bytes.saturating_add(entry.size.saturating_sub(entry.stored));
        if self.hole_bytes > limits.hole_bytes {
            return bad(over("hole_bytes", limits.hole_bytes, "bytes of holes in files"));
        }
        Ok(())
    }

    fn take_memory(&mut self, bytes: u64, offset: u64) -> Result<()> {
        self.metadata_bytes += bytes;
        if self.metadata_bytes > self.limits.metadata_bytes {
            let reason = over("metadata_bytes", self.limits.metadata_bytes, "bytes of names, links and attributes");
            return Err(Fault::bad(b"", offset, reason));
        }
        Ok(())
    }

    fn place_root(&mut self, entry: &Entry, xattrs: Xattrs) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(Fault::bad(b"", entry.offset, "the root can only be a directory"));
        }
        let attributes = self.attributes(entry, xattrs)?;
        self.builder.set_attributes(self.builder.root(), attributes)?;
        Ok(())
    }

    fn place_whiteout(&mut self, dir: NodeId, name: &[u8], hidden: &[u8], offset: u64) -> Result<()> {
        if name == OPAQUE {
            self.builder.set_opaque(dir)?;
        } else if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::bad(b"", offset, "a whiteout of no name"));
        } else {
            self.builder.whiteout(dir, hidden)?;
        }
        Ok(())
    }

    fn place_link(&mut self, dir: NodeId, name: &[u8], entry: &Entry) -> Result<()> {
        let bad = |reason: String| Fault::bad(b"", entry.offset, reason);
        let target = split_link(&entry.link, self.limits.link_bytes)
            .map_err(|reason| bad(format!("hard link to {}: {reason}", shown(&entry.link))))?;
        let found = match target.as_slice() {
            [LINKS, name] => self.aufs_links.get(*name).copied(),
            target => self.find(target).ok(),
        };
        match found {
            Some(node) if self.builder.child(dir, name) == Some(node) => Ok(()),
            Some(node) => self.link(dir, name, node, &entry.link, entry.offset),
            None => {
                self.builder.remove(dir, name);
                self.pending.push(Pending {
                    dir,
                    name: name.into(),
                    target: entry.link.as_slice().into(),
                    path: entry.path.as_slice().into(),
                    offset: entry.offset,
                });
                Ok(())
            }
        }
    }

    fn link(&mut self, dir: NodeId, name: &[u8], node: NodeId, target: &[u8], offset: u64) -> Result<()> {
        if self.builder.kind(node) == FileKind::Directory {
            return Err(Fault::bad(b"", offset, format!("hard link to {}, which is a directory", shown(target))));
        }
        if self.builder.is_whiteout(node) {
            return Err(Fault::bad(b"", offset, format!("hard link to {}, which is a whiteout", shown(target))));
        }
        Ok(self.builder.link(dir, name, node)?)
    }

    /// Makes the hard links whose targets came later. A target may itself be such a link: each waits for the name that
    /// it misses, so that the work is that of following every target once for each name on its way.
    pub(super) fn finish(mut self) -> Result<Builder> {
        let mut ready = VecDeque::from(std::mem::take(&mut self.pending));
        let mut waiting: HashMap<(NodeId, Box<[u8]>), Vec<Pending>> = HashMap::new();
        let mut lost = Vec::new();
        while let Some(pending) = ready.pop_front() {
            let target = split_link(&pending.target, self.limits.link_bytes).unwrap_or_default();
            match self.find(&target) {
                Ok(node) => {
                    if self.builder.child(pending.dir, &pending.name).is_none() {
                        self.link(pending.dir, &pending.name, node, &pending.target, pending.offset)
                            .map_err(|fault| locate(fault, &pending.path, pending.offset))?;
                    }
                    ready.extend(waiting.remove(&(pending.dir, pending.name)).into_iter().flatten());
                }
                Err(Missing::Name(dir, name)) => waiting.entry((dir, name)).or_default().push(pending),
                Err(Missing::Way) => lost.push(pending),
            }
        }
        lost.extend(waiting.into_values().flatten());
        match lost.iter().min_by_key(|pending| pending.offset) {
            None => Ok(self.builder),
            Some(first) => {
                let reason = format!("hard link to {}, which the layer doesn't have", shown(&first.target));
                Err(Fault::bad(&first.path, first.offset, reason))
            }
        }
    }

    /// The directory that a walk from `dir` ends in; what is missing on the way is implied.
    fn directory(&mut self, dir: NodeId, parts: &[&[u8]], followed: &mut u32, offset: u64) -> Result<NodeId> {
        let mut walk = Walk { at: vec![dir], followed: *followed };
        for part in parts {
            self.step(&mut walk, part, offset)?;
        }
        *followed = walk.followed;
        Ok(walk.here(self.builder.root()))
    }

    fn step(&mut self, walk: &mut Walk, part: &[u8], offset: u64) -> Result<()> {
        let dir = walk.here(self.builder.root());
        let Some(node) = self.builder.child(dir, part).filter(|node| !self.builder.is_whiteout(*node)) else {
            self.take_memory(FOLDER_BYTES + part.len() as u64, offset)?;
            let node = self.builder.implied_directory(dir, part)?;
            if self.builder.len() as u64 - 1 > self.limits.entries {
                let reason = over("entries", self.limits.entries, "entries, with the folders that names imply");
                return Err(Fault::bad(b"", offset, reason));
            }
            return self.enter(walk, node, offset);
        };
        match self.builder.kind(node) {
            FileKind::Directory => self.enter(walk, node, offset),
            FileKind::Symlink => {
                walk.followed += 1;
                if walk.followed > LINKS_FOLLOWED_MAX {
                    return Err(Fault::bad(b"", offset, "its parents are a loop of symbolic links"));
                }
                let target = self.symlinks.get(&node).cloned().unwrap_or_default();
                if target.first() == Some(&b'/') {
                    walk.at.truncate(1);
                }
                for part in target.split(|byte| *byte == b'/') {
                    match part {
                        b"" | b"." => {}
                        b".." => walk.up(),
                        part => self.step(walk, part, offset)?,
                    }
                }
                Ok(())
            }
            _ => Err(Fault::bad(b"", offset, format!("its parent {} is not a directory", shown(part)))),
        }
    }

    /// Goes down into a directory that an entry is to be put in.
    fn enter(&self, walk: &mut Walk, node: NodeId, offset: u64) -> Result<()> {
        walk.at.push(node);
        // The root is among them, the entry is not.
        if walk.at.len() as u64 > self.limits.depth {
            return Err(Fault::bad(b"", offset, over("depth", self.limits.depth, "names deep")));
        }
        Ok(())
    }

    /// What a name stands for, following links among its parents only.
    fn find(&self, parts: &[&[u8]]) -> Result<NodeId, Missing> {
        let root = self.builder.root();
        let Some((name, parents)) = parts.split_last() else { return Ok(root) };
        let mut walk = Walk { at: vec![root], followed: 0 };
        for part in parents {
            self.follow(&mut walk, part)?;
        }
        let dir = walk.here(root);
        self.builder.child(dir, name).ok_or_else(|| Missing::Name(dir, (*name).into()))
    }

    fn follow(&self, walk: &mut Walk, part: &[u8]) -> Result<(), Missing> {
        let dir = walk.here(self.builder.root());
        let node = self.builder.child(dir, part).ok_or_else(|| Missing::Name(dir, part.into()))?;
        match self.builder.kind(node) {
            FileKind::Directory => walk.at.push(node),
            FileKind::Symlink => {
                walk.followed += 1;
                if walk.followed > LINKS_FOLLOWED_MAX {
                    return Err(Missing::Way);
                }
                let target = self.symlinks.get(&node).ok_or(Missing::Way)?;
                if target.first() == Some(&b'/') {
                    walk.at.truncate(1);
                }
                for part in target.split(|byte| *byte == b'/') {
                    match part {
                        b"" | b"." => {}
                        b".." => walk.up(),
                        part => self.follow(walk, part)?,
                    }
                }
            }
            _ => return Err(Missing::Way),
        }
        Ok(())
    }

    /// The attributes an entry gives, without extended ones that no Linux filesystem would take.
    fn attributes(&mut self, entry: &Entry, mut xattrs: Xattrs) -> Result<Attributes> {
        let bad = |reason: String| Fault::bad(b"", entry.offset, reason);
        let (kind, mode) = match entry.kind {
            EntryKind::File | EntryKind::HardLink => (FileKind::Regular, entry.mode),
            EntryKind::Directory => (FileKind::Directory, entry.mode),
            EntryKind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) {
                    return Err(bad(format!("a symbolic link to {} bytes", entry.link.len())));
                }
                (FileKind::Symlink, 0o777)
            }
            EntryKind::CharDevice if entry.device == (0, 0) => return Ok(whiteout()),
            EntryKind::CharDevice => (FileKind::CharDevice, entry.mode),
            EntryKind::BlockDevice => (FileKind::BlockDevice, entry.mode),
            EntryKind::Fifo => (FileKind::Fifo, entry.mode),
        };
        xattrs.retain(|(name, value)| {
            let kept = self::kept(name, kind) && value.len() != XATTR_VALUE_MAX;
            if !kept && self.dropped_xattr.is_none() {
                self.dropped_xattr = Some(format!("{} of {}", shown(name), shown(&entry.path)));
            }
            kept
        });
        Ok(Attributes {
            mode: kind.mode_bits() | mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            rdev: rustix::fs::makedev(entry.device.0, entry.device.1),
            xattrs,
        })
    }
}

/// What the kernel would refuse on such a file is left out (xattr(7), "User extended attributes"), and so is what
/// Mica keeps on the files of an upper directory.
fn kept(name: &[u8], kind: FileKind) -> bool {
    if name.starts_with(b"user.") && !matches!(kind, FileKind::Regular | FileKind::Directory) {
        return false;
    }
    representable(name) && !name.starts_with(b"trusted.mica.") && !name.starts_with(b"user.mica.")
}

/// Where a walk through the tree is: the directories from the root.
struct Walk {
    at: Vec<NodeId>,
    followed: u32,
}

impl Walk {
    fn here(&self, root: NodeId) -> NodeId {
        self.at.last().copied().unwrap_or(root)
    }

    fn up(&mut self) {
        if self.at.len() > 1 {
            self.at.pop();
        }
    }
}

/// The components of an entry's name. Some builders call the root `/`; every other absolute name is refused.
fn split(path: &[u8], most: u64) -> Result<Vec<&[u8]>, String> {
    if path.len() as u64 > most {
        return Err(format!("the name has {} bytes, {}", path.len(), over("name_bytes", most, "bytes")));
    }
    let parts = components(path)?;
    if path.first() == Some(&b'/') && !parts.is_empty() {
        return Err("the name is absolute".into());
    }
    Ok(parts)
}

/// The components of a hard link's target. Absolute ones start at the layer's root, as they do for engines.
fn split_link(target: &[u8], most: u64) -> Result<Vec<&[u8]>, String> {
    if target.len() as u64 > most {
        return Err(format!("{} bytes, {}", target.len(), over("link_bytes", most, "bytes")));
    }
    if target.is_empty() { Err("the name is empty".into()) } else { components(target) }
}

/// The components of a name; `.` and empty ones say nothing.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("the name has a component '..'".into()),
            part if part.contains(&0) => return Err("the name contains NUL".into()),
            // The mark of a whiteout comes on top of the name that it hides.
            part if part.strip_prefix(WHITEOUT).unwrap_or(part).len() > NAME_MAX => {
                return Err(format!("a component of the name has {} bytes, over {NAME_MAX}", part.len()));
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

/// Adds the entry's name and offset to what doesn't have them; what the tree refuses is the layer's fault.
fn locate(fault: Fault, path: &[u8], offset: u64) -> Fault {
    match fault {
        Fault::Store(
            error @ (Error::InvalidName { .. }
            | Error::InvalidNode { .. }
            | Error::XattrNamespace { .. }
            | Error::XattrTooLong { .. }
            | Error::TreeTooLarge { .. }),
        ) => Fault::bad(path, offset, error.to_string()),
        other => other.within(path),
    }
}
