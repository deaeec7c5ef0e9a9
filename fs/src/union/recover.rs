//! What a union learns from its upper when it starts: unfinished work of an earlier process, and, when it takes over a live
//! mount, every inode that the kernel may name.

use std::collections::HashSet;

use rustix::io::Errno;

use super::Union;
use super::copy_up::orphan_number;
use super::lookup::Seen;
use super::nodes::{Node, Place};
use crate::error::{Error, Result};
use crate::inode::{Ino, ROOT};
use crate::upper::{Spot, Upper, empty, read_dir};
use std::os::fd::AsFd as _;

impl Union {
    /// For a mount that nobody used before: nothing without a name can be asked for, so it goes.
    pub fn begin(&self) -> Result<()> {
        match &self.upper {
            Some(upper) if !upper.is_shared => Ok(empty(&upper.orphans)?),
            _ => Ok(()),
        }
    }

    /// For a mount that an earlier process served: learns every inode of the upper, and the open files without a name.
    pub fn recover(&self) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let _names = self.names.write();
        for (name, _, _) in read_dir(upper.orphans.as_fd())? {
            let Some(ino) = orphan_number(&name) else { continue };
            let spot = Spot::at(&upper.orphans, &name);
            let (fd, partial) = (spot.hold()?, upper.format.marks(&spot)?.metacopy);
            let host = rustix::fs::fstat(&fd)?.st_ino;
            let node = Node { partial, ..Node::new(Place::Orphan(fd, name), host, None) };
            self.nodes.lock().enter(ino, node).lookups = 1;
        }
        let (mut dirs, mut entered) = (vec![ROOT], HashSet::from([ROOT]));
        while let Some(dir) = dirs.pop() {
            let Some(fd) = self.upper_dir(dir)? else { continue };
            for (name, _, _) in read_dir(fd.as_fd())? {
                let seen = match self.see(dir, &name) {
                    Err(error) => {
                        tracing::warn!(%error, name = %name.escape_ascii(), "an entry of the upper can't be used");
                        continue;
                    }
                    Ok(seen) => seen,
                };
                if let Seen::Upper(entry) = seen {
                    if entry.is_dir() && !entered.insert(entry.ino) {
                        tracing::warn!(name = %name.escape_ascii(), "two directories of the upper show the same one of the lower");
                        continue;
                    }
                    self.nodes.lock().enter(entry.ino, entry.node(dir, &name)).keep = true;
                    if entry.is_dir() {
                        dirs.push(entry.ino);
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the names that an interrupted copy-up of a file of several names still owes.
    pub(super) fn finish_links(&self) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let owed = read_dir(upper.links.as_fd())?;
        if owed.is_empty() {
            return Ok(());
        }
        // Lower inodes find their places by the directories that were moved.
        self.recover()?;
        for (name, _, _) in owed {
            let intent = Spot::at(&upper.links, &name);
            if let Some(ino) = orphan_number(&name) {
                self.finish_names(upper, ino, &intent)?;
            }
            Upper::discard(&intent)?;
        }
        Ok(())
    }

    fn finish_names(&self, upper: &Upper, ino: Ino, intent: &Spot) -> Result<()> {
        let links = match self.lower()?.links(ino) {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!(%error, %ino, "an unfinished copy-up of a file that the lower does not have is dropped");
                return Ok(());
            }
        };
        for (parent, name) in links {
            match self.copy_up_parent(parent) {
                Err(Error::Refused(Errno::NOENT)) => continue,
                copied => copied?,
            }
            let _names = self.names.write();
            if matches!(self.see(parent, &name)?, Seen::Lower(attr) if attr.ino == ino) {
                self.add_name(upper, intent, parent, &name)?;
            }
        }
        Ok(())
    }

    /// How many upper inodes are known; for tests and measurements.
    pub fn known_inodes(&self) -> usize {
        self.nodes.lock().numbers().len()
    }
}
