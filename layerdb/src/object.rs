//! Objects: contents of regular files, named by their sha256, each stored once.
//!
//! A [`Staging`] is a private directory below `tmp/` in which one piece of work collects what it will publish.
//! Publishing has four steps: every byte is made durable, the files are renamed to their names, the names are made
//! durable, and only then may the caller commit metadata that names them. So whatever lies below `objects/` is whole,
//! at every instant and after every power cut, and may be reused without looking at its bytes; what a crash leaves
//! is in `tmp/`, or an object that no layer names and that garbage collection takes.

mod writer;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::MmapMut;

use crate::digest::{Digest, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::claims::Hold;
use crate::walk;

pub(crate) use writer::{DIRECT_MIN, Writer};

/// Up to this many files are synced one by one, more with one syncfs(2): that one has to wait for everybody's
/// writes on the filesystem, not just ours.
const SYNC_ONE_BY_ONE: usize = 8;

/// Objects collected before they are published together. Bounds memory (40 bytes each, and a map of them) and the
/// size of the staging directory.
const BATCH: usize = 16 << 10;

/// Where the object lies below the store's root.
pub(crate) fn path(id: ObjectId) -> PathBuf {
    Path::new("objects").join(id.relative_path())
}

/// A private directory of files to be published, removed with all that is in it when dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    store: Arc<Store>,
    hold: Hold,
    directory: PathBuf,
    next: u64,
    objects: Vec<Staged>,
    /// Objects of this batch, so that equal files of one layer are written once.
    index: HashMap<ObjectId, u64>,
    /// Other files: temporary and final path.
    files: Vec<(PathBuf, PathBuf)>,
    new_bytes: u64,
    /// Directories in which names are given and not yet durable.
    publishing: BTreeSet<PathBuf>,
    /// Directories with names that others gave, on which this work relies and that need not be durable.
    relied_on: BTreeSet<PathBuf>,
    /// Of the last writer, for the next one.
    buffer: Option<MmapMut>,
    /// Whether files can be written past the page cache; unknown before the first large one.
    direct: Option<bool>,
}

#[derive(Debug)]
struct Staged {
    id: ObjectId,
    size: u64,
    number: u64,
}

impl Staging {
    /// Makes the directory. Objects this staging finds or makes are claimed by `hold`.
    pub(crate) fn new(store: &Arc<Store>, hold: Hold) -> Result<Staging> {
        let directory = store.new_temporary();
        store
            .disk()
            .create_dir(&directory)
            .map_err(Error::io(format!("create {}", store.root().join(&directory).display())))?;
        Ok(Staging {
            store: Arc::clone(store),
            hold,
            directory,
            next: 0,
            objects: Vec::new(),
            index: HashMap::new(),
            files: Vec::new(),
            new_bytes: 0,
            publishing: BTreeSet::new(),
            relied_on: BTreeSet::new(),
            buffer: None,
            direct: None,
        })
    }

    /// The claims of this work, to be kept until its metadata is committed.
    pub(crate) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Ends the work, but keeps its claims.
    pub(crate) fn into_hold(self) -> Hold {
        // The directory goes with `self`.
        let claims = Arc::clone(&self.store.claims);
        claims.continue_hold(&self.hold)
    }

    /// Bytes of objects that were not in the store before.
    pub(crate) fn new_bytes(&self) -> u64 {
        self.new_bytes
    }

    /// Makes a file that [`Staging::publish`] will move to `target`, over what is there.
    pub(crate) fn create(&mut self, target: PathBuf) -> Result<File> {
        let (path, file) = self.create_temporary()?;
        self.files.push((path, target));
        Ok(file)
    }

    /// Stores an object whose bytes are at hand.
    pub(crate) fn add(&mut self, id: ObjectId, bytes: &[u8]) -> Result<()> {
        if self.have(id, bytes.len() as u64)? {
            return Ok(());
        }
        let number = self.next;
        let (_, file) = self.create_temporary()?;
        self.store.disk().write(&file, bytes).map_err(Error::io(format!("write object {id}")))?;
        drop(file);
        self.adopt(Staged { id, size: bytes.len() as u64, number })
    }

    /// True if the object is in the store or staged already; it is claimed then.
    fn have(&mut self, id: ObjectId, size: u64) -> Result<bool> {
        if self.index.contains_key(&id) {
            return Ok(true);
        }
        let path = path(id);
        let found = self.hold.object(id, || disk::stat(self.store.disk(), &path));
        let found = found.map_err(Error::io(format!("look for object {id}")))?;
        let have = found.is_some_and(|stat| stat.st_size as u64 == size);
        if have {
            path.ancestors().skip(1).take(2).for_each(|directory| self.rely_on(directory));
        }
        Ok(have)
    }

    /// To be called after a name was found in the directory.
    fn rely_on(&mut self, directory: &Path) {
        if self.store.names.unsettled(directory) {
            self.relied_on.insert(directory.to_path_buf());
        }
    }

    /// To be called before a name is given in the directory.
    fn begin_names(&mut self, directory: &Path) {
        if self.publishing.insert(directory.to_path_buf()) {
            self.store.names.begin(directory);
        }
    }

    fn adopt(&mut self, staged: Staged) -> Result<()> {
        self.new_bytes += staged.size;
        self.index.insert(staged.id, staged.number);
        self.objects.push(staged);
        if self.objects.len() >= self.store.options().batch_objects.unwrap_or(BATCH) {
            self.publish_objects()
        } else {
            Ok(())
        }
    }

    fn create_temporary(&mut self) -> Result<(PathBuf, File)> {
        let path = self.temporary(self.next);
        self.next += 1;
        let file = self.store.disk().create(&path).map_err(Error::io(format!("create {}", path.display())))?;
        Ok((path, file))
    }

    fn temporary(&self, number: u64) -> PathBuf {
        self.directory.join(number.to_string())
    }

    fn discard(&self, number: u64) -> Result<()> {
        let path = self.temporary(number);
        self.store.disk().remove(&path).map_err(Error::io(format!("remove {}", path.display())))
    }

    /// Publishes all, durably.
    pub(crate) fn publish(&mut self) -> Result<()> {
        let mut temporaries: Vec<PathBuf> = self.objects.iter().map(|staged| self.temporary(staged.number)).collect();
        temporaries.extend(self.files.iter().map(|(temporary, _)| temporary.clone()));
        self.sync_files(&temporaries)?;
        let mut directories = self.rename_objects()?;
        for (temporary, target) in std::mem::take(&mut self.files) {
            let action = || format!("publish {}", target.display());
            self.store.disk().replace(&temporary, &target).map_err(Error::io(action()))?;
            directories.extend(target.parent().map(Path::to_path_buf));
        }
        self.sync_directories(directories)
    }

    fn publish_objects(&mut self) -> Result<()> {
        let temporaries: Vec<PathBuf> = self.objects.iter().map(|staged| self.temporary(staged.number)).collect();
        self.sync_files(&temporaries)?;
        let directories = self.rename_objects()?;
        self.sync_directories(directories)
    }

    fn sync_files(&self, paths: &[PathBuf]) -> Result<()> {
        if paths.len() > SYNC_ONE_BY_ONE {
            return self.store.sync_all();
        }
        for path in paths {
            let file = disk::open(self.store.disk(), path)
                .and_then(|file| file.ok_or_else(|| io::ErrorKind::NotFound.into()))
                .map_err(Error::io(format!("open {}", path.display())))?;
            self.store.sync_file(&file)?;
        }
        Ok(())
    }

    /// Makes the names that were given or found durable.
    fn sync_directories(&mut self, mut directories: Vec<PathBuf>) -> Result<()> {
        directories.extend(std::mem::take(&mut self.relied_on));
        directories.sort_unstable();
        directories.dedup();
        let names = &self.store.names;
        if directories.len() > SYNC_ONE_BY_ONE {
            let doubts = names.doubts();
            self.store.sync_all()?;
            names.settle(doubts);
        } else {
            directories.iter().try_for_each(|directory| self.store.sync_dir(directory))?;
        }
        names.end(std::mem::take(&mut self.publishing));
        Ok(())
    }

    /// Gives the staged objects their names; returns the directories that changed.
    fn rename_objects(&mut self) -> Result<Vec<PathBuf>> {
        let mut directories = Vec::new();
        self.index.clear();
        for staged in std::mem::take(&mut self.objects) {
            let target = path(staged.id);
            let parent = target.parent().unwrap_or(Path::new("objects")).to_path_buf();
            let renamed = self.rename_object(&staged, &target, &parent, &mut directories);
            renamed.map_err(Error::io(format!("publish object {}", staged.id)))?;
            directories.push(parent);
            self.rely_on(Path::new("objects"));
        }
        Ok(directories)
    }

    fn rename_object(
        &mut self,
        staged: &Staged,
        target: &Path,
        parent: &Path,
        directories: &mut Vec<PathBuf>,
    ) -> io::Result<()> {
        self.begin_names(parent);
        let temporary = self.temporary(staged.number);
        loop {
            let store = Arc::clone(&self.store);
            let disk = store.disk();
            match disk.publish(&temporary, target) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.begin_names(Path::new("objects"));
                    match disk.create_dir(parent) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                        _ => directories.push(PathBuf::from("objects")),
                    }
                    if disk::stat(disk, &temporary)?.is_none() {
                        return Err(error);
                    }
                }
                // Another ingest was first: its inode stays, since it may be open and in the page cache. One of
                // the wrong size was damaged by somebody else and is replaced.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let whole = disk::stat(disk, target)?.is_some_and(|stat| stat.st_size as u64 == staged.size);
                    return if whole { disk.remove(&temporary) } else { disk.replace(&temporary, target) };
                }
                renamed => return renamed,
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.publishing.is_empty() {
            self.store.names.give_up(std::mem::take(&mut self.publishing));
        }
        if let Err(error) = disk::remove_tree(self.store.disk(), &self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "temporary directory stays until the next start");
        }
    }
}

impl Store {
    /// Opens an object for reading its bytes. `None` if the store doesn't have it.
    pub fn object(&self, id: ObjectId) -> Result<Option<File>> {
        disk::open(self.disk(), &path(id)).map_err(Error::io(format!("open object {id}")))
    }
}

/// The objects in one directory below `objects/`, whether anything names them or not, in no particular order. Objects
/// that come or go meanwhile may be among them or not.
pub(crate) fn stored_in(store: &Store, shard: u8) -> Result<impl Iterator<Item = Result<ObjectId>> + use<>> {
    let directory = shard_path(shard);
    let shown = store.root().join(&directory);
    let failed = move |error| Error::io(format!("read {}", shown.display()))(error);
    let names = walk::names(store.disk().root(), &directory).map_err(&failed)?;
    Ok(names.filter_map(move |name| match name {
        Err(error) => Some(Err(failed(error))),
        Ok((name, _)) => {
            let id = id_of(shard, &name);
            if id.is_none() {
                tracing::warn!(path = %directory.join(&name).display(), "not an object");
            }
            id.map(Ok)
        }
    }))
}

/// A directory below `objects/`.
pub(crate) fn shard_path(shard: u8) -> PathBuf {
    Path::new("objects").join(format!("{shard:02x}"))
}

/// The object that a file of this name in this directory is.
pub(crate) fn id_of(shard: u8, name: &OsStr) -> Option<ObjectId> {
    let mut hex = format!("{shard:02x}").into_bytes();
    hex.extend_from_slice(name.as_encoded_bytes());
    Digest::from_hex(&hex).map(ObjectId)
}
