//! A daemon with both forms, that can be started anew over what it left.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_fs::keeper::Keeper;
use mica_layerdb::Store;
use mica_snapshotter::config::Form;
use mica_snapshotter::mounts::try_kernel;
use mica_snapshotter::{FormMounter, FuseMounter, Incoming, Mount, Snapshots};
use tar::EntryType;

/// More than a tree holds itself.
pub const LARGE: &str = include_str!("world.rs");

const FORM: &str = "containerd.io/snapshot/mica.mount";

pub struct World {
    snapshots: Option<Arc<Snapshots>>,
    keeper: Arc<Keeper>,
    folder: tempfile::TempDir,
}

impl World {
    /// `None` where nothing can be mounted.
    pub fn new(form: Form) -> Option<World> {
        if !rustix::process::geteuid().is_root() || File::open("/dev/fuse").is_err() {
            eprintln!("skipped: mounting needs root and /dev/fuse");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut world = World { snapshots: None, keeper: Arc::new(Keeper::in_process()), folder };
        let store = Store::open(&world.folder.path().join("root")).unwrap();
        if let Err(reason) = try_kernel(store.root()) {
            eprintln!("skipped: {reason}");
            return None;
        }
        drop(store);
        world.start(form);
        Some(world)
    }

    pub fn start(&mut self, form: Form) {
        let state = self.state();
        let store = Store::open(&self.folder.path().join("root")).unwrap();
        let fuse = FuseMounter::with_keeper(&state, &store, Arc::clone(&self.keeper)).unwrap();
        let mounter = FormMounter::with_linger(&state, &store, fuse, form, Duration::ZERO).unwrap();
        self.snapshots = Some(Snapshots::open(store, Arc::new(mounter)).unwrap());
    }

    pub fn stop(&mut self) {
        self.snapshots.take().unwrap().close().unwrap();
    }

    pub fn restart(&mut self, form: Form) {
        self.stop();
        self.start(form);
    }

    pub fn on(&self) -> &Snapshots {
        self.snapshots.as_ref().unwrap()
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// How many trees are mounted.
    pub fn trees(&self) -> usize {
        let folder = self.state().join("trees");
        if folder.exists() { names(&folder).len() } else { 0 }
    }

    pub fn try_prepare(&self, key: &str, parent: &str, form: &str) -> mica_snapshotter::Result<Vec<Mount>> {
        self.on().prepare(key, parent, BTreeMap::from([(FORM.to_owned(), form.to_owned())]))
    }

    pub fn prepare(&self, key: &str, parent: &str) -> PathBuf {
        place(&self.on().prepare(key, parent, BTreeMap::new()).unwrap())
    }

    pub fn prepare_in(&self, key: &str, parent: &str, form: Form) -> PathBuf {
        place(&self.try_prepare(key, parent, word(form)).unwrap())
    }

    pub fn view(&self, key: &str, parent: &str) -> PathBuf {
        place(&self.on().view(key, parent, BTreeMap::new()).unwrap())
    }

    pub fn view_in(&self, key: &str, parent: &str, form: Form) -> PathBuf {
        let labels = BTreeMap::from([(FORM.to_owned(), word(form).to_owned())]);
        place(&self.on().view(key, parent, labels).unwrap())
    }

    pub fn root(&self, key: &str) -> PathBuf {
        place(&self.on().mounts(key).unwrap())
    }

    pub fn commit(&self, name: &str, key: &str) {
        self.on().commit(name, key, BTreeMap::new(), None).unwrap();
    }

    /// The snapshot gets another label, and is mounted anew.
    pub fn change_form(&self, key: &str, form: Form) {
        let mut info = self.on().stat(key).unwrap();
        info.labels.insert(FORM.to_owned(), word(form).to_owned());
        self.on().update(&info, &[]).unwrap();
        let root = self.root(key);
        rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(self.root(key), root);
    }

    /// What the kernel says.
    pub fn form_of(&self, key: &str) -> Form {
        let root = fs::canonicalize(self.root(key)).unwrap();
        let mounts = mica_fs::mountinfo::listed().unwrap();
        let kind = mounts.iter().find(|mount| mount.place == root).unwrap().kind.clone();
        match &kind[..] {
            b"overlay" => Form::Kernel,
            b"fuse.mica" => Form::Fuse,
            other => panic!("{}", other.escape_ascii()),
        }
    }

    /// The folder of a snapshot's changes.
    pub fn upper(&self, key: &str) -> PathBuf {
        let number = self.root(key).file_name().unwrap().to_owned();
        self.folder.path().join("root/snapshots").join(number).join("upper")
    }

    /// Everything that must not change.
    pub fn sealed_bytes(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders: Vec<PathBuf> =
            ["objects", "layers"].map(|name| self.folder.path().join("root").join(name)).to_vec();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        found
    }

    /// A committed snapshot `base` with a file or folder for each change.
    pub fn base(&self) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: EntryType, link: &str, contents: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(contents.len() as u64);
            header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
            header.set_mtime(1_000_000_000);
            if link.is_empty() {
                tar.append_data(&mut header, name, contents.as_bytes()).unwrap();
            } else {
                tar.append_link(&mut header, name, link).unwrap();
            }
        };
        add("./", EntryType::Directory, "", "");
        for name in [
            "append-large",
            "chmod-large",
            "chown-large",
            "xattr-large",
            "utimes-large",
            "moved-beside",
            "moved-away",
            "linked",
            "written-within",
            "cut",
            "untouched-large",
            "tree/sub/large",
            "gone/large",
        ] {
            add(name, EntryType::Regular, "", LARGE);
        }
        for name in [
            "append-small",
            "deleted",
            "tree/sub/small",
            "tree/file",
            "again/old",
            "file-to-folder",
            "folder-to-file/file",
            "untouched-small",
            "gone/small",
        ] {
            add(name, EntryType::Regular, "", name);
        }
        add("link", EntryType::Symlink, "append-small", "");
        add("names", EntryType::Regular, "", LARGE);
        add("names-too", EntryType::Link, "names", "");
        let tar = tar.into_inner().unwrap();
        self.prepare("extract-base", "");
        let layer = Incoming {
            reader: Box::new(Cursor::new(tar.clone())),
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            blob: None,
            size: tar.len() as u64,
            diff_id: None,
        };
        self.on().apply(&self.on().mounts("extract-base").unwrap(), layer).unwrap().unwrap();
        self.commit("base", "extract-base");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(snapshots) = &self.snapshots {
            let ended = snapshots.unmount_all();
            assert!(std::thread::panicking() || ended.is_ok(), "{ended:?}");
        }
    }
}

fn word(form: Form) -> &'static str {
    match form {
        Form::Fuse => "fuse",
        Form::Kernel => "kernel",
        Form::Auto => "auto",
    }
}

fn place(mounts: &[Mount]) -> PathBuf {
    PathBuf::from(&mounts[0].source)
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
