//! The same directories, mounted by Mica and by the kernel.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mica_fs::keeper::Keeper;
use mica_fs::lower::DirsLower;
use mica_fs::session::{MountOptions, Session};
use mica_fs::upper::BlockCopy;
use mica_fs::{Below, Format, Union, Upper};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use super::posix::Mount;
use super::steps::{Abilities, XATTRS};

/// Layers, an upper and a place to mount them.
pub struct Place {
    pub dir: TempDir,
    /// The newest last.
    pub layers: Vec<PathBuf>,
    pub generation: u32,
}

impl Place {
    /// One layer, which is at `base` in `dir`.
    pub fn new(dir: TempDir) -> Place {
        let layers = vec![dir.path().join("base")];
        fs::create_dir(dir.path().join("mount")).unwrap();
        let place = Place { dir, layers, generation: 0 };
        place.make_upper();
        place
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.path().join(format!("upper-{}", self.generation))
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join(format!("work-{}", self.generation))
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// An upper whose root looks like that of the layer below.
    fn make_upper(&self) {
        let (below, upper) = (self.layers.last().unwrap(), self.upper());
        fs::create_dir(self.work()).unwrap();
        fs::create_dir(&upper).unwrap();
        let stat = fs::metadata(below).unwrap();
        std::os::unix::fs::chown(&upper, Some(stat.uid()), Some(stat.gid())).unwrap();
        fs::set_permissions(&upper, stat.permissions()).unwrap();
        let marks = ["opaque", "impure", "origin", "uuid"].map(|mark| format!("trusted.overlay.{mark}").into_bytes());
        for (name, value) in super::posix::xattrs(below) {
            if !marks.contains(&name) && name != b"trusted.mica.origin" {
                rustix::fs::setxattr(&upper, &name[..], &value, XattrFlags::empty()).unwrap();
            }
        }
        let time = Timespec { tv_sec: stat.mtime(), tv_nsec: stat.mtime_nsec() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &upper, &times, AtFlags::empty()).unwrap();
    }

    fn commit(&mut self) {
        self.layers.push(self.upper());
        self.generation += 1;
        self.make_upper();
    }
}

/// Kernel overlayfs.
pub struct Kernel {
    /// What it is asked beside the usual.
    options: &'static str,
    /// None once it is unmounted.
    place: Option<Place>,
}

impl Kernel {
    pub fn new(place: Place) -> Kernel {
        Kernel::with(place, "metacopy=off,")
    }

    /// With options that end with a comma.
    pub fn with(place: Place, options: &'static str) -> Kernel {
        let kernel = Kernel { options, place: Some(place) };
        kernel.begin();
        kernel
    }

    fn place(&self) -> &Place {
        self.place.as_ref().unwrap()
    }

    fn begin(&self) {
        let place = self.place();
        let layers: Vec<_> = place.layers.iter().rev().map(|layer| layer.as_os_str().as_bytes()).collect();
        let (upper, work) = (place.upper(), place.work());
        // Hard links survive a copy-up by the index alone, numbers by xino alone.
        let options = [
            &b"redirect_dir=on,index=on,xino=on,"[..],
            self.options.as_bytes(),
            b"lowerdir=",
            &layers.join(&b':'),
            b",upperdir=",
            upper.as_os_str().as_bytes(),
            b",workdir=",
            work.as_os_str().as_bytes(),
        ];
        let options = CString::new(options.concat()).unwrap();
        rustix::mount::mount("overlay", place.root(), "overlay", MountFlags::empty(), &*options).unwrap();
    }

    /// Unmounts it.
    pub fn end(mut self) -> Place {
        let place = self.place.take().unwrap();
        unmount(&place.root());
        place
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            let _ = rustix::mount::unmount(place.root(), UnmountFlags::DETACH);
        }
    }
}

fn unmount(root: &Path) {
    rustix::mount::unmount(root, UnmountFlags::empty()).unwrap();
}

impl Mount for Kernel {
    fn abilities(&self) -> Abilities {
        // overlayfs lets nobody make a device 0:0, which is its whiteout.
        Abilities {
            zero_devices: false,
            xattrs: &["user.one", "user.two", "trusted.overlay.x"],
            sockets: true,
            long_paths: false,
        }
    }

    fn is_mark(&self, name: &[u8]) -> bool {
        name.starts_with(b"trusted.mica.")
    }

    fn numbers_agree(&self) -> bool {
        false
    }

    fn root(&self) -> PathBuf {
        self.place().root()
    }

    fn remount(&mut self) {
        unmount(&self.place().root());
        self.begin();
    }

    fn commit(&mut self) {
        unmount(&self.place().root());
        self.place.as_mut().unwrap().commit();
        self.begin();
    }
}

/// Mica.
pub struct Mica {
    /// None once it is unmounted.
    place: Option<Place>,
    keeper: Keeper,
    session: Option<Session>,
    metacopy: bool,
    block_copy: BlockCopy,
    union: Option<Arc<Union>>,
}

impl Mica {
    pub fn new(place: Place) -> Mica {
        Mica::with(place, false)
    }

    /// With contents left in the lower where only attributes change, or without.
    pub fn with(place: Place, metacopy: bool) -> Mica {
        let mut mica = Mica {
            place: Some(place),
            keeper: Keeper::in_process(),
            session: None,
            metacopy,
            block_copy: BlockCopy::NEVER,
            union: None,
        };
        mica.begin();
        mica
    }

    /// With files copied block by block, of which the rest is not copied while this is mounted.
    pub fn by_blocks(place: Place) -> Mica {
        let wait = std::time::Duration::from_secs(1 << 20);
        let block_copy = BlockCopy { from_bytes: 1, force: true, wait, bytes_per_second: 1 };
        let (keeper, place) = (Keeper::in_process(), Some(place));
        let mut mica = Mica { place, keeper, session: None, metacopy: false, block_copy, union: None };
        mica.begin();
        mica
    }

    fn place(&self) -> &Place {
        self.place.as_ref().unwrap()
    }

    fn begin(&mut self) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("oracle-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let place = self.place();
        let layers: Vec<_> = place.layers.iter().rev().collect();
        let lower = DirsLower::open(&layers, Format::Trusted).unwrap();
        let upper = Upper::open(&place.upper(), &place.work(), Format::Trusted).unwrap();
        let upper = upper.with_block_copy(self.block_copy);
        let upper = if self.metacopy { upper.with_metacopy(0) } else { upper };
        let union = Arc::new(Union::new(Below::Ready(Arc::new(lower)), Some(upper)).unwrap());
        let options = MountOptions { threads: 2, ..MountOptions::default() };
        let session = Session::mount(&self.keeper, &id, &place.root(), union.clone(), &options).unwrap();
        (self.session, self.union) = (Some(session), Some(union));
    }

    fn unmount(&mut self) {
        self.session.take().unwrap().unmount(false).unwrap();
    }

    /// Makes every file whole.
    pub fn settle(&self) {
        self.union.as_ref().unwrap().settle().unwrap();
    }

    /// Unmounts it.
    pub fn end(mut self) -> Place {
        self.unmount();
        self.place.take().unwrap()
    }
}

impl Drop for Mica {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.unmount(true);
        }
    }
}

impl Mount for Mica {
    fn abilities(&self) -> Abilities {
        Abilities {
            zero_devices: true,
            xattrs: &["user.one", "trusted.overlay.opaque", "trusted.mica.origin"],
            sockets: true,
            long_paths: true,
        }
    }

    fn root(&self) -> PathBuf {
        self.place().root()
    }

    fn remount(&mut self) {
        self.unmount();
        self.begin();
    }

    fn commit(&mut self) {
        self.unmount();
        self.place.as_mut().unwrap().commit();
        self.begin();
    }
}

/// Attributes that any filesystem takes.
pub const PLAIN: &[&str] = XATTRS;
