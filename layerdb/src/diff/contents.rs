//! What the tree of one layer holds, counted.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::tree::{Entered, FileKind, Tree};

/// Entries of a layer's tree by their kind. A file of several names counts once as what it is, and once for each further
/// name as a hard link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Directories, the root included.
    pub directories: u64,
    /// Directories that the layer has only because something in them is in it.
    pub implied: u64,
    /// Directories that hide what lower layers have in them.
    pub opaque: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes in regular files.
    pub file_bytes: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub special: u64,
    /// Names of lower layers that are hidden.
    pub whiteouts: u64,
}

impl Contents {
    /// Counts all of a layer's tree.
    pub fn of(tree: &Tree) -> Result<Contents> {
        let mut counted = Contents::default();
        let (mut entered, mut linked) = (Entered::of(tree), std::collections::HashSet::new());
        let mut directories = vec![tree.root()];
        while let Some(nid) = directories.pop() {
            let directory = tree.inode(nid)?;
            entered.enter(tree, &directory)?;
            counted.directories += 1;
            counted.implied += u64::from(tree.is_implied(&directory)?);
            counted.opaque += u64::from(tree.is_opaque(&directory)?);
            for entry in tree.entries(&directory, 0)? {
                let entry = entry?;
                if entry.kind == FileKind::Directory {
                    directories.push(entry.nid);
                    continue;
                }
                let inode = tree.inode(entry.nid)?;
                if inode.nlink > 1 && !inode.is_whiteout() && !linked.insert(entry.nid) {
                    counted.hard_links += 1;
                    continue;
                }
                match inode.kind {
                    FileKind::Regular => {
                        counted.files += 1;
                        counted.file_bytes += inode.size;
                    }
                    FileKind::Symlink => counted.symlinks += 1,
                    _ if inode.is_whiteout() => counted.whiteouts += 1,
                    _ => counted.special += 1,
                }
            }
        }
        Ok(counted)
    }
}
