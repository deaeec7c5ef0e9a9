//! The directories that are stacked, and access to what is in them.
//!
//! Everything is reached by one name at a time below a directory's descriptor; nothing is followed and no mount is
//! crossed, so that a layer is what its own disk has there.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags, Stat, StatVfs};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::cache::cache_of;
use crate::error::{Error, Result};
use crate::lower::Role;
use crate::owners::{self, Owner, Owners};
use crate::sys;

/// A file name.
pub(super) type Name = Arc<[u8]>;

/// Descriptors kept open beside those of the layers themselves.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

const DIRECTORY: OFlags = OFlags::from_bits_retain(OFlags::RDONLY.bits() | OFlags::DIRECTORY.bits());

/// One of the stacked directories.
struct Layer {
    /// What it is called in errors.
    path: String,
    root: Arc<OwnedFd>,
    device: u64,
    role: Role,
    /// A detached mount of it, without the mounts on it; dissolved when this is closed.
    _mount: Option<OwnedFd>,
}

/// A directory within a layer: the way to it, not a descriptor.
pub(super) struct Real {
    number: u64,
    pub(super) layer: u16,
    /// Where it is; `None` for the layer's root.
    place: Option<(Arc<Real>, Name)>,
}

impl fmt::Debug for Real {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((dir, name)) = &self.place {
            write!(out, "{dir:?}/{}", name.escape_ascii())
        } else {
            write!(out, "{}:", self.layer)
        }
    }
}

/// The stack, top first.
pub(super) struct Layers {
    stack: Vec<Layer>,
    /// How many of them show; what is below has contents alone.
    shown: u16,
    roots: Vec<Arc<Real>>,
    numbers: AtomicU64,
    pub(super) owners: Owners,
    open: Mutex<LruCache<u64, Arc<OwnedFd>>>,
}

impl fmt::Debug for Layers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(self.stack.iter().map(|layer| &layer.path)).finish()
    }
}

impl Layers {
    pub(super) fn open(dirs: &[(impl AsRef<Path>, Role)], owners: Owners) -> Result<Layers> {
        let stack = dirs.iter().map(|(dir, role)| open_layer(dir.as_ref(), *role)).collect::<Result<Vec<_>>>()?;
        let shown = stack.iter().take_while(|layer| layer.role != Role::Data).count() as u16;
        let root = |layer| Arc::new(Real { number: 0, layer, place: None });
        let roots = (0..stack.len() as u16).map(root).collect();
        let open = Mutex::new(cache_of(OPEN_MAX));
        Ok(Layers { stack, shown, roots, numbers: AtomicU64::new(1), owners, open })
    }

    /// How many show something.
    pub(super) fn count(&self) -> u16 {
        self.shown
    }

    /// How many there are, with those that have contents alone.
    pub(super) fn count_with_data(&self) -> u16 {
        self.stack.len() as u16
    }

    /// The directory at the bottom of everything in a layer.
    pub(super) fn root(&self, layer: u16) -> &Arc<Real> {
        &self.roots[usize::from(layer)]
    }

    /// The device of a layer's disk.
    pub(super) fn device(&self, layer: u16) -> u64 {
        self.stack[usize::from(layer)].device
    }

    /// A directory in a directory.
    pub(super) fn child(&self, dir: &Arc<Real>, name: Name) -> Arc<Real> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        Arc::new(Real { number, layer: dir.layer, place: Some((dir.clone(), name)) })
    }

    /// A descriptor of the directory.
    pub(super) fn dir(&self, real: &Arc<Real>) -> Result<Arc<OwnedFd>> {
        let mut missing: Vec<(&Real, &Name)> = Vec::new();
        let mut at = real;
        let mut dir = loop {
            let Some((up, name)) = &at.place else { break self.stack[usize::from(at.layer)].root.clone() };
            if let Some(open) = self.open.lock().get(&at.number) {
                break open.clone();
            }
            missing.push((at, name));
            at = up;
        };
        for (real, name) in missing.into_iter().rev() {
            dir = Arc::new(open_beneath(&dir, name, DIRECTORY)?);
            self.open.lock().put(real.number, dir.clone());
        }
        Ok(dir)
    }

    /// What `stat(2)` says about a name; `None` when there is none.
    pub(super) fn stat(&self, dir: &Arc<Real>, name: &[u8]) -> Result<Option<Stat>> {
        stat_at(&*self.dir(dir)?, name)
    }

    /// What `stat(2)` says about a directory.
    pub(super) fn stat_dir(&self, dir: &Arc<Real>) -> Result<Stat> {
        Ok(rustix::fs::fstat(&*self.dir(dir)?)?)
    }

    /// What a file's attribute tells of it, if owners are told by attributes.
    pub(super) fn owner(&self, xattrs: impl FnOnce() -> Result<Xattrs>) -> Result<Option<Owner>> {
        let Some(attribute) = self.owners.attribute() else { return Ok(None) };
        let value = xattrs()?.get(attribute)?;
        Ok(value.map(|value| Owner::parse(&value)).transpose()?)
    }

    /// The target of a symbolic link, or of a file that is meant to be one.
    pub(super) fn link_target(&self, dir: &Arc<Real>, name: &[u8]) -> Result<Vec<u8>> {
        match rustix::fs::readlinkat(&*self.dir(dir)?, name, Vec::new()) {
            Err(Errno::INVAL) if self.owners != Owners::Disk => Ok(owners::read_target(self.file(dir, name)?.into())?),
            target => Ok(target?.into_bytes()),
        }
    }

    /// Opens a regular file for reading.
    pub(super) fn file(&self, dir: &Arc<Real>, name: &[u8]) -> Result<File> {
        Ok(open_beneath(&self.dir(dir)?, name, OFlags::RDONLY | OFlags::NONBLOCK)?.into())
    }

    /// The extended attributes of whatever has that name.
    pub(super) fn xattrs(&self, dir: &Arc<Real>, name: &[u8]) -> Result<Xattrs> {
        Ok(Xattrs(Arc::new(open_beneath(&self.dir(dir)?, name, OFlags::PATH)?)))
    }

    /// The extended attributes of a directory.
    pub(super) fn xattrs_dir(&self, dir: &Arc<Real>) -> Result<Xattrs> {
        Ok(Xattrs(self.dir(dir)?))
    }

    /// How many directories have a descriptor kept open.
    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        self.open.lock().len()
    }

    /// Free space of the top's disk.
    pub(super) fn statfs(&self) -> Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.stack[0].root)?)
    }

    /// An error that says which directory of which layer is damaged.
    pub(super) fn damaged(&self, dir: &Real, reason: &str) -> Error {
        let mut names = Vec::new();
        let mut at = dir;
        while let Some((up, name)) = &at.place {
            names.push(name.escape_ascii().to_string());
            at = up;
        }
        names.push(self.stack[usize::from(dir.layer)].path.clone());
        names.reverse();
        Error::Layer { path: names.join("/"), reason: reason.into(), errno: Errno::IO }
    }
}

/// What `stat(2)` says about a name below `dir`; `None` when there is none.
pub(super) fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
        Ok(stat) => Ok(Some(stat)),
        // A name that is too long for the disk, as a mark may be, is not there either.
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Hands the names in a directory to `each`, without "." and "..".
pub(super) fn each_name(dir: BorrowedFd<'_>, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    // A descriptor of its own: the place of reading belongs to the open file.
    let dir = open_beneath(dir, b".", DIRECTORY)?;
    let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = CStr::to_bytes(entry.file_name());
        if name != b"." && name != b".." {
            each(name)?;
        }
    }
    Ok(())
}

/// Opens a name below a directory, without following it.
fn open_beneath(dir: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
        .union(ResolveFlags::NO_SYMLINKS)
        .union(ResolveFlags::NO_MAGICLINKS)
        .union(ResolveFlags::NO_XDEV);
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = |flags| rustix::fs::openat2(dir.as_fd(), name, flags, Mode::empty(), RESOLVE);
    if flags.contains(OFlags::PATH) {
        // With O_PATH a symbolic link itself is opened; RESOLVE_NO_SYMLINKS would refuse it.
        return rustix::fs::openat(dir.as_fd(), name, flags, Mode::empty());
    }
    match open(flags | OFlags::NOATIME) {
        // It takes the owner, or CAP_FOWNER, to leave the access time alone.
        Err(Errno::PERM) => open(flags),
        answer => answer,
    }
}

/// Extended attributes of one file.
pub(super) struct Xattrs(Arc<OwnedFd>);

impl Xattrs {
    /// The file's magic link: it leads to the very inode that is open, a symbolic link as well.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// The value of one; `None` when there is none, or none can be.
    pub(super) fn get(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let path = self.path();
        absent(grown(|buffer| rustix::fs::getxattr(&path, name, buffer)))
    }

    /// All full names.
    pub(super) fn names(&self) -> Result<Vec<Vec<u8>>> {
        let path = self.path();
        let list = absent(grown(|buffer| rustix::fs::listxattr(&path, buffer)))?.unwrap_or_default();
        Ok(list.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }
}

fn absent<T>(answer: Result<T, Errno>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Repeats a call with more room until its answer fits.
fn grown(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            // 64 KiB is the most the kernel answers (xattr(7)).
            Err(Errno::RANGE) if buffer.len() < 64 << 10 => buffer.resize(64 << 10, 0),
            Err(errno) => return Err(errno),
        }
    }
}

fn open_layer(path: &Path, role: Role) -> Result<Layer> {
    let failed = |errno: Errno| Error::Layer { path: path.display().to_string(), reason: errno.to_string(), errno };
    let mount = detach(path);
    let at = mount.as_ref().map_or(CWD, AsFd::as_fd);
    let within = if mount.is_some() { Path::new(".") } else { path };
    let root = rustix::fs::openat(at, within, DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&root).map_err(failed)?;
    Ok(Layer { path: path.display().to_string(), root: Arc::new(root), device: stat.st_dev, role, _mount: mount })
}

/// A private, read-only mount of the directory without the mounts on it, where that is permitted: what is mounted
/// there, this union perhaps, is not part of the layer (as kernel overlayfs has it).
fn detach(path: &Path) -> Option<OwnedFd> {
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).ok()?;
    sys::make_mount_read_only(&mount).ok()?;
    Some(mount)
}
