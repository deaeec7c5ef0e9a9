//! A union of branches, as AUFS has them: any number of directories, each of which can be written to or not, and all of which
//! can come, go and change while the union is mounted.
//!
//! Where [`crate::union`] has one upper that knows everything about the lower, here every branch stands for itself:
//!
//! * a name is looked for in the branches from the top down ([`see`]); what a branch has is changed in place if the
//!   branch is writable, else copied to the nearest writable branch above it ([`copy_up`]);
//! * what is new goes to the branch that the policy chooses ([`place`]); the directories on the way are made there;
//! * a name that a branch further below has is deleted by a whiteout in the branch that had it, or in the nearest writable one
//!   above;
//! * directories do not move between branches: who renames one that several branches have, or one that can't be written to,
//!   is told EXDEV and copies, as between disks.
//!
//! Nothing is decided from memory: names are looked up in the branches each time, and the kernel is told to keep none. So a
//! change of the branches shows at once.
//!
//! # Locks, in order
//!
//! 0. `changing`: branches are changed one at a time; nothing else takes it;
//! 1. `stripes`: copying up one inode (a stripe is never held while another is taken);
//! 2. `stack`: the branches, and with them all names: shared by what finds names, exclusive for what changes them. Never
//!    held while contents are copied;
//! 3. `nodes`, `opens`, `handles`: tables, held for a lookup in them alone.

mod attr;
mod branch;
mod copy_up;
mod create;
mod manage;
mod nodes;
mod open;
mod place;
mod readdir;
mod remove;
mod rename;
mod see;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use parking_lot::{Mutex, RwLock};
use rustix::fs::StatVfs;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::inode::Ino;
use crate::lower::Numbers;
use crate::upper::{Format, Spot};
use branch::Branch;
use nodes::{Nodes, Part};
use open::{Handles, Opens};

pub use branch::{BranchMode, BranchSpec};
pub use manage::BranchState;
pub use place::CreatePolicy;

/// Inodes are copied up one at a time per stripe.
const STRIPES: usize = 16;

/// A union of branches.
pub struct Branches {
    format: Format,
    policy: CreatePolicy,
    /// Whose turn it is ([`CreatePolicy::RoundRobin`]).
    turn: AtomicUsize,
    changing: Mutex<()>,
    stack: RwLock<Stack>,
    nodes: Mutex<Nodes>,
    numbers: Numbers,
    /// Counts the directories made, removed and renamed: what was counted before is void.
    recounts: AtomicU64,
    opens: Mutex<Opens>,
    handles: RwLock<Handles>,
    stripes: [Mutex<()>; STRIPES],
}

impl fmt::Debug for Branches {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Branches").field("branches", &self.list()).finish_non_exhaustive()
    }
}

/// The branches, top first.
#[derive(Debug)]
struct Stack {
    branches: Vec<Arc<Branch>>,
    /// Counts the changes of `branches`: what was found out before is void.
    generation: u64,
}

impl Stack {
    /// Where a branch is; `None` when it is gone.
    fn position(&self, id: u16) -> Option<usize> {
        self.branches.iter().position(|branch| branch.id == id)
    }

    /// The writable branches above a place, the nearest first.
    fn above(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        (0..at).rev().filter(|&at| self.branches[at].is_writable())
    }

    /// All writable branches, top first.
    fn writable(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.branches.len()).filter(|&at| self.branches[at].is_writable())
    }
}

impl Branches {
    /// The union of `branches`, the first on top. `format` tells in which namespace its marks are.
    pub fn new(branches: &[BranchSpec], format: Format, policy: CreatePolicy) -> Result<Branches> {
        if branches.is_empty() {
            return Err(Error::Option { option: "branch".to_owned(), reason: "is missing".to_owned() });
        }
        let union = Branches {
            format,
            policy,
            turn: AtomicUsize::new(0),
            changing: Mutex::default(),
            stack: RwLock::new(Stack { branches: Vec::new(), generation: 0 }),
            nodes: Mutex::default(),
            numbers: Numbers::default(),
            recounts: AtomicU64::new(0),
            opens: Mutex::default(),
            handles: RwLock::default(),
            stripes: std::array::from_fn(|_| Mutex::default()),
        };
        for (at, spec) in branches.iter().enumerate() {
            union.add(spec, at)?;
        }
        Ok(union)
    }

    /// For a mount that nobody used before: there is nothing to do.
    pub fn begin(&self) -> Result<()> {
        Ok(())
    }

    /// For a mount that an earlier process served: what its kernel knows, nobody else does.
    pub fn recover(&self) -> Result<()> {
        Err(Errno::OPNOTSUPP.into())
    }

    /// A branch may become writable, so the mount as a whole is.
    pub fn is_read_only(&self) -> bool {
        false
    }

    /// Space and limits of the topmost writable branch's disk, or of the top's when there is none.
    pub fn statfs(&self) -> Result<StatVfs> {
        let stack = self.stack.read();
        let at = stack.writable().next().unwrap_or(0);
        Ok(rustix::fs::fstatvfs(&stack.branches[at].root)?)
    }

    /// The part of an inode that counts: of a directory, the topmost.
    fn part(&self, stack: &Stack, ino: Ino) -> Result<Part> {
        if self.nodes.lock().get(ino)?.is_dir() {
            return self.parts(stack, ino)?.first().cloned().ok_or(Error::Refused(Errno::NOENT));
        }
        self.nodes.lock().get(ino)?.file().cloned().ok_or(Error::Stale { ino })
    }

    /// The parts of a directory, top first; none of one that was removed.
    fn parts(&self, stack: &Stack, dir: Ino) -> Result<Arc<Vec<Part>>> {
        let name = {
            let nodes = self.nodes.lock();
            let node = nodes.get(dir)?;
            if let Some(parts) = node.parts(stack.generation) {
                return Ok(parts);
            }
            if !node.is_dir() {
                return Err(Errno::NOTDIR.into());
            }
            node.names.first().cloned()
        };
        let parts = match name {
            None if dir == crate::inode::ROOT => stack.branches.iter().map(|branch| branch.part()).collect(),
            None => Vec::new(),
            Some((parent, name)) => {
                let seen = self.see(stack, parent, &name)?;
                if !seen.hits.first().is_some_and(see::Hit::is_dir) {
                    return Err(Error::Stale { ino: dir });
                }
                see::open_parts(stack, &seen)?
            }
        };
        let parts = Arc::new(parts);
        if let Ok(node) = self.nodes.lock().get_mut(dir) {
            node.set_parts(Arc::clone(&parts), stack.generation);
        }
        Ok(parts)
    }

    /// Where an inode's attributes are read.
    fn spot(&self, stack: &Stack, ino: Ino) -> Result<Spot> {
        Ok(Spot::Fd(self.part(stack, ino)?.fd))
    }

    fn stripe(&self, ino: Ino) -> &Mutex<()> {
        let mixed = ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.stripes[mixed as usize % STRIPES]
    }
}
