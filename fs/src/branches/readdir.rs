//! Reading directories: all branches are listed when reading begins, so that a program that goes on sees each name that was
//! there all the time exactly once.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Branches;
use crate::error::Result;
use crate::inode::{DirEntry, Fh, FileKind, Ino};
use crate::listing::{Listed, Listing, Look, read_dots, read_listing};
use crate::upper::read_dir;

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    pub(super) ino: Ino,
    listing: Mutex<Listing>,
}

impl Branches {
    /// Opens a directory for reading.
    pub fn opendir(&self, ino: Ino) -> Result<Fh> {
        let listing = Mutex::new(self.list_dir(ino)?);
        Ok(self.insert_dir(OpenDir { ino, listing }))
    }

    /// Ends a directory's handle.
    pub fn releasedir(&self, fh: Fh) {
        self.remove_dir(fh);
    }

    /// Makes a directory's entries durable.
    pub fn fsyncdir(&self, fh: Fh, data_only: bool) -> Result<()> {
        let ino = self.dir(fh)?.ino;
        let stack = self.stack.read();
        for part in self.parts(&stack, ino)?.iter() {
            if stack.position(part.branch).is_some_and(|at| stack.branches[at].is_writable()) {
                if data_only { rustix::fs::fdatasync(&part.fd)? } else { rustix::fs::fsync(&part.fd)? }
            }
        }
        Ok(())
    }

    /// Hands the entries behind `after` (0: from the start, read anew) to `each` until it returns false, as
    /// [`crate::union::Union::readdir`].
    pub fn readdir(&self, fh: Fh, after: u64, plus: bool, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let dir = self.dir(fh)?;
        if after == 0 {
            *dir.listing.lock() = self.list_dir(dir.ino)?;
        }
        let up = || Ok(self.nodes.lock().get(dir.ino)?.names.first().map_or(dir.ino, |(parent, _)| *parent));
        if !read_dots(dir.ino, up, after, each)? {
            return Ok(());
        }
        let listing = Arc::clone(&dir.listing.lock());
        let look = |name: &[u8]| self.lookup(dir.ino, name);
        read_listing(&listing, after, plus.then_some(&look as Look<'_>), &|ino| self.forget(ino, 1), each);
        Ok(())
    }

    /// The names that show in a directory.
    fn list_dir(&self, ino: Ino) -> Result<Listing> {
        let stack = self.stack.read();
        let (mut known, mut listed) = (HashSet::new(), Vec::new());
        for part in self.parts(&stack, ino)?.iter() {
            for (name, _, _) in read_dir(part.fd.as_fd())? {
                if !known.insert(name.clone()) {
                    continue;
                }
                let seen = self.see(&stack, ino, &name)?;
                let Some(hit) = seen.hits.first() else { continue };
                let kind =
                    if hit.marks.device { Some(FileKind::CharDevice) } else { FileKind::from_mode(hit.stat.st_mode) };
                if let Some(kind) = kind {
                    listed.push(Listed { ino: self.number(&stack, ino, &name, hit), name, kind });
                }
            }
        }
        Ok(Arc::new(listed))
    }
}
