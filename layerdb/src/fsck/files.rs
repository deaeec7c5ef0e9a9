//! Files and directories: each is known, and has the permissions that keep it sealed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};

use super::rows::digest_in;
use super::{Fsck, Issue};
use crate::digest::{ChainId, DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::quarantine::{self, FOLDER};
use crate::store::{DIRECTORIES, Format, Store, is_temporary};

/// What may lie in the root beside the store's directories: the store's own files, and those of the daemon, of
/// mounts and of the filesystem.
const ROOT: [&str; 5] = ["FORMAT", "lock", "daemon.json", "mounts", "lost+found"];

/// Permissions of files that are never changed once they are published.
const SEALED: u32 = 0o400;
const PRIVATE: u32 = 0o700;

impl Fsck<'_> {
    pub(super) fn files(&mut self) -> Result<()> {
        self.format();
        for directory in DIRECTORIES {
            self.directory(Path::new(directory))?;
        }
        let known = |name: &OsStr| {
            // What the daemon's record is written to before it has its name.
            name.as_bytes().starts_with(b".daemon.json.")
                || ROOT.iter().chain(&DIRECTORIES).any(|known| name == *known)
                || name == "FORMAT.new"
        };
        self.foreign(Path::new("."), known)?;
        for directory in ["layers", "chains"] {
            self.foreign(Path::new(directory), |name| name == "sha256")?;
        }
        self.foreign(Path::new("snapshots"), |name| number(name).is_some())?;
        self.foreign(Path::new("tmp"), is_temporary)?;
        self.tree_files(Path::new("layers/sha256"))?;
        self.tree_files(Path::new("chains/sha256"))?;
        self.quarantine_files()
    }

    fn format(&mut self) {
        let reason = match Format::read(self.store.disk(), self.store.root()) {
            Ok(Some(format)) if format.uuid == self.store.uuid() => return,
            Ok(Some(format)) => format!("it has the uuid {} of another store", format.uuid),
            Ok(None) => "it is missing".to_owned(),
            Err(error) => error.to_string(),
        };
        self.findings().left(&Issue::DamagedFormat { reason });
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        let store = self.store;
        if let Some(stat) = self.stat(path)? {
            self.mode(path, PRIVATE, &stat);
            return Ok(());
        }
        let issue = Issue::MissingDirectory { path: path.display().to_string() };
        self.findings().repairable(&issue, || {
            let made = store.disk().create_dir(path);
            made.map_err(Error::io(format!("create {}", store.root().join(path).display())))?;
            store.sync_dir(path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new(".")))?;
            Ok("it was made".into())
        });
        Ok(())
    }

    /// Reports what has no place in a directory. In the directories of sealed files it moves to quarantine.
    fn foreign(&mut self, directory: &Path, known: impl Fn(&OsStr) -> bool) -> Result<()> {
        for name in self.list(directory)? {
            if !known(&name) {
                let path = if directory == Path::new(".") { PathBuf::from(&name) } else { directory.join(&name) };
                self.foreign_file(&path, directory != Path::new("."))?;
            }
        }
        Ok(())
    }

    pub(super) fn foreign_file(&mut self, path: &Path, ours: bool) -> Result<()> {
        // What was there for a moment is somebody's at work.
        if self.stat(path)?.is_none() {
            return Ok(());
        }
        let store = self.store;
        let issue = Issue::ForeignFile { path: path.display().to_string() };
        let sealed = ["objects", "layers", "chains"].iter().any(|directory| path.starts_with(directory));
        if ours && sealed {
            self.findings().repairable(&issue, || store.quarantine_stray(path));
        } else {
            self.findings().left(&issue);
        }
        Ok(())
    }

    /// The files of layers or of chains: names, permissions, and that something names them.
    fn tree_files(&mut self, directory: &Path) -> Result<()> {
        let layers = directory.starts_with("layers");
        for name in self.list(directory)? {
            let path = directory.join(&name);
            let Some(stat) = self.stat(&path)? else { continue };
            match digest_in(&name) {
                Some((digest, recipe)) if layers || !recipe => {
                    let store = self.store;
                    if is_stray(store, digest, layers, recipe, || Ok(()))?.is_some() {
                        // A collection removes rows first and files after; one that runs takes others along, too.
                        if store.claims.is_collecting() || self.stat(&path)?.is_none() {
                            continue;
                        }
                        let issue = Issue::StrayTree { path: path.display().to_string() };
                        self.findings().repairable(&issue, || {
                            let removed = is_stray(store, digest, layers, recipe, || remove(store, &path))?;
                            Ok(removed.map_or("it is in use now", |()| "it was removed").into())
                        });
                    } else {
                        self.sealed(&path, &stat)?;
                    }
                }
                _ => self.foreign_file(&path, true)?,
            }
        }
        Ok(())
    }

    /// Permissions and names of a file that is never changed.
    pub(super) fn sealed(&mut self, path: &Path, stat: &Stat) -> Result<()> {
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(());
        }
        self.mode(path, SEALED, stat);
        // While it is published under one name it may have another for a moment.
        if stat.st_nlink > 1 && self.stat(path)?.is_some_and(|stat| stat.st_nlink > 1) {
            let issue = Issue::LinkedFile { path: path.display().to_string(), links: stat.st_nlink };
            self.findings().left(&issue);
        }
        Ok(())
    }

    pub(super) fn mode(&mut self, path: &Path, expected: u32, stat: &Stat) {
        let (store, found) = (self.store, stat.st_mode & 0o7777);
        if found == expected {
            return;
        }
        let issue = Issue::WrongMode { path: path.display().to_string(), expected, found };
        self.findings().repairable(&issue, || {
            let set = store.disk().set_mode(path, expected);
            set.map_err(Error::io(format!("change the mode of {}", store.root().join(path).display())))?;
            Ok("they were set".into())
        });
    }

    fn quarantine_files(&mut self) -> Result<()> {
        let store = self.store;
        for name in store.quarantine_names()? {
            let (file, note) = match quarantine::noted(&name) {
                Some(file) => (file.to_owned(), true),
                None => (name.clone(), false),
            };
            let partner = if note { file } else { format!("{name}.json") };
            let path = Path::new(FOLDER).join(&name);
            let partner = Path::new(FOLDER).join(partner);
            let alone = |store: &Store| -> Result<bool> {
                // One who is at it has the lock.
                let _damage = store.damage.lock();
                let stat = |path: &Path| disk::stat(store.disk(), path).map_err(Error::io("look into quarantine"));
                Ok(stat(&path)?.is_some() && stat(&partner)?.is_none())
            };
            if !alone(store)? {
                continue;
            }
            if note {
                self.findings().repairable(&Issue::StrayNote { name }, || {
                    remove(store, &path)?;
                    Ok("it was removed".into())
                });
            } else {
                self.findings().left(&Issue::MissingNote { name });
            }
        }
        Ok(())
    }

    pub(super) fn stat(&self, path: &Path) -> Result<Option<Stat>> {
        let action = || format!("stat {}", self.store.root().join(path).display());
        disk::stat(self.store.disk(), path).map_err(Error::io(action()))
    }

    /// The names in a directory; none if it is missing, which has been told.
    pub(super) fn list(&self, path: &Path) -> Result<Vec<OsString>> {
        let action = || format!("read {}", self.store.root().join(path).display());
        match disk::list(self.store.disk(), path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Vec::new())
            }
            listed => listed.map_err(Error::io(action())),
        }
    }
}

fn number(name: &OsStr) -> Option<u64> {
    std::str::from_utf8(name.as_bytes()).ok()?.parse().ok()
}

fn remove(store: &Store, path: &Path) -> Result<()> {
    match store.disk().remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io(format!("remove {}", store.root().join(path).display()))),
    }
}

/// Does `act`, and says so, if no row names the file and nobody is about to write one.
fn is_stray<T>(
    store: &Store,
    digest: Digest,
    layer: bool,
    recipe: bool,
    act: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    // A row that can't be read names something, too.
    let named = |row: Result<bool>| match row {
        Err(Error::CorruptMetadata { .. }) => Ok(true),
        row => row,
    };
    if layer {
        let diff_id = DiffId(digest);
        let unclaimed = store.claims.lock();
        let row = store.layer(diff_id).map(|layer| layer.is_some_and(|layer| !recipe || layer.recipe.is_some()));
        if unclaimed.layer(diff_id) && !named(row)? { act().map(Some) } else { Ok(None) }
    } else {
        let chain = ChainId(digest);
        let Some(_turn) = store.chains.building.try_take(chain) else { return Ok(None) };
        if named(store.chain_record(chain).map(|chain| chain.is_some()))? { Ok(None) } else { act().map(Some) }
    }
}
