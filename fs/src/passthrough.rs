//! Who serves the data of an open file: the kernel from a backing file, or this process by way of the page cache.
//!
//! The kernel allows one answer per inode at a time: while a handle is passed through, every other handle of that
//! inode must be passed through to the *same* registered backing file, and while one goes through the page cache none
//! may be passed through; else the program's open fails with EIO. So the table keeps a mode per inode that has
//! handles. It is decided by the first and ends with the last, when the backing file is closed as well. The table's
//! view is never narrower than the kernel's: a handle enters before the kernel is told of it, and leaves after the
//! kernel has dropped it.
//!
//! Policy: a file of the upper is passed through. A file of the lower is passed through only if it is sealed and
//! program text, which many containers share and nobody edits in place; other lower files go through the page cache,
//! where a reader sees the new bytes when somebody else writes to the file. A program text that is open can't be opened for
//! writing (ETXTBSY, as `execve(2)` has it), since its readers would go on to see the old bytes.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fuser::BackingId;
use parking_lot::{Condvar, Mutex};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::inode::Ino;
use crate::session::ledger::{EXEC, Entry, Via};
use crate::sys;
use crate::union::{Backing, BackingPlace};

/// The inodes that have open handles.
#[derive(Debug)]
pub(crate) struct Passthrough {
    device: OwnedFd,
    enabled: AtomicBool,
    /// Whether the upper's disk can't be passed through (it is stacked itself).
    upper_refused: AtomicBool,
    inodes: Mutex<HashMap<Ino, Inode>>,
    /// Told of each handle that goes.
    detached: Condvar,
    /// Handles through which the kernel may change a file without telling.
    writers: AtomicUsize,
}

/// How long somebody waits for the last handle of a program that has ended: the kernel sends its end without waiting
/// for an answer, so what a user does next may overtake it.
const ENDING: Duration = Duration::from_millis(50);

/// The handles of one inode.
#[derive(Debug)]
struct Inode {
    via: Via,
    handles: u32,
    /// Those of them that are passed through and may write.
    writers: u32,
    /// Those by which the kernel runs a program.
    running: u32,
    /// Opens for writing that are under way.
    pending: u32,
}

/// An open for writing, or a truncation, that is under way: meanwhile no lower file is passed through.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    table: &'a Passthrough,
    ino: Ino,
}

impl Passthrough {
    /// An empty table for a connection. Nothing is passed through until [`Passthrough::enable`].
    pub(crate) fn new(device: OwnedFd) -> Passthrough {
        Passthrough {
            device,
            enabled: AtomicBool::new(false),
            upper_refused: AtomicBool::new(false),
            inodes: Mutex::default(),
            detached: Condvar::new(),
            writers: AtomicUsize::new(0),
        }
    }

    /// The kernel passes through on this connection.
    pub(crate) fn enable(&self) {
        self.enabled.store(true, Ordering::Relaxed);
    }

    /// Takes in a handle that an earlier server gave out.
    pub(crate) fn adopt(&self, entry: &Entry) {
        if entry.via == Via::Directory {
            return;
        }
        let mut inodes = self.inodes.lock();
        let inode = inodes.entry(entry.ino).or_insert_with(|| Inode::new(entry.via));
        inode.handles += 1;
        inode.running += u32::from(entry.flags.contains(EXEC));
        if entry.writes_directly() {
            inode.writers += 1;
            self.writers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Announces a change of an inode's data; `None` when the old data is passed through from the lower at present.
    pub(crate) fn change(&self, ino: Ino) -> Option<Change<'_>> {
        let mut inodes = self.inodes.lock();
        let passed = |inode: Option<&mut Inode>| inode.is_some_and(|inode| matches!(inode.via, Via::Lower(_)));
        if self.detached.wait_while_for(&mut inodes, |inodes| passed(inodes.get_mut(&ino)), ENDING).timed_out() {
            return None;
        }
        let inode = inodes.entry(ino).or_insert_with(|| Inode::new(Via::Cache));
        inode.pending += 1;
        Some(Change { table: self, ino })
    }

    /// Decides for a new handle and counts it. `backing` is the file that has the data, if the union names one.
    pub(crate) fn attach(&self, ino: Ino, flags: OFlags, backing: Option<&Backing>) -> Via {
        let mut inodes = self.inodes.lock();
        let via = match inodes.get(&ino) {
            Some(inode) if inode.handles > 0 => inode.via,
            other => self.choose(backing, other.is_some_and(|inode| inode.pending > 0)),
        };
        let inode = inodes.entry(ino).or_insert_with(|| Inode::new(via));
        inode.via = via;
        inode.handles += 1;
        inode.running += u32::from(flags.contains(EXEC));
        if flags & OFlags::RWMODE != OFlags::RDONLY && via != Via::Cache {
            inode.writers += 1;
            self.writers.fetch_add(1, Ordering::Relaxed);
        }
        via
    }

    /// Forgets a handle; closes the backing file with the last.
    pub(crate) fn detach(&self, entry: &Entry) {
        let mut inodes = self.inodes.lock();
        let Some(inode) = inodes.get_mut(&entry.ino) else { return };
        inode.handles = inode.handles.saturating_sub(1);
        inode.running = inode.running.saturating_sub(u32::from(entry.flags.contains(EXEC)));
        if entry.writes_directly() && inode.writers > 0 {
            inode.writers -= 1;
            self.writers.fetch_sub(1, Ordering::Relaxed);
        }
        if inode.handles == 0 {
            if let Via::Upper(id) | Via::Lower(id) = inode.via {
                self.close(id);
            }
            inode.via = Via::Cache;
            if inode.pending == 0 {
                inodes.remove(&entry.ino);
            }
        }
        self.detached.notify_all();
    }

    /// Whether the kernel may change the inode's size and times without telling.
    pub(crate) fn is_written_directly(&self, ino: Ino) -> bool {
        self.writers.load(Ordering::Relaxed) > 0 && self.inodes.lock().get(&ino).is_some_and(|inode| inode.writers > 0)
    }

    /// Whether a program runs whose text the inode is.
    pub(crate) fn is_running(&self, ino: Ino) -> bool {
        let runs = |inode: Option<&mut Inode>| inode.is_some_and(|inode| inode.running > 0);
        let mut inodes = self.inodes.lock();
        self.detached.wait_while_for(&mut inodes, |inodes| runs(inodes.get_mut(&ino)), ENDING).timed_out()
    }

    /// How many inodes are passed through at present, from the upper and from the lower.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let inodes = self.inodes.lock();
        let upper = inodes.values().filter(|inode| inode.handles > 0 && matches!(inode.via, Via::Upper(_))).count();
        let lower = inodes.values().filter(|inode| inode.handles > 0 && matches!(inode.via, Via::Lower(_))).count();
        (upper, lower)
    }

    fn choose(&self, backing: Option<&Backing>, pending: bool) -> Via {
        let Some(backing) = backing else { return Via::Cache };
        if !self.enabled.load(Ordering::Relaxed) {
            return Via::Cache;
        }
        match backing.place {
            BackingPlace::Upper if !self.upper_refused.load(Ordering::Relaxed) => {
                self.register(backing).map_or(Via::Cache, Via::Upper)
            }
            BackingPlace::Lower { sealed: true } if backing.program && !pending => {
                self.register(backing).map_or(Via::Cache, Via::Lower)
            }
            _ => Via::Cache,
        }
    }

    /// Registers a backing file. A refusal is no error: the data then goes through the page cache. One that holds for
    /// every file is remembered.
    fn register(&self, backing: &Backing) -> Option<u32> {
        match BackingId::create_raw(self.device.as_fd(), backing.file.as_fd()) {
            Ok(id) => Some(id),
            Err(error) => {
                match Errno::from_io_error(&error) {
                    // No privilege, or a kernel without it.
                    Some(Errno::PERM | Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS) => {
                        self.enabled.store(false, Ordering::Relaxed);
                    }
                    // The disk is stacked on another: an overlay, or one of our own mounts.
                    Some(Errno::LOOP) if matches!(backing.place, BackingPlace::Upper) => {
                        self.upper_refused.store(true, Ordering::Relaxed);
                    }
                    _ => {}
                }
                tracing::debug!(%error, "a file is not passed through");
                None
            }
        }
    }

    fn close(&self, id: u32) {
        if let Err(errno) = sys::close_backing(&self.device, id) {
            tracing::debug!(%errno, id, "closing a backing file");
        }
    }
}

impl Inode {
    fn new(via: Via) -> Inode {
        Inode { via, handles: 0, writers: 0, running: 0, pending: 0 }
    }
}

impl Entry {
    fn writes_directly(&self) -> bool {
        let reads = self.flags & OFlags::RWMODE == OFlags::RDONLY;
        matches!(self.via, Via::Upper(_) | Via::Lower(_)) && !reads
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut inodes = self.table.inodes.lock();
        if let Some(inode) = inodes.get_mut(&self.ino) {
            inode.pending -= 1;
            if inode.pending == 0 && inode.handles == 0 {
                inodes.remove(&self.ino);
            }
        }
    }
}
