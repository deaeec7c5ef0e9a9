//! Knowing when a filesystem that no process serves has gone: not out of sight, but for its last user.
//!
//! Whoever watches a file of it is told by inotify(7) (`IN_UNMOUNT`) when the filesystem ends, wherever copies of its mount were, and
//! does not keep it from ending.

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::error::Result;

/// One inotify instance for all: users have few of them.
#[derive(Debug)]
pub struct Departures {
    inotify: OwnedFd,
    /// The watches of filesystems that have gone.
    gone: Mutex<HashSet<i32>>,
}

/// The end of one filesystem, which may have come.
#[derive(Debug)]
pub struct Departure {
    all: Arc<Departures>,
    watch: i32,
}

impl Departures {
    /// Without any.
    pub fn new() -> Result<Arc<Departures>> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Arc::new(Departures { inotify, gone: Mutex::default() }))
    }

    /// Watches the filesystem that is mounted at `place`.
    pub fn of(self: &Arc<Self>, place: &Path) -> Result<Departure> {
        // That its root is deleted never comes; but one has to ask for something.
        let watch = inotify::add_watch(&self.inotify, place, WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR)?;
        Ok(Departure { all: Arc::clone(self), watch })
    }

    /// Takes in what the kernel has told.
    fn hear(&self, gone: &mut HashSet<i32>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.inotify.as_fd(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().intersects(ReadFlags::UNMOUNT | ReadFlags::IGNORED) => {
                    gone.insert(event.wd());
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => {
                    tracing::error!(%errno, "what became of mounts is not known");
                    break;
                }
            }
        }
    }
}

impl Departure {
    /// Whether it has come.
    pub fn has_come(&self) -> bool {
        let mut gone = self.all.gone.lock();
        if !gone.contains(&self.watch) {
            self.all.hear(&mut gone);
        }
        gone.contains(&self.watch)
    }

    /// Waits for it.
    pub fn wait(&self) {
        const LONGEST: Duration = Duration::from_millis(250);
        let mut pause = Duration::from_millis(1);
        while !self.has_come() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        if !self.has_come() {
            // It may come just now, and the watch is gone then.
            let _ = inotify::remove_watch(&self.all.inotify, self.watch);
        }
        let mut gone = self.all.gone.lock();
        self.all.hear(&mut gone);
        gone.remove(&self.watch);
    }
}
