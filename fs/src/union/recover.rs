//! What a union learns from its upper when it starts: unfinished work of an earlier process, and, when it takes over a live
//! mount, every inode that the kernel may name.

use std::collections::HashSet;

use rustix::io::Errno;

use super::Union;
use super::copy_up::orphan_number;
use super::lookup::Seen;
use super::nodes::{Node, Place};
use super::partial::Partial;
use crate::error::{Error, Result};
use crate::inode::{Ino, ROOT};
use crate::upper::blocks::Record;
use crate::upper::{Marks, Spot, Upper, empty, read_dir};
use std::os::fd::AsFd as _;
use std::sync::Arc;

/// What was found to be copied in part.
#[derive(Default)]
struct Parts {
    found: Vec<Arc<Partial>>,
    /// The numbers of their maps, if all could be looked at.
    maps: Vec<u64>,
    complete: bool,
}

impl Union {
    /// For a mount that nobody used before: nothing without a name can be asked for, so it goes.
    pub fn begin(&self) -> Result<()> {
        match &self.upper {
            Some(upper) if !upper.is_shared => empty(&upper.orphans)?,
            _ => return Ok(()),
        }
        // What was copied in part is looked for, so that it becomes whole.
        if self.has_maps()? { self.recover() } else { Ok(()) }
    }

    /// For a mount that an earlier process served: learns every inode of the upper, and the open files without a name.
    pub fn recover(&self) -> Result<()> {
        self.adopt().map(drop)
    }

    /// The same; returns the files that are copied in part. Maps of files that are gone are removed.
    pub(super) fn adopt(&self) -> Result<Vec<Arc<Partial>>> {
        let Some(upper) = &self.upper else { return Ok(Vec::new()) };
        let _names = self.names.write();
        let mut parts = Parts { complete: true, ..Parts::default() };
        for (name, _, _) in read_dir(upper.orphans.as_fd())? {
            let Some(ino) = orphan_number(&name) else { continue };
            let spot = Spot::at(&upper.orphans, &name);
            let (fd, marks) = (spot.hold()?, upper.format.marks(&spot)?);
            let host = rustix::fs::fstat(&fd)?.st_ino;
            let node = Node { partial: marks.is_partial(), ..Node::new(Place::Orphan(fd, name), host, None) };
            self.nodes.lock().enter(ino, node).lookups = 1;
            self.adopt_part(ino, &spot, &marks, &mut parts);
        }
        let (mut dirs, mut entered) = (vec![ROOT], HashSet::from([ROOT]));
        while let Some(dir) = dirs.pop() {
            let Some(fd) = self.upper_dir(dir)? else { continue };
            for (name, _, _) in read_dir(fd.as_fd())? {
                let seen = match self.see(dir, &name) {
                    Err(error) => {
                        tracing::warn!(%error, name = %name.escape_ascii(), "an entry of the upper can't be used");
                        parts.complete = false;
                        continue;
                    }
                    Ok(seen) => seen,
                };
                if let Seen::Upper(entry) = seen {
                    if entry.is_dir() && !entered.insert(entry.ino) {
                        tracing::warn!(name = %name.escape_ascii(), "two directories of the upper show the same one of the lower");
                        parts.complete = false;
                        continue;
                    }
                    self.nodes.lock().enter(entry.ino, entry.node(dir, &name)).keep = true;
                    if entry.is_dir() {
                        dirs.push(entry.ino);
                    }
                    self.adopt_part(entry.ino, &entry.spot, &entry.marks, &mut parts);
                }
            }
        }
        // What could not be looked at may have any of them.
        if parts.complete {
            Union::sweep_maps(upper, &parts.maps)?;
        }
        Ok(parts.found)
    }

    /// Opens a partly copied file, so that it is made whole.
    fn adopt_part(&self, ino: Ino, spot: &Spot, marks: &Marks, parts: &mut Parts) {
        let Some(bytes) = &marks.blocks else { return };
        match Record::decode(bytes) {
            Some(record) => parts.maps.push(record.map),
            None => parts.complete = false,
        }
        match self.partial_of(ino, spot, marks) {
            Ok(found) => parts.found.extend(found),
            Err(error) => {
                tracing::warn!(%error, %ino, "a partly copied file can't be used");
                parts.complete = false;
            }
        }
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
