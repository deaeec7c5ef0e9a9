//! Copy-up: making an upper inode of a lower one.
//!
//! What is made is made in the work directory, whole, and then renamed to its name: a crash leaves the old file or the new
//! one. The contents are synced before, or stay in the lower if only attributes or names change; see `union/complete.rs`. A lower file of several names gets all of them, one after the other; until the
//! last is there, `links/<number>` in the work directory says that some are missing, and the next start makes them.

use std::fs::File;
use std::os::fd::AsFd as _;

use rustix::fs::{Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags, makedev};
use rustix::io::Errno;

use super::Union;
use super::lookup::Seen;
use super::nodes::{Name, Node, Place};
use crate::error::{Error, Result};
use crate::inode::{Attr, FileKind, Ino, ROOT, Timestamp};
use crate::lower::LowerFile;
use crate::owners::{Owner, stands_for};
use crate::upper::{Format, Mark, Spot, Upper, write_full};

/// What of a file's contents a copy-up takes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// All.
    Contents,
    /// None: they are about to be cut off.
    Nothing,
    /// None if the upper may have files whose contents are in the lower, else all: attributes or names are about to change.
    Attributes,
}

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

impl Union {
    /// Makes sure that an inode is in the upper. The caller holds no lock.
    pub(super) fn copy_up(&self, ino: Ino, keep: Keep) -> Result<()> {
        if ino == ROOT {
            return self.settle_root();
        }
        if !self.is_lower(ino) {
            return Ok(());
        }
        let attr = self.lower()?.attr(ino)?;
        let keep = match keep {
            Keep::Attributes if !self.upper()?.leaves_contents(&attr) => Keep::Contents,
            keep => keep,
        };
        if keep == Keep::Contents {
            self.lower()?.prepare(ino)?;
        }
        if attr.is_dir() { self.copy_up_dir(ino, &attr) } else { self.copy_up_file(ino, &attr, keep) }
    }

    /// [`Union::copy_up`] of a directory something is to be changed in.
    pub(super) fn copy_up_parent(&self, ino: Ino) -> Result<()> {
        self.upper()?;
        self.copy_up(ino, Keep::Contents)
    }

    fn copy_up_dir(&self, ino: Ino, attr: &Attr) -> Result<()> {
        let lower = self.lower()?;
        let parent = lower.parent(ino)?;
        self.copy_up_parent(parent)?;
        let name = lower.name_of(ino)?.ok_or(Error::Stale { ino })?;
        let _turn = self.stripe(ino).lock();
        if !self.is_lower(ino) {
            return Ok(());
        }
        let upper = self.upper()?;
        let made = upper.temporary();
        let placed = self.build(upper, ino, attr, &made, Keep::Contents).and_then(|_| {
            let _names = self.names.write();
            self.require_lower(parent, &name, ino)?;
            self.place(upper, &made, parent, &name)?;
            let host = made_stat(self, parent, &name)?;
            self.enter_copied(ino, Node::named(parent, &name, host, Some(ino)));
            Ok(())
        });
        if placed.is_err() {
            discard(&made);
        }
        placed
    }

    fn copy_up_file(&self, ino: Ino, attr: &Attr, keep: Keep) -> Result<()> {
        let lower = self.lower()?;
        let mut names: Vec<Name> = match lower.name_of(ino)? {
            Some(name) if attr.nlink == 1 => vec![(lower.parent(ino)?, name)],
            _ => lower.links(ino)?,
        };
        let removed = self.removed.lock().contains(&ino);
        if !removed {
            names = self.reachable(names)?;
        }
        let _turn = self.stripe(ino).lock();
        if !self.is_lower(ino) {
            return Ok(());
        }
        let upper = self.upper()?;
        let made = upper.temporary();
        let placed = self.build(upper, ino, attr, &made, keep).and_then(|partial| {
            let _names = self.names.write();
            self.place_file(upper, ino, &made, names, partial)
        });
        if placed.is_err() {
            discard(&made);
            self.nodes.lock().forget_unmarked(ino);
            return placed;
        }
        self.follow_copy_up(ino)
    }

    /// Copies up the directories of these names; leaves out names whose directory is gone.
    fn reachable(&self, names: Vec<Name>) -> Result<Vec<Name>> {
        let mut reachable = Vec::new();
        for (parent, name) in names {
            match self.copy_up_parent(parent) {
                Ok(()) => reachable.push((parent, name)),
                Err(Error::Refused(Errno::NOENT)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(reachable)
    }

    /// Gives a finished copy the names that its lower inode has now; without any it becomes an orphan.
    fn place_file(&self, upper: &Upper, ino: Ino, made: &Spot, names: Vec<Name>, partial: bool) -> Result<()> {
        let host = made.stat()?.st_ino;
        let mut seen = Vec::new();
        if !self.removed.lock().contains(&ino) {
            for (parent, name) in names {
                if self.require_lower(parent, &name, ino).is_ok() {
                    seen.push((parent, name));
                }
            }
        }
        let Some(((parent, name), others)) = seen.split_first() else {
            let name = orphan_name(ino);
            let place = Spot::at(&upper.orphans, &name);
            Upper::rename(made, &place, RenameFlags::empty())?;
            let node = Node { partial, ..Node::new(Place::Orphan(place.hold()?, name), host, None) };
            self.nodes.lock().enter(ino, node).keep = false;
            self.removed.lock().remove(&ino);
            return Ok(());
        };
        let intent = Spot::at(&upper.links, &orphan_name(ino));
        if !others.is_empty() {
            let Spot::At(dir, name) = &intent else { return Err(Errno::INVAL.into()) };
            made.link_to(dir, name)?;
            rustix::fs::fsync(&upper.links)?;
        }
        self.place(upper, made, *parent, name)?;
        for (parent, name) in others {
            self.add_name(upper, &intent, *parent, name)?;
        }
        if !others.is_empty() {
            Upper::discard(&intent)?;
        }
        self.enter_copied(ino, Node { partial, ..Node::new(Place::Named(seen), host, None) });
        Ok(())
    }

    /// Gives the file at `intent` one more name.
    pub(super) fn add_name(&self, upper: &Upper, intent: &Spot, parent: Ino, name: &[u8]) -> Result<()> {
        let dir = self.upper_dir(parent)?.ok_or(Error::Stale { ino: parent })?;
        let times = times_of(&Spot::Fd(dir.clone()))?;
        intent.link_to(&dir, name)?;
        Spot::Fd(dir).set_times(&times)?;
        self.mark_impure(upper, parent)
    }

    fn enter_copied(&self, ino: Ino, node: Node) {
        self.nodes.lock().enter(ino, Node { keep: true, ..node });
    }

    /// Renames what was made to its name. The directory's times are those it had: copying up is no change.
    fn place(&self, upper: &Upper, made: &Spot, parent: Ino, name: &[u8]) -> Result<()> {
        let dir = self.upper_dir(parent)?.ok_or(Error::Stale { ino: parent })?;
        self.mark_impure(upper, parent)?;
        let parent = Spot::Fd(dir.clone());
        let times = times_of(&parent)?;
        Upper::rename(made, &Spot::At(dir, name.to_vec()), RenameFlags::NOREPLACE)?;
        Ok(parent.set_times(&times)?)
    }

    /// Notes on the disk that a directory holds entries whose numbers are not their own.
    pub(super) fn mark_impure(&self, upper: &Upper, dir: Ino) -> Result<()> {
        if self.nodes.lock().get(dir).is_none_or(|node| node.impure) {
            return Ok(());
        }
        let fd = self.upper_dir(dir)?.ok_or(Error::Stale { ino: dir })?;
        upper.format.set(&Spot::Fd(fd), Mark::Impure, b"y")?;
        if let Some(node) = self.nodes.lock().get_mut(dir) {
            node.impure = true;
        }
        Ok(())
    }

    /// Fails unless a name still shows this lower inode. The caller holds `names`.
    fn require_lower(&self, parent: Ino, name: &[u8], ino: Ino) -> Result<()> {
        match self.see(parent, name)? {
            Seen::Lower(attr) if attr.ino == ino => Ok(()),
            _ => Err(Errno::NOENT.into()),
        }
    }

    /// Makes the copy, whole, at a place in the work directory. True if contents stay in the lower.
    fn build(&self, upper: &Upper, ino: Ino, attr: &Attr, made: &Spot, keep: Keep) -> Result<bool> {
        let Spot::At(dir, name) = made else { return Err(Errno::INVAL.into()) };
        let lower = self.lower()?;
        let (mut file, mut partial) = (None, false);
        match attr.kind {
            FileKind::Directory => rustix::fs::mkdirat(dir, name, Mode::RWXU)?,
            FileKind::Symlink => rustix::fs::symlinkat(lower.link_target(ino)?, dir, name)?,
            FileKind::Regular => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let new = File::from(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
                partial = match keep {
                    Keep::Attributes => self.refer(upper, ino, made)?,
                    Keep::Contents => self.refer_blocks(upper, &Attr { ino, ..*attr }, made, &new)?,
                    Keep::Nothing => false,
                };
                if partial {
                    rustix::fs::ftruncate(&new, attr.size)?;
                } else if keep != Keep::Nothing && attr.size > 0 {
                    copy_contents(&lower.open(ino)?, attr.size, &new)?;
                }
                file = Some(new);
            }
            kind if upper.tells_owners() && stands_for(kind, attr.rdev).is_some() => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
            }
            FileKind::CharDevice if attr.rdev == 0 => {
                // As it is it would be a whiteout.
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
                upper.format.set(made, Mark::Device, b"y")?;
            }
            kind => {
                let rdev = makedev(rustix::fs::major(attr.rdev), rustix::fs::minor(attr.rdev));
                rustix::fs::mknodat(dir, name, file_type(kind), Mode::RUSR | Mode::WUSR, rdev)?;
            }
        }
        self.dress(upper, ino, attr, made)?;
        match file {
            // Attributes alone, of which a disk that keeps the order shows all or none.
            Some(_) if partial && upper.keeps_order => {}
            Some(file) if partial => rustix::fs::fsync(&file)?,
            Some(file) => rustix::fs::fdatasync(&file)?,
            None => {}
        }
        Ok(partial)
    }

    /// Gives a copy its original's owner, attributes, mode and times.
    fn dress(&self, upper: &Upper, ino: Ino, attr: &Attr, copy: &Spot) -> Result<()> {
        let format = upper.format;
        let mut owner = Owner { uid: attr.uid, gid: attr.gid, mode: attr.mode & 0o7777, kind: None };
        if upper.tells_owners() {
            owner.kind = stands_for(attr.kind, attr.rdev);
        } else {
            // A change of owner takes capabilities away, so it comes before they are given.
            copy.chown(Some(attr.uid), Some(attr.gid))?;
        }
        for (name, value) in self.lower()?.xattrs(ino)? {
            match copy.set_xattr(&upper.stored_name(&name)?, &value, XattrFlags::empty()) {
                // A program without privilege can't write these, and its kernel doesn't heed them.
                Err(Errno::PERM) if format == Format::User && !name.starts_with(b"user.") => {}
                set => set?,
            }
        }
        if !format.set_origin(copy, ino)? {
            self.nodes.lock().remember_unmarked(copy.stat()?.st_ino, ino);
        }
        if upper.tells_owners() {
            upper.own(copy, &owner)?;
        } else if attr.kind != FileKind::Symlink {
            copy.chmod(attr.mode)?;
        }
        Ok(copy.set_times(&Timestamps { last_access: timespec(attr.atime), last_modification: timespec(attr.mtime) })?)
    }

    /// Makes the upper say by itself, in overlayfs' words, what this union shows: for the kernel's driver, which mounts it next.
    pub fn hand_over(&self) -> Result<()> {
        self.settle()?;
        self.settle_root()
    }

    /// Lets a fresh root directory of the upper take over what the lower's root is.
    fn settle_root(&self) -> Result<()> {
        let upper = self.upper()?;
        if !*self.root_is_fresh.read() {
            return Ok(());
        }
        let mut fresh = self.root_is_fresh.write();
        if *fresh {
            let attr = self.lower()?.attr(ROOT)?;
            self.dress(upper, ROOT, &attr, &Spot::Fd(upper.root.clone()))?;
            *fresh = false;
        }
        Ok(())
    }
}

/// The name below `orphans/` and `links/` of an inode.
pub(super) fn orphan_name(ino: Ino) -> Vec<u8> {
    format!("{:016x}", ino.0).into_bytes()
}

/// The reverse of [`orphan_name`].
pub(super) fn orphan_number(name: &[u8]) -> Option<Ino> {
    let text = std::str::from_utf8(name).ok()?;
    u64::from_str_radix(text, 16).ok().map(Ino)
}

/// What could not be placed is removed; what can't be removed is at the next start.
fn discard(made: &Spot) {
    if let Err(errno) = Upper::discard(made) {
        tracing::warn!(%errno, "an unfinished copy stays in the work directory until the next start");
    }
}

fn made_stat(union: &Union, parent: Ino, name: &[u8]) -> Result<u64> {
    let dir = union.upper_dir(parent)?.ok_or(Error::Stale { ino: parent })?;
    Ok(Spot::at(&dir, name).stat()?.st_ino)
}

pub(crate) fn times_of(spot: &Spot) -> Result<Timestamps, Errno> {
    let stat = spot.stat()?;
    Ok(Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    })
}

fn timespec(time: Timestamp) -> Timespec {
    Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() }
}

pub(super) fn file_type(kind: FileKind) -> rustix::fs::FileType {
    use rustix::fs::FileType;
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
    }
}

/// Copies contents: by sharing the disk's blocks where it can, else piece by piece, holes left out.
pub(crate) fn copy_contents(from: &LowerFile, size: u64, to: &File) -> Result<()> {
    if let LowerFile::File { file, .. } = from {
        if rustix::fs::ioctl_ficlone(to, file.as_fd()).is_ok() {
            return Ok(());
        }
        return copy_file(file, size, to);
    }
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(PIECE).min(PIECE)];
    let mut at = 0;
    while at < size {
        let read = from.read_at(at, &mut buffer)?;
        if read == 0 {
            return Err(Errno::IO.into());
        }
        write_full(to, at, &buffer[..read])?;
        at += read as u64;
    }
    Ok(())
}

fn copy_file(from: &File, size: u64, to: &File) -> Result<()> {
    use rustix::fs::SeekFrom;
    // The file's own position is nobody else's: it was opened for this.
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // The rest is a hole.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        copy_range(from, to, start, end.max(start))?;
        at = end.max(start + 1);
    }
    Ok(rustix::fs::ftruncate(to, size)?)
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> Result<()> {
    let (mut in_kernel, mut buffer) = (true, Vec::new());
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(64 * PIECE);
        if in_kernel {
            let (mut read_at, mut write_at) = (at, at);
            match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted) {
                Ok(copied) if copied > 0 => {
                    at += copied as u64;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(errno.into()),
                _ => in_kernel = false,
            }
        }
        buffer.resize(PIECE, 0);
        let piece = wanted.min(PIECE);
        let read = crate::lower::read_full(from, at, &mut buffer[..piece])?;
        if read == 0 {
            // Shorter than its tree says: damage.
            return Err(Errno::IO.into());
        }
        write_full(to, at, &buffer[..read])?;
        at += read as u64;
    }
    Ok(())
}
