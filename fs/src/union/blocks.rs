//! Copying a large file up block by block: what decides that, where the parts are, and who knows them.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Weak};

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::Union;
use super::partial::Partial;
use crate::error::{Error, Result};
use crate::inode::{Attr, FileKind, Ino};
use crate::lower::LowerFile;
use crate::upper::blocks::{Map, Record};
use crate::upper::{Mark, Marks, Spot, Upper, read_dir};

pub(super) const CAPABILITY: &[u8] = b"security.capability";
/// A redirect that names no file, so that neither the kernel's overlayfs nor a union that has this upper among its
/// layers takes what is in the lower, or the zeros that stand for it, for the contents.
const NOWHERE: &[u8] = b"/";

impl Union {
    /// Lets the upper file at `made`, which has or will have the size of `original` and nothing else, take only the blocks that
    /// change. False if it had better be copied whole: its blocks can be shared, or the upper can't hold such files.
    pub(super) fn refer_blocks(&self, upper: &Upper, original: &Attr, made: &Spot, new: &File) -> Result<bool> {
        let Some(how) = upper.block_copy.filter(|how| original.size >= how.from_bytes) else { return Ok(false) };
        let privileged = original.mode & (libc::S_ISUID | libc::S_ISGID) != 0 || made.xattr(CAPABILITY)?.is_some();
        if privileged || upper.tells_owners() || upper.is_shared || !(upper.keeps_order || how.force) {
            // Copying takes privileges away, and what is copied later must not.
            return Ok(false);
        }
        let lower = self.lower()?;
        if lower.xattr(original.ino, CAPABILITY)?.is_some() {
            return Ok(false);
        }
        let LowerFile::File { file, .. } = lower.open(original.ino)? else { return Ok(false) };
        if !how.force && rustix::fs::ioctl_ficlone(new, file.as_fd()).is_ok() {
            return Ok(false);
        }
        let mut path = Vec::new();
        for name in lower.path_of(original.ino)? {
            path.push(b'/');
            path.extend_from_slice(&name);
        }
        let (number, _) = Map::create(&upper.maps, original.size)?;
        let &Attr { size, mtime, .. } = original;
        let host = made.stat()?.st_ino;
        let record = Record { valid: size, map: number, map_is_durable: false, host, size, mtime, path };
        let marked = made.set_xattr(upper.format.name(Mark::Blocks).as_bytes(), &record.encode(), XattrFlags::empty());
        if let Err(errno) = marked {
            Map::remove(&upper.maps, number)?;
            return match errno {
                Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::OPNOTSUPP | Errno::PERM => Ok(false),
                errno => Err(errno.into()),
            };
        }
        upper.format.set(made, Mark::Redirect, NOWHERE)?;
        upper.format.set(made, Mark::Metacopy, b"")?;
        Ok(true)
    }

    /// The blocks of an upper inode at its place, if it is copied in part. The caller holds `names`.
    pub(super) fn partial_at(&self, ino: Ino, spot: &Spot) -> Result<Option<Arc<Partial>>> {
        if !self.is_partial(ino) {
            return Ok(None);
        }
        let marks = self.upper()?.format.marks(spot)?;
        self.partial_of(ino, spot, &marks)
    }

    /// The same, once its marks were read.
    pub(super) fn partial_of(&self, ino: Ino, spot: &Spot, marks: &Marks) -> Result<Option<Arc<Partial>>> {
        let Some(bytes) = &marks.blocks else { return Ok(None) };
        // One for all who use the file: they share its bits.
        let mut partials = self.partials.lock();
        if let Some(known) = partials.get(&ino).and_then(Weak::upgrade) {
            return Ok(Some(known));
        }
        let upper = self.upper()?;
        if upper.is_shared {
            // The other union has bits that nobody else knows.
            return Err(damaged(ino, "a partly copied file is in an upper that another mount has"));
        }
        let file = File::from(spot.open(OFlags::RDWR)?);
        let (record, original) = self.recorded(ino, bytes, rustix::fs::fstat(&file)?.st_ino)?;
        let map = match Map::open(&upper.maps, &record)? {
            Some(map) => (map, record),
            None if record.map_is_durable => return Err(damaged(ino, "the map of a partly copied file is missing")),
            None => {
                // A crash took it before anything in it counted.
                let (number, map) = Map::create(&upper.maps, record.size)?;
                let record = Record { map: number, ..record };
                let name = upper.format.name(Mark::Blocks);
                rustix::fs::fsetxattr(&file, name, &record.encode(), XattrFlags::empty())?;
                (map, record)
            }
        };
        let (map, record) = map;
        let lower = self.lower()?.open(original)?;
        let maps = Arc::clone(&upper.maps);
        let partial = Arc::new(Partial::open(Arc::new(file), lower, (map, maps), record, upper.format)?);
        partials.retain(|_, known| known.strong_count() > 0);
        partials.insert(ino, Arc::downgrade(&partial));
        self.filler.add(&partial);
        Ok(Some(partial))
    }

    /// The blocks of a partly copied file that somebody uses.
    pub(super) fn open_partial(&self, ino: Ino) -> Option<Arc<Partial>> {
        self.partials.lock().get(&ino).and_then(Weak::upgrade)
    }

    /// What a record says, and the file of the lower that it speaks of.
    pub(super) fn recorded(&self, ino: Ino, bytes: &[u8], host: u64) -> Result<(Record, Ino)> {
        let record = Record::decode(bytes)
            .ok_or_else(|| damaged(ino, "a partly copied file has marks that this program doesn't know"))?;
        if record.host != host {
            return Err(damaged(ino, "a partly copied file was copied by another program"));
        }
        let original = self.lower()?.resolve(&record.path)?;
        let original = original.filter(|attr| attr.kind == FileKind::Regular && record.is_of(attr));
        let original =
            original.ok_or_else(|| damaged(ino, "the lower's file has changed of which blocks are missing"))?;
        Ok((record, original.ino))
    }

    /// Makes sure that a partly copied file is whole. The caller holds no lock.
    pub(super) fn finish_blocks(&self, ino: Ino) -> Result<()> {
        let partial = {
            let _names = self.names.read();
            let Some(spot) = self.locate(ino)? else { return Ok(()) };
            self.partial_at(ino, &spot)?
        };
        partial.map_or(Ok(()), |partial| partial.finish())
    }

    /// Makes every partly copied file whole, so that the upper can be read without Mica but for contents that were left in
    /// the lower. For uppers that nobody changes meanwhile.
    pub fn settle(&self) -> Result<()> {
        for partial in self.adopt()? {
            partial.finish()?;
        }
        Ok(())
    }

    /// Ends the work in the background and makes durable what was written to partly copied files: from now on another
    /// process may serve the upper.
    pub(crate) fn rest(&self) {
        self.filler.stop();
    }

    /// Whether there are maps, and so perhaps partly copied files.
    pub(super) fn has_maps(&self) -> Result<bool> {
        Ok(match &self.upper {
            Some(upper) => !read_dir(upper.maps.as_fd())?.is_empty(),
            None => false,
        })
    }

    /// Removes the maps of files that are gone; `used` are those of the others.
    pub(super) fn sweep_maps(upper: &Upper, used: &[u64]) -> Result<()> {
        for (name, _, _) in read_dir(upper.maps.as_fd())? {
            if let Some(number) = Map::number(&name)
                && !used.contains(&number)
            {
                Map::remove(&upper.maps, number)?;
            }
        }
        Ok(())
    }
}

fn damaged(ino: Ino, reason: &str) -> Error {
    tracing::error!(%ino, reason);
    Error::Refused(Errno::IO)
}
