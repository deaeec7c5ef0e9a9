//! Mounts by the kernel alone: a chain tree as EROFS, its overlayfs upon that, and the objects as a layer that has contents
//! only. No process serves such a mount, and none has to live for it.
//!
//! ```text
//! overlay   upperdir, workdir          the snapshot's own, in the same form as the union of this crate has them
//!           lowerdir+ = EROFS          names and attributes; large files say where their contents are (metacopy, redirect)
//!           datadir+  = objects/       contents
//! ```
//!
//! Overlayfs clones the mounts of its lower layers for itself and makes the clones read-only (`ovl_get_layers`), so nothing can
//! write to an object by way of such a mount, whatever flags a program opens a file with.
//!
//! `lowerdir+` and `datadir+` take Linux 6.7; EROFS of a plain file takes 6.12, else a loop device is put between.

mod departure;
mod probe;
#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::error::{Error, Result};
use crate::keeper::words;
use crate::sys;
pub use departure::{Departure, Departures};
pub use probe::probe;

/// What `findmnt` shows as source of mounts that nobody gave another one.
pub const SOURCE: &str = "mica";

/// The longest text that fsconfig(2) takes.
const TEXT_MAX: usize = 255;

/// An overlay upon a tree.
#[derive(Clone, Debug)]
pub struct Overlay<'a> {
    /// What `findmnt` is to show as source.
    pub source: &'a str,
    /// Where the tree is mounted.
    pub tree: &'a Path,
    /// The folder of objects.
    pub objects: &'a Path,
    /// The folder that holds `upper` and `work`; without one the mount is read-only.
    pub writable: Option<&'a Path>,
    /// What programs may do in the mount.
    pub attributes: MountAttrFlags,
}

/// Mounts the tree in `file` at `mountpoint`.
pub fn mount_tree(file: &Path, mountpoint: &Path) -> Result<()> {
    new_tree(file)?.place(mountpoint)
}

fn new_tree(file: &Path) -> Result<NewMount> {
    match tree_of_file(file) {
        // A kernel that mounts block devices only.
        Err(Error::Mount { errno: Errno::NOTBLK, .. }) => tree_by_loop(file),
        mount => mount,
    }
}

fn tree_of_file(file: &Path) -> Result<NewMount> {
    let mut new = New::begin("erofs", file)?;
    new.place("source", file)?;
    new.flag("ro")?;
    new.create(MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn tree_by_loop(file: &Path) -> Result<NewMount> {
    let failed = |errno: Errno| refused(file, format!("no loop device: {errno}"), errno);
    let open = |path: &Path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(failed);
    let backing = open(file, OFlags::RDONLY)?;
    let control = open(Path::new("/dev/loop-control"), OFlags::RDWR)?;
    loop {
        let device = PathBuf::from(format!("/dev/loop{}", sys::free_loop(&control).map_err(failed)?));
        let looped = open(&device, OFlags::RDONLY)?;
        match sys::attach_loop(&looped, &backing) {
            // Somebody else was quicker.
            Err(Errno::BUSY) => continue,
            attached => attached.map_err(failed)?,
        }
        // The device lets go of the file when the last who has it open does: this descriptor, then the mount.
        return tree_of_file(&device);
    }
}

/// Mounts an overlay at `mountpoint`.
pub fn mount_overlay(overlay: &Overlay<'_>, mountpoint: &Path) -> Result<()> {
    new_overlay(overlay)?.place(mountpoint)
}

/// Mounts the tree in `file` with an overlay upon it at `mountpoint`; nothing else is mounted afterwards. `overlay.tree` must be
/// `mountpoint`.
pub fn mount_image(file: &Path, overlay: &Overlay<'_>, mountpoint: &Path) -> Result<()> {
    let tree = new_tree(file)?;
    // An overlay has a mount of the tree to itself, so this one need not be anywhere.
    let nowhere = PathBuf::from(format!("/proc/self/fd/{}", tree.0.as_raw_fd()));
    let made = match new_overlay(&Overlay { tree: &nowhere, ..overlay.clone() }) {
        Err(Error::Mount { errno: Errno::INVAL, .. }) => overlay_over(tree, overlay, mountpoint)?,
        made => made?,
    };
    made.place(mountpoint)
}

/// Makes an overlay upon a tree that is at `mountpoint` for a moment, as it has to be before Linux 6.15.
fn overlay_over(tree: NewMount, overlay: &Overlay<'_>, mountpoint: &Path) -> Result<NewMount> {
    tree.place(mountpoint)?;
    let made = new_overlay(overlay);
    rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|errno| refused(mountpoint, format!("can't unmount the tree: {errno}"), errno))?;
    made
}

fn new_overlay(overlay: &Overlay<'_>) -> Result<NewMount> {
    let mut new = New::begin("overlay", overlay.tree)?;
    new.text("source", overlay.source)?;
    new.place("lowerdir+", overlay.tree)?;
    new.place("datadir+", overlay.objects)?;
    new.text("metacopy", "on")?;
    new.text("xino", "on")?;
    new.text("index", "off")?;
    let mut attributes = overlay.attributes;
    if let Some(folder) = overlay.writable {
        new.place("upperdir", &folder.join("upper"))?;
        new.place("workdir", &folder.join("work"))?;
        new.text("redirect_dir", "on")?;
    } else {
        new.text("redirect_dir", "follow")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    new.create(attributes)
}

/// A filesystem that is being configured.
struct New<'a> {
    filesystem: OwnedFd,
    /// What errors are about.
    about: &'a Path,
    /// Files that are named by their descriptors, until the filesystem is there.
    named: Vec<OwnedFd>,
}

/// One that is nowhere yet; it is gone if it is dropped.
struct NewMount(OwnedFd);

impl<'a> New<'a> {
    fn begin(kind: &str, about: &'a Path) -> Result<New<'a>> {
        let filesystem = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| refused(about, format!("this kernel mounts no {kind}: {errno}"), errno))?;
        Ok(New { filesystem, about, named: Vec::new() })
    }

    fn explain(&self, what: &str, errno: Errno) -> Error {
        let words = words(&self.filesystem).map_or_else(String::new, |words| format!(" ({words})"));
        refused(self.about, format!("{what}: {errno}{words}"), errno)
    }

    fn text(&self, key: &str, value: &str) -> Result<()> {
        fsconfig_set_string(&self.filesystem, key, value)
            .map_err(|errno| self.explain(&format!("{key}={value}"), errno))
    }

    fn flag(&self, key: &str) -> Result<()> {
        fsconfig_set_flag(&self.filesystem, key).map_err(|errno| self.explain(key, errno))
    }

    /// Names a file or folder. One whose name does not fit, or has a character that the kernel gives a meaning of its own, is named by
    /// a descriptor.
    fn place(&mut self, key: &str, path: &Path) -> Result<()> {
        let failed = |errno| self.explain(&format!("{key}={}", path.display()), errno);
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() <= TEXT_MAX && !bytes.contains(&b'\\') {
            return fsconfig_set_string(&self.filesystem, key, path).map_err(failed);
        }
        let held = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let name = format!("/proc/self/fd/{}", held.as_raw_fd());
        fsconfig_set_string(&self.filesystem, key, &name).map_err(failed)?;
        self.named.push(held);
        Ok(())
    }

    fn create(self, attributes: MountAttrFlags) -> Result<NewMount> {
        fsconfig_create(&self.filesystem).map_err(|errno| self.explain("can't be mounted", errno))?;
        let mount = fsmount(&self.filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
        mount.map(NewMount).map_err(|errno| self.explain("can't be mounted", errno))
    }
}

impl NewMount {
    fn place(self, mountpoint: &Path) -> Result<()> {
        move_mount(&self.0, "", CWD, mountpoint, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| refused(mountpoint, format!("can't mount there: {errno}"), errno))
    }
}

fn refused(path: &Path, reason: String, errno: Errno) -> Error {
    Error::Mount { path: path.display().to_string(), reason, errno }
}
