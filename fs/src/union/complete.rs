//! Files of the upper whose contents are still in the lower.
//!
//! Kernel overlayfs leaves such ones where only a file's attributes were changed (`metacopy=on`). They are what stat(2)
//! says they are; the first who opens, renames or links one has its contents copied, in place, and then the marks removed: until
//! then the lower's contents count, whatever was copied of them.

use std::fs::File;

use rustix::fs::{OFlags, Timestamps, XattrFlags};

use super::Union;
use super::copy_up::{copy_contents, times_of};
use super::lookup::Seen;
use super::nodes::Place;
use crate::error::{Error, Result};
use crate::inode::{Attr, FileKind, Ino};
use crate::upper::{Mark, Marks};

const CAPABILITY: &[u8] = b"security.capability";

impl Union {
    /// Makes sure that an upper file has its contents itself. The caller holds no lock.
    pub(super) fn complete(&self, ino: Ino) -> Result<()> {
        let partial = || self.nodes.lock().get(ino).is_some_and(|node| node.partial);
        if !partial() {
            return Ok(());
        }
        let _turn = self.stripe(ino).lock();
        if !partial() {
            return Ok(());
        }
        let (spot, marks, original) = {
            let _names = self.names.read();
            let spot = self.locate(ino)?.ok_or(Error::Stale { ino })?;
            let marks = self.upper()?.format.marks(&spot)?;
            let original = self.original(ino, &marks)?;
            (spot, marks, original)
        };
        if marks.metacopy {
            let size = spot.stat()?.st_size as u64;
            let times: Timestamps = times_of(&spot)?;
            let capability = spot.xattr(CAPABILITY)?;
            let lower = self.lower()?;
            lower.prepare(original.ino)?;
            let file = File::from(spot.open(OFlags::WRONLY)?);
            copy_contents(&lower.open(original.ino)?, size.min(original.size), &file)?;
            // Only what was there is cut off at the end of the original.
            rustix::fs::ftruncate(&file, size)?;
            if let Some(capability) = capability {
                // Writing has taken it away.
                spot.set_xattr(CAPABILITY, &capability, XattrFlags::empty())?;
            }
            spot.set_times(&times)?;
            rustix::fs::fsync(&file)?;
            let format = self.upper()?.format;
            for mark in [Mark::Metacopy, Mark::Redirect] {
                match spot.remove_xattr(format.name(mark).as_bytes()) {
                    Err(rustix::io::Errno::NODATA) => {}
                    removed => removed?,
                }
            }
        }
        if let Some(node) = self.nodes.lock().get_mut(ino) {
            node.partial = false;
        }
        Ok(())
    }

    /// [`Union::complete`] of what is under a name, if it is in the upper.
    pub(super) fn complete_name(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let entry = {
            let _names = self.names.read();
            match self.see(parent, name)? {
                Seen::Upper(entry) if entry.marks.metacopy => entry,
                _ => return Ok(()),
            }
        };
        self.nodes.lock().enter(entry.ino, entry.node(parent, name));
        self.complete(entry.ino)
    }

    /// The file of the lower that has the contents. The caller holds `names`.
    fn original(&self, ino: Ino, marks: &Marks) -> Result<Attr> {
        let place = self.nodes.lock().get(ino).map(|node| node.place.clone());
        let found = match (&marks.redirect, place) {
            (Some(path), _) if path.starts_with(b"/") => self.lower()?.resolve(path)?,
            (redirect, Some(Place::Named(names))) => match names.first() {
                Some((parent, name)) => self.see_lower(*parent, redirect.as_deref().unwrap_or(name))?,
                None => None,
            },
            _ => None,
        };
        found.filter(|attr| attr.kind == FileKind::Regular || !marks.metacopy).ok_or_else(|| {
            tracing::error!(%ino, "a file of the upper has its contents (metacopy) in a place of the lower that has no file");
            Error::Refused(rustix::io::Errno::IO)
        })
    }
}
