//! Whether somebody else writes to an upper.
//!
//! Two unions over one upper don't see each other's changes, and empty each other's work directory. overlayfs leaves that
//! undefined and says so in the kernel's log, or refuses it with `index=on` (EBUSY). Here each union holds a lock (flock(2)) of both
//! directories for as long as it lives: no crash leaves one behind.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A union that was unmounted may still be on its way out.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to do about another union over the same upper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: whoever opens the upper knows.
    None,
    /// A warning. Nothing of the other's is tidied up.
    Tolerant,
    /// EBUSY, after some seconds.
    #[default]
    Strict,
}

impl Claim {
    /// Takes the lock of a directory for as long as the descriptor is open. False if another union has it.
    pub(super) fn take(self, dir: &OwnedFd, path: &Path) -> Result<bool> {
        if self == Claim::None {
            return Ok(true);
        }
        let deadline = Instant::now() + if self == Claim::Strict { PATIENCE } else { Duration::ZERO };
        loop {
            match flock(dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(busy(path, errno.to_string(), errno)),
            }
            if Instant::now() >= deadline {
                let reason = "another mount has this directory as its upper or work directory";
                if self == Claim::Strict {
                    return Err(busy(path, reason.to_owned(), Errno::BUSY));
                }
                tracing::warn!(path = %path.display(), "{reason}: neither sees what the other changes");
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn busy(path: &Path, reason: String, errno: Errno) -> Error {
    Error::Layer { path: path.display().to_string(), reason, errno }
}
