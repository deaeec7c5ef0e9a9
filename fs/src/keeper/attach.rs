//! Making a mount, without any library that would own it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a mount looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// What `findmnt` shows as source.
    pub fsname: String,
    /// What `findmnt` shows behind `fuse.` as type. An older client names none.
    #[serde(default = "default_subtype")]
    pub subtype: String,
    /// Whether nothing can be changed.
    pub read_only: bool,
    /// Whether other users than the one who mounts may enter.
    pub allow_other: bool,
    /// `MOUNT_ATTR_*` flags: nosuid, nodev, noexec, times.
    pub attributes: u32,
}

fn default_subtype() -> String {
    "mica".to_owned()
}

/// Mounts a new FUSE filesystem at `mountpoint` and returns its device. The kernel's INIT waits there.
pub(super) fn attach(mountpoint: &Path, attach: &Attach) -> Result<OwnedFd> {
    let at = |what: &str, errno: Errno| Error::Mount {
        path: mountpoint.display().to_string(),
        reason: format!("{what}: {errno}"),
        errno,
    };
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| at("/dev/fuse", errno))?;
    let filesystem = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| at("fsopen", errno))?;
    configure(&filesystem, &device, attach).map_err(|errno| at("options", errno))?;
    fsconfig_create(&filesystem).map_err(|errno| at("create", errno))?;
    let mut attributes = MountAttrFlags::from_bits_retain(attach.attributes);
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attach.read_only);
    let mount =
        fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|errno| at("fsmount", errno))?;
    move_mount(&mount, "", CWD, mountpoint, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| at("can't mount", errno))?;
    Ok(device)
}

/// The kernel checks permissions and ACLs by the attributes it is told (`default_permissions`).
fn configure(filesystem: &OwnedFd, device: &OwnedFd, attach: &Attach) -> Result<(), Errno> {
    let set = |key: &str, value: &str| fsconfig_set_string(filesystem.as_fd(), key, value);
    set("source", &attach.fsname)?;
    set("subtype", &attach.subtype)?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &rustix::process::getuid().as_raw().to_string())?;
    set("group_id", &rustix::process::getgid().as_raw().to_string())?;
    fsconfig_set_flag(filesystem.as_fd(), "default_permissions")?;
    if attach.allow_other {
        fsconfig_set_flag(filesystem.as_fd(), "allow_other")?;
    }
    if attach.read_only {
        fsconfig_set_flag(filesystem.as_fd(), "ro")?;
    }
    Ok(())
}
