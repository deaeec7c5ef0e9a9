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
use crate::fusermount;

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
    /// Security labels for all files, by the names of their options (`context` and others). What they mean is the kernel's
    /// business; one that has no use for them refuses the mount.
    #[serde(default)]
    pub labels: Vec<(String, String)>,
}

fn default_subtype() -> String {
    "mica".to_owned()
}

/// Mounts a new FUSE filesystem at `mountpoint` and returns its device. The kernel's INIT waits there.
pub(super) fn attach(mountpoint: &Path, attach: &Attach) -> Result<OwnedFd> {
    let refused = |reason: String, errno: Errno| Error::Mount { path: mountpoint.display().to_string(), reason, errno };
    let at = |what: &str, errno: Errno| refused(format!("{what}: {errno}"), errno);
    let filesystem = match fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC) {
        // Without privilege in this mount namespace: there is a program that has it.
        Err(Errno::PERM) => {
            return fusermount::mount(mountpoint, &options(attach)).map_err(|words| refused(words, Errno::PERM));
        }
        opened => opened.map_err(|errno| at("fsopen", errno))?,
    };
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| at("/dev/fuse", errno))?;
    let explained = |errno: Errno| match words(&filesystem) {
        Some(words) => refused(words, errno),
        None => at("options", errno),
    };
    configure(&filesystem, &device, attach).map_err(explained)?;
    fsconfig_create(&filesystem).map_err(explained)?;
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
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &rustix::process::getuid().as_raw().to_string())?;
    set("group_id", &rustix::process::getgid().as_raw().to_string())?;
    for (name, value) in parameters(attach) {
        match value {
            // What the kernel calls otherwise than programs.
            Some(value) if name == "fsname" => set("source", value)?,
            Some(value) => set(name, value)?,
            None => fsconfig_set_flag(filesystem.as_fd(), name)?,
        }
    }
    Ok(())
}

/// What the filesystem is told, by the names that mount programs use.
fn parameters(attach: &Attach) -> Vec<(&str, Option<&str>)> {
    let mut parameters = vec![("fsname", Some(&*attach.fsname)), ("subtype", Some(&*attach.subtype))];
    parameters.push(("default_permissions", None));
    for (name, set) in [("allow_other", attach.allow_other), ("ro", attach.read_only)] {
        parameters.extend(set.then_some((name, None)));
    }
    parameters.extend(attach.labels.iter().map(|(name, value)| (&**name, Some(&**value))));
    parameters
}

/// The same for `fusermount3`, with the attributes of the mount that it knows. It adds nosuid and nodev by itself.
fn options(attach: &Attach) -> Vec<(&str, Option<&str>)> {
    let attributes = MountAttrFlags::from_bits_retain(attach.attributes);
    let mut options = parameters(attach);
    for (name, flag) in [
        ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID),
        ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV),
        ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC),
        ("noatime", MountAttrFlags::MOUNT_ATTR_NOATIME),
    ] {
        options.extend(attributes.contains(flag).then_some((name, None)));
    }
    options
}

/// Why the kernel refused something, in its own words; each message begins with its weight.
pub(crate) fn words(filesystem: &OwnedFd) -> Option<String> {
    let mut words = Vec::new();
    let mut message = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(filesystem, &mut message) {
        let text = String::from_utf8_lossy(&message[..length]);
        words.push(text.trim_end().trim_start_matches(['e', 'w', 'i']).trim_start().to_owned());
    }
    (!words.is_empty()).then(|| words.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_reach_the_kernel_and_fusermount_as_they_are() {
        let attach = Attach {
            fsname: "source".to_owned(),
            subtype: "mica".to_owned(),
            read_only: true,
            allow_other: false,
            attributes: MountAttrFlags::MOUNT_ATTR_NODEV.bits(),
            labels: vec![("context".to_owned(), "system_u:object_r:t:s0:c1,c2".to_owned())],
        };
        let told = [
            ("fsname", Some("source")),
            ("subtype", Some("mica")),
            ("default_permissions", None),
            ("ro", None),
            ("context", Some("system_u:object_r:t:s0:c1,c2")),
        ];
        assert_eq!(parameters(&attach), told);
        assert_eq!(options(&attach), [&told[..], &[("nodev", None)]].concat());
    }
}
