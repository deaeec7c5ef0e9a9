//! One branch: a directory, and whether it can be written to.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::nodes::Part;
use crate::error::{Error, Result};
use crate::lower::LAYERS_MAX;
use crate::upper::{DIRECTORY, Format, Found, Marks, Spot, Upper};

/// Deletes the name behind it, in a branch `ro+wh`.
const WHITEOUT: &[u8] = b".wh.";
/// In a directory of a branch `ro+wh`: nothing of the branches below shows in it.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What may be done to a branch, and what its whiteouts do (aufs(5), *Branch Permissions*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchMode {
    /// It can be written to.
    Writable,
    /// It never changes; its whiteouts and opaque marks hide nothing, and don't show.
    ReadOnly,
    /// It never changes; its whiteouts and opaque marks hide what is below.
    Whiteouts,
}

impl BranchMode {
    /// The mode of a word.
    pub fn named(word: &str) -> Option<BranchMode> {
        match word {
            "rw" => Some(BranchMode::Writable),
            "ro" => Some(BranchMode::ReadOnly),
            "ro+wh" => Some(BranchMode::Whiteouts),
            _ => None,
        }
    }
}

impl fmt::Display for BranchMode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            BranchMode::Writable => "rw",
            BranchMode::ReadOnly => "ro",
            BranchMode::Whiteouts => "ro+wh",
        })
    }
}

/// A branch as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchSpec {
    /// The directory.
    pub path: PathBuf,
    /// What may be done to it.
    pub mode: BranchMode,
    /// Where changes to it are prepared, on its disk; without, a directory `PATH.work` that is made for it.
    pub work: Option<PathBuf>,
}

/// A branch in use.
pub(super) struct Branch {
    /// Its number as long as it is one of the branches; the same in another mount of the same path, as a rule.
    pub(super) id: u16,
    pub(super) spec: BranchSpec,
    pub(super) root: Arc<OwnedFd>,
    /// Device and number of the root.
    pub(super) host: (u64, u64),
    /// There if it can be written to.
    pub(super) upper: Option<Upper>,
    /// A private mount without the mounts on it: what is mounted in a branch, this union perhaps, is no part of it.
    mount: Option<Arc<OwnedFd>>,
}

impl fmt::Debug for Branch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Branch").field(&self.spec).finish()
    }
}

/// What a branch has under a name.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one, and none is kept")]
pub(super) enum Look {
    /// Nothing, and branches below are asked.
    Nothing,
    /// Nothing, and branches below are not asked.
    Whiteout,
    /// This. Branches below are asked for more directories unless it is the `last`.
    Entry { stat: Stat, marks: Marks, last: bool },
}

impl Branch {
    /// Opens a directory as a branch that nothing is written to yet, whatever `spec` says. The way to it may lead through the
    /// union, so no lock may be held that its requests wait for.
    pub(super) fn open(spec: &BranchSpec) -> Result<Branch> {
        let failed = |errno: Errno| failed(&spec.path, &errno.to_string(), errno);
        let seen = rustix::fs::openat(CWD, &spec.path, DIRECTORY - OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?;
        let host = identity(&seen).map_err(failed)?;
        let (mount, root) = match detached(&spec.path, host) {
            Some((mount, root)) => (Some(Arc::new(mount)), root),
            None => (None, seen),
        };
        let (id, root) = (first_id(&spec.path), Arc::new(root));
        Ok(Branch { id, spec: spec.clone(), root, host, upper: None, mount })
    }

    /// Takes another number if others have its own.
    pub(super) fn renumber(&mut self, taken: impl Fn(u16) -> bool) {
        while taken(self.id) {
            self.id = (self.id + 1) % LAYERS_MAX as u16;
        }
    }

    /// The same branch in another mode. As with [`Branch::open`], no lock may be held.
    pub(super) fn with_mode(&self, mode: BranchMode, format: Format) -> Result<Branch> {
        let upper = if mode == BranchMode::Writable { Some(self.open_upper(format)?) } else { None };
        let spec = BranchSpec { mode, ..self.spec.clone() };
        let (root, mount) = (Arc::clone(&self.root), self.mount.clone());
        Ok(Branch { id: self.id, spec, root, host: self.host, upper, mount })
    }

    fn open_upper(&self, format: Format) -> Result<Upper> {
        let (dir, work) = if let Some(work) = &self.spec.work {
            (self.spec.path.clone(), work.clone())
        } else {
            let mut beside = self.spec.path.clone().into_os_string();
            beside.push(".work");
            let beside = PathBuf::from(beside);
            crate::mount::make(&beside)?;
            // Within the private mount: names do not move between mounts, not even of one disk.
            match (&self.mount, self.spec.path.file_name(), beside.file_name()) {
                (Some(mount), Some(name), Some(work)) => {
                    let at = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
                    (at.join(name), at.join(work))
                }
                _ => (self.spec.path.clone(), beside),
            }
        };
        let told = |error: Error| match error {
            Error::Layer { reason, errno, .. } => failed(&self.spec.path, &format!("for writing: {reason}"), errno),
            error => error,
        };
        let upper = Upper::open(&dir, &work, format).map_err(told)?;
        // A branch can be on a disk that has no such attributes; that is told here and not at the first copy.
        let probe = upper.temporary();
        let Spot::At(tmp, name) = &probe else { return Err(Errno::INVAL.into()) };
        rustix::fs::mkdirat(tmp, name, Mode::RWXU)
            .map_err(|errno| failed(&self.spec.path, &errno.to_string(), errno))?;
        let set = format.set(&probe, crate::upper::Mark::Opaque, b"y");
        Upper::discard(&probe)?;
        set.map_err(|errno| failed(&self.spec.path, &format!("its disk does not keep marks: {errno}"), errno))?;
        Ok(upper)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    /// What makes changes to it; EROFS if nothing may.
    pub(super) fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Error::Refused(Errno::ROFS))
    }

    /// Its root as a part of the union's.
    pub(super) fn part(&self) -> Part {
        Part { branch: self.id, fd: Arc::clone(&self.root), host: self.host }
    }

    /// What it has under a name of one of its directories.
    pub(super) fn look(&self, format: Format, dir: &Arc<OwnedFd>, name: &[u8]) -> Result<Look> {
        let mode = self.spec.mode;
        if mode != BranchMode::Writable && name.starts_with(WHITEOUT) {
            return Ok(Look::Nothing);
        }
        let deleted = mode == BranchMode::Whiteouts && exists(dir, &[WHITEOUT, name].concat())?;
        let spot = Spot::at(dir, name);
        Ok(match format.look(&spot)? {
            None if deleted => Look::Whiteout,
            None => Look::Nothing,
            Some(Found::Whiteout) if mode == BranchMode::ReadOnly => Look::Nothing,
            Some(Found::Whiteout) => Look::Whiteout,
            Some(Found::Entry(stat, marks)) => {
                if marks.metacopy || marks.redirect.is_some() && mode != BranchMode::ReadOnly {
                    let (path, name) = (self.spec.path.display(), name.escape_ascii());
                    tracing::warn!(%path, %name, "a mark leads to another layer: that is no branch but an overlay's upper");
                    return Err(Errno::IO.into());
                }
                let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let opaque = || -> Result<bool, Errno> {
                    Ok(match mode {
                        BranchMode::ReadOnly => false,
                        BranchMode::Writable => marks.opaque,
                        BranchMode::Whiteouts => marks.opaque || exists(spot.hold()?, OPAQUE)?,
                    })
                };
                let last = !is_dir || deleted || opaque()?;
                Look::Entry { stat, marks, last }
            }
        })
    }

    /// Whether a name of its directories shows, whatever it stands for.
    pub(super) fn shows(&self, name: &[u8]) -> bool {
        self.spec.mode == BranchMode::Writable || !name.starts_with(WHITEOUT)
    }
}

fn failed(path: &Path, reason: &str, errno: Errno) -> Error {
    Error::Layer { path: path.display().to_string(), reason: reason.to_owned(), errno }
}

fn identity(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

fn exists(dir: impl AsFd, name: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        // A name that is too long for the disk, as a mark may be, is not there either.
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// A private mount that has the directory, and beside it what lies beside it; or the directory alone where it is what is
/// mounted. None where that is not permitted.
fn detached(path: &Path, host: (u64, u64)) -> Option<(OwnedFd, OwnedFd)> {
    let clone =
        |path: &Path| open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).ok();
    let within = |mount: OwnedFd, name: &OsStr| {
        let root = rustix::fs::openat(&mount, name, DIRECTORY, Mode::empty()).ok()?;
        (identity(&root) == Ok(host)).then_some((mount, root))
    };
    let beside = path.parent().zip(path.file_name()).and_then(|(parent, name)| within(clone(parent)?, name));
    beside.or_else(|| within(clone(path)?, OsStr::new(".")))
}

/// The number that a branch of this path gets if no other has it: the low bits of FNV-1a over the path.
fn first_id(path: &Path) -> u16 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, mix);
    ((hash ^ hash >> 32) % LAYERS_MAX as u64) as u16
}
