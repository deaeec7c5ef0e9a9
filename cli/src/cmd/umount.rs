//! `mica umount`

mod all;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mica_fs::fusermount::unmount;
use rustix::io::Errno;

use super::Context;
use crate::Failure;
use crate::args::Umount;
use crate::control::Control;
use crate::mounts::{Note, mounted};

/// How long the process that served a mount may take to end.
const END: Duration = Duration::from_secs(5);

/// Unmounts one mount, or all.
pub fn run(context: &Context, arguments: &Umount) -> Result<(), Failure> {
    let Some(mountpoint) = &arguments.mountpoint else { return all::run(context) };
    let mountpoint = place(mountpoint)?;
    if !mounted()?.contains(&mountpoint) {
        return Err(Failure::text(format!("{} is not a mount of Mica", mountpoint.display())));
    }
    let notes: Vec<(PathBuf, Note)> =
        Note::all(&context.state()).into_iter().filter(|(_, note)| note.mountpoint == mountpoint).collect();
    detach(&mountpoint, arguments.lazy)?;
    if !arguments.lazy {
        wait_until(END, || notes.iter().all(|(_, note)| !note.is_served()));
    }
    forget(&notes);
    Ok(())
}

/// The absolute path of a mountpoint, without a look into it: a mount whose server is gone has nothing to show.
pub(super) fn place(mountpoint: &Path) -> Result<PathBuf, Failure> {
    let resolve = |path: &Path| {
        std::fs::canonicalize(path).map_err(|error| Failure::text(format!("{}: {error}", mountpoint.display())))
    };
    let parent = mountpoint.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    match (parent, mountpoint.file_name()) {
        (Some(parent), Some(name)) => {
            let place = resolve(parent)?.join(name);
            // A symbolic link to the mountpoint is as good.
            if place.is_symlink() { resolve(&place) } else { Ok(place) }
        }
        _ => resolve(mountpoint),
    }
}

/// Removes the notes of processes that were killed.
fn forget(notes: &[(PathBuf, Note)]) {
    for (path, _) in notes.iter().filter(|(_, note)| !note.is_served()) {
        // It is gone already if the process ended in an orderly way.
        let _ = std::fs::remove_file(path);
        let _ = std::fs::remove_file(Control::beside(path));
    }
}

/// Takes a mount away.
fn detach(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    let shown = mountpoint.display();
    unmount(mountpoint, lazy).map_err(|errno| {
        Failure::text(match errno {
            Errno::BUSY => format!("{shown} is in use; `--lazy` takes it out of sight at once"),
            Errno::INVAL => format!("{shown} is not mounted"),
            Errno::PERM => format!("{shown} can't be unmounted by this user"),
            errno => format!("can't unmount {shown}: {errno}"),
        })
    })
}

/// Waits until something holds; false if it doesn't in time.
fn wait_until(longest: Duration, holds: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > longest {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
