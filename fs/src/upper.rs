//! The writable directory of a union, in kernel overlayfs' format, and the work directory beside it.
//!
//! ```text
//! <upper>/      what the union's programs made, changed and (as whiteouts) removed
//! <work>/tmp/      what is being built; emptied when the upper is opened
//! <work>/orphans/  files without a name that programs have open, named by their number; see `union/unlink.rs`
//! <work>/blocks/   which blocks of partly copied files are copied; see `upper/blocks.rs`
//! <work>/links/    copied-up files whose other names are still to be made, named by their number; see `union/copy_up.rs`
//! ```

mod adopt;
pub(crate) mod blocks;
mod claim;
mod disk;
pub(crate) mod format;
mod owned;
mod spot;

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::inode::{Attr, FileKind};
use crate::owners::Owners;
pub use claim::Claim;
pub use format::Format;
pub(crate) use format::{Found, Mark, Marks};
pub(crate) use spot::Spot;

pub(crate) const DIRECTORY: OFlags = OFlags::from_bits_retain(
    OFlags::RDONLY.bits() | OFlags::DIRECTORY.bits() | OFlags::CLOEXEC.bits() | OFlags::NOFOLLOW.bits(),
);

/// What [`Upper::with_metacopy`] is usually given: contents up to one block are copied as cheaply as they are referred to.
pub const METACOPY_ABOVE: u64 = 4096;

/// How large files are copied up block by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Smaller files are copied whole: measured on ext4, where that takes about half a millisecond for each MiB.
    pub from_bytes: u64,
    /// Also where the disk keeps no order over a crash, and where it could share blocks: for tests and for disks that are
    /// thrown away after a crash.
    pub force: bool,
    /// How long after the first change the rest is begun to be copied.
    pub wait: Duration,
    /// How fast.
    pub bytes_per_second: u64,
}

impl BlockCopy {
    /// Files are copied whole.
    pub const NEVER: BlockCopy =
        BlockCopy { from_bytes: u64::MAX, force: false, wait: Duration::ZERO, bytes_per_second: 1 };
}

impl Default for BlockCopy {
    fn default() -> BlockCopy {
        let wait = Duration::from_secs(2);
        BlockCopy { from_bytes: 32 << 20, force: false, wait, bytes_per_second: 64 << 20 }
    }
}

/// An open upper with its work directory.
pub struct Upper {
    pub(crate) root: Arc<OwnedFd>,
    pub(crate) tmp: Arc<OwnedFd>,
    pub(crate) orphans: Arc<OwnedFd>,
    pub(crate) links: Arc<OwnedFd>,
    pub(crate) maps: Arc<OwnedFd>,
    pub(crate) format: Format,
    pub(crate) fresh_root: bool,
    pub(crate) owners: Owners,
    /// Files of more bytes leave their contents in the lower when only their attributes change.
    pub(crate) metacopy_above: Option<u64>,
    /// Which files are copied block by block.
    pub(crate) block_copy: Option<BlockCopy>,
    /// Whether the disk keeps the order of changes over a crash; see `upper/disk.rs`.
    pub(crate) keeps_order: bool,
    /// Whether another program has used the work directory since Mica has, or none has.
    is_foreign: bool,
    /// Whether another union that is still there has the same upper or work directory.
    pub(crate) is_shared: bool,
    work: OwnedFd,
    next: AtomicU64,
}

impl fmt::Debug for Upper {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Upper").field("root", &self.root).field("format", &self.format).finish_non_exhaustive()
    }
}

impl Upper {
    /// Opens an upper and the work directory beside it; both must exist, on one filesystem, and neither may be in the
    /// other. What was being built when an earlier process died is removed.
    pub fn open(upper: &Path, work: &Path, format: Format) -> Result<Upper> {
        Upper::claimed(upper, work, format, Claim::None)
    }

    /// The same, for this union alone.
    pub fn claimed(upper: &Path, work: &Path, format: Format, claim: Claim) -> Result<Upper> {
        let layer = |path: &Path, reason: &str, errno| Error::Layer {
            path: path.display().to_string(),
            reason: reason.to_owned(),
            errno,
        };
        let open = |path: &Path| {
            let flags = DIRECTORY - OFlags::NOFOLLOW;
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| layer(path, &errno.to_string(), errno))
        };
        let (root, work_dir) = (open(upper)?, open(work)?);
        let device = |fd: &OwnedFd, path: &Path| {
            rustix::fs::fstat(fd)
                .map(|stat| (stat.st_dev, stat.st_ino))
                .map_err(|errno| layer(path, &errno.to_string(), errno))
        };
        let (of_upper, of_work) = (device(&root, upper)?, device(&work_dir, work)?);
        if of_upper.0 != of_work.0 {
            return Err(layer(work, "the work directory is on another filesystem than the upper", Errno::XDEV));
        }
        if of_upper == of_work || is_below(&root, of_work)? || is_below(&work_dir, of_upper)? {
            return Err(layer(work, "the work directory and the upper must not contain each other", Errno::INVAL));
        }
        let mut is_shared = false;
        for (dir, path) in [(&root, upper), (&work_dir, work)] {
            is_shared |= !claim.take(dir, path)?;
        }
        let part = |name: &str| -> Result<Arc<OwnedFd>> {
            let made = match rustix::fs::mkdirat(&work_dir, name, Mode::RWXU) {
                Err(Errno::EXIST) => Ok(()),
                made => made,
            };
            made.and_then(|()| rustix::fs::openat(&work_dir, name, DIRECTORY, Mode::empty()))
                .and_then(|part| keep_private(&part).map(|()| Arc::new(part)))
                .map_err(|errno| layer(&work.join(name), &errno.to_string(), errno))
        };
        let has = |name: &str| rustix::fs::statat(&work_dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        // fuse-overlayfs has its own folder there, or none at all.
        let is_foreign = has("work") || !has("tmp");
        let (tmp, orphans, links, maps) = (part("tmp")?, part("orphans")?, part("links")?, part("blocks")?);
        if !is_shared {
            empty(&tmp)?;
        }
        // Modes come from the union's programs with their own mask applied; this process's must not be as well.
        rustix::process::umask(Mode::empty());
        let keeps_order = disk::keeps_order(&root)?;
        Ok(Upper {
            root: Arc::new(root),
            tmp,
            orphans,
            links,
            maps,
            format,
            fresh_root: false,
            owners: Owners::Disk,
            metacopy_above: None,
            block_copy: None,
            keeps_order,
            is_foreign,
            is_shared,
            work: work_dir,
            // Others begin at 0.
            next: AtomicU64::new(if is_shared { u64::from(std::process::id()) << 32 } else { 0 }),
        })
    }

    /// Says that the upper's root directory is only a container: until something in it changes, the union's root has
    /// the lower root's attributes, and takes them over then.
    #[must_use]
    pub fn with_fresh_root(mut self) -> Upper {
        self.fresh_root = true;
        self
    }

    /// Lets lower files of more than this many bytes leave their contents where they are when only their attributes change.
    #[must_use]
    pub fn with_metacopy(mut self, above_bytes: u64) -> Upper {
        self.metacopy_above = Some(above_bytes);
        self
    }

    /// Copies large files block by block where that is safe: when one is changed first, only what changes is copied, the rest in
    /// the background.
    #[must_use]
    pub fn with_block_copy(mut self, how: BlockCopy) -> Upper {
        self.block_copy = Some(how);
        self
    }

    /// Finds the maps of partly copied files in another work directory: that of the mount whose upper is looked at.
    pub fn with_maps_of(mut self, work: &Path) -> Result<Upper> {
        match rustix::fs::openat(CWD, work.join("blocks"), DIRECTORY, Mode::empty()) {
            Ok(maps) => self.maps = Arc::new(maps),
            // Nothing has been mounted there.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self)
    }

    /// Whether a lower inode may leave its contents where they are.
    pub(crate) fn leaves_contents(&self, attr: &Attr) -> bool {
        attr.kind == FileKind::Regular && self.metacopy_above.is_some_and(|above| attr.size > above)
    }

    /// The upper's root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The namespace of its marks.
    pub fn format(&self) -> Format {
        self.format
    }

    /// A place in `tmp` that nothing has.
    pub(crate) fn temporary(&self) -> Spot {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Spot::At(Arc::clone(&self.tmp), number.to_string().into_bytes())
    }

    /// Makes a whiteout at a place that nothing has.
    pub(crate) fn make_whiteout(spot: &Spot) -> Result<(), Errno> {
        let Spot::At(dir, name) = spot else { return Err(Errno::INVAL) };
        rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
    }

    /// Moves what is at one name to another.
    pub(crate) fn rename(from: &Spot, to: &Spot, flags: RenameFlags) -> Result<(), Errno> {
        let (Spot::At(from, old), Spot::At(to, new)) = (from, to) else { return Err(Errno::INVAL) };
        rustix::fs::renameat_with(from, old, to, new, flags)
    }

    /// Removes what is at a place, with all that is in it.
    pub(crate) fn discard(spot: &Spot) -> Result<(), Errno> {
        let Spot::At(dir, name) = spot else { return Ok(()) };
        remove_tree(dir.as_fd(), name)
    }
}

/// Lets a part of the work directory give nothing on to what is made in it: neither a default ACL nor a group that the work
/// directory may have.
fn keep_private(part: &OwnedFd) -> Result<(), Errno> {
    for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::fremovexattr(part, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::fchmod(part, Mode::RWXU)
}

/// Whether the directory is the one with `identity` or below it.
pub(crate) fn is_below(dir: &OwnedFd, identity: (u64, u64)) -> Result<bool> {
    let mut at = rustix::fs::openat(dir, ".", DIRECTORY, Mode::empty())?;
    let mut last = None;
    loop {
        let stat = rustix::fs::fstat(&at)?;
        let here = (stat.st_dev, stat.st_ino);
        if here == identity {
            return Ok(true);
        }
        if last == Some(here) {
            return Ok(false);
        }
        last = Some(here);
        at = match rustix::fs::openat(&at, "..", DIRECTORY, Mode::empty()) {
            Ok(parent) => parent,
            // Not ours to look at: then it isn't the other directory either.
            Err(Errno::ACCESS) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
    }
}

/// Removes everything in a directory.
pub(crate) fn empty(dir: &OwnedFd) -> Result<(), Errno> {
    for (name, _, _) in read_dir(dir.as_fd())? {
        remove_tree(dir.as_fd(), &name)?;
    }
    Ok(())
}

fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        result => return result,
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(Errno::NOENT) => return Ok(()),
        result => return result,
    }
    let inner = rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())?;
    empty(&inner)?;
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// All entries of a directory but `.` and `..`: name, number on the disk, type as the directory has it.
pub(crate) fn read_dir(dir: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, u64, FileType)>, Errno> {
    // The descriptor given is shared and its position must stay: read_from opens anew.
    let mut entries = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            entries.push((name.to_bytes().to_vec(), entry.ino(), entry.file_type()));
        }
    }
    Ok(entries)
}

/// Writes all of `data` at `offset`.
pub(crate) fn write_full(file: &File, offset: u64, data: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < data.len() {
        match rustix::io::pwrite(file, &data[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
