//! A filesystem in memory: what a union must look like from within, and which refusals POSIX asks for.

use std::collections::{BTreeMap, HashMap};

use mica_fs::inode::FileKind;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

pub type Name = Vec<u8>;
/// Names from the root.
pub type Path = Vec<Name>;
pub type Xattrs = BTreeMap<Name, Vec<u8>>;

/// One change, as a program would ask for it.
#[derive(Clone, Debug)]
pub enum Action {
    Mkdir(Path, u32),
    Create(Path, u32),
    Symlink(Path, Vec<u8>),
    Mknod(Path, FileKind, u64),
    Link(Path, Path),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path, RenameFlags),
    Write(Path, u64, Vec<u8>),
    Truncate(Path, u64),
    Chmod(Path, u32),
    Chown(Path, u32, u32),
    SetTimes(Path, i64, u32),
    SetXattr(Path, Name, Vec<u8>),
    RemoveXattr(Path, Name),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Dir(BTreeMap<Name, u64>),
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Special(FileKind, u64),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub body: Body,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Unless the clock has set it.
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Xattrs,
    pub links: u32,
}

/// An inode as it looks from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The model's number, or the filesystem's.
    pub id: u64,
    pub kind: FileKind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Xattrs,
    /// Of directories: 0.
    pub links: u32,
    /// Contents, or target.
    pub bytes: Vec<u8>,
    pub rdev: u64,
}

#[derive(Clone, Debug)]
pub struct Model {
    nodes: HashMap<u64, Node>,
    next: u64,
}

pub const ROOT: u64 = 1;

/// A character device 0:0, which overlays take for a deleted name.
pub const ZERO: Body = Body::Special(FileKind::CharDevice, 0);

impl Default for Model {
    fn default() -> Model {
        let mut model = Model { nodes: HashMap::new(), next: ROOT };
        model.add(Body::Dir(BTreeMap::new()), 0o755);
        model
    }
}

impl Model {
    fn add(&mut self, body: Body, mode: u32) -> u64 {
        let id = self.next;
        self.next += 1;
        let xattrs = Xattrs::new();
        self.nodes.insert(id, Node { body, mode, owner: (0, 0), mtime: None, xattrs, links: 0 });
        id
    }

    pub fn node(&self, id: u64) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub fn find(&self, path: &[Name]) -> Result<u64, Errno> {
        path.iter().try_fold(ROOT, |at, name| self.dir(at)?.get(name).copied().ok_or(Errno::NOENT))
    }

    fn dir(&self, id: u64) -> Result<&BTreeMap<Name, u64>, Errno> {
        match &self.nodes[&id].body {
            Body::Dir(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn get(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node that a name leads to")
    }

    fn is_dir(&self, id: u64) -> bool {
        matches!(self.nodes[&id].body, Body::Dir(_))
    }

    /// Every path, parents first, in the order of names.
    pub fn paths(&self) -> Vec<(Path, u64)> {
        let mut all = vec![(Vec::new(), ROOT)];
        let mut at = 0;
        while at < all.len() {
            let (path, id) = all[at].clone();
            if let Body::Dir(entries) = &self.nodes[&id].body {
                all.extend(entries.iter().map(|(name, id)| ([&path[..], std::slice::from_ref(name)].concat(), *id)));
            }
            at += 1;
        }
        all
    }

    /// What is to be seen, by path.
    pub fn shown(&self) -> BTreeMap<Path, Shown> {
        self.paths().into_iter().map(|(path, id)| (path, self.show(id))).collect()
    }

    fn show(&self, id: u64) -> Shown {
        let node = &self.nodes[&id];
        let (kind, bytes, rdev) = match &node.body {
            Body::Dir(_) => (FileKind::Directory, Vec::new(), 0),
            Body::File(bytes) => (FileKind::Regular, bytes.clone(), 0),
            Body::Symlink(target) => (FileKind::Symlink, target.clone(), 0),
            Body::Special(kind, rdev) => (*kind, Vec::new(), *rdev),
        };
        let mode = if kind == FileKind::Symlink { 0o777 } else { node.mode };
        let Node { owner, mtime, ref xattrs, .. } = *node;
        let links = if kind == FileKind::Directory { 0 } else { node.links };
        Shown { id, kind, mode, owner, mtime, xattrs: xattrs.clone(), links, bytes, rdev }
    }

    /// Whether the kernel answers such a rename by itself, whatever the filesystem.
    pub fn kernel_answers(&self, action: &Action) -> bool {
        let Action::Rename(from, to, _) = action else { return false };
        let same = self.find(from).is_ok() && self.find(from) == self.find(to);
        from.is_empty() || to.is_empty() || same || to.starts_with(from) || from.starts_with(to)
    }

    pub fn apply(&mut self, action: &Action) -> Result<(), Errno> {
        match action {
            Action::Mkdir(at, mode) => self.make(at, Body::Dir(BTreeMap::new()), *mode),
            Action::Create(at, mode) => self.make(at, Body::File(Vec::new()), *mode),
            Action::Symlink(at, target) => self.make(at, Body::Symlink(target.clone()), 0o777),
            Action::Mknod(at, kind, rdev) => self.make(at, Body::Special(*kind, *rdev), 0o640),
            Action::Link(from, to) => self.link(from, to),
            Action::Unlink(at) => {
                if self.is_dir(self.find(at)?) {
                    return Err(Errno::ISDIR);
                }
                self.take(at)
            }
            Action::Rmdir(at) => {
                if !self.dir(self.find(at)?)?.is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
                self.take(at)
            }
            Action::Rename(from, to, flags) => self.rename(from, to, *flags),
            Action::Write(at, offset, data) => self.change(at, |bytes| write(bytes, *offset, data)),
            Action::Truncate(at, size) => self.change(at, |bytes| bytes.resize(*size as usize, 0)),
            Action::Chmod(at, mode) => self.set(at, |node| node.mode = *mode),
            Action::Chown(at, uid, gid) => self.set(at, |node| node.owner = (*uid, *gid)),
            Action::SetTimes(at, secs, nanos) => self.set(at, |node| node.mtime = Some((*secs, *nanos))),
            Action::SetXattr(at, name, value) => self.set(at, |node| {
                node.xattrs.insert(name.clone(), value.clone());
            }),
            Action::RemoveXattr(at, name) => {
                let id = self.find(at)?;
                self.get(id).xattrs.remove(name).map(drop).ok_or(Errno::NODATA)
            }
        }
    }

    fn set(&mut self, at: &[Name], change: impl FnOnce(&mut Node)) -> Result<(), Errno> {
        let id = self.find(at)?;
        change(self.get(id));
        Ok(())
    }

    fn change(&mut self, at: &[Name], change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Errno> {
        let id = self.find(at)?;
        self.change_file(id, change)
    }

    /// Changes the contents of a file, which may have no name any more.
    pub fn change_file(&mut self, id: u64, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Errno> {
        let node = self.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        match &mut node.body {
            Body::File(bytes) => {
                change(bytes);
                node.mtime = None;
                Ok(())
            }
            Body::Dir(_) => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    fn parent<'a>(&self, at: &'a [Name]) -> Result<(u64, &'a Name), Errno> {
        let (name, parent) = at.split_last().ok_or(Errno::EXIST)?;
        Ok((self.find(parent)?, name))
    }

    fn make(&mut self, at: &[Name], body: Body, mode: u32) -> Result<(), Errno> {
        let (parent, name) = self.parent(at)?;
        if self.dir(parent)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let id = self.add(body, mode);
        self.enter(parent, name, id);
        Ok(())
    }

    fn enter(&mut self, dir: u64, name: &Name, id: u64) {
        let node = self.get(dir);
        node.mtime = None;
        let Body::Dir(entries) = &mut node.body else { unreachable!("the caller looked") };
        entries.insert(name.clone(), id);
        self.get(id).links += 1;
    }

    /// Takes a name away. Nodes stay: a handle may have them.
    fn take(&mut self, at: &[Name]) -> Result<(), Errno> {
        let (parent, name) = self.parent(at)?;
        let node = self.get(parent);
        node.mtime = None;
        let Body::Dir(entries) = &mut node.body else { return Err(Errno::NOTDIR) };
        let id = entries.remove(name).ok_or(Errno::NOENT)?;
        self.get(id).links -= 1;
        Ok(())
    }

    fn link(&mut self, from: &[Name], to: &[Name]) -> Result<(), Errno> {
        let id = self.find(from)?;
        let (parent, name) = self.parent(to)?;
        if self.dir(parent)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        if self.is_dir(id) {
            return Err(Errno::PERM);
        }
        self.enter(parent, name, id);
        Ok(())
    }

    fn rename(&mut self, from: &[Name], to: &[Name], flags: RenameFlags) -> Result<(), Errno> {
        if from.is_empty() || to.is_empty() {
            return Err(Errno::BUSY);
        }
        let (id, (dir, name)) = (self.find(from)?, self.parent(to)?);
        self.dir(dir)?;
        let target = self.find(to).ok();
        if flags.contains(RenameFlags::NOREPLACE) && target.is_some() {
            return Err(Errno::EXIST);
        }
        if flags.contains(RenameFlags::EXCHANGE) && target.is_none() {
            return Err(Errno::NOENT);
        }
        if to.starts_with(from) && to != from {
            return Err(Errno::INVAL);
        }
        if from.starts_with(to) && to != from {
            return Err(if flags.contains(RenameFlags::EXCHANGE) { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if target == Some(id) {
            return Ok(());
        }
        let (source_dir, source_name) = self.parent(from)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            let target = target.ok_or(Errno::NOENT)?;
            self.take(from)?;
            self.take(to)?;
            self.enter(dir, name, id);
            self.enter(source_dir, source_name, target);
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_dir(id), self.is_dir(target)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.dir(target)?.is_empty() => return Err(Errno::NOTEMPTY),
                _ => self.take(to)?,
            }
        }
        self.take(from)?;
        self.enter(dir, name, id);
        if flags.contains(RenameFlags::WHITEOUT) {
            let zero = self.add(ZERO, 0);
            self.enter(source_dir, source_name, zero);
        }
        Ok(())
    }
}

/// Writes into contents as `pwrite(2)` does.
pub fn write(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    bytes.resize(bytes.len().max(end), 0);
    bytes[start..end].copy_from_slice(data);
}
