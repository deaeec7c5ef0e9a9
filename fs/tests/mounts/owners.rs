//! Owners and modes kept in attributes (`xattr_permissions`).

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};
use rustix::io::Errno;

use super::served::{Place, can_mount};

const STAT: &str = "user.containers.override_stat";

/// May bind low ports: `struct vfs_cap_data` of version 2, effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn set(path: impl AsRef<Path>, name: &str, value: &str) {
    rustix::fs::lsetxattr(path.as_ref(), name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

fn get(path: impl AsRef<Path>, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = [0; 256];
    rustix::fs::lgetxattr(path.as_ref(), name, &mut value[..]).map(|length| value[..length].to_vec())
}

fn text(path: impl AsRef<Path>, name: &str) -> String {
    String::from_utf8(get(path, name).unwrap()).unwrap()
}

fn owner(path: impl AsRef<Path>) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// A layer as an engine without privilege unpacks it.
fn layer(place: &Place) {
    let lower = place.path("lower");
    set(&lower, STAT, "0:0:0755");
    for (name, contents, told) in [
        ("tool", "tool", "7:8:04711"),
        ("null", "", "0:3:0666:char-1-3"),
        ("disk", "", "0:6:0660:block-259-7"),
        ("pipe", "", "5:5:0600:pipe"),
        ("link", "tool", "9:9:0777:symlink"),
        ("untold", "x", ""),
    ] {
        fs::write(lower.join(name), contents).unwrap();
        fs::set_permissions(lower.join(name), fs::Permissions::from_mode(0o700)).unwrap();
        if !told.is_empty() {
            set(lower.join(name), STAT, told);
        }
    }
    let stored = "user.containers.override_security.capability";
    rustix::fs::setxattr(lower.join("tool"), stored, &CAPABILITY, XattrFlags::empty()).unwrap();
    fs::create_dir(lower.join("dir")).unwrap();
    set(lower.join("dir"), STAT, "1000:1000:01777");
}

/// Rule 68: `xattr_permissions=2` (podman's `force_mask`), `=1`: owner, mode and, of what takes privilege to make,
/// the type are what `user.containers.override_stat` (`security.fuseoverlayfs.override_stat`) says; a file without it
/// is what the disk says, one whose attribute makes no sense is EIO.
#[test]
fn owners_told_by_attributes_of_a_layer_are_shown_and_kept_in_the_upper() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    layer(&place);
    let mut server = place.mount("xattr_permissions=2");
    assert_eq!(owner(place.path("mnt")), (0, 0, 0o755));
    assert_eq!(text(place.path("upper"), STAT), "0:0:0755");
    assert_eq!(owner(place.mnt("tool")), (7, 8, 0o4711));
    assert_eq!(owner(place.mnt("dir")), (1000, 1000, 0o1777));
    assert_eq!(owner(place.mnt("untold")), (0, 0, 0o700));
    let null = fs::metadata(place.mnt("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.gid(), null.mode() & 0o7777), (makedev(1, 3), 3, 0o666));
    assert!(fs::metadata(place.mnt("disk")).unwrap().file_type().is_block_device());
    assert!(fs::metadata(place.mnt("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_link(place.mnt("link")).unwrap(), Path::new("tool"));
    assert_eq!(fs::read(place.mnt("link")).unwrap(), b"tool");
    let kinds = |kind: fn(&fs::FileType) -> bool| {
        fs::read_dir(place.path("mnt"))
            .unwrap()
            .filter(|entry| kind(&entry.as_ref().unwrap().file_type().unwrap()))
            .count()
    };
    assert_eq!(kinds(fs::FileType::is_char_device), 1);
    assert_eq!(kinds(fs::FileType::is_symlink), 1);

    // Copied up, with a change of mode and one of owner; a change of owner takes set-user-id away, and capabilities.
    assert_eq!(get(place.mnt("tool"), "security.capability").unwrap(), CAPABILITY);
    fs::set_permissions(place.mnt("tool"), fs::Permissions::from_mode(0o4750)).unwrap();
    assert_eq!(owner(place.mnt("tool")), (7, 8, 0o4750));
    assert_eq!(text(place.path("upper/tool"), STAT), "7:8:4750");
    let stored = "user.containers.override_security.capability";
    assert_eq!(get(place.path("upper/tool"), stored).unwrap(), CAPABILITY);
    std::os::unix::fs::chown(place.mnt("tool"), Some(70), None).unwrap();
    assert_eq!(text(place.path("upper/tool"), STAT), "70:8:0750");
    assert_eq!(get(place.path("upper/tool"), stored), Err(Errno::NODATA));
    // On the disk nothing belongs to anybody else, and nothing has an id set.
    assert_eq!(owner(place.path("upper/tool")), (0, 0, 0o750));
    std::os::unix::fs::chown(place.mnt("null"), Some(4), Some(4)).unwrap();
    assert_eq!(text(place.path("upper/null"), STAT), "4:4:0666:char-1-3");
    assert!(fs::metadata(place.path("upper/null")).unwrap().is_file());
    assert!(fs::metadata(place.mnt("null")).unwrap().file_type().is_char_device());
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 68: `xattr_permissions=2` (podman's `force_mask`), `=1`: owner, mode and, of what takes privilege to make,
/// the type are what `user.containers.override_stat` (`security.fuseoverlayfs.override_stat`) says; a file without it
/// is what the disk says, one whose attribute makes no sense is EIO.
#[test]
fn what_is_made_where_attributes_tell_owners_needs_no_privilege_and_comes_back() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut server = place.mount("xattr_permissions=2");
    // No layer tells whose the root is.
    assert_eq!(owner(place.path("mnt")), (0, 0, 0o555));
    fs::write(place.mnt("file"), "contents").unwrap();
    fs::create_dir(place.mnt("dir")).unwrap();
    fs::set_permissions(place.mnt("dir"), fs::Permissions::from_mode(0o2770)).unwrap();
    std::os::unix::fs::chown(place.mnt("dir"), Some(11), Some(12)).unwrap();
    fs::write(place.mnt("dir/inner"), "").unwrap();
    symlink("file", place.mnt("link")).unwrap();
    for (name, kind, rdev) in [
        ("tty", FileType::CharacterDevice, makedev(5, 0)),
        ("zero", FileType::CharacterDevice, 0),
        ("loop", FileType::BlockDevice, makedev(7, 1)),
        ("fifo", FileType::Fifo, 0),
    ] {
        mknodat(CWD, place.mnt(name), kind, Mode::from_raw_mode(0o620), rdev).unwrap();
        assert!(fs::symlink_metadata(place.path("upper").join(name)).unwrap().is_file(), "{name}");
    }
    let check = || {
        assert_eq!(owner(place.mnt("dir")), (11, 12, 0o2770));
        assert_eq!(owner(place.mnt("dir/inner")).1, 12);
        let kind = |name: &str| fs::symlink_metadata(place.mnt(name)).unwrap();
        assert_eq!((kind("tty").rdev(), kind("zero").rdev()), (makedev(5, 0), 0));
        assert!(kind("tty").file_type().is_char_device() && kind("zero").file_type().is_char_device());
        assert!(kind("loop").file_type().is_block_device() && kind("fifo").file_type().is_fifo());
        assert_eq!(fs::read(place.mnt("link")).unwrap(), b"contents");
    };
    check();
    // Nobody says by himself whose a file is.
    for name in [STAT, "user.containers.override_security.capability"] {
        let forged = rustix::fs::setxattr(place.mnt("file"), name, b"0:0:0777", XattrFlags::empty());
        assert_eq!(forged, Err(Errno::PERM));
        assert_eq!(get(place.mnt("file"), name), Err(Errno::NODATA));
    }
    let listed = rustix::fs::listxattr(place.mnt("file"), &mut [0_u8; 256][..]).unwrap();
    assert_eq!(listed, 0);
    assert_eq!(server.order("unmount"), "unmounted");
    let mut server = place.mount("xattr_permissions=2");
    check();
    assert_eq!(server.order("unmount"), "unmounted");
    // Bytes that tell nothing are damage.
    set(place.path("upper/file"), STAT, "nonsense");
    let mut server = place.mount("xattr_permissions=2");
    assert_eq!(fs::metadata(place.mnt("file")).unwrap_err().raw_os_error(), Some(libc::EIO));
    check_others(&place);
    assert_eq!(server.order("unmount"), "unmounted");
}

fn check_others(place: &Place) {
    assert_eq!(owner(place.mnt("dir")), (11, 12, 0o2770));
}

/// Rule 68: `xattr_permissions=2` (podman's `force_mask`), `=1`: owner, mode and, of what takes privilege to make,
/// the type are what `user.containers.override_stat` (`security.fuseoverlayfs.override_stat`) says; a file without it
/// is what the disk says, one whose attribute makes no sense is EIO.
#[test]
fn privileged_attributes_tell_owners_too_also_those_of_symbolic_links() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let told = "security.fuseoverlayfs.override_stat";
    fs::write(place.path("lower/file"), "x").unwrap();
    set(place.path("lower/file"), told, "3:4:0640");
    let mut server = place.mount("xattr_permissions=1");
    assert_eq!(owner(place.mnt("file")), (3, 4, 0o640));
    symlink("file", place.mnt("link")).unwrap();
    std::os::unix::fs::lchown(place.mnt("link"), Some(5), Some(6)).unwrap();
    assert_eq!(owner(place.mnt("link")).0, 5);
    assert_eq!(fs::symlink_metadata(place.path("upper/link")).unwrap().uid(), 0);
    assert_eq!(get(place.mnt("file"), told), Err(Errno::NODATA));
    assert_eq!(server.order("unmount"), "unmounted");
}
