//! A stack of plain directories as the lower of a union.
//!
//! A directory is merged over the layers once, when it is first used; from then on its names are found in memory.
//! Attributes and contents always come from the layers' own files. What is kept grows with the names of the
//! directories that were used; the number of descriptors does not.
//!
//! Numbers tell layer and file ([`number::Numbers`]), and a directory has the number of its topmost part. A redirected
//! directory is found in one place alone: two places for one directory are damage, and refused.

mod layer;
mod marks;
mod merge;
mod metacopy;
mod number;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{Stat, StatVfs};
use rustix::io::Errno;

use super::{Lower, LowerEntry, LowerFile};
use crate::error::{Error, Result};
use crate::inode::{Attr, FileKind, Ino, ROOT};
use crate::lower::{Format, Role};
use crate::owners::{Owner, Owners};
use layer::{Layers, Name, Real, Xattrs};
use merge::{Merged, merge};
pub(crate) use number::{LAYERS_MAX, Numbers};
use resolve::Part;

/// A stack of plain directories, merged.
#[derive(Debug)]
pub struct DirsLower {
    layers: Layers,
    format: Format,
    numbers: Numbers,
    nodes: RwLock<HashMap<Ino, Arc<Node>>>,
    /// Every known name of the files that have several.
    links: Mutex<HashMap<Ino, Vec<Link>>>,
    /// Whether every directory has been merged, so that every name is known.
    complete: AtomicBool,
    completing: Mutex<()>,
}

/// The directory that holds a name, and the name.
type Link = (Ino, Name);

/// What is known of an inode.
#[derive(Debug)]
struct Node {
    kind: FileKind,
    /// Where it was found first; the root has an empty name.
    parent: Ino,
    name: Name,
    /// The directory of a layer that has it under that name; the directory itself for the root.
    home: Arc<Real>,
    /// Whether the disk has more names of it.
    linked: bool,
    /// Whether it is a character device 0:0 that a user made.
    device_mark: bool,
    dir: Option<Directory>,
}

/// What is known of a directory.
#[derive(Debug)]
struct Directory {
    candidates: Vec<Arc<Real>>,
    /// The parts of the directory that holds it.
    beside: Arc<[Part]>,
    parts: Once<Arc<[Part]>>,
    listing: Once<Arc<Listing>>,
}

/// The names of a merged directory.
#[derive(Debug)]
struct Listing {
    /// In the order of their bytes.
    entries: Vec<(Name, Ino, FileKind)>,
    by_name: HashMap<Name, Ino>,
    /// How many of them are directories.
    subdirectories: u32,
}

/// A value that is found out by the first who needs it.
#[derive(Debug)]
struct Once<T> {
    value: OnceLock<T>,
    turn: Mutex<()>,
}

impl<T: Clone> Once<T> {
    fn new() -> Once<T> {
        Once { value: OnceLock::new(), turn: Mutex::new(()) }
    }

    fn get(&self, find: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(value) = self.value.get() {
            return Ok(value.clone());
        }
        let _turn = self.turn.lock();
        if let Some(value) = self.value.get() {
            return Ok(value.clone());
        }
        let found = find()?;
        Ok(self.value.get_or_init(|| found).clone())
    }
}

impl DirsLower {
    /// Stacks directories, top first. `format` tells whose redirects are believed.
    pub fn open(dirs: &[impl AsRef<Path>], format: Format) -> Result<DirsLower> {
        let layers: Vec<_> = dirs.iter().map(|dir| (dir.as_ref(), Role::Layer)).collect();
        DirsLower::with(&layers, format, Owners::Disk)
    }

    /// The same for layers of different roles, those of [`Role::Data`] last, whose owners and modes are kept as
    /// `owners` says.
    pub fn with(dirs: &[(impl AsRef<Path>, Role)], format: Format, owners: Owners) -> Result<DirsLower> {
        if dirs.is_empty() || dirs.len() > LAYERS_MAX {
            let reason = format!("{} directories can't be stacked; 1 to {LAYERS_MAX} can", dirs.len());
            return Err(Error::Layer { path: "lower".into(), reason, errno: Errno::INVAL });
        }
        let layers = Layers::open(dirs, owners)?;
        let parts: Arc<[Part]> = resolve::root(&layers, format)?.into();
        let dir = Directory { candidates: Vec::new(), beside: [].into(), parts: Once::new(), listing: Once::new() };
        dir.parts.get(|| Ok(parts))?;
        let root = Node {
            kind: FileKind::Directory,
            parent: ROOT,
            name: [].into(),
            home: layers.root(0).clone(),
            linked: false,
            device_mark: false,
            dir: Some(dir),
        };
        Ok(DirsLower {
            layers,
            format,
            numbers: Numbers::default(),
            nodes: RwLock::new(HashMap::from([(ROOT, Arc::new(root))])),
            links: Mutex::default(),
            complete: AtomicBool::new(false),
            completing: Mutex::new(()),
        })
    }

    /// Whose the root is, as the topmost layer tells whose attribute tells it.
    pub(crate) fn root_owner(&self) -> Result<Option<Owner>> {
        for layer in 0..self.layers.count() {
            let told = self.layers.owner(|| self.layers.xattrs_dir(self.layers.root(layer)))?;
            if told.is_some() {
                return Ok(told);
            }
        }
        Ok(None)
    }

    /// An inode. One that nobody has asked this stack for yet, as after a restart, takes merging every directory.
    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        let known = || self.nodes.read().get(&ino).cloned();
        if let Some(node) = known() {
            return Ok(node);
        }
        self.complete();
        known().ok_or(Error::Stale { ino })
    }

    fn parts(&self, dir: &Directory) -> Result<Arc<[Part]>> {
        dir.parts.get(|| Ok(resolve::parts(&self.layers, self.format, &dir.candidates, &dir.beside)?.into()))
    }

    fn listing(&self, ino: Ino, node: &Node) -> Result<Arc<Listing>> {
        let dir = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let parts = self.parts(dir)?;
        dir.listing.get(|| {
            let merged = merge(&self.layers, &parts)?;
            let mut listing = Listing {
                entries: Vec::with_capacity(merged.len()),
                by_name: HashMap::with_capacity(merged.len()),
                subdirectories: 0,
            };
            for entry in merged {
                let (name, kind) = (entry.name.clone(), entry.kind);
                let found = self.register(ino, &parts, &entry)?;
                listing.by_name.insert(name.clone(), found);
                listing.subdirectories += u32::from(kind == FileKind::Directory);
                listing.entries.push((name, found, kind));
            }
            Ok(Arc::new(listing))
        })
    }

    /// Makes an entry of a directory known by its number.
    fn register(&self, parent: Ino, parts: &Arc<[Part]>, entry: &Merged) -> Result<Ino> {
        let home = parts[entry.part].real.clone();
        let (device, host) = entry.host;
        let ino = self.numbers.of(home.layer, (device != self.layers.device(home.layer)).then_some(device), host);
        if entry.linked {
            let mut links = self.links.lock();
            let links = links.entry(ino).or_default();
            if !links.iter().any(|(dir, name)| *dir == parent && *name == entry.name) {
                links.push((parent, entry.name.clone()));
            }
        }
        if let Some(known) = self.nodes.read().get(&ino) {
            if known.kind == FileKind::Directory && (known.parent, &known.name) != (parent, &entry.name) {
                return Err(self.layers.damaged(&home, "a redirect shows one directory in two places"));
            }
            return Ok(ino);
        }
        let child = |part: &usize| self.layers.child(&parts[*part].real, entry.name.clone());
        let dir = (entry.kind == FileKind::Directory).then(|| Directory {
            candidates: entry.parts.iter().map(child).collect(),
            beside: parts.clone(),
            parts: Once::new(),
            listing: Once::new(),
        });
        let (kind, name, linked, device_mark) = (entry.kind, entry.name.clone(), entry.linked, entry.device_mark);
        let node = Node { kind, parent, name, home, linked, device_mark, dir };
        self.nodes.write().entry(ino).or_insert_with(|| Arc::new(node));
        Ok(ino)
    }

    /// Merges every directory, so that every inode and every name is known. A directory that can't be read is
    /// left out: it must not make the rest unusable.
    fn complete(&self) {
        if self.complete.load(Ordering::Acquire) {
            return;
        }
        let _turn = self.completing.lock();
        if self.complete.load(Ordering::Acquire) {
            return;
        }
        let mut ranks: HashMap<Ino, usize> = HashMap::new();
        let mut stack = vec![ROOT];
        while let Some(ino) = stack.pop() {
            ranks.insert(ino, ranks.len());
            let node = self.nodes.read().get(&ino).cloned();
            match node.map(|node| self.listing(ino, &node)) {
                Some(Ok(listing)) => {
                    let dirs = listing.entries.iter().rev().filter(|(_, _, kind)| *kind == FileKind::Directory);
                    stack.extend(dirs.map(|(_, ino, _)| *ino));
                }
                Some(Err(error)) => tracing::warn!(%ino, %error, "a directory is left out"),
                None => {}
            }
        }
        for links in self.links.lock().values_mut() {
            links.sort_by_key(|(dir, name)| (ranks.get(dir).copied(), name.clone()));
        }
        self.complete.store(true, Ordering::Release);
    }

    /// Every name of an inode, in the order of paths.
    fn names(&self, ino: Ino, node: &Node) -> Vec<Link> {
        if node.linked {
            self.complete();
            if let Some(links) = self.links.lock().get(&ino) {
                return links.clone();
            }
        }
        vec![(node.parent, node.name.clone())]
    }

    fn stat(&self, node: &Node) -> Result<Stat> {
        if node.name.is_empty() {
            return self.layers.stat_dir(&node.home);
        }
        self.layers.stat(&node.home, &node.name)?.ok_or(Error::Refused(Errno::STALE))
    }

    fn xattrs_of(&self, node: &Node) -> Result<Xattrs> {
        if node.name.is_empty() {
            return self.layers.xattrs_dir(&node.home);
        }
        self.layers.xattrs(&node.home, &node.name)
    }

    fn attr_of(&self, ino: Ino, node: &Node) -> Result<Attr> {
        let mut stat = self.stat(node)?;
        if let Some(owner) = self.layers.owner(|| self.xattrs_of(node))? {
            owner.apply(&mut stat);
        }
        let mut attr = Attr::of_stat(ino, &stat).ok_or(Errno::IO)?;
        if let Some(dir) = &node.dir {
            // One layer's disk counts for itself. Over several the names are merged, once, which who asks for a directory's
            // attributes mostly needs next. One that can't be read has attributes all the same; 1 says "not counted".
            if self.parts(dir)?.len() > 1 {
                attr.nlink = self.listing(ino, node).map_or(1, |listing| 2 + listing.subdirectories);
            }
        } else if node.linked {
            attr.nlink = self.names(ino, node).len() as u32;
        }
        if node.device_mark {
            attr.kind = FileKind::CharDevice;
            attr.mode = FileKind::CharDevice.mode_bits() | attr.mode & 0o7777;
        }
        Ok(attr)
    }
}

impl Lower for DirsLower {
    fn attr(&self, ino: Ino) -> Result<Attr> {
        self.attr_of(ino, &*self.node(ino)?)
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Attr>> {
        let listing = self.listing(dir, &*self.node(dir)?)?;
        listing.by_name.get(name).map(|ino| self.attr(*ino)).transpose()
    }

    fn entries(&self, dir: Ino, after: u64, each: &mut dyn FnMut(LowerEntry<'_>) -> Result<bool>) -> Result<()> {
        let listing = self.listing(dir, &*self.node(dir)?)?;
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        for (at, (name, ino, kind)) in listing.entries.iter().enumerate().skip(after) {
            if each(LowerEntry { name, ino: *ino, kind: *kind, cookie: at as u64 + 1 })? {
                break;
            }
        }
        Ok(())
    }

    fn link_target(&self, ino: Ino) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        match node.kind {
            FileKind::Symlink => self.layers.link_target(&node.home, &node.name),
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match marks::stored(name).map(|stored| self.layers.owners.stored_name(stored)) {
            Some(Ok(stored)) => self.xattrs_of(&*self.node(ino)?)?.get(&stored),
            Some(Err(_)) | None => Ok(None),
        }
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let xattrs = self.xattrs_of(&*self.node(ino)?)?;
        let mut all = Vec::new();
        for stored in xattrs.names()? {
            // One that has gone in between is not there.
            if let Some(value) = xattrs.get(&stored)?
                && let Some(name) = marks::visible(stored)
                && let Some(name) = self.layers.owners.shown_name(name)
            {
                all.push((name, value));
            }
        }
        Ok(all)
    }

    fn open(&self, ino: Ino) -> Result<LowerFile> {
        let node = self.node(ino)?;
        match node.kind {
            FileKind::Regular => {
                let beside = || match &self.node(node.parent)?.dir {
                    Some(dir) => self.parts(dir),
                    None => Err(Error::Stale { ino: node.parent }),
                };
                let file = metacopy::open(&self.layers, self.format, &node.home, &node.name, beside)?;
                Ok(LowerFile::File { file: Arc::new(file), sealed: false })
            }
            FileKind::Directory => Err(Errno::ISDIR.into()),
            _ => Err(Errno::NXIO.into()),
        }
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        let node = self.node(ino)?;
        Ok(self.names(ino, &node)[0].0)
    }

    fn name_of(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        let node = self.node(ino)?;
        Ok((ino != ROOT).then(|| self.names(ino, &node)[0].1.to_vec()))
    }

    fn links(&self, ino: Ino) -> Result<Vec<(Ino, Vec<u8>)>> {
        if ino == ROOT {
            return Ok(Vec::new());
        }
        let node = self.node(ino)?;
        Ok(self.names(ino, &node).into_iter().map(|(dir, name)| (dir, name.to_vec())).collect())
    }

    fn statfs(&self) -> Result<StatVfs> {
        self.layers.statfs()
    }
}
