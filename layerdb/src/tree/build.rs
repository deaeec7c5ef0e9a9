//! Collecting one layer in memory, entry by entry, and writing it as a tree.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use super::graph::{Edge, Graph, Node, NodeBody};
use super::map::Bytes;
use super::write::Placement;
use super::xattr::{Pair, XattrSet, XattrTable, encode_all};
use super::{
    Attributes, Body, FileKind, INLINE_MAX, NAME_MAX, TARGET_MAX, Timestamp, Written, encode_device, whiteout,
};
use crate::digest::ObjectId;
use crate::disk::Appender;
use crate::error::{Error, Result};

/// An inode of a [`Builder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// Its place among all inodes of its builder, in the order in which they were made.
    pub(crate) fn number(self) -> usize {
        self.0 as usize
    }

    /// The inverse of [`NodeId::number`].
    pub(crate) fn from_number(number: u32) -> NodeId {
        NodeId(number)
    }
}

/// A tree that grows in any order.
///
/// Metadata stays on the heap; link targets and contents go to the spool. What a tar says about one name
/// twice, or in an unexpected order, follows the OCI image specification (*Image Layer Filesystem Changeset*):
/// the last entry wins, a directory given again keeps what is in it, a whiteout speaks of lower layers only.
#[derive(Debug)]
pub struct Builder {
    items: Vec<Item>,
    objects: Vec<(ObjectId, u64)>,
    xattrs: XattrTable<'static>,
    spool: BufWriter<Appender>,
    spooled: u64,
}

#[derive(Debug)]
struct Item {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: XattrSet,
    content: Held,
}

#[derive(Debug)]
enum Held {
    Directory(Box<Directory>),
    /// Contents or target, in the spool.
    Spooled {
        offset: u64,
        length: u32,
    },
    /// Index into `objects`.
    Object(u32),
    /// Device number in the kernel's form.
    Special(u32),
}

#[derive(Debug, Default)]
struct Directory {
    children: BTreeMap<Box<[u8]>, NodeId>,
    opaque: bool,
    implied: bool,
}

impl Builder {
    /// An empty tree: a root of mode 0755 that is implied (see [`Builder::implied_directory`]). `spool` is an
    /// empty file that nobody else writes to, usually an unnamed one.
    pub fn new(spool: impl Into<Appender>) -> Result<Self> {
        let mut builder = Self {
            items: Vec::new(),
            objects: Vec::new(),
            xattrs: XattrTable::default(),
            spool: BufWriter::with_capacity(1 << 18, spool.into()),
            spooled: 0,
        };
        builder.add_implied()?;
        Ok(builder)
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// What a directory has under this name.
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory(dir)?.children.get(name).copied()
    }

    /// What an inode is.
    pub fn kind(&self, node: NodeId) -> FileKind {
        // Every mode was checked when its item was made.
        FileKind::from_mode(self.item(node).mode).unwrap_or(FileKind::Regular)
    }

    /// Whether an inode is a whiteout.
    pub fn is_whiteout(&self, node: NodeId) -> bool {
        self.kind(node) == FileKind::CharDevice && matches!(self.item(node).content, Held::Special(0))
    }

    /// Number of inodes made so far, replaced ones included.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never: there is a root.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Puts an inode into a directory, in the place of what has that name. A directory put where one is
    /// only changes its attributes; a directory put in the place of anything else is opaque, since what it
    /// replaces had hidden the lower layers already.
    pub fn insert(&mut self, dir: NodeId, name: &[u8], attributes: Attributes, body: Body) -> Result<NodeId> {
        self.check_place(dir, name)?;
        let kind = check_attributes(name, &attributes)?;
        let existing = self.child(dir, name);
        if kind == FileKind::Directory {
            let merged = existing.filter(|&node| self.kind(node) == FileKind::Directory);
            if let Some(node) = merged {
                self.set_attributes(node, attributes)?;
                return Ok(node);
            }
        }
        let content = self.hold(name, kind, &attributes, body, existing.is_some())?;
        let node = self.add(kind, attributes, content)?;
        self.put(dir, name, node);
        Ok(node)
    }

    /// The directory of this name, made if need be, with attributes that are those of a lower layer's
    /// directory: for entries whose parents the layer does not list. A later `insert` states its attributes.
    pub fn implied_directory(&mut self, dir: NodeId, name: &[u8]) -> Result<NodeId> {
        self.check_place(dir, name)?;
        let existing = self.child(dir, name);
        if let Some(node) = existing.filter(|&node| self.kind(node) == FileKind::Directory) {
            return Ok(node);
        }
        let node = self.add_implied()?;
        if existing.is_some() {
            self.set_opaque(node)?;
        }
        self.put(dir, name, node);
        Ok(node)
    }

    /// Says that lower layers' entries of this name are gone. What this layer itself has there stays: a
    /// directory becomes opaque, and anything else hides what is below already.
    pub fn whiteout(&mut self, dir: NodeId, name: &[u8]) -> Result<()> {
        match self.child(dir, name) {
            Some(node) if self.kind(node) == FileKind::Directory => self.set_opaque(node),
            Some(_) => Ok(()),
            None => self.insert(dir, name, whiteout(), Body::None).map(|_| ()),
        }
    }

    /// Says that lower layers' entries in this directory are gone.
    pub fn set_opaque(&mut self, dir: NodeId) -> Result<()> {
        self.directory_mut(dir).ok_or_else(not_a_directory)?.opaque = true;
        Ok(())
    }

    /// Makes an inode that has no name yet. Without one it isn't written.
    pub fn insert_unnamed(&mut self, attributes: Attributes, body: Body) -> Result<NodeId> {
        let kind = check_attributes(b"", &attributes)?;
        let content = self.hold(b"", kind, &attributes, body, false)?;
        self.add(kind, attributes, content)
    }

    /// Gives an inode another name.
    pub fn link(&mut self, dir: NodeId, name: &[u8], target: NodeId) -> Result<()> {
        self.check_place(dir, name)?;
        if self.kind(target) == FileKind::Directory {
            return Err(invalid(name, "a directory has one name only"));
        }
        self.put(dir, name, target);
        Ok(())
    }

    /// Takes a name away; `None` if there is none.
    pub fn remove(&mut self, dir: NodeId, name: &[u8]) -> Option<()> {
        self.directory_mut(dir)?.children.remove(name).map(|_| ())
    }

    /// Gives an inode new attributes; its type and device number stay. A directory is no longer implied.
    pub fn set_attributes(&mut self, node: NodeId, attributes: Attributes) -> Result<()> {
        let kind = check_attributes(b"", &attributes)?;
        if kind != self.kind(node) {
            return Err(invalid(b"", "an inode cannot change its type"));
        }
        let Attributes { mode, uid, gid, mtime, xattrs, .. } = attributes;
        let xattrs = self.xattrs.intern(encode_all(xattrs, kind)?);
        let item = &mut self.items[node.0 as usize];
        (item.mode, item.uid, item.gid, item.mtime, item.xattrs) = (mode, uid, gid, mtime, xattrs);
        if let Held::Directory(directory) = &mut item.content {
            directory.implied = false;
        }
        Ok(())
    }

    /// Writes the tree to `out`, an empty file. The bytes do not depend on the order of the calls before.
    pub fn write(self, out: &mut dyn Write) -> Result<Written> {
        self.write_then(out, |_| Ok(())).map(|(written, ())| written)
    }

    /// [`Builder::write`], then something that needs to know where everything went.
    pub fn write_then<T>(
        self,
        out: &mut dyn Write,
        then: impl FnOnce(&Placement<'_>) -> Result<T>,
    ) -> Result<(Written, T)> {
        let spool = self.spool.into_inner().map_err(|error| Error::io("cannot write the spool")(error.into_error()))?;
        let spooled = Bytes::map(spool.file()).map_err(Error::io("cannot map the spool"))?;
        let graph = into_graph(&self.items, &self.objects, self.xattrs, &spooled)?;
        super::write::write_then(&graph, out, then)
    }

    fn item(&self, node: NodeId) -> &Item {
        &self.items[node.0 as usize]
    }

    fn directory(&self, node: NodeId) -> Option<&Directory> {
        match &self.item(node).content {
            Held::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, node: NodeId) -> Option<&mut Directory> {
        match &mut self.items[node.0 as usize].content {
            Held::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn put(&mut self, dir: NodeId, name: &[u8], node: NodeId) {
        if let Some(directory) = self.directory_mut(dir) {
            directory.children.insert(name.into(), node);
        }
    }

    fn check_place(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        check_name(name)?;
        if self.directory(dir).is_none() {
            return Err(invalid(name, "its parent is not a directory"));
        }
        Ok(())
    }

    fn add(&mut self, kind: FileKind, attributes: Attributes, content: Held) -> Result<NodeId> {
        let Attributes { mode, uid, gid, mtime, xattrs, .. } = attributes;
        let xattrs = self.xattrs.intern(encode_all(xattrs, kind)?);
        self.push(Item { mode, uid, gid, mtime, xattrs, content })
    }

    fn add_implied(&mut self) -> Result<NodeId> {
        let directory = Directory { implied: true, ..Directory::default() };
        self.push(Item {
            mode: FileKind::Directory.mode_bits() | 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: XattrSet::EMPTY,
            content: Held::Directory(Box::new(directory)),
        })
    }

    fn push(&mut self, item: Item) -> Result<NodeId> {
        let node = NodeId(index(self.items.len())?);
        self.items.push(item);
        Ok(node)
    }

    /// Takes in what an inode of `kind` holds.
    fn hold(&mut self, name: &[u8], kind: FileKind, attributes: &Attributes, body: Body, opaque: bool) -> Result<Held> {
        match (kind, body) {
            (FileKind::Directory, Body::None) => {
                Ok(Held::Directory(Box::new(Directory { opaque, ..Directory::default() })))
            }
            (FileKind::Regular, Body::None) => self.spool(&[]),
            (FileKind::Regular, Body::Inline(bytes)) if bytes.len() as u64 <= INLINE_MAX => self.spool(&bytes),
            (FileKind::Regular, Body::Inline(_)) => Err(invalid(name, "its contents are too long to be inline")),
            (FileKind::Regular, Body::Object { id, size }) => {
                let at = index(self.objects.len())?;
                self.objects.push((id, size));
                Ok(Held::Object(at))
            }
            (FileKind::Symlink, Body::Symlink(target)) => {
                if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
                    return Err(invalid(name, "a link's target has 1 to 4095 bytes, none of them NUL"));
                }
                self.spool(&target)
            }
            (kind, Body::None) if kind.is_device() => encode_device(attributes.rdev)
                .map(Held::Special)
                .ok_or_else(|| invalid(name, "its device number is beyond Linux' range")),
            (FileKind::Fifo | FileKind::Socket, Body::None) => Ok(Held::Special(0)),
            _ => Err(invalid(name, "its body does not go with its type")),
        }
    }

    fn spool(&mut self, bytes: &[u8]) -> Result<Held> {
        self.spool.write_all(bytes).map_err(Error::io("cannot write the spool"))?;
        let offset = self.spooled;
        self.spooled += bytes.len() as u64;
        Ok(Held::Spooled { offset, length: bytes.len() as u32 })
    }
}

fn into_graph<'a>(
    items: &'a [Item],
    objects: &[(ObjectId, u64)],
    mut xattrs: XattrTable<'a>,
    spooled: &'a [u8],
) -> Result<Graph<'a>> {
    let mut nodes = Vec::with_capacity(items.len());
    let mut edges = Vec::with_capacity(items.len());
    for item in items {
        let mut set = item.xattrs;
        let body = match &item.content {
            Held::Directory(directory) => {
                let first = index(edges.len())?;
                edges.extend(directory.children.iter().map(|(name, node)| Edge { name, node: node.0 }));
                if directory.opaque {
                    set = xattrs.with(set, Pair::opaque());
                }
                if directory.implied {
                    set = xattrs.with(set, Pair::implied());
                }
                NodeBody::Directory { first, count: index(directory.children.len())? }
            }
            Held::Spooled { offset, length } => {
                let bytes = &spooled[*offset as usize..][..*length as usize];
                let link = FileKind::from_mode(item.mode) == Some(FileKind::Symlink);
                if link { NodeBody::Symlink(bytes) } else { NodeBody::Inline(bytes) }
            }
            Held::Object(at) => {
                let (id, size) = objects[*at as usize];
                NodeBody::Object { id, size }
            }
            Held::Special(device) => NodeBody::Special(*device),
        };
        let Item { mode, uid, gid, mtime, .. } = *item;
        nodes.push(Node { mode, uid, gid, mtime, xattrs: set, body });
    }
    Ok(Graph { nodes, edges, xattrs })
}

/// Checks that a directory can hold this name.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    let reason = match name {
        b"" => "it is empty",
        b"." | b".." => "it stands for a directory",
        _ if name.len() > NAME_MAX => "it has more than 255 bytes",
        _ if name.contains(&b'/') => "it contains a slash",
        _ if name.contains(&0) => "it contains NUL",
        _ => return Ok(()),
    };
    Err(Error::InvalidName { name: name.escape_ascii().to_string(), reason })
}

fn check_attributes(name: &[u8], attributes: &Attributes) -> Result<FileKind> {
    if attributes.mtime.nanos >= 1_000_000_000 {
        return Err(invalid(name, "its time has more than 10^9 nanoseconds"));
    }
    if attributes.mode > 0o177_777 {
        return Err(invalid(name, "its mode has more than 16 bits"));
    }
    FileKind::from_mode(attributes.mode).ok_or_else(|| invalid(name, "its mode names no type"))
}

fn invalid(name: &[u8], reason: &'static str) -> Error {
    Error::InvalidNode { name: name.escape_ascii().to_string(), reason }
}

fn not_a_directory() -> Error {
    invalid(b"", "only a directory is opaque")
}

fn index(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::TreeTooLarge { reason: "a tree has at most 2^32 inodes" })
}
