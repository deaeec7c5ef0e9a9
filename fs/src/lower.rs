//! What lies below a union's upper: read-only, merged, and never changed while it is used.

mod dirs;
mod tree;

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use mica_layerdb::tree::{Nid, Tree};

use crate::error::{Error, Result};
use crate::inode::{Attr, FileKind, Ino};

pub use dirs::DirsLower;
pub(crate) use dirs::{LAYERS_MAX, Numbers};
pub use tree::TreeLower;

/// Whose attributes hold an overlay's marks: `trusted.overlay.*` as root writes them, or `user.overlay.*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `trusted.overlay.*`.
    Trusted,
    /// `user.overlay.*`.
    User,
}

/// What a directory is in a stack of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Shows what it has, and its whiteouts and opaque marks hide what is below.
    #[default]
    Layer,
    /// Shows nothing, but a file whose contents are elsewhere (`overlay.metacopy`) may have them there.
    Data,
}

/// An entry of a lower directory.
#[derive(Clone, Copy, Debug)]
pub struct LowerEntry<'a> {
    /// Name.
    pub name: &'a [u8],
    /// Number.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Where reading goes on behind this entry; above 0, ascending.
    pub cookie: u64,
}

/// The contents of a lower file, open for reading.
#[derive(Clone)]
pub enum LowerFile {
    /// A file of its own. `sealed` when nothing could write to it by way of this descriptor, the kernel included.
    File {
        /// The file, open for reading.
        file: Arc<File>,
        /// Whether it may be given to the kernel to be passed through.
        sealed: bool,
    },
    /// A range of a mapped tree.
    Inline {
        /// The tree.
        tree: Arc<Tree>,
        /// The file in it.
        nid: Nid,
    },
}

impl fmt::Debug for LowerFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LowerFile::File { file, sealed } => {
                out.debug_struct("File").field("file", file).field("sealed", sealed).finish()
            }
            LowerFile::Inline { nid, .. } => out.debug_struct("Inline").field("nid", nid).finish_non_exhaustive(),
        }
    }
}

impl LowerFile {
    /// Reads at `offset` into `buffer`; returns the number of bytes, short only at the end of the file.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        match self {
            LowerFile::File { file, .. } => read_full(file, offset, buffer),
            LowerFile::Inline { tree, nid } => {
                let inode = tree.inode(*nid)?;
                let mica_layerdb::tree::Content::Inline(bytes) = tree.content(&inode)? else {
                    return Err(Error::Refused(rustix::io::Errno::IO));
                };
                let rest = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
                let taken = rest.len().min(buffer.len());
                buffer[..taken].copy_from_slice(&rest[..taken]);
                Ok(taken)
            }
        }
    }
}

/// Reads until `buffer` is full or the file ends.
pub(crate) fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(done)
}

/// A merged, read-only tree. Its numbers are stable: the same in every mount of the same layers.
pub trait Lower: fmt::Debug + Send + Sync {
    /// The attributes of an inode.
    fn attr(&self, ino: Ino) -> Result<Attr>;

    /// The inode behind a name; `None` when the directory has no such name.
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Attr>>;

    /// Hands the entries behind `after` (0: all) to `each` until it returns true. Neither "." nor "..".
    fn entries(&self, dir: Ino, after: u64, each: &mut dyn FnMut(LowerEntry<'_>) -> Result<bool>) -> Result<()>;

    /// The target of a symbolic link.
    fn link_target(&self, ino: Ino) -> Result<Vec<u8>>;

    /// One extended attribute by its full name. What belongs to overlay formats is not visible.
    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>>;

    /// All extended attributes.
    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;

    /// Does what [`Lower::open`] of this file would take long for. To be called without locks.
    fn prepare(&self, ino: Ino) -> Result<()> {
        let _ = ino;
        Ok(())
    }

    /// Opens the contents of a regular file.
    fn open(&self, ino: Ino) -> Result<LowerFile>;

    /// The directory that holds the inode's first name.
    fn parent(&self, ino: Ino) -> Result<Ino>;

    /// The inode's first name; `None` for the root.
    fn name_of(&self, ino: Ino) -> Result<Option<Vec<u8>>>;

    /// Every name of an inode, with the directory that holds it.
    fn links(&self, ino: Ino) -> Result<Vec<(Ino, Vec<u8>)>>;

    /// Free space and name limits of the disk that holds the contents.
    fn statfs(&self) -> Result<rustix::fs::StatVfs>;

    /// The names that lead from the root to the inode.
    fn path_of(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let mut at = ino;
        while let Some(name) = self.name_of(at)? {
            names.push(name);
            at = self.parent(at)?;
        }
        names.reverse();
        Ok(names)
    }

    /// The inode that a path from the root names; no symbolic link is followed.
    fn resolve(&self, path: &[u8]) -> Result<Option<Attr>> {
        let mut at = self.attr(crate::inode::ROOT)?;
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            if !at.is_dir() {
                return Ok(None);
            }
            match self.lookup(at.ino, name)? {
                Some(found) => at = found,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}
