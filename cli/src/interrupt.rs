//! Folders that are removed if they are not finished, also when the program is interrupted.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

static HAPPENED: AtomicBool = AtomicBool::new(false);
static UNFINISHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// How often, and how long apart, a folder is tried to be removed while its writer still finds out that it is gone.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// Whether a signal asks the program to end.
pub fn happened() -> bool {
    HAPPENED.load(Ordering::Relaxed)
}

/// A folder that is being filled. There is one at a time.
#[derive(Debug)]
pub struct Unfinished {
    path: Option<PathBuf>,
}

impl Unfinished {
    /// Makes the folder, and sees to its removal.
    pub fn create(path: &Path) -> io::Result<Unfinished> {
        watch()?;
        let mut unfinished = unfinished();
        fs::DirBuilder::new().mode(0o700).create(path)?;
        *unfinished = Some(path.to_path_buf());
        Ok(Unfinished { path: Some(path.to_path_buf()) })
    }

    /// Where it is so far.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new("."))
    }

    /// Gives the folder its name, which nothing or an empty folder has.
    pub fn finish(mut self, name: &Path) -> io::Result<()> {
        let folder = fs::File::open(self.path())?;
        rustix::fs::syncfs(folder)?;
        let mut unfinished = unfinished();
        fs::rename(self.path(), name)?;
        *unfinished = None;
        self.path = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let mut unfinished = unfinished();
            remove(path);
            *unfinished = None;
        }
    }
}

/// The folder that is not finished. Whoever makes, names or removes it holds this meanwhile, so that the program does not
/// end in between.
fn unfinished() -> MutexGuard<'static, Option<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a signal on a thread of its own, and ends the program when one came.
fn watch() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _entered = runtime.enter();
        [(SignalKind::interrupt(), 130), (SignalKind::terminate(), 143), (SignalKind::hangup(), 129)]
            .map(|(kind, status)| signal(kind).map(|signal| (signal, status)))
    };
    let [one, two, three] = signals;
    let (mut one, mut two, mut three) = (one?, two?, three?);
    thread::spawn(move || {
        let status = runtime.block_on(async {
            tokio::select! {
                _ = one.0.recv() => one.1,
                _ = two.0.recv() => two.1,
                _ = three.0.recv() => three.1,
            }
        });
        HAPPENED.store(true, Ordering::Relaxed);
        let unfinished = unfinished();
        if let Some(path) = &*unfinished {
            remove(path);
        }
        // Still holding it.
        std::process::exit(status);
    });
    Ok(())
}

fn remove(path: &Path) {
    for _ in 0..ATTEMPTS {
        match fs::remove_dir_all(path) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(_) => thread::sleep(PAUSE),
        }
    }
    crate::output::complain(&format!("mica: {} is left behind: it can't be removed", path.display()));
}
