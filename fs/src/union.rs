//! A union: a read-only lower, and an upper that takes every change.
//!
//! One file per family of operations; `lookup` is where to start. What the kernel knows as an inode is one of three:
//!
//! * a *lower* inode, which nobody changed: its number is its place in the lower, and there is no state for it here;
//! * an *upper* inode: a [`nodes::Node`] says where on the disk it is. One that was copied up keeps its lower number;
//! * a *removed* inode without a name, until the kernel forgets it.
//!
//! # Locks, in order
//!
//! 1. `stripes`: copying up one inode (a stripe is never held while another is taken);
//! 2. `names`: shared by what finds an inode by its name on the disk and uses it, exclusive for what changes the names of
//!    upper inodes that exist. Never held while contents are copied;
//! 3. `partials`: opening a partly copied file; then the locks within it (`partial`);
//! 4. `nodes`, `opens`, `handles`, `directories`: tables, held for a lookup in them alone.

pub(crate) mod acl;
pub(crate) mod attr;
mod blocks;
mod complete;
pub(crate) mod copy_up;
pub(crate) mod create;
mod filler;
mod link;
mod lookup;
mod nodes;
pub(crate) mod open;
mod partial;
mod readdir;
mod recover;
mod rename;
mod unlink;
mod xattr;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, StatVfs};
use rustix::io::Errno;

use crate::cache::cache_of;
use crate::error::{Error, Result};
use crate::inode::{Ino, ROOT};
use crate::lower::Lower;
use crate::upper::{DIRECTORY, Spot, Upper};
use filler::Filler;
use nodes::{Nodes, Place};
use open::{Handles, Opens};
use partial::Partial;

pub use open::{Backing, BackingPlace};

/// Descriptors of upper directories that are kept open.
const DIRECTORIES: usize = 256;
/// Inodes are copied up one at a time per stripe.
const STRIPES: usize = 64;

/// Where the lower comes from.
pub enum Below {
    /// It is there.
    Ready(Arc<dyn Lower>),
    /// It is found out when something below the upper is needed for the first time. A failure is not kept.
    Lazy(Box<dyn Fn() -> Result<Arc<dyn Lower>> + Send + Sync>),
}

impl fmt::Debug for Below {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Below::Ready(lower) => out.debug_tuple("Ready").field(lower).finish(),
            Below::Lazy(_) => out.write_str("Lazy"),
        }
    }
}

/// The union of a lower and, unless it is read-only, an upper. All operations may be called from many threads.
#[derive(Debug)]
pub struct Union {
    below: Below,
    resolved: OnceLock<Arc<dyn Lower>>,
    resolving: Mutex<()>,
    upper: Option<Upper>,
    /// Whether the upper's root still stands in for the lower's; see [`Upper::with_fresh_root`].
    root_is_fresh: RwLock<bool>,
    nodes: Mutex<Nodes>,
    /// Lower inodes without a name that the kernel may still have.
    removed: Mutex<HashSet<Ino>>,
    opens: Mutex<Opens>,
    handles: RwLock<Handles>,
    directories: Mutex<LruCache<Ino, Arc<OwnedFd>>>,
    /// The partly copied files that somebody uses.
    partials: Mutex<HashMap<Ino, Weak<Partial>>>,
    filler: Filler,
    names: RwLock<()>,
    stripes: [Mutex<()>; STRIPES],
}

impl Union {
    /// The union of `below` and `upper`. Without an upper every change is refused as by a read-only filesystem (EROFS).
    pub fn new(below: Below, upper: Option<Upper>) -> Result<Union> {
        let root_is_fresh = match &upper {
            Some(upper) if upper.fresh_root => !upper.format.marks(&Spot::Fd(Arc::clone(&upper.root)))?.taken_over,
            _ => false,
        };
        let capacity = NonZeroUsize::new(DIRECTORIES).unwrap_or(NonZeroUsize::MIN);
        let filler = Filler::new(upper.as_ref().and_then(|upper| upper.block_copy).unwrap_or_default());
        let union = Union {
            below,
            resolved: OnceLock::new(),
            resolving: Mutex::default(),
            nodes: Mutex::new(Nodes::new(upper.is_some())),
            upper,
            root_is_fresh: RwLock::new(root_is_fresh),
            removed: Mutex::default(),
            opens: Mutex::default(),
            handles: RwLock::default(),
            directories: Mutex::new(cache_of(capacity)),
            partials: Mutex::default(),
            filler,
            names: RwLock::default(),
            stripes: std::array::from_fn(|_| Mutex::default()),
        };
        union.finish_links()?;
        Ok(union)
    }

    /// Whether there is no upper.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Whether an inode is still the lower's.
    pub fn is_lower(&self, ino: Ino) -> bool {
        !self.nodes.lock().contains(ino)
    }

    /// Space and limits of the disk that takes the changes, or of the lower's when nothing can change (statvfs(3)).
    pub fn statfs(&self) -> Result<StatVfs> {
        match &self.upper {
            Some(upper) => Ok(rustix::fs::fstatvfs(&upper.root)?),
            None => self.lower()?.statfs(),
        }
    }

    fn lower(&self) -> Result<&Arc<dyn Lower>> {
        if let Some(lower) = self.resolved.get() {
            return Ok(lower);
        }
        let found = match &self.below {
            Below::Ready(lower) => Arc::clone(lower),
            Below::Lazy(resolve) => {
                let _one = self.resolving.lock();
                if let Some(lower) = self.resolved.get() {
                    return Ok(lower);
                }
                resolve()?
            }
        };
        Ok(self.resolved.get_or_init(|| found))
    }

    fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Error::Refused(Errno::ROFS))
    }

    /// The lower directory that a directory shows, if it shows one.
    fn lower_dir(&self, ino: Ino) -> Option<Ino> {
        match self.nodes.lock().get(ino) {
            Some(node) => node.lower,
            None => Some(ino),
        }
    }

    /// The upper's part of a directory; `None` when it has none.
    fn upper_dir(&self, ino: Ino) -> Result<Option<Arc<OwnedFd>>> {
        let Some(upper) = &self.upper else { return Ok(None) };
        if ino == ROOT {
            return Ok(Some(Arc::clone(&upper.root)));
        }
        if let Some(fd) = self.directories.lock().get(&ino) {
            return Ok(Some(Arc::clone(fd)));
        }
        let place = match self.nodes.lock().get(ino) {
            None => return Ok(None),
            Some(node) => node.place.clone(),
        };
        let fd = match place {
            Place::Root => Arc::clone(&upper.root),
            Place::Held(fd) | Place::Orphan(fd, _) => Arc::new(rustix::fs::openat(&fd, ".", DIRECTORY, Mode::empty())?),
            Place::Named(names) => {
                let (parent, name) = names.into_iter().next().ok_or(Error::Stale { ino })?;
                let parent = self.upper_dir(parent)?.ok_or(Error::Stale { ino })?;
                Arc::new(rustix::fs::openat(parent.as_fd(), &name[..], DIRECTORY, Mode::empty())?)
            }
        };
        self.directories.lock().put(ino, Arc::clone(&fd));
        Ok(Some(fd))
    }

    /// Where an upper inode is on the disk; `None` for one of the lower. The caller holds `names`.
    fn locate(&self, ino: Ino) -> Result<Option<Spot>> {
        let (place, host) = match self.nodes.lock().get(ino) {
            None => return Ok(None),
            Some(node) => (node.place.clone(), node.host),
        };
        let names = match place {
            Place::Root => return Ok(Some(Spot::Fd(Arc::clone(&self.upper()?.root)))),
            Place::Held(fd) | Place::Orphan(fd, _) => return Ok(Some(Spot::Fd(fd))),
            Place::Named(names) => names,
        };
        if let Some(fd) = self.directories.lock().get(&ino) {
            return Ok(Some(Spot::Fd(Arc::clone(fd))));
        }
        let only = names.len() == 1;
        for (parent, name) in names {
            // A name may be gone with its directory, when others are left.
            let Some(dir) = self.upper_dir(parent)? else { continue };
            let spot = Spot::At(dir, name);
            if only || spot.stat().is_ok_and(|stat| stat.st_ino == host) {
                return Ok(Some(spot));
            }
        }
        Err(Error::Stale { ino })
    }

    fn stripe(&self, ino: Ino) -> &Mutex<()> {
        let mixed = ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.stripes[mixed as usize % STRIPES]
    }
}

/// Refuses names that no directory can hold.
pub(crate) fn valid_name(name: &[u8]) -> Result<()> {
    if name.len() > 255 {
        return Err(Errno::NAMETOOLONG.into());
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}
