//! What happened, in order.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::model::Image;

/// A file or directory of a recording, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileNumber(pub(super) usize);

/// One change, or sync, that was made. Paths are relative to the root.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new directory.
    CreateDir {
        /// Its path.
        path: PathBuf,
        /// How it is called from now on.
        directory: FileNumber,
    },
    /// Other permissions.
    SetMode {
        /// Of what.
        path: PathBuf,
        /// The permissions.
        mode: u32,
    },
    /// A new, empty file.
    Create {
        /// Its path.
        path: PathBuf,
        /// How it is called from now on.
        file: FileNumber,
        /// Its permissions.
        mode: u32,
    },
    /// Bytes written to a file.
    Write {
        /// The file.
        file: FileNumber,
        /// Where.
        at: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// A file's length set.
    Truncate {
        /// The file.
        file: FileNumber,
        /// Its length.
        length: u64,
    },
    /// A file's bytes made durable.
    Sync {
        /// The file.
        file: FileNumber,
    },
    /// A directory's names made durable.
    SyncDir {
        /// The directory.
        path: PathBuf,
    },
    /// Everything made durable.
    SyncAll,
    /// A file or directory moved, over a file that had the name.
    Rename {
        /// From where.
        from: PathBuf,
        /// To where.
        to: PathBuf,
    },
    /// A name taken away.
    Remove {
        /// Which.
        path: PathBuf,
    },
    /// Something that the recording's maker wants to find again, e.g. the answer to a request.
    Mark(usize),
}

impl Change {
    /// True if it makes something durable.
    pub fn is_sync(&self) -> bool {
        matches!(self, Change::Sync { .. } | Change::SyncDir { .. } | Change::SyncAll)
    }
}

/// Collects changes. Each is made while the recorder is locked, so the record has their true order.
#[derive(Debug)]
pub struct Recorder {
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    start: Image,
    changes: Vec<Change>,
    /// By inode number; one of a removed file is overwritten when the number comes again.
    files: HashMap<u64, FileNumber>,
    next: usize,
    stopped: bool,
}

impl Log {
    fn number(&mut self) -> FileNumber {
        self.next += 1;
        FileNumber(self.next - 1)
    }

    fn push(&mut self, change: Change) {
        if !self.stopped {
            self.changes.push(change);
        }
    }
}

/// A finished record: where it started and what came then.
#[derive(Debug)]
pub struct Recording {
    pub(super) start: Image,
    pub(super) changes: Vec<Change>,
}

impl Recorder {
    /// Starts with what the directory holds, all of it durable.
    pub fn new(root: &Path) -> io::Result<Recorder> {
        let (start, files) = Image::load(root)?;
        let log = Log { next: start.len(), start, changes: Vec::new(), files, stopped: false };
        Ok(Recorder { log: Mutex::new(log) })
    }

    /// Makes a change and records it if it succeeds.
    pub fn observe<R>(&self, make: impl FnOnce() -> io::Result<(R, Change)>) -> io::Result<R> {
        let mut log = self.log.lock();
        let (made, change) = make()?;
        log.push(change);
        Ok(made)
    }

    /// Makes a change to an open file, which `make` is given the number of. `None`: it has no name here.
    pub fn observe_file<R>(
        &self,
        file: BorrowedFd<'_>,
        make: impl FnOnce(Option<FileNumber>) -> io::Result<(R, Option<Change>)>,
    ) -> io::Result<R> {
        let mut log = self.log.lock();
        let stat = rustix::fs::fstat(file)?;
        let number = if stat.st_nlink == 0 { None } else { log.files.get(&stat.st_ino).copied() };
        let (made, change) = make(number)?;
        if let Some(change) = change {
            log.push(change);
        }
        Ok(made)
    }

    /// Makes a directory.
    pub fn observe_dir(&self, path: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut log = self.log.lock();
        make()?;
        let directory = log.number();
        log.push(Change::CreateDir { path: path.to_path_buf(), directory });
        Ok(())
    }

    /// Makes a file, whose attributes `make` gives.
    pub fn observe_new<R>(
        &self,
        path: &Path,
        make: impl FnOnce() -> io::Result<(R, rustix::fs::Stat)>,
    ) -> io::Result<R> {
        let mut log = self.log.lock();
        let (made, stat) = make()?;
        let file = log.number();
        log.files.insert(stat.st_ino, file);
        log.push(Change::Create { path: path.to_path_buf(), file, mode: stat.st_mode & 0o7777 });
        Ok(made)
    }

    /// Records that this point was reached.
    pub fn mark(&self, mark: usize) {
        self.log.lock().push(Change::Mark(mark));
    }

    /// Ends the record; what is changed later is not in it.
    pub fn finish(&self) -> Recording {
        let mut log = self.log.lock();
        log.stopped = true;
        Recording { start: log.start.clone(), changes: std::mem::take(&mut log.changes) }
    }
}

impl Recording {
    /// The changes.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// What the directory must hold now if nothing was written past the recorder.
    pub fn end(&self) -> Image {
        let mut past = super::states::Past::new(&self.start);
        self.changes.iter().for_each(|change| past.add(change));
        past.everything()
    }
}
