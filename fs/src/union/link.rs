//! Hard links and symbolic links' targets.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::copy_up::Keep;
use super::lookup::Seen;
use super::nodes::{Node, Place};
use super::{Union, valid_name};
use crate::error::{Error, Result};
use crate::inode::{Attr, Ino};
use crate::upper::{Spot, Upper};

impl Union {
    /// Gives an inode one more name.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.upper()?;
        valid_name(name)?;
        self.copy_up_parent(parent)?;
        self.copy_up(ino, Keep::Attributes)?;
        self.anchor(ino)?;
        let _names = self.names.write();
        let upper = self.upper()?;
        let dir = self.upper_dir(parent)?.ok_or(Error::Stale { ino: parent })?;
        let from = self.locate(ino)?.ok_or(Error::Stale { ino })?;
        let seen = self.see(parent, name)?;
        if !ino.is_upper() || upper.format.marks(&from)?.device {
            self.mark_impure(upper, parent)?;
        }
        match seen {
            Seen::Upper(_) | Seen::Lower(_) => return Err(Errno::EXIST.into()),
            Seen::Nothing => from.link_to(&dir, name)?,
            Seen::Whiteout => {
                let made = upper.temporary();
                let Spot::At(tmp, tmp_name) = &made else { return Err(Errno::INVAL.into()) };
                from.link_to(tmp, tmp_name)?;
                if let Err(errno) = Upper::rename(&made, &Spot::at(&dir, name), RenameFlags::empty()) {
                    Upper::discard(&made)?;
                    return Err(errno.into());
                }
            }
        }
        let mut nodes = self.nodes.lock();
        let known = nodes.get(ino).map(|node| (node.host, node.lower, node.lookups));
        let (host, lower, lookups) = known.ok_or(Error::Stale { ino })?;
        if nodes.get(ino).is_some_and(|node| matches!(node.place, Place::Held(_) | Place::Orphan(..))) {
            let mut node = Node::named(parent, name, host, lower);
            node.lookups = lookups;
            nodes.replace(ino, node);
        } else {
            nodes.enter(ino, Node::named(parent, name, host, lower));
        }
        if let Some(node) = nodes.get_mut(ino) {
            node.lookups += 1;
        }
        drop(nodes);
        self.attr_at(ino, &Spot::At(dir, name.to_vec()))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let _names = self.names.read();
        match self.locate(ino)? {
            Some(spot) => Ok(self.upper()?.link_target(&spot)?),
            None => self.lower()?.link_target(ino),
        }
    }
}
