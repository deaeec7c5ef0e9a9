//! The union itself, called as the FUSE adapter calls it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mica_fs::branches::{BranchMode, BranchSpec, CreatePolicy};
use mica_fs::diff::write_diff;
use mica_fs::inode::{FileKind, Timestamp};
use mica_fs::lower::{DirsLower, Lower, TreeLower};
use mica_fs::served::Served;
use mica_fs::upper::BlockCopy;
use mica_fs::{Attr, Below, Branches, Caller, Fh, Format, Ino, Objects, ROOT, SetAttr, SetTime, Union, Upper};
use mica_layerdb::{DiffId, IngestOptions, Store};
use rustix::fs::OFlags;
use rustix::io::Errno;
use tempfile::TempDir;

use super::reference::{Action, Name, Path, Shown, Xattrs};
use super::steps::Abilities;
use super::world::Subject;

/// What is below the upper.
pub enum Layers {
    /// Directories, the newest last.
    Dirs(Vec<PathBuf>),
    /// Layers of the store, the newest last.
    Tree(Vec<DiffId>),
    /// Branches, of which several can be written to, around one that can't.
    Branches {
        policy: CreatePolicy,
        /// Top first.
        specs: Vec<BranchSpec>,
        live: Option<Arc<Branches>>,
    },
}

pub struct Direct {
    dir: TempDir,
    format: Format,
    /// Whether changes of attributes leave contents in the lower.
    metacopy: bool,
    block_copy: BlockCopy,
    layers: Layers,
    generation: usize,
    union: Option<Arc<dyn Served>>,
    lookups: HashMap<Ino, u64>,
    held: Vec<Held>,
    /// The numbers that names led to when all was last shown.
    named: HashSet<Ino>,
    shows: usize,
}

struct Held {
    fh: Fh,
    ino: Ino,
    flags: OFlags,
}

/// A store in a folder that goes with it.
#[derive(Debug)]
pub struct Shared {
    store: Arc<Store>,
    _dir: TempDir,
}

/// The store that all tests use which run at the time.
pub fn shared() -> Arc<Shared> {
    static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
    let mut known = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    known.upgrade().unwrap_or_else(|| {
        let dir = TempDir::new().unwrap();
        let shared = Arc::new(Shared { store: Store::open(dir.path()).unwrap(), _dir: dir });
        *known = Arc::downgrade(&shared);
        shared
    })
}

fn store() -> Arc<Store> {
    shared().store.clone()
}

impl Direct {
    /// A union over one directory, which is at `base` in `dir`.
    pub fn over_dirs(dir: TempDir, format: Format) -> Direct {
        let base = dir.path().join("base");
        Direct::new(dir, format, Layers::Dirs(vec![base]))
    }

    /// The same over a layer made of that directory.
    pub fn over_trees(dir: TempDir, format: Format) -> Direct {
        let (nothing, work) = (dir.path().join("nothing"), dir.path().join("base-work"));
        fs::create_dir(&nothing).unwrap();
        fs::create_dir(&work).unwrap();
        let base = Upper::open(&dir.path().join("base"), &work, format).unwrap();
        let nothing = DirsLower::open(&[nothing], format).unwrap();
        let layer = ingest(&nothing, &base);
        Direct::new(dir, format, Layers::Tree(vec![layer]))
    }

    /// Branches that can be written to above and below that directory, which can't.
    pub fn among_branches(dir: TempDir, format: Format, policy: CreatePolicy) -> Direct {
        let branch = |name: &str, mode| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            BranchSpec { path, mode, work: None }
        };
        let (rw, ro) = (BranchMode::Writable, BranchMode::ReadOnly);
        let specs = vec![branch("one", rw), branch("two", rw), branch("base", ro), branch("three", rw)];
        become_root(&specs[2].path, &specs[0].path);
        Direct::new(dir, format, Layers::Branches { policy, specs, live: None })
    }

    fn new(dir: TempDir, format: Format, layers: Layers) -> Direct {
        let (lookups, held) = (HashMap::new(), Vec::new());
        let named = HashSet::new();
        let mut direct = Direct {
            dir,
            format,
            metacopy: true,
            block_copy: BlockCopy::NEVER,
            layers,
            generation: 0,
            union: None,
            lookups,
            held,
            named,
            shows: 0,
        };
        direct.begin();
        direct
    }

    /// Copies whole files, always.
    pub fn without_metacopy(self) -> Direct {
        let mut direct = Direct { metacopy: false, ..self };
        direct.begin();
        direct
    }

    /// Copies every file block by block, and what nobody changes after `wait`.
    pub fn by_blocks(self, wait: Duration) -> Direct {
        let block_copy = BlockCopy { from_bytes: 1, force: true, wait, bytes_per_second: 1 << 30 };
        let mut direct = Direct { block_copy, ..self };
        direct.begin();
        direct
    }

    fn lower(&self) -> Arc<dyn Lower> {
        match &self.layers {
            Layers::Dirs(dirs) => {
                let dirs: Vec<_> = dirs.iter().rev().collect();
                Arc::new(DirsLower::open(&dirs, self.format).unwrap())
            }
            Layers::Branches { .. } => unreachable!("branches are no lower"),
            Layers::Tree(layers) => {
                let objects = Objects::sealed(store().objects_path()).unwrap();
                Arc::new(TreeLower::new(store().chain(layers).unwrap(), Arc::new(objects)))
            }
        }
    }

    fn upper_dirs(&self) -> [PathBuf; 2] {
        ["upper", "work"].map(|name| self.dir.path().join(format!("{name}-{}", self.generation)))
    }

    fn upper(&self) -> Upper {
        let [upper, work] = self.upper_dirs();
        for dir in [&upper, &work] {
            fs::create_dir_all(dir).unwrap();
        }
        let upper = Upper::open(&upper, &work, self.format).unwrap().with_fresh_root();
        let upper = upper.with_block_copy(self.block_copy);
        if self.metacopy { upper.with_metacopy(0) } else { upper }
    }

    fn begin(&mut self) {
        if let Layers::Branches { policy, specs, live } = &mut self.layers {
            let branches = Arc::new(Branches::new(specs, self.format, *policy).unwrap());
            *live = Some(branches.clone());
            self.union = Some(branches);
            return;
        }
        self.union = Some(Arc::new(Union::new(Below::Ready(self.lower()), Some(self.upper())).unwrap()));
    }

    fn union(&self) -> &dyn Served {
        self.union.as_deref().expect("a union between two mounts")
    }

    fn look(&mut self, dir: Ino, name: &[u8]) -> Result<Attr, Errno> {
        let found = errno(self.union().lookup(dir, name))?.ok_or(Errno::NOENT)?;
        *self.lookups.entry(found.ino).or_default() += 1;
        Ok(found)
    }

    fn find(&mut self, path: &[Name]) -> Result<Ino, Errno> {
        path.iter().try_fold(ROOT, |dir, name| Ok(self.look(dir, name)?.ino))
    }

    fn parent<'a>(&mut self, path: &'a [Name]) -> Result<(Ino, &'a [u8]), Errno> {
        let (name, parent) = path.split_last().ok_or(Errno::EXIST)?;
        Ok((self.find(parent)?, name))
    }

    fn made(&mut self, made: mica_fs::Result<Attr>) -> Result<(), Errno> {
        *self.lookups.entry(errno(made)?.ino).or_default() += 1;
        Ok(())
    }

    fn set(&mut self, at: &[Name], set: SetAttr) -> Result<(), Errno> {
        let ino = self.find(at)?;
        errno(self.union().setattr(ino, None, &set)).map(drop)
    }

    fn read_all(&self, fh: Fh) -> Vec<u8> {
        let mut bytes = vec![0; 64 << 10];
        let read = self.union().read(fh, 0, &mut bytes).unwrap();
        bytes.truncate(read);
        bytes
    }

    fn show(&mut self, attr: &Attr) -> Shown {
        let union = self.union();
        let bytes = match attr.kind {
            FileKind::Symlink => union.readlink(attr.ino).unwrap(),
            FileKind::Regular => {
                let fh = union.open(attr.ino, OFlags::RDONLY).unwrap();
                let bytes = self.read_all(fh);
                union.release(fh);
                assert_eq!(bytes.len() as u64, attr.size);
                bytes
            }
            _ => Vec::new(),
        };
        let names = union.listxattr(attr.ino).unwrap();
        let xattrs: Xattrs =
            names.into_iter().map(|name| (name.clone(), union.getxattr(attr.ino, &name).unwrap())).collect();
        let is_dir = attr.kind == FileKind::Directory;
        assert!(attr.nlink > 0);
        Shown {
            id: attr.ino.0,
            kind: attr.kind,
            mode: attr.mode & 0o7777,
            owner: (attr.uid, attr.gid),
            mtime: Some((attr.mtime.secs, attr.mtime.nanos)),
            xattrs,
            links: if is_dir { 0 } else { attr.nlink },
            bytes,
            rdev: if matches!(attr.kind, FileKind::CharDevice | FileKind::BlockDevice) { attr.rdev } else { 0 },
        }
    }

    /// Names and numbers in a directory, read in pieces of several sizes.
    fn list(&mut self, dir: Ino, plus: bool, piece: usize) -> Vec<(Name, Ino, FileKind)> {
        let fh = self.union().opendir(dir).unwrap();
        let (mut entries, mut after) = (Vec::new(), 0);
        loop {
            let before = entries.len();
            let mut taken = 0;
            self.union
                .as_ref()
                .unwrap()
                .readdir(fh, after, plus, &mut |entry| {
                    if taken == piece {
                        return false;
                    }
                    taken += 1;
                    after = entry.cookie;
                    assert_eq!(entry.attr.is_some(), plus && entry.name != b"." && entry.name != b"..");
                    if let Some(attr) = entry.attr {
                        assert_eq!((attr.ino, attr.kind), (entry.ino, entry.kind));
                        *self.lookups.entry(attr.ino).or_default() += 1;
                    }
                    entries.push((entry.name.to_vec(), entry.ino, entry.kind));
                    true
                })
                .unwrap();
            if entries.len() == before {
                break;
            }
        }
        self.union().releasedir(fh);
        assert_eq!(entries[0], (b".".to_vec(), dir, FileKind::Directory));
        assert_eq!(entries[1].0, b"..");
        entries.split_off(2)
    }
}

/// Gives a directory the attributes of another: the topmost branch says what the root is.
fn become_root(from: &std::path::Path, to: &std::path::Path) {
    let metadata = fs::metadata(from).unwrap();
    std::os::unix::fs::chown(to, Some(metadata.uid()), Some(metadata.gid())).unwrap();
    fs::set_permissions(to, metadata.permissions()).unwrap();
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::listxattr(from, &mut names[..]).unwrap();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::getxattr(from, name, &mut value[..]).unwrap();
        rustix::fs::setxattr(to, name, &value[..length], rustix::fs::XattrFlags::empty()).unwrap();
    }
    let times = fs::FileTimes::new().set_accessed(metadata.accessed().unwrap());
    fs::File::open(to).unwrap().set_times(times.set_modified(metadata.modified().unwrap())).unwrap();
}

/// A layer of what an upper changes.
fn ingest(lower: &dyn Lower, upper: &Upper) -> DiffId {
    let mut tar = Vec::new();
    let stats = write_diff(lower, upper, &mut tar).unwrap();
    assert_eq!(stats.left_out, 0);
    store().ingest(&mut &tar[..], &IngestOptions::default(), &()).unwrap().diff_id
}

fn errno<T>(result: mica_fs::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| error.errno())
}

impl Subject for Direct {
    fn abilities(&self) -> Abilities {
        let dirs = !matches!(self.layers, Layers::Tree(_));
        let zero_devices = matches!(self.layers, Layers::Dirs(_));
        // What is below a nested overlay has its marks as attributes; those of our own a layer does not take.
        let xattrs: &[&str] = match (self.format, dirs) {
            (Format::User, false) => &["user.one", "user.two", "user.overlay.opaque"],
            (Format::User, true) => &["user.one", "user.two", "user.overlay.opaque", "user.mica.origin"],
            (Format::Trusted, false) => &["user.one", "user.two", "trusted.overlay.opaque"],
            (Format::Trusted, true) => &["user.one", "user.two", "trusted.overlay.opaque", "trusted.mica.origin"],
        };
        Abilities { zero_devices, xattrs, sockets: dirs, long_paths: true }
    }

    fn refuses_moves(&self) -> bool {
        matches!(self.layers, Layers::Branches { .. })
    }

    fn apply(&mut self, action: &Action) -> Result<(), Errno> {
        let caller = Caller::default();
        match action {
            Action::Mkdir(at, mode) => {
                let (parent, name) = self.parent(at)?;
                let made = self.union().mkdir(&caller, parent, name, *mode);
                self.made(made)
            }
            Action::Create(at, mode) => {
                let (parent, name) = self.parent(at)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
                let (attr, fh) = errno(self.union().create(&caller, parent, name, *mode, flags))?;
                self.union().release(fh);
                self.made(Ok(attr))
            }
            Action::Symlink(at, target) => {
                let (parent, name) = self.parent(at)?;
                let made = self.union().symlink(&caller, parent, name, target);
                self.made(made)
            }
            Action::Mknod(at, kind, rdev) => {
                let (parent, name) = self.parent(at)?;
                let made = self.union().mknod(&caller, parent, name, kind.mode_bits() | 0o640, *rdev);
                self.made(made)
            }
            Action::Link(from, to) => {
                let ino = self.find(from)?;
                let (parent, name) = self.parent(to)?;
                let made = self.union().link(ino, parent, name);
                self.made(made)
            }
            Action::Unlink(at) => {
                let (parent, name) = self.parent(at)?;
                errno(self.union().unlink(parent, name))
            }
            Action::Rmdir(at) => {
                let (parent, name) = self.parent(at)?;
                errno(self.union().rmdir(parent, name))
            }
            Action::Rename(from, to, flags) => {
                let (parent, name) = self.parent(from)?;
                let (new_parent, new_name) = self.parent(to)?;
                errno(self.union().rename(parent, name, new_parent, new_name, *flags))
            }
            Action::Write(at, offset, data) => {
                let ino = self.find(at)?;
                let fh = errno(self.union().open(ino, OFlags::WRONLY))?;
                assert_eq!(errno(self.union().write(fh, *offset, data))?, data.len());
                errno(self.union().flush(fh))?;
                self.union().release(fh);
                Ok(())
            }
            Action::Truncate(at, size) => self.set(at, SetAttr { size: Some(*size), ..SetAttr::default() }),
            Action::Chmod(at, mode) => self.set(at, SetAttr { mode: Some(*mode), ..SetAttr::default() }),
            Action::Chown(at, uid, gid) => {
                self.set(at, SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() })
            }
            Action::SetTimes(at, secs, nanos) => {
                let time = SetTime::At(Timestamp { secs: *secs, nanos: *nanos });
                self.set(at, SetAttr { atime: Some(time), mtime: Some(time), ..SetAttr::default() })
            }
            Action::SetXattr(at, name, value) => {
                let ino = self.find(at)?;
                errno(self.union().setxattr(ino, name, value, 0))
            }
            Action::RemoveXattr(at, name) => {
                let ino = self.find(at)?;
                errno(self.union().removexattr(ino, name))
            }
        }
    }

    fn shown(&mut self) -> BTreeMap<Path, Shown> {
        self.shows += 1;
        let (plus, piece) = (self.shows.is_multiple_of(2), 1 + self.shows % 5);
        let root = self.union().getattr(ROOT, None).unwrap();
        let mut shown = BTreeMap::from([(Vec::new(), self.show(&root))]);
        let mut dirs = vec![(Vec::new(), ROOT)];
        while let Some((path, dir)) = dirs.pop() {
            for (name, ino, kind) in self.list(dir, plus, piece) {
                let attr = self.look(dir, &name).unwrap_or_else(|errno| panic!("{path:?}/{name:?}: {errno}"));
                assert_eq!((attr.ino, attr.kind), (ino, kind), "{path:?}/{name:?}");
                // Reading a directory moves its time of access.
                let mut again = Attr { atime: attr.atime, ..self.union().getattr(ino, None).unwrap() };
                if self.block_copy != BlockCopy::NEVER {
                    // What is copied meanwhile takes space.
                    (again.blocks, again.ctime) = (attr.blocks, attr.ctime);
                }
                assert_eq!(again, attr, "{path:?}/{name:?}");
                let path: Path = [&path[..], &[name]].concat();
                assert!(shown.insert(path.clone(), self.show(&attr)).is_none(), "{path:?} is listed twice");
                if kind == FileKind::Directory {
                    dirs.push((path, ino));
                }
            }
        }
        // Whatever the kernel knows it may ask for.
        for ino in self.lookups.keys() {
            self.union().getattr(*ino, None).unwrap_or_else(|error| panic!("{ino}: {error}"));
        }
        self.named = shown.values().map(|shown: &Shown| Ino(shown.id)).collect();
        shown
    }

    fn hold(&mut self, at: &Path, write: bool) -> Result<(), Errno> {
        let ino = self.find(at)?;
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let fh = errno(self.union().open(ino, flags))?;
        self.held.push(Held { fh, ino, flags });
        Ok(())
    }

    fn held_write(&mut self, held: usize, offset: u64, data: &[u8]) -> Result<(), Errno> {
        assert_eq!(errno(self.union().write(self.held[held].fh, offset, data))?, data.len());
        Ok(())
    }

    fn held_read(&mut self, held: usize) -> Vec<u8> {
        self.read_all(self.held[held].fh)
    }

    fn release(&mut self) {
        for held in std::mem::take(&mut self.held) {
            self.union().release(held.fh);
        }
    }

    fn forget(&mut self) {
        for (ino, lookups) in std::mem::take(&mut self.lookups) {
            self.union().forget(ino, lookups);
        }
    }

    fn remount(&mut self) {
        self.lookups.clear();
        self.union = None;
        self.begin();
        self.union().begin().unwrap();
    }

    fn take_over(&mut self) {
        if matches!(self.layers, Layers::Branches { .. }) {
            return;
        }
        self.union = None;
        self.begin();
        self.union().recover().unwrap();
        // What had no name and was not open is gone with the process that held it.
        let open: HashSet<_> = self.held.iter().map(|held| held.ino).collect();
        let named = &self.named;
        self.lookups.retain(|ino, _| named.contains(ino) || open.contains(ino));
        for at in 0..self.held.len() {
            let Held { ino, flags, .. } = self.held[at];
            self.held[at].fh = self.union().open(ino, flags).unwrap();
        }
    }

    fn commit(&mut self) {
        if let Layers::Branches { specs, live: Some(live), .. } = &mut self.layers {
            // A branch more while the union is used; what was on top may become read-only.
            self.generation += 1;
            let path = self.dir.path().join(format!("more-{}", self.generation));
            fs::create_dir(&path).unwrap();
            become_root(&specs[0].path, &path);
            let spec = BranchSpec { path, mode: BranchMode::Writable, work: None };
            live.add(&spec, 0).unwrap();
            if self.generation.is_multiple_of(2) {
                live.set_mode(&specs[0].path, BranchMode::Whiteouts).unwrap();
                specs[0].mode = BranchMode::Whiteouts;
            }
            specs.insert(0, spec);
            return;
        }
        self.lookups.clear();
        // As a layer the upper's root speaks for itself.
        let root = self.union().getattr(ROOT, None).unwrap();
        self.union().setattr(ROOT, None, &SetAttr { mode: Some(root.mode), ..SetAttr::default() }).unwrap();
        if let Layers::Dirs(_) = &self.layers {
            // As one of several it is read by who knows nothing of blocks.
            self.union().settle().unwrap();
        }
        self.union = None;
        let upper = self.upper_dirs()[0].clone();
        match &self.layers {
            Layers::Tree(_) => {
                let layer = ingest(&*self.lower(), &self.upper());
                let Layers::Tree(layers) = &mut self.layers else { unreachable!() };
                layers.push(layer);
            }
            Layers::Branches { .. } => unreachable!("branches become no layer"),
            Layers::Dirs(_) => {
                let Layers::Dirs(dirs) = &mut self.layers else { unreachable!() };
                dirs.push(upper);
            }
        }
        self.generation += 1;
        self.begin();
    }
}
