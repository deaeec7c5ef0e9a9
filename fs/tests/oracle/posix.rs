//! A mounted filesystem, used as programs use it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use mica_fs::inode::FileKind;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags, mkdirat, mknodat,
    renameat_with, utimensat,
};
use rustix::io::Errno;

use super::reference::{Action, Path, Shown, Xattrs};
use super::steps::Abilities;
use super::world::Subject;

/// How a filesystem is mounted.
pub trait Mount {
    /// What it can do.
    fn abilities(&self) -> Abilities;
    /// Whether an attribute is another's mark, which it shows as it doesn't know it.
    fn is_mark(&self, _name: &[u8]) -> bool {
        false
    }
    /// Whether reading a directory tells the numbers that stat(2) tells. overlayfs' do only while it finds the origin
    /// of each file, which Mica does not note in its way.
    fn numbers_agree(&self) -> bool {
        true
    }
    /// Where it is mounted.
    fn root(&self) -> PathBuf;
    /// Unmounts it and mounts the same again.
    fn remount(&mut self);
    /// Unmounts it, and mounts a new one with the upper as one more layer.
    fn commit(&mut self);
}

pub struct Posix<M> {
    pub mount: M,
    held: Vec<File>,
}

impl<M: Mount> Posix<M> {
    pub fn new(mount: M) -> Posix<M> {
        Posix { mount, held: Vec::new() }
    }

    fn at(&self, path: &Path) -> PathBuf {
        path.iter().fold(self.mount.root(), |at, name| at.join(OsStr::from_bytes(name)))
    }

    fn show(&self, at: &std::path::Path) -> Shown {
        let stat = fs::symlink_metadata(at).unwrap();
        let kind = FileKind::from_mode(stat.mode()).unwrap();
        let bytes = match kind {
            FileKind::Regular => fs::read(at).unwrap(),
            FileKind::Symlink => fs::read_link(at).unwrap().into_os_string().into_vec(),
            _ => Vec::new(),
        };
        let is_dir = kind == FileKind::Directory;
        Shown {
            id: stat.ino(),
            kind,
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            mtime: Some((stat.mtime(), stat.mtime_nsec() as u32)),
            xattrs: xattrs(at).into_iter().filter(|(name, _)| !self.mount.is_mark(name)).collect(),
            links: if is_dir { 0 } else { stat.nlink() as u32 },
            bytes,
            rdev: if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) { stat.rdev() } else { 0 },
        }
    }
}

/// All attributes that this process sees.
pub fn xattrs(at: &std::path::Path) -> Xattrs {
    let mut list = vec![0; 4096];
    let length = rustix::fs::llistxattr(at, &mut list[..]).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(at, name, &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

fn errno<T>(result: io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap())
}

impl<M: Mount> Subject for Posix<M> {
    fn abilities(&self) -> Abilities {
        self.mount.abilities()
    }

    fn below_a_kernel(&self) -> bool {
        true
    }

    fn apply(&mut self, action: &Action) -> Result<(), Errno> {
        match action {
            Action::Mkdir(at, mode) => mkdirat(CWD, self.at(at), Mode::from_raw_mode(*mode)),
            Action::Create(at, mode) => {
                let mut options = OpenOptions::new();
                errno(options.write(true).create_new(true).mode(*mode).open(self.at(at))).map(drop)
            }
            Action::Symlink(at, target) => rustix::fs::symlinkat(&target[..], CWD, self.at(at)),
            Action::Mknod(at, kind, rdev) => {
                let kind = FileType::from_raw_mode(kind.mode_bits());
                mknodat(CWD, self.at(at), kind, Mode::from_raw_mode(0o640), *rdev)
            }
            Action::Link(from, to) => rustix::fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty()),
            Action::Unlink(at) => rustix::fs::unlinkat(CWD, self.at(at), AtFlags::empty()),
            Action::Rmdir(at) => rustix::fs::unlinkat(CWD, self.at(at), AtFlags::REMOVEDIR),
            Action::Rename(from, to, flags) if *flags == RenameFlags::empty() => {
                rustix::fs::renameat(CWD, self.at(from), CWD, self.at(to))
            }
            Action::Rename(from, to, flags) => renameat_with(CWD, self.at(from), CWD, self.at(to), *flags),
            Action::Write(at, offset, data) => {
                let file = errno(OpenOptions::new().write(true).open(self.at(at)))?;
                errno(file.write_all_at(data, *offset))
            }
            Action::Truncate(at, size) => {
                let file = errno(OpenOptions::new().write(true).open(self.at(at)))?;
                errno(file.set_len(*size))
            }
            Action::Chmod(at, mode) => {
                rustix::fs::chmodat(CWD, self.at(at), Mode::from_raw_mode(*mode), AtFlags::empty())
            }
            Action::Chown(at, uid, gid) => {
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                rustix::fs::chownat(CWD, self.at(at), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            Action::SetTimes(at, secs, nanos) => {
                let time = Timespec { tv_sec: *secs, tv_nsec: i64::from(*nanos) };
                let times = Timestamps { last_access: time, last_modification: time };
                utimensat(CWD, self.at(at), &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Action::SetXattr(at, name, value) => {
                rustix::fs::lsetxattr(self.at(at), &name[..], value, XattrFlags::empty())
            }
            Action::RemoveXattr(at, name) => rustix::fs::lremovexattr(self.at(at), &name[..]),
        }
    }

    fn shown(&mut self) -> BTreeMap<Path, Shown> {
        let root = self.mount.root();
        let mut shown = BTreeMap::from([(Vec::new(), self.show(&root))]);
        let mut dirs = vec![(Vec::new(), root)];
        while let Some((path, dir)) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let path: Path = [&path[..], &[entry.file_name().into_vec()]].concat();
                let seen = self.show(&entry.path());
                assert_eq!(entry.file_type().unwrap().is_dir(), seen.kind == FileKind::Directory, "{path:?}");
                if self.mount.numbers_agree() {
                    assert_eq!(entry.ino(), seen.id, "{path:?}");
                }
                if seen.kind == FileKind::Directory {
                    dirs.push((path.clone(), entry.path()));
                }
                assert!(shown.insert(path.clone(), seen).is_none(), "{path:?} is listed twice");
            }
        }
        shown
    }

    fn hold(&mut self, at: &Path, write: bool) -> Result<(), Errno> {
        self.held.push(errno(OpenOptions::new().read(true).write(write).open(self.at(at)))?);
        Ok(())
    }

    fn held_write(&mut self, held: usize, offset: u64, data: &[u8]) -> Result<(), Errno> {
        errno(self.held[held].write_all_at(data, offset))
    }

    fn held_read(&mut self, held: usize) -> Vec<u8> {
        let mut bytes = vec![0; 64 << 10];
        let read = self.held[held].read_at(&mut bytes, 0).unwrap();
        bytes.truncate(read);
        bytes
    }

    fn release(&mut self) {
        self.held.clear();
    }

    fn forget(&mut self) {
        // Echo 2: let go of names and inodes that nobody uses.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    }

    fn remount(&mut self) {
        self.mount.remount();
    }

    fn commit(&mut self) {
        self.mount.commit();
    }
}
