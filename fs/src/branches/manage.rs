//! Branches that come, go and change while the union is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::fstatvfs;
use rustix::io::Errno;

use super::branch::{Branch, BranchMode, BranchSpec};
use super::nodes::Node;
use super::open::Users;
use super::{Branches, Stack};
use crate::error::{Error, Result};
use crate::inode::{Ino, ROOT};
use crate::lower::LAYERS_MAX;
use crate::upper::is_below;

/// How long the kernel may take to give back what nobody uses.
const FORGETTING: Duration = Duration::from_secs(1);

/// A branch as it is at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchState {
    /// The directory.
    pub path: PathBuf,
    /// What may be done to it.
    pub mode: BranchMode,
    /// What its disk has left, in bytes.
    pub free_bytes: u64,
}

impl Branches {
    /// The branches, top first.
    pub fn list(&self) -> Vec<BranchState> {
        let state = |branch: &Arc<Branch>| BranchState {
            path: branch.spec.path.clone(),
            mode: branch.spec.mode,
            free_bytes: fstatvfs(&branch.root).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize)),
        };
        self.stack.read().branches.iter().map(state).collect()
    }

    /// Puts a branch in, below the first `at` (0: on top; more than there are: at the bottom).
    pub fn add(&self, spec: &BranchSpec, at: usize) -> Result<()> {
        let _one = self.changing.lock();
        // The way to it may lead through the union, and what prepares changes must not be another's: first it is only looked at.
        let mut new = Branch::open(spec)?;
        Branches::require_new(&self.stack.read(), &mut new)?;
        let new = new.with_mode(spec.mode, self.format)?;
        let mut stack = self.stack.write();
        let at = at.min(stack.branches.len());
        stack.branches.insert(at, Arc::new(new));
        stack.generation += 1;
        Ok(())
    }

    /// Fails unless a branch is another directory than all others, none in another; gives it a number that none has.
    fn require_new(stack: &Stack, new: &mut Branch) -> Result<()> {
        let path = &new.spec.path;
        if stack.branches.len() >= LAYERS_MAX {
            return Err(refused(path, "there are too many branches", Errno::NOSPC));
        }
        for known in &stack.branches {
            if known.host == new.host {
                return Err(refused(path, "is a branch already", Errno::EXIST));
            }
            if is_below(&known.root, new.host)? || is_below(&new.root, known.host)? {
                let reason = format!("one of it and {} is in the other", known.spec.path.display());
                return Err(refused(path, &reason, Errno::INVAL));
            }
        }
        new.renumber(|id| stack.position(id).is_some());
        Ok(())
    }

    /// Takes a branch out. EBUSY if a program uses a file of it, or a directory that nothing else has; `drop_name` has the
    /// kernel forget a name that nobody uses.
    pub fn remove(&self, path: &Path, drop_name: &dyn Fn(Ino, &[u8])) -> Result<()> {
        let _one = self.changing.lock();
        let deadline = Instant::now() + FORGETTING;
        loop {
            let names = {
                let mut stack = self.stack.write();
                let at = position(&stack, path)?;
                if stack.branches.len() == 1 {
                    return Err(refused(path, "is the last branch", Errno::BUSY));
                }
                let id = stack.branches[at].id;
                if !self.open_on(id, Users::All).is_empty() {
                    return Err(refused(path, "a file of it is open", Errno::BUSY));
                }
                let used = self.used(&stack, id)?;
                if used.is_empty() {
                    stack.branches.remove(at);
                    stack.generation += 1;
                    return Ok(());
                }
                used
            };
            if Instant::now() > deadline {
                return Err(refused(path, "a file or directory of it is in use", Errno::BUSY));
            }
            for (parent, name) in names {
                drop_name(parent, &name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Names of what the kernel knows and nothing but this branch has; EBUSY for a directory that is being read.
    fn used(&self, stack: &Stack, id: u16) -> Result<Vec<(Ino, Vec<u8>)>> {
        let open = self.open_dirs();
        let dirs: Vec<Ino> = self.nodes.lock().all().filter(|(_, node)| node.is_dir()).map(|(ino, _)| ino).collect();
        for dir in dirs {
            // What was found out before the last change is void. One that shows no more is found to have no parts left.
            if let Err(error) = self.parts(stack, dir) {
                tracing::debug!(%error, %dir, "a directory that shows no more");
            }
        }
        let nodes = self.nodes.lock();
        let mut names = Vec::new();
        let is_used = |ino: Ino, node: &Node| ino != ROOT && node.lookups > 0 && node.is_on(id, true);
        for (ino, node) in nodes.all().filter(|(ino, node)| is_used(*ino, node)) {
            if open.contains(&ino) {
                return Err(Errno::BUSY.into());
            }
            if node.names.is_empty() {
                return Err(Errno::BUSY.into());
            }
            names.extend(node.names.iter().cloned());
        }
        Ok(names)
    }

    /// Changes what may be done to a branch. EBUSY if it is to be read-only and somebody may write to a file of it.
    pub fn set_mode(&self, path: &Path, mode: BranchMode) -> Result<()> {
        let _one = self.changing.lock();
        let branch = {
            let stack = self.stack.read();
            Arc::clone(&stack.branches[position(&stack, path)?])
        };
        if branch.spec.mode == mode {
            return Ok(());
        }
        let changed = branch.with_mode(mode, self.format)?;
        let mut stack = self.stack.write();
        let at = position(&stack, path)?;
        if mode != BranchMode::Writable && !self.open_on(branch.id, Users::Writers).is_empty() {
            return Err(refused(path, "a file of it is open for writing", Errno::BUSY));
        }
        stack.branches[at] = Arc::new(changed);
        stack.generation += 1;
        // Whoever reads a file that can be written to now goes on with the descriptor that writers use.
        for ino in self.open_on(branch.id, Users::All) {
            self.follow(&stack, ino)?;
        }
        Ok(())
    }
}

fn position(stack: &Stack, path: &Path) -> Result<usize> {
    let found = stack.branches.iter().position(|branch| branch.spec.path == path);
    found.ok_or_else(|| refused(path, "is no branch of this mount", Errno::NOENT))
}

fn refused(path: &Path, reason: &str, errno: Errno) -> Error {
    Error::Layer { path: path.display().to_string(), reason: reason.to_owned(), errno }
}
