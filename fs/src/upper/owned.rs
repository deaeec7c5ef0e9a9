//! Attributes of what is in the upper, wherever owners and modes are kept.

use std::sync::Arc;

use rustix::fs::{Stat, XattrFlags};
use rustix::io::Errno;

use super::{Found, Spot, Upper};
use crate::inode::FileKind;
use crate::owners::{Owner, Owners};

impl Upper {
    /// Says where owners and modes are kept.
    #[must_use]
    pub fn with_owners(mut self, owners: Owners) -> Upper {
        self.owners = owners;
        self
    }

    /// Tells of an upper's root, if nothing does yet, that it is as `below`: that of the first layer that tells. Without one
    /// it belongs to root, and nobody writes to it.
    pub(crate) fn own_root(&self, below: Option<Owner>) -> Result<(), Errno> {
        let root = Spot::Fd(Arc::clone(&self.root));
        if self.tells_owners() && self.told(&root)?.is_none() {
            self.own(&root, &below.unwrap_or(Owner { uid: 0, gid: 0, mode: 0o555, kind: None }))?;
        }
        Ok(())
    }

    /// Whether the disk doesn't keep owners and modes, nor types that take privilege to make.
    pub(crate) fn tells_owners(&self) -> bool {
        self.owners != Owners::Disk
    }

    /// What is at `spot`; `None` when there is nothing.
    pub(crate) fn look(&self, spot: &Spot) -> Result<Option<Found>, Errno> {
        let mut found = self.format.look(spot)?;
        if let Some(Found::Entry(stat, _)) = &mut found {
            self.tell(spot, stat)?;
        }
        Ok(found)
    }

    /// What programs are to see of what is at `spot`.
    pub(crate) fn stat(&self, spot: &Spot) -> Result<Stat, Errno> {
        let mut stat = spot.stat()?;
        self.tell(spot, &mut stat)?;
        Ok(stat)
    }

    fn tell(&self, spot: &Spot, stat: &mut Stat) -> Result<(), Errno> {
        if let Some(owner) = self.told(spot)? {
            owner.apply(stat);
        }
        Ok(())
    }

    fn told(&self, spot: &Spot) -> Result<Option<Owner>, Errno> {
        let Some(attribute) = self.owners.attribute() else { return Ok(None) };
        spot.xattr(attribute)?.map(|value| Owner::parse(&value)).transpose()
    }

    /// Gives something an owner and permissions, and what it is meant to be where the disk has a regular file instead.
    /// Symbolic links have no permissions.
    pub(crate) fn own(&self, spot: &Spot, owner: &Owner) -> Result<(), Errno> {
        let Some(attribute) = self.owners.attribute() else {
            spot.chown(Some(owner.uid), Some(owner.gid))?;
            return match spot.chmod(owner.mode) {
                Err(Errno::OPNOTSUPP) => Ok(()),
                set => set,
            };
        };
        let kind = spot.stat()?.st_mode & libc::S_IFMT;
        if kind == libc::S_IFLNK {
            // No `user.` attribute fits it: it stays whose it is, unless this process may give it away.
            let told = match self.owners {
                Owners::Security => spot.set_xattr(attribute, &owner.value(), XattrFlags::empty()),
                _ => spot.chown(Some(owner.uid), Some(owner.gid)),
            };
            return match told {
                Err(Errno::PERM | Errno::INVAL) => Ok(()),
                told => told,
            };
        }
        spot.set_xattr(attribute, &owner.value(), XattrFlags::empty())?;
        spot.chmod(owner.mode_on_disk(kind))
    }

    /// Changes the owner, as chown(2): what set-user-id and capabilities gave is gone then.
    pub(crate) fn chown(&self, spot: &Spot, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        if !self.tells_owners() {
            return spot.chown(uid, gid);
        }
        let mut owner = self.owner(spot)?;
        owner.uid = uid.unwrap_or(owner.uid);
        owner.gid = gid.unwrap_or(owner.gid);
        if FileKind::from_mode(spot.stat()?.st_mode) != Some(FileKind::Directory) {
            owner.mode &= !libc::S_ISUID;
            if owner.mode & libc::S_IXGRP != 0 {
                owner.mode &= !libc::S_ISGID;
            }
            self.drop_capabilities(spot)?;
        }
        self.own(spot, &owner)
    }

    /// Changes the permissions, as chmod(2).
    pub(crate) fn chmod(&self, spot: &Spot, mode: u32) -> Result<(), Errno> {
        if !self.tells_owners() {
            return spot.chmod(mode);
        }
        self.own(spot, &Owner { mode: mode & 0o7777, ..self.owner(spot)? })
    }

    /// Takes the capabilities off a file that has some.
    pub(crate) fn drop_capabilities(&self, spot: &Spot) -> Result<(), Errno> {
        match spot.remove_xattr(&self.stored_name(b"security.capability")?) {
            // Where this process may not take them off (EPERM, also if there are none), the disk does at its writes.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
            removed => removed,
        }
    }

    fn owner(&self, spot: &Spot) -> Result<Owner, Errno> {
        match self.told(spot)? {
            Some(owner) => Ok(owner),
            None => Ok(Owner::of_stat(&spot.stat()?)),
        }
    }

    /// The target of a symbolic link, or of what is meant to be one.
    pub(crate) fn link_target(&self, spot: &Spot) -> Result<Vec<u8>, Errno> {
        match spot.link_target() {
            Err(Errno::INVAL) if self.told(spot)?.is_some_and(|owner| owner.is_symlink()) => {
                crate::owners::read_target(spot.open(rustix::fs::OFlags::RDONLY)?)
            }
            target => target,
        }
    }

    /// Under which name an attribute of programs is on the disk. Names that they can't have are EPERM.
    pub(crate) fn stored_name(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.owners.stored_name(self.format.stored_name(name))
    }

    /// The reverse; `None` for what is not shown.
    pub(crate) fn shown_name(&self, stored: &[u8]) -> Option<Vec<u8>> {
        self.owners.shown_name(self.format.shown_name(stored)?)
    }
}
