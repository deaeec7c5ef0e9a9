//! Extended attributes. What belongs to the upper's format is neither shown nor reachable; names that look like it are
//! stored escaped, so that an overlay can be built upon this one.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Union;
use super::blocks::CAPABILITY;
use super::copy_up::Keep;
use crate::error::{Error, Result};
use crate::inode::{Ino, ROOT};
use crate::upper::Spot;

impl Union {
    /// An extended attribute; ENODATA when there is none of this name.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let _names = self.names.read();
        let value = match self.attribute_place(ino)? {
            // What programs can't have is not there.
            Some(spot) => match self.upper()?.stored_name(name) {
                Ok(stored) => spot.xattr(&stored)?,
                Err(_) => None,
            },
            None => self.lower()?.xattr(ino, name)?,
        };
        value.ok_or(Error::Refused(Errno::NODATA))
    }

    /// The names of all extended attributes.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let _names = self.names.read();
        let Some(spot) = self.attribute_place(ino)? else {
            return Ok(self.lower()?.xattrs(ino)?.into_iter().map(|(name, _)| name).collect());
        };
        let upper = self.upper()?;
        Ok(spot.xattr_names()?.iter().filter_map(|name| upper.shown_name(name)).collect())
    }

    /// Sets an extended attribute, with the flags of setxattr(2).
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.upper()?;
        let flags = XattrFlags::from_bits(flags as u32).ok_or(Errno::INVAL)?;
        self.copy_up(ino, Keep::Attributes)?;
        if name == CAPABILITY {
            // What is copied later would take it away.
            self.finish_blocks(ino)?;
        }
        let _names = self.names.read();
        let spot = self.locate(ino)?.ok_or(Error::Stale { ino })?;
        Ok(spot.set_xattr(&self.upper()?.stored_name(name)?, value, flags)?)
    }

    /// Removes an extended attribute; ENODATA when there is none of this name.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.upper()?;
        if self.is_lower(ino) {
            // Nothing is copied up to learn that there is nothing to remove.
            self.getxattr(ino, name)?;
        }
        self.copy_up(ino, Keep::Attributes)?;
        let _names = self.names.read();
        let spot = self.locate(ino)?.ok_or(Error::Stale { ino })?;
        Ok(spot.remove_xattr(&self.upper()?.stored_name(name)?)?)
    }

    /// Where an inode's attributes are in the upper; `None`: they are the lower's.
    fn attribute_place(&self, ino: Ino) -> Result<Option<Spot>> {
        if ino == ROOT && *self.root_is_fresh.read() {
            return Ok(None);
        }
        self.locate(ino)
    }
}
