//! What must not be possible, and what must survive: privileges, attributes at their limits, ways out of the layers.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount};

use super::rules::{as_nobody, open_to_all};
use super::served::{Place, can_mount};

/// May bind low ports: `struct vfs_cap_data` of version 2, effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn get(path: &Path, name: &OsStr) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 64 << 10];
    let length = rustix::fs::lgetxattr(path, name.as_bytes(), &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Rule 44: File capabilities are kept on copy-up.
#[test]
fn capabilities_survive_a_copy_up_and_go_with_a_write_or_a_change_of_owner() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let capability = OsStr::new("security.capability");
    for name in ["kept", "written", "given"] {
        let file = place.path("lower").join(name);
        fs::write(&file, "program").unwrap();
        set_mode(&file, 0o6755);
        rustix::fs::setxattr(&file, "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
    }
    let mut server = place.mount("");
    set_mode(&place.mnt("kept"), 0o6711);
    assert_eq!(get(&place.path("upper/kept"), capability).unwrap(), CAPABILITY);
    assert_eq!((get(&place.mnt("kept"), capability).unwrap(), mode(&place.mnt("kept"))), (CAPABILITY.into(), 0o6711));
    OpenOptions::new().append(true).open(place.mnt("written")).unwrap().write_all(b"!").unwrap();
    assert_eq!(get(&place.mnt("written"), capability), Err(Errno::NODATA));
    chown(place.mnt("given"), Some(1), Some(1)).unwrap();
    assert_eq!(get(&place.mnt("given"), capability), Err(Errno::NODATA));
    assert_eq!(mode(&place.mnt("given")), 0o755);
    // Set-group-id without execution by the group is not a privilege (chmod(2), mandatory locking of old).
    set_mode(&place.mnt("given"), 0o2745);
    chown(place.mnt("given"), Some(2), None).unwrap();
    assert_eq!(mode(&place.mnt("given")), 0o2745);
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 43: A sticky directory keeps others' files from being removed or renamed; who is not of a file's group can't
/// give it set-group-id.
#[test]
fn sticky_directories_keep_others_files_and_setgid_ones_hand_their_group_down() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    open_to_all(&place);
    for (name, bits) in [("tmp", 0o1777), ("shared", 0o2777)] {
        fs::create_dir(place.path("lower").join(name)).unwrap();
        set_mode(&place.path("lower").join(name), bits);
    }
    fs::write(place.path("lower/tmp/roots"), "x").unwrap();
    chown(place.path("lower/shared"), None, Some(33)).unwrap();
    let mut server = place.mount("");
    assert!(!as_nobody(&place, "rm -f tmp/roots 2>/dev/null"));
    assert!(!as_nobody(&place, "mv tmp/roots tmp/stolen 2>/dev/null"));
    assert!(as_nobody(&place, "touch tmp/own && rm tmp/own"));
    assert!(place.mnt("tmp/roots").exists());
    assert!(as_nobody(&place, "umask 0; mkdir shared/dir; touch shared/file shared/dir/inner"));
    let group = |name: &str| fs::metadata(place.mnt(name)).unwrap().gid();
    assert_eq!(["shared/dir", "shared/file", "shared/dir/inner"].map(group), [33; 3]);
    assert_eq!(mode(&place.mnt("shared/dir")), 0o2777);
    // Who is not of the group does not get its set-group-id.
    assert!(as_nobody(&place, "chmod 2755 shared/file"));
    assert_eq!(mode(&place.mnt("shared/file")), 0o755);
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 37: Names and values are any bytes, up to the kernel's 255 and 65,536, as far as the upper's disk takes them.
#[test]
fn attributes_of_any_bytes_up_to_the_kernels_limit_are_kept() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    // In memory, values may be as long as the kernel takes them.
    fs::create_dir(place.path("memory")).unwrap();
    mount("tmpfs", place.path("memory"), "tmpfs", MountFlags::empty(), None).unwrap();
    for name in ["up", "wk"] {
        fs::create_dir(place.path("memory").join(name)).unwrap();
    }
    fs::write(place.path("lower/file"), "x").unwrap();
    let [lower, upper, work] = ["lower", "memory/up", "memory/wk"].map(|name| place.path(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mut server = place.dirs("keeper", &options).unwrap();
    let file = place.mnt("file");
    let longest: Vec<u8> = (0..64 << 10).map(|at: u32| (at * 7 / 3) as u8).collect();
    let odd = OsStr::from_bytes(b"trusted.\xff\x01 odd=\"name\"");
    let long_name = format!("trusted.{}", "n".repeat(255 - 8));
    let names = [odd, OsStr::new(&long_name), OsStr::new("trusted.longest")];
    let values: [&[u8]; 3] = [b"\0\n\xfe", b"", &longest];
    for (name, value) in names.iter().zip(values) {
        rustix::fs::setxattr(&file, name.as_bytes(), value, XattrFlags::empty()).unwrap();
    }
    let too_long = rustix::fs::setxattr(&file, "trusted.longer", &vec![0; (64 << 10) + 1], XattrFlags::empty());
    assert_eq!(too_long, Err(Errno::TOOBIG));
    for (name, value) in names.iter().zip(values) {
        assert_eq!(get(&file, name).unwrap(), value, "{name:?}");
        assert_eq!(get(&place.path("memory/up/file"), name).unwrap(), value, "{name:?}");
    }
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::listxattr(&file, &mut list[..]).unwrap();
    let mut listed: Vec<&[u8]> = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    listed.sort_unstable();
    let mut expected: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    let again = rustix::fs::setxattr(&file, "trusted.longest", b"", XattrFlags::CREATE);
    assert_eq!(again, Err(Errno::EXIST));
    rustix::fs::removexattr(&file, "trusted.longest").unwrap();
    assert_eq!(get(&file, OsStr::new("trusted.longest")), Err(Errno::NODATA));
    assert_eq!(server.order("unmount"), "unmounted");
    drop(server);
    unmount(place.path("memory"), UnmountFlags::DETACH).unwrap();
}

/// Rule 38: Marks can't be forged: what a program sets under such a name comes back, and means nothing, also after a
/// remount.
#[test]
fn marks_that_programs_set_are_attributes_and_mean_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir_all(place.path("lower/dir")).unwrap();
    fs::create_dir_all(place.path("lower/secret")).unwrap();
    for name in ["dir/file", "secret/file", "empty"] {
        fs::write(place.path("lower").join(name), if name == "empty" { "" } else { name }).unwrap();
    }
    let mut server = place.mount("");
    let marks = [
        ("dir", "trusted.overlay.opaque", &b"y"[..]),
        ("dir", "trusted.overlay.redirect", b"/secret"),
        ("dir", "user.overlay.opaque", b"y"),
        ("dir/file", "trusted.overlay.metacopy", b""),
        ("dir/file", "trusted.overlay.redirect", b"/secret/file"),
        ("dir/file", "trusted.mica.origin", b"\x01\0\0\0\0\0\0\0"),
        ("empty", "trusted.overlay.whiteout", b""),
        ("empty", "trusted.mica.device", b"y"),
    ];
    for (file, name, value) in marks {
        rustix::fs::setxattr(place.mnt(file), name, value, XattrFlags::empty()).unwrap();
    }
    let number = fs::metadata(place.mnt("dir/file")).unwrap().ino();
    assert_eq!(server.order("unmount"), "unmounted");
    let mut server = place.mount("");
    assert_eq!(fs::read(place.mnt("dir/file")).unwrap(), b"dir/file");
    assert_eq!(fs::metadata(place.mnt("dir/file")).unwrap().ino(), number);
    assert!(fs::metadata(place.mnt("empty")).unwrap().is_file());
    for (file, name, value) in marks {
        assert_eq!(get(&place.mnt(file), OsStr::new(name)).unwrap(), value, "{file} {name}");
    }
    // A name that looks like a whiteout's is one as any other.
    fs::write(place.mnt("dir/.wh.file"), "x").unwrap();
    assert!(place.mnt("dir/file").exists() && place.mnt("dir/.wh.file").exists());
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 46: With `nodev` devices can be seen and not opened.
#[test]
fn devices_can_not_be_opened_on_a_mount_without_devices() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let null = |path: &Path| mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3));
    null(&place.path("lower/below")).unwrap();
    for (options, expected) in [("nodev", Some(libc::EACCES)), ("dev", None)] {
        let mut server = place.mount(options);
        if !place.mnt("above").exists() {
            null(&place.mnt("above")).unwrap();
        }
        for name in ["below", "above"] {
            let opened = OpenOptions::new().write(true).open(place.mnt(name));
            assert_eq!(opened.err().and_then(|error| error.raw_os_error()), expected, "{options} {name}");
        }
        assert_eq!(server.order("unmount"), "unmounted");
    }
}

/// Rule 47: No name leads out of a layer: symbolic links of layers are never followed by the daemon, also one that
/// somebody puts in the place of a directory or file of the upper while it is used; `..` is no name; a hard link to a
/// lower file is one to its copy.
#[test]
fn a_hard_link_to_a_lower_file_leads_no_write_into_the_lower() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("lower/file"), "below").unwrap();
    fs::hard_link(place.path("lower/file"), place.path("lower/other")).unwrap();
    let mut server = place.mount("");
    let held = File::open(place.mnt("other")).unwrap();
    fs::hard_link(place.mnt("file"), place.mnt("link")).unwrap();
    fs::write(place.mnt("link"), "above").unwrap();
    let from_descriptor = format!("/proc/self/fd/{}", held.as_raw_fd());
    OpenOptions::new().append(true).open(from_descriptor).unwrap().write_all(b" all").unwrap();
    assert_eq!(["file", "other", "link"].map(|name| fs::read(place.mnt(name)).unwrap()), [b"above all"; 3]);
    assert_eq!(["file", "other"].map(|name| fs::read(place.path("lower").join(name)).unwrap()), [b"below"; 2]);
    let out = rustix::fs::linkat(CWD, place.mnt("link"), CWD, place.path("outside"), AtFlags::empty());
    assert_eq!(out, Err(Errno::XDEV));
    drop(held);
    assert_eq!(server.order("unmount"), "unmounted");
}

/// A directory of the upper and a symbolic link out of it change places all the time, as an attacker would have it who may
/// write to the upper: whatever the mount answers, nothing outside is read or made.
///
/// Rule 47: No name leads out of a layer: symbolic links of layers are never followed by the daemon, also one that
/// somebody puts in the place of a directory or file of the upper while it is used; `..` is no name; a hard link to a
/// lower file is one to its copy.
#[test]
fn links_that_are_put_into_the_upper_while_it_is_used_lead_nowhere() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("outside")).unwrap();
    fs::create_dir(place.path("outside/deeper")).unwrap();
    fs::write(place.path("outside/file"), "secret").unwrap();
    for name in ["upper/dir", "upper/dir/deeper", "lower/dir"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    fs::write(place.path("upper/dir/file"), "public").unwrap();
    fs::write(place.path("upper/plain"), "public").unwrap();
    symlink(place.path("outside"), place.path("upper-link")).unwrap();
    symlink(place.path("outside/file"), place.path("plain-link")).unwrap();
    let mut server = place.mount("passthrough=off");
    let done = AtomicBool::new(false);
    let exchange = |one: &str, two: &str| {
        rustix::fs::renameat_with(CWD, place.path(one), CWD, place.path(two), RenameFlags::EXCHANGE).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                exchange("upper/dir", "upper-link");
                exchange("upper/plain", "plain-link");
            }
        });
        for round in 0..300 {
            // An open that follows links is the kernel's walk through the mount; none is to be followed here.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
            for name in ["dir/file", "plain"] {
                let Some((dir, name)) = name.rsplit_once('/').or(Some(("", name))) else { continue };
                let Ok(dir) = open_dir(&place.mnt(dir)) else { continue };
                let mut bytes = [0; 16];
                if let Ok(file) = rustix::fs::openat(&dir, name, flags, Mode::empty())
                    && let Ok(length) = rustix::io::read(&file, &mut bytes)
                {
                    assert_ne!(&bytes[..length], b"secret");
                }
            }
            let Ok(dir) = open_dir(&place.mnt("dir")) else { continue };
            let name = format!("made-{round}");
            let _ = rustix::fs::openat(&dir, &*name, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
            let _ = rustix::fs::mkdirat(&dir, format!("dir-{round}"), Mode::RWXU);
            let _ = rustix::fs::symlinkat("x", &dir, format!("link-{round}"));
            let _ = rustix::fs::chmodat(&dir, "file", Mode::from_raw_mode(0o777), AtFlags::empty());
            let _ = rustix::fs::unlinkat(&dir, "file", AtFlags::empty());
            let _ = rustix::fs::unlinkat(&dir, "deeper", AtFlags::REMOVEDIR);
            let _ = fs::write(place.path("upper-link/file"), "public");
        }
        done.store(true, Ordering::Relaxed);
    });
    let mut outside: Vec<_> =
        fs::read_dir(place.path("outside")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    outside.sort();
    assert_eq!(outside, ["deeper", "file"]);
    assert_ne!(mode(&place.path("outside/file")), 0o777);
    assert_eq!(server.order("lazy"), "unmounted");
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// A user namespace that shows owner `from` of a disk as `to`.
struct Namespace(Child);

impl Namespace {
    fn new(from: u32, to: u32, count: u32) -> Namespace {
        let maps = [from, to, count].map(|number| number.to_string()).join(" ");
        let child = Command::new("unshare")
            .args(["--user", "sh", "-c", "echo here; read wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut namespace = Namespace(child);
        let mut here = String::new();
        let mut output = std::io::BufReader::new(namespace.0.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut here).unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", namespace.0.id()), &maps).unwrap();
        }
        namespace
    }

    fn open(&self) -> File {
        File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Lets a mount show owners as a user namespace has them.
#[allow(unsafe_code)]
fn map_ids(mount: impl AsFd, namespace: &File) -> Result<(), Errno> {
    const IDMAP: u64 = 0x0010_0000;
    let attributes = MountAttr { set: IDMAP, clear: 0, propagation: 0, userns_fd: namespace.as_raw_fd() as u64 };
    // SAFETY: the kernel reads the given number of bytes of a struct that lives until the call returns; the path is a literal.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()) }
}

/// Rule 45: With the option `idmap` a mount of the union can be mapped to other owners.
#[test]
fn owners_are_mapped_by_an_idmapped_mount_of_the_union() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    open_to_all(&place);
    fs::write(place.path("lower/file"), "below").unwrap();
    chown(place.path("lower/file"), Some(10), Some(10)).unwrap();
    set_mode(&place.path("upper"), 0o777);
    fs::create_dir(place.path("mapped")).unwrap();
    let mut server = place.mount("idmap");
    let tree =
        open_tree(CWD, place.path("mnt"), OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).unwrap();
    let namespace = Namespace::new(0, 65_500, 35);
    match map_ids(&tree, &namespace.open()) {
        Err(Errno::INVAL) => return eprintln!("idmapped mounts are not tested: this kernel has none of FUSE"),
        mapped => mapped.unwrap(),
    }
    move_mount(&tree, "", CWD, place.path("mapped"), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
    drop(tree);
    let checked = std::panic::catch_unwind(|| {
        let owner = |name: &str| fs::metadata(place.path(name)).map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!((owner("mnt/file"), owner("mapped/file")), ((10, 10), (65_510, 65_510)));
        // 65534 is 34 on the disk.
        let mut shell = Command::new("setpriv");
        shell.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            "echo x > made; mkdir dir; echo y >> made",
        ]);
        assert!(shell.current_dir(place.path("mapped")).status().unwrap().success());
        for name in ["made", "dir"] {
            assert_eq!(owner(&format!("upper/{name}")), (34, 34));
            assert_eq!(owner(&format!("mapped/{name}")), (65_534, 65_534));
        }
        chown(place.path("mapped/file"), Some(65_505), Some(65_506)).unwrap();
        assert_eq!(owner("upper/file"), (5, 6));
        // Who has no id on the disk can own nothing there.
        let error = fs::write(place.path("mapped/of-root"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOVERFLOW));
    });
    unmount(place.path("mapped"), UnmountFlags::DETACH).unwrap();
    assert!(checked.is_ok());
    assert_eq!(server.order("unmount"), "unmounted");
}
