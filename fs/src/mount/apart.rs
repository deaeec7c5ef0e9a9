//! Whether directories may be the layers of one union.
//!
//! As overlayfs has it (ELOOP): a lower may not be the upper or the work directory, lie in one of them, or be or contain
//! another lower. The upper may lie in a lower.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::lower::Role;

/// A directory: its filesystem and its number there.
type Identity = (u64, u64);

/// A directory is only looked at.
const LOOK: OFlags = OFlags::from_bits_retain(OFlags::PATH.bits() | OFlags::DIRECTORY.bits() | OFlags::CLOEXEC.bits());

/// Refuses layers that are not apart.
pub(super) fn check(lower: &[(PathBuf, Role)], upper: Option<&Path>, work: Option<&Path>) -> Result<()> {
    let mut known: HashMap<Identity, &str> = HashMap::new();
    for (path, what) in [(upper, "the upper"), (work, "the work directory")] {
        // What is not there yet contains nothing; who opens it says what is wrong.
        known.extend(path.and_then(|path| Some((*around(path).ok()?.first()?, what))));
    }
    let places = lower.iter().map(|(path, _)| {
        let around = around(path).map_err(|errno| unusable(path, errno.to_string(), errno))?;
        Ok((path, around))
    });
    let places = places.collect::<Result<Vec<_>>>()?;
    for (path, around) in &places {
        let itself = around.first().copied();
        if itself.is_some_and(|itself| known.insert(itself, "another lower layer").is_some()) {
            return Err(unusable(path, "this directory is a layer already".to_owned(), Errno::LOOP));
        }
    }
    for (path, around) in &places {
        if let Some(what) = around.iter().skip(1).find_map(|outer| known.get(outer)) {
            return Err(unusable(path, format!("this lower layer lies in {what}"), Errno::LOOP));
        }
    }
    Ok(())
}

/// A directory and those that it lies in, on its own filesystem.
fn around(path: &Path) -> Result<Vec<Identity>, Errno> {
    let mut around: Vec<Identity> = Vec::new();
    let mut at: OwnedFd = rustix::fs::openat(CWD, path, LOOK, Mode::empty())?;
    loop {
        let stat = rustix::fs::fstat(&at)?;
        let here = (stat.st_dev, stat.st_ino);
        if around.last().is_some_and(|last| last.0 != here.0 || *last == here) {
            return Ok(around);
        }
        around.push(here);
        at = match rustix::fs::openat(&at, "..", LOOK, Mode::empty()) {
            Ok(parent) => parent,
            // Not ours to look at, and so none of the layers.
            Err(Errno::ACCESS) => return Ok(around),
            Err(errno) => return Err(errno),
        };
    }
}

fn unusable(path: &Path, reason: String, errno: Errno) -> Error {
    Error::Layer { path: path.display().to_string(), reason, errno }
}
