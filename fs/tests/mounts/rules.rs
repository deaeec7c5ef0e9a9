//! Rules that need the kernel's part: permissions, ACLs, privileges, other filesystems on top.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Command;

use rustix::fs::XattrFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::served::{Place, can_mount};

/// Runs a shell command as a user without privilege.
pub fn as_nobody(place: &Place, command: &str) -> bool {
    let mut shell = Command::new("setpriv");
    shell.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", command]);
    shell.current_dir(place.path("mnt")).status().unwrap().success()
}

pub fn open_to_all(place: &Place) {
    fs::set_permissions(place.path("."), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Rule 20: chmod, chown, truncate, utimensat, fallocate, lseek for holes, copy_file_range do what the upper's disk
/// does.
#[test]
fn a_write_without_privilege_clears_set_user_id() {
    if !can_mount() {
        return;
    }
    for options in ["", "passthrough=off"] {
        let place = Place::new();
        open_to_all(&place);
        for (name, dir) in [("below", "lower"), ("above", "upper"), ("cut", "upper"), ("opened", "lower")] {
            let file = place.path(dir).join(name);
            fs::write(&file, "x").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o4777)).unwrap();
        }
        let mut server = place.mount(options);
        let mode = |name: &str| fs::metadata(place.mnt(name)).unwrap().mode() & 0o7777;
        assert_eq!(mode("below"), 0o4777);
        assert!(as_nobody(&place, "echo y >> below; echo y >> above; truncate -s 0 cut; : > opened"));
        assert_eq!(["below", "above", "cut", "opened"].map(mode), [0o777; 4], "{options}");
        // Root keeps it.
        fs::set_permissions(place.mnt("above"), fs::Permissions::from_mode(0o4777)).unwrap();
        OpenOptions::new().append(true).open(place.mnt("above")).unwrap().write_all(b"z").unwrap();
        assert_eq!(mode("above"), 0o4777);
        assert_eq!(server.order("unmount"), "unmounted");
    }
}

/// Rule 41: The kernel checks every access against the attributes that the mount shows, once.
#[test]
fn permissions_are_checked_by_the_merged_attributes() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    open_to_all(&place);
    fs::write(place.path("lower/secret"), "x").unwrap();
    fs::set_permissions(place.path("lower/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut server = place.mount("");
    assert!(!as_nobody(&place, "cat secret 2>/dev/null"));
    assert!(!as_nobody(&place, "touch new 2>/dev/null"));
    fs::set_permissions(place.mnt("secret"), fs::Permissions::from_mode(0o604)).unwrap();
    assert!(as_nobody(&place, "cat secret >/dev/null"));
    assert_eq!(server.order("unmount"), "unmounted");
}

/// An ACL in its extended attribute's form.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const NONE: u32 = u32::MAX;

/// Rule 39: POSIX ACLs are checked by the kernel, and inherited.
#[test]
fn a_default_acl_is_inherited_instead_of_the_umask() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    open_to_all(&place);
    for dir in ["lower/plain", "lower/acl"] {
        fs::create_dir(place.path(dir)).unwrap();
        fs::write(place.path(dir).join("below"), "below").unwrap();
    }
    let mut server = place.mount("");
    let default = acl(&[(1, 7, NONE), (2, 7, 65534), (4, 5, NONE), (0x10, 7, NONE), (0x20, 0, NONE)]);
    let name = "system.posix_acl_default";
    match rustix::fs::setxattr(place.mnt("acl"), name, &default, XattrFlags::empty()) {
        Err(rustix::io::Errno::OPNOTSUPP) => return eprintln!("ACLs are not tested: the disk has none"),
        result => result.unwrap(),
    }
    // Also over a name that a lower directory has, where the new inode is made aside.
    let make = "umask 027; for dir in plain acl; do touch $dir/file; mkdir $dir/dir; done
        for dir in plain acl; do rm $dir/below; touch $dir/below; done";
    assert!(Command::new("sh").args(["-c", make]).current_dir(place.path("mnt")).status().unwrap().success());
    let mode = |name: &str| fs::metadata(place.mnt(name)).unwrap().mode() & 0o7777;
    assert_eq!(["plain/file", "plain/dir", "plain/below"].map(mode), [0o640, 0o750, 0o640]);
    assert_eq!(["acl/file", "acl/dir", "acl/below"].map(mode), [0o660, 0o770, 0o660]);
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(place.mnt("acl/dir"), name, &mut value[..]).unwrap();
    assert_eq!(value[..length], default);
    assert!(as_nobody(&place, "echo x >> acl/file; echo x >> acl/below"));
    assert!(!as_nobody(&place, "(echo x >> plain/file) 2>/dev/null"));
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 36: All namespaces work as on the upper's disk.
#[test]
fn the_kernels_overlay_can_be_stacked_on_a_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("lower/dir")).unwrap();
    fs::write(place.path("lower/dir/below"), "below").unwrap();
    fs::write(place.path("lower/dir/gone"), "gone").unwrap();
    fs::create_dir(place.path("lower/dir/tree")).unwrap();
    fs::write(place.path("lower/dir/tree/leaf"), "leaf").unwrap();
    fs::write(place.path("lower/dir/plain"), "plain").unwrap();
    let mut server = place.mount("");
    for dir in ["up", "wk", "over"] {
        fs::create_dir(place.mnt(dir)).unwrap();
    }
    fs::create_dir(place.path("over")).unwrap();
    let [lower, upper, work] = ["dir", "up", "wk"].map(|name| place.mnt(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=on,metacopy=on");
    let data = std::ffi::CString::new(options).unwrap();
    mount("overlay", place.path("over"), "overlay", MountFlags::empty(), Some(&*data)).unwrap();
    let check = || -> std::io::Result<()> {
        assert_eq!(fs::read(place.path("over/below"))?, b"below");
        fs::remove_file(place.path("over/gone"))?;
        OpenOptions::new().append(true).open(place.path("over/below"))?.write_all(b" and above")?;
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(place.path("over/new"))?.write_all(b"new")?;
        assert_eq!(fs::read(place.path("over/below"))?, b"below and above");
        assert!(!place.path("over/gone").exists());
        // A whiteout, an opaque directory, a redirect and a copy of attributes, all within Mica's files.
        fs::rename(place.path("over/tree"), place.path("over/moved"))?;
        fs::create_dir(place.path("over/tree"))?;
        fs::set_permissions(place.path("over/plain"), fs::Permissions::from_mode(0o600))?;
        assert_eq!(fs::read(place.path("over/moved/leaf"))?, b"leaf");
        assert_eq!(fs::read_dir(place.path("over/tree"))?.count(), 0);
        assert_eq!(fs::read(place.path("over/plain"))?, b"plain");
        Ok(())
    };
    let checked = check();
    unmount(place.path("over"), UnmountFlags::empty()).unwrap();
    checked.unwrap();
    assert_eq!(fs::read(place.mnt("up/new")).unwrap(), b"new");
    assert_eq!(fs::read(place.mnt("dir/gone")).unwrap(), b"gone");
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 66: `uidmapping`, `gidmapping`: ids on the disk are shown as those of the mount; what has none is the
/// overflow id (65534).
#[test]
fn owners_are_mapped_both_ways_and_a_creator_without_an_id_is_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    open_to_all(&place);
    fs::write(place.path("lower/below"), "x").unwrap();
    std::os::unix::fs::chown(place.path("lower/below"), Some(3), Some(70)).unwrap();
    fs::set_permissions(place.path("upper"), fs::Permissions::from_mode(0o777)).unwrap();
    let mut server = place.mount("uidmapping=:0:65534:1:1:1000:10,gidmapping=0:65534:1");
    let owner = |path: std::path::PathBuf| fs::metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
    // Group 70 has no place in the mount.
    assert_eq!(owner(place.mnt("below")), (1002, 65534));
    std::os::unix::fs::chown(place.mnt("below"), Some(1004), None).unwrap();
    assert_eq!(owner(place.path("upper/below")), (5, 70));
    let error = std::os::unix::fs::chown(place.mnt("below"), Some(77), None).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    assert!(as_nobody(&place, "echo y > made; mkdir dir; ln -s x link"));
    for name in ["made", "dir", "link"] {
        let stored = fs::symlink_metadata(place.path("upper").join(name)).unwrap();
        assert_eq!((stored.uid(), stored.gid()), (0, 0), "{name}");
    }
    let error = fs::write(place.mnt("of-root"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EOVERFLOW));
    assert!(!place.path("upper/of-root").exists());
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 67: `squash_to_uid`, `squash_to_gid`, `squash_to_root` show one owner and change nothing on the disk.
#[test]
fn squashed_owners_flat_link_counts_and_absent_attributes_are_shown_as_asked() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir_all(place.path("lower/dir/inner")).unwrap();
    fs::write(place.path("lower/below"), "x").unwrap();
    std::os::unix::fs::chown(place.path("lower/below"), Some(3), Some(4)).unwrap();
    fs::write(place.path("lower/shared"), "x").unwrap();
    fs::set_permissions(place.path("lower/shared"), fs::Permissions::from_mode(0o664)).unwrap();
    rustix::fs::setxattr(place.path("lower/below"), "user.mark", b"1", XattrFlags::empty()).unwrap();
    let mut server = place.mount("squash_to_root,squash_to_gid=9,static_nlink,noxattrs=1,volatile");
    let meta = fs::metadata(place.mnt("below")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 9));
    assert_eq!(fs::metadata(place.mnt("dir")).unwrap().nlink(), 1);
    let absent = rustix::fs::getxattr(place.mnt("below"), "user.mark", &mut [0; 8]);
    assert_eq!(absent, Err(rustix::io::Errno::OPNOTSUPP));
    let set = rustix::fs::setxattr(place.mnt("below"), "user.mark", b"2", XattrFlags::empty());
    assert_eq!(set, Err(rustix::io::Errno::OPNOTSUPP));
    // No ACL is no reason to keep the group out.
    assert_eq!(fs::read(place.mnt("shared")).unwrap(), b"x");
    fs::write(place.mnt("new"), "x").unwrap();
    fs::File::open(place.mnt("new")).unwrap().sync_all().unwrap();
    assert_eq!(fs::metadata(place.path("upper/new")).unwrap().uid(), 0);
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 36: All namespaces work as on the upper's disk.
#[test]
fn mica_can_be_stacked_on_mica() {
    if !can_mount() {
        return;
    }
    let (below, above) = (Place::new(), Place::new());
    fs::create_dir_all(below.path("lower/dir/tree")).unwrap();
    for (name, contents) in [("below", "below"), ("gone", "gone"), ("tree/leaf", "leaf"), ("hidden", "hidden")] {
        fs::write(below.path("lower/dir").join(name), contents).unwrap();
    }
    let mut first = below.mount("");
    for dir in ["up", "wk"] {
        fs::create_dir(below.mnt(dir)).unwrap();
    }
    let [lower, upper, work] = ["dir", "up", "wk"].map(|name| below.mnt(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mut second = above.dirs("keeper", &options).unwrap();
    fs::remove_file(above.mnt("gone")).unwrap();
    fs::rename(above.mnt("tree"), above.mnt("moved")).unwrap();
    fs::create_dir(above.mnt("tree")).unwrap();
    OpenOptions::new().append(true).open(above.mnt("below")).unwrap().write_all(b" and above").unwrap();
    fs::hard_link(above.mnt("below"), above.mnt("link")).unwrap();
    rustix::fs::setxattr(above.mnt("below"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    let check = || {
        let mut names: Vec<_> =
            fs::read_dir(above.path("mnt")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["below", "hidden", "link", "moved", "tree"]);
        assert_eq!(fs::read(above.mnt("link")).unwrap(), b"below and above");
        assert_eq!(fs::metadata(above.mnt("link")).unwrap().nlink(), 2);
        assert_eq!(fs::read(above.mnt("moved/leaf")).unwrap(), b"leaf");
        assert_eq!(fs::read_dir(above.mnt("tree")).unwrap().count(), 0);
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(above.mnt("below"), "trusted.overlay.opaque", &mut value[..]).unwrap();
        assert_eq!(value[..length], *b"y");
    };
    check();
    assert_eq!(second.order("unmount"), "unmounted");
    let mut second = above.dirs("keeper", &options).unwrap();
    check();
    assert_eq!(second.order("unmount"), "unmounted");
    assert_eq!(fs::read(below.mnt("dir/gone")).unwrap(), b"gone");
    assert_eq!(first.order("unmount"), "unmounted");
}
