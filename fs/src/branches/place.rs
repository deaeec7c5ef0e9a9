//! Where what is new goes.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::branch::Look;
use super::{Branches, Stack};
use crate::error::{Error, Result};
use crate::inode::Ino;

/// Which of the writable branches gets what is new (aufs(5), *Policies to Select One among Multiple Writable Branches*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CreatePolicy {
    /// `tdp`: the topmost one that has the directory; if none has, the nearest above.
    #[default]
    TopDownParent,
    /// `mfs`: the one whose disk has the most free space.
    MostFreeSpace,
    /// `rr`: one after the other.
    RoundRobin,
}

impl CreatePolicy {
    /// The policy of a word.
    pub fn named(word: &str) -> Option<CreatePolicy> {
        match word {
            "tdp" => Some(CreatePolicy::TopDownParent),
            "mfs" => Some(CreatePolicy::MostFreeSpace),
            "rr" => Some(CreatePolicy::RoundRobin),
            _ => None,
        }
    }
}

impl Branches {
    /// The branch for a new name. `whiteout` is where one is met first. EROFS if there is none that would show it.
    pub(super) fn choose(&self, stack: &Stack, dir: Ino, name: &[u8], whiteout: Option<usize>) -> Result<usize> {
        let parts = self.parts(stack, dir)?;
        let top = parts.first().ok_or(Errno::NOENT)?.branch;
        let mut fit = Vec::new();
        for at in stack.writable() {
            if self.usable(stack, dir, at)? && self.would_show(stack, dir, name, whiteout, at)? {
                fit.push(at);
            }
        }
        let refused = || Error::Refused(Errno::ROFS);
        match self.policy {
            CreatePolicy::TopDownParent => {
                let has = |at: &&usize| parts.iter().any(|part| part.branch == stack.branches[**at].id);
                let top = stack.position(top).unwrap_or(0);
                let above = || fit.iter().rev().find(|at| **at < top);
                fit.iter().find(has).or_else(above).or(fit.first()).copied().ok_or_else(refused)
            }
            CreatePolicy::MostFreeSpace => {
                let mut most = None;
                for at in fit {
                    let stat = rustix::fs::fstatvfs(&stack.branches[at].root)?;
                    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
                    // Of equal ones the upper.
                    if most.is_none_or(|(known, _)| free > known) {
                        most = Some((free, at));
                    }
                }
                most.map(|(_, at)| at).ok_or_else(refused)
            }
            CreatePolicy::RoundRobin => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                fit.get(turn % fit.len().max(1)).copied().ok_or_else(refused)
            }
        }
    }

    /// Whether a name made in a branch would show, once a whiteout in a writable branch above has been taken away.
    fn would_show(&self, stack: &Stack, dir: Ino, name: &[u8], whiteout: Option<usize>, at: usize) -> Result<bool> {
        let Some(hiding) = whiteout.filter(|hiding| *hiding < at) else { return Ok(true) };
        if !stack.branches[hiding].is_writable() {
            return Ok(false);
        }
        for part in self.parts(stack, dir)?.iter() {
            let below = stack.position(part.branch).ok_or(Error::Stale { ino: dir })?;
            if below > hiding
                && below <= at
                && !matches!(stack.branches[below].look(self.format, &part.fd, name)?, Look::Nothing)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
