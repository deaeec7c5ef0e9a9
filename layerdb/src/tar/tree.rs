//! A tree told as a tar. That of a layer, taken in anew, makes the same tree byte for byte; that of a chain is what a
//! container sees.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

use super::{Head, Kind, Writer};
use crate::digest::{Hasher, ObjectId};
use crate::error::{Error, Result};
use crate::tree::{Content, Entered, FileKind, Inode, Nid, Tree};

/// Bytes of contents read at a time.
const PIECE: usize = 256 << 10;
/// Directories that can be in each other: a longer path is not the name of anything for a system call (`PATH_MAX`).
const DEPTH_MAX: usize = 2048;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a tar that was told holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its entries, whiteouts included.
    pub entries: u64,
    /// Its length.
    pub bytes: u64,
    /// Sockets and attributes that a tar can't hold.
    pub left_out: u64,
}

/// Finds the file of an object.
pub type OpenObject<'a> = &'a dyn Fn(ObjectId) -> Result<File>;

/// Writes a tree as an uncompressed tar. Its bytes are not those of a tar that the tree came from.
pub fn write_tree(tree: &Tree, objects: OpenObject<'_>, out: &mut dyn Write) -> Result<Told> {
    let mut export = Export {
        tree,
        entered: Entered::of(tree),
        objects,
        out: Writer::new(out),
        linked: HashMap::new(),
        buffer: vec![0; PIECE],
        stats: Told::default(),
    };
    let root = tree.inode(tree.root())?;
    let mut frames = vec![Vec::new()];
    export.directory(&root, b"./", b"", &mut frames)?;
    while let Some(frame) = frames.last_mut() {
        let Some((path, nid)) = frame.pop() else {
            frames.pop();
            continue;
        };
        if frames.len() == DEPTH_MAX {
            let name = path.escape_ascii().to_string();
            return Err(Error::InvalidNode { name, reason: "it is too deep in other directories" });
        }
        let inode = tree.inode(nid)?;
        if inode.kind == FileKind::Directory {
            let inside = [&path[..], b"/"].concat();
            frames.push(Vec::new());
            export.directory(&inode, &inside, &inside, &mut frames)?;
        } else {
            export.file(&inode, &path)?;
        }
    }
    let Export { out, mut stats, .. } = export;
    stats.bytes = out.finish().map_err(writing)?;
    Ok(stats)
}

/// The entries of a directory that are still to be told, last first.
type Frame = Vec<(Vec<u8>, Nid)>;

struct Export<'a> {
    tree: &'a Tree,
    entered: Entered,
    objects: OpenObject<'a>,
    out: Writer<'a>,
    /// The first paths of files with several names.
    linked: HashMap<Nid, Box<[u8]>>,
    buffer: Vec<u8>,
    stats: Told,
}

impl Export<'_> {
    /// Tells a directory and what it hides; its entries go to the last frame. Paths in it begin with `inside`.
    fn directory(&mut self, inode: &Inode, path: &[u8], inside: &[u8], frames: &mut [Frame]) -> Result<()> {
        self.entered.enter(self.tree, inode)?;
        if !self.tree.is_implied(inode)? {
            self.head(inode, path, b"", 0)?;
        }
        if self.tree.is_opaque(inode)? {
            self.mark(&[inside, OPAQUE].concat())?;
        }
        let mut entries = Vec::new();
        for entry in self.tree.entries(inode, 0)? {
            let entry = entry?;
            if entry.kind == FileKind::CharDevice && self.tree.inode(entry.nid)?.is_whiteout() {
                self.mark(&[inside, WHITEOUT, entry.name].concat())?;
            } else {
                entries.push(([inside, entry.name].concat(), entry.nid));
            }
        }
        entries.reverse();
        if let Some(frame) = frames.last_mut() {
            *frame = entries;
        }
        Ok(())
    }

    fn file(&mut self, inode: &Inode, path: &[u8]) -> Result<()> {
        if inode.kind == FileKind::Socket {
            tracing::warn!(path = %path.escape_ascii(), "a socket is left out of a layer");
            self.stats.left_out += 1;
            return Ok(());
        }
        if inode.nlink > 1 {
            if let Some(first) = self.linked.get(&inode.nid) {
                let link = Head { path, kind: Kind::HardLink, link: first, size: 0, xattrs: &[], ..head(inode) };
                self.stats.entries += 1;
                return self.out.head(&link).map_err(writing);
            }
            self.linked.insert(inode.nid, path.into());
        }
        match inode.kind {
            FileKind::Symlink => self.head(inode, path, &self.tree.link_target(inode)?, 0),
            FileKind::Regular => self.regular(inode, path),
            _ => self.head(inode, path, b"", 0),
        }
    }

    fn regular(&mut self, inode: &Inode, path: &[u8]) -> Result<()> {
        self.head(inode, path, b"", inode.size)?;
        match self.tree.content(inode)? {
            Content::Inline(bytes) => self.out.write(bytes).map_err(writing)?,
            Content::Object(id) => {
                let file = (self.objects)(id)?;
                let mut hasher = Hasher::new();
                let mut at = 0;
                while at < inode.size {
                    let wanted = usize::try_from(inode.size - at).unwrap_or(PIECE).min(PIECE);
                    let piece = &mut self.buffer[..wanted];
                    file.read_exact_at(piece, at).map_err(Error::io(format!("read object {id}")))?;
                    hasher.update(piece);
                    self.out.write(piece).map_err(writing)?;
                    at += wanted as u64;
                }
                let actual = hasher.finish();
                if actual != id.0 {
                    return Err(Error::DigestMismatch { what: format!("object {id}"), expected: id.0, actual });
                }
            }
        }
        self.out.pad(inode.size).map_err(writing)
    }

    fn head(&mut self, inode: &Inode, path: &[u8], link: &[u8], size: u64) -> Result<()> {
        let mut xattrs = Vec::new();
        for (name, value) in self.tree.xattrs(inode)? {
            if name.contains(&b'=') {
                tracing::warn!(path = %path.escape_ascii(), name = %name.escape_ascii(), "an attribute is left out");
                self.stats.left_out += 1;
            } else {
                xattrs.push((name, value.to_vec()));
            }
        }
        xattrs.sort();
        self.stats.entries += 1;
        self.out.head(&Head { path, link, size, xattrs: &xattrs, ..head(inode) }).map_err(writing)
    }

    fn mark(&mut self, path: &[u8]) -> Result<()> {
        self.stats.entries += 1;
        self.out.head(&Head::mark(path)).map_err(writing)
    }
}

fn writing(error: io::Error) -> Error {
    Error::io("write a tar")(error)
}

fn head(inode: &Inode) -> Head<'static> {
    let &Inode { kind, mode, uid, gid, mtime, rdev, .. } = inode;
    Head { path: b"", kind: Kind::Inode(kind), link: b"", mode, uid, gid, mtime, rdev, size: 0, xattrs: &[] }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Cursor;
    use std::sync::Arc;

    use super::*;
    use crate::ingest::IngestOptions;
    use crate::layer::Layer;
    use crate::store::Store;

    fn entry(path: &[u8], kind: FileKind) -> Head<'_> {
        Head { path, kind: Kind::Inode(kind), mode: 0o751, uid: 3_000_000, gid: 7, ..Head::mark(path) }
    }

    fn ingest(store: &Arc<Store>, tar: Vec<u8>) -> Layer {
        store.ingest(&mut Cursor::new(tar), &IngestOptions::default(), &()).unwrap()
    }

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let mut tar = Writer::new(&mut out);
        let long = [b"implied/".as_slice(), &[b'x'; 200], b"/", &[0xff; 120]].concat();
        let xattrs =
            [(b"user.mime".to_vec(), b"a=b\n\0".to_vec()), (b"trusted.overlay.opaque".to_vec(), b"y".to_vec())];
        let large: Vec<u8> = (0..600_000_u32).map(|at| (at / 7) as u8).collect();
        let kinds = [
            entry(b"./", FileKind::Directory),
            entry(b"dir/", FileKind::Directory),
            Head::mark(b"dir/.wh..wh..opq"),
            Head::mark(b"dir/.wh.gone"),
            Head::mark(b"only/.wh.gone"),
            Head { size: 5, xattrs: &xattrs, ..entry(b"dir/small", FileKind::Regular) },
            Head { size: 600_000, ..entry(&long, FileKind::Regular) },
            Head { kind: Kind::HardLink, link: &long, ..entry(b"again", FileKind::Regular) },
            Head { link: b"../some\xfe/where", ..entry(b"dir/link", FileKind::Symlink) },
            Head { rdev: 0x0801, ..entry(b"dir/disk", FileKind::BlockDevice) },
            Head { rdev: 0x0103, ..entry(b"dir/null", FileKind::CharDevice) },
            entry(b"pipe", FileKind::Fifo),
            entry(b"empty", FileKind::Regular),
        ];
        for head in &kinds {
            tar.head(head).unwrap();
            let contents: &[u8] = if head.size == 5 { b"small" } else { &large };
            tar.write(&contents[..head.size as usize]).unwrap();
            tar.pad(head.size).unwrap();
        }
        tar.finish().unwrap();
        out
    }

    #[test]
    fn layer_told_again_makes_the_same_tree() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let layer = ingest(&store, sample());
        let tell = |layer: &Layer| {
            let mut out = Vec::new();
            let stats =
                write_tree(&store.layer_tree(layer.diff_id).unwrap(), &|id| store.open_object(id), &mut out).unwrap();
            assert_eq!((stats.bytes, stats.left_out), (out.len() as u64, 0));
            (stats, out)
        };
        let (stats, told) = tell(&layer);
        // Nothing is told twice or made up.
        assert_eq!(stats.entries, layer.entries);
        let again = ingest(&store, told.clone());
        assert_eq!((again.tree_digest, again.tree_bytes), (layer.tree_digest, layer.tree_bytes));
        assert_eq!(tell(&again).1, told);
    }

    #[test]
    fn missing_object_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let layer = ingest(&store, sample());
        let tree = store.layer_tree(layer.diff_id).unwrap();
        for object in std::fs::read_dir(store.objects_path()).unwrap() {
            std::fs::remove_dir_all(object.unwrap().path()).unwrap();
        }
        let error = write_tree(&tree, &|id| store.open_object(id), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("object sha256:"), "{error}");
    }
}
