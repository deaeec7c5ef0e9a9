//! A directory tree in memory, and the smallest changes that a disk may have made or not.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::digest::{Digest, Hasher};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// Index of a node in its image. The same in all images of one recording.
pub(super) type NodeNumber = usize;

/// Where the root is.
pub(super) const ROOT: NodeNumber = 0;

/// Files and directories as they could be found after a power cut. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Image {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
struct Node {
    mode: u32,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    /// Not made yet.
    None,
    Directory(Arc<BTreeMap<OsString, NodeNumber>>),
    File(Arc<Bytes>),
}

#[derive(Debug, Default)]
struct Bytes {
    bytes: Vec<u8>,
    digest: OnceLock<Digest>,
}

/// A change that happens or doesn't, as far as a power cut is concerned.
#[derive(Clone, Debug)]
pub(super) enum Atom {
    Link {
        dir: NodeNumber,
        name: OsString,
        node: NodeNumber,
    },
    Unlink {
        dir: NodeNumber,
        name: OsString,
    },
    /// Within one directory.
    Move {
        dir: NodeNumber,
        from: OsString,
        to: OsString,
        node: NodeNumber,
    },
    Mode {
        node: NodeNumber,
        mode: u32,
    },
    Write {
        node: NodeNumber,
        at: u64,
        bytes: Arc<Vec<u8>>,
    },
    Truncate {
        node: NodeNumber,
        length: u64,
    },
}

impl Atom {
    /// The file or directory whose sync settles it.
    pub(super) fn settled_by(&self) -> NodeNumber {
        match self {
            Atom::Link { dir, .. } | Atom::Unlink { dir, .. } | Atom::Move { dir, .. } => *dir,
            Atom::Mode { node, .. } | Atom::Write { node, .. } | Atom::Truncate { node, .. } => *node,
        }
    }

    /// True if it concerns a file's bytes.
    pub(super) fn is_data(&self) -> bool {
        matches!(self, Atom::Write { .. } | Atom::Truncate { .. })
    }

    /// The same length, other bytes.
    pub(super) fn zeroed(&self) -> Atom {
        match self {
            Atom::Write { node, at, bytes } => {
                Atom::Write { node: *node, at: *at, bytes: Arc::new(vec![0; bytes.len()]) }
            }
            other => other.clone(),
        }
    }

    /// The write up to a byte.
    pub(super) fn torn(&self, length: usize) -> Atom {
        match self {
            Atom::Write { node, at, bytes } => {
                Atom::Write { node: *node, at: *at, bytes: Arc::new(bytes[..length].to_vec()) }
            }
            other => other.clone(),
        }
    }
}

impl Image {
    /// Only an empty root.
    fn empty() -> Image {
        Image { nodes: vec![Node { mode: 0o711, body: Body::Directory(Arc::default()) }] }
    }

    /// What a directory holds, and the numbers of its files by inode number.
    pub(super) fn load(root: &Path) -> io::Result<(Image, HashMap<u64, super::FileNumber>)> {
        let (mut image, mut files) = (Image::empty(), HashMap::new());
        let disk = crate::disk::RealDisk::open(root)?;
        let mut pending = vec![(PathBuf::from("."), ROOT)];
        while let Some((path, dir)) = pending.pop() {
            for name in crate::disk::list(&disk, &path)? {
                let path = path.join(&name);
                let Some(stat) = crate::disk::stat(&disk, &path)? else { continue };
                let node = image.nodes.len();
                image.make(node, stat.st_mode & 0o7777, rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
                image.apply(&Atom::Link { dir, name, node });
                if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
                    pending.push((path, node));
                } else if let Some(mut file) = crate::disk::open(&disk, &path)? {
                    let mut bytes = Vec::new();
                    io::Read::read_to_end(&mut file, &mut bytes)?;
                    image.apply(&Atom::Write { node, at: 0, bytes: Arc::new(bytes) });
                    files.insert(stat.st_ino, super::FileNumber(node));
                }
            }
        }
        Ok((image, files))
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Brings a node into being, without a name.
    pub(super) fn make(&mut self, node: NodeNumber, mode: u32, directory: bool) {
        let body = if directory { Body::Directory(Arc::default()) } else { Body::File(Arc::default()) };
        if self.nodes.len() <= node {
            self.nodes.resize(node + 1, Node { mode: 0, body: Body::None });
        }
        self.nodes[node] = Node { mode, body };
    }

    pub(super) fn apply(&mut self, atom: &Atom) {
        match atom {
            Atom::Link { dir, name, node } => {
                self.names(*dir, |names| names.insert(name.clone(), *node));
            }
            Atom::Unlink { dir, name } => {
                self.names(*dir, |names| names.remove(name));
            }
            Atom::Move { dir, from, to, node } => {
                self.names(*dir, |names| {
                    names.remove(from);
                    names.insert(to.clone(), *node)
                });
            }
            Atom::Mode { node, mode } => self.nodes[*node].mode = *mode,
            Atom::Write { node, at, bytes } => self.edit(*node, |file| {
                let end = *at as usize + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*at as usize..end].copy_from_slice(bytes);
            }),
            Atom::Truncate { node, length } => self.edit(*node, |file| file.resize(*length as usize, 0)),
        }
    }

    fn names<R>(&mut self, dir: NodeNumber, change: impl FnOnce(&mut BTreeMap<OsString, NodeNumber>) -> R) {
        if let Body::Directory(names) = &mut self.nodes[dir].body {
            change(Arc::make_mut(names));
        }
    }

    fn edit(&mut self, node: NodeNumber, change: impl FnOnce(&mut Vec<u8>)) {
        if let Body::File(file) = &mut self.nodes[node].body {
            if let Some(file) = Arc::get_mut(file) {
                change(&mut file.bytes);
                file.digest = OnceLock::new();
            } else {
                let mut bytes = file.bytes.clone();
                change(&mut bytes);
                *file = Arc::new(Bytes { bytes, digest: OnceLock::new() });
            }
        }
    }

    /// The node at a path. `None` if there is none.
    pub(super) fn find(&self, path: &Path) -> Option<NodeNumber> {
        let mut node = ROOT;
        for part in path.components() {
            if let std::path::Component::Normal(name) = part {
                let Body::Directory(names) = &self.nodes[node].body else { return None };
                node = *names.get(name)?;
            }
        }
        Some(node)
    }

    /// The directory that holds a path's last name, and that name.
    pub(super) fn parent<'a>(&self, path: &'a Path) -> Option<(NodeNumber, &'a OsStr)> {
        Some((self.find(path.parent()?)?, path.file_name()?))
    }

    /// A file's bytes. `None` if there is no such file.
    pub fn read(&self, path: &Path) -> Option<&[u8]> {
        match &self.nodes[self.find(path)?].body {
            Body::File(file) => Some(&file.bytes),
            _ => None,
        }
    }

    /// Distinguishes this image from all others.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        self.each(|path, node| {
            hasher.update(path.as_os_str().as_bytes());
            hasher.update(&node.mode.to_le_bytes());
            if let Body::File(file) = &node.body {
                hasher.update(file.digest.get_or_init(|| Digest::of(&file.bytes)).as_bytes());
            }
        });
        hasher.finish()
    }

    /// Paths whose files, modes or presence differ.
    pub fn differences(&self, other: &Image) -> Vec<PathBuf> {
        let listed = |image: &Image| {
            let mut all = BTreeMap::new();
            image.each(|path, node| {
                let file = match &node.body {
                    Body::File(file) => Some(Digest::of(&file.bytes)),
                    _ => None,
                };
                all.insert(path.to_path_buf(), (node.mode, file));
            });
            all
        };
        let (ours, theirs) = (listed(self), listed(other));
        let differ = |path: &&PathBuf| ours.get(*path) != theirs.get(*path);
        let mut paths: Vec<PathBuf> = ours.keys().chain(theirs.keys()).filter(differ).cloned().collect();
        paths.sort();
        paths.dedup();
        paths
    }

    fn each(&self, mut visit: impl FnMut(&Path, &Node)) {
        let mut pending = vec![(PathBuf::new(), ROOT)];
        while let Some((path, number)) = pending.pop() {
            let node = &self.nodes[number];
            visit(&path, node);
            if let Body::Directory(names) = &node.body {
                pending.extend(names.iter().map(|(name, node)| (path.join(name), *node)));
            }
        }
    }

    /// Puts everything into a directory that is empty.
    pub fn materialize(&self, root: &Path) -> io::Result<()> {
        let mut result = Ok(());
        self.each(|path, node| {
            if result.is_ok() {
                result = put(&root.join(path), node, path.as_os_str().is_empty());
            }
        });
        result
    }
}

fn put(path: &Path, node: &Node, is_root: bool) -> io::Result<()> {
    let mode = Mode::from_raw_mode(node.mode);
    match &node.body {
        Body::None => {}
        Body::Directory(_) if is_root => {}
        Body::Directory(_) => {
            rustix::fs::mkdirat(CWD, path, Mode::RWXU)?;
            rustix::fs::chmodat(CWD, path, mode, AtFlags::empty())?;
        }
        Body::File(file) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let descriptor = rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)?;
            io::Write::write_all(&mut std::fs::File::from(descriptor), &file.bytes)?;
            rustix::fs::chmodat(CWD, path, mode, AtFlags::empty())?;
        }
    }
    Ok(())
}
