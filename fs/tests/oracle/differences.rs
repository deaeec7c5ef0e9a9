//! What is not at random: rules that single calls show, on Mica and on the kernel's overlayfs, and where the two differ on
//! purpose.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use super::may_mount;
use super::mounts::{Kernel, Mica, Place};
use super::posix::Mount;

/// The same lower for both; `build` makes it, `check` gets each mount and says what it sees there.
fn both<T>(build: impl Fn(&Path), check: impl Fn(&Path) -> T) -> Option<(T, T)> {
    if !may_mount() {
        return None;
    }
    let place = || {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        build(&dir.path().join("base"));
        Place::new(dir)
    };
    let mica = Mica::new(place());
    let kernel = Kernel::new(place());
    let seen = (check(&mica.root()), check(&kernel.root()));
    mica.end();
    kernel.end();
    Some(seen)
}

fn one_file(base: &Path) {
    fs::write(base.join("f"), vec![b'a'; 8192]).unwrap();
}

/// The first byte of a file, through a mapping that lasts while `meanwhile` runs.
fn first_of_mapping(file: &File, meanwhile: impl FnOnce()) -> u8 {
    // SAFETY: the file is not made shorter while it is mapped, and what changes in it is bytes.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(file) }.unwrap();
    // SAFETY: the mapping is as long as the file, which has a first byte.
    #[allow(unsafe_code)]
    let first = || unsafe { map.as_ptr().read_volatile() };
    assert_eq!(first(), b'a');
    meanwhile();
    first()
}

/// Rule 14: Who has the file open goes on with the same file: a handle that was opened for reading before the copy-up
/// reads what is written after it, by read(2) and by mmap(2).
#[test]
fn reader_from_before_a_copy_up_reads_what_is_written_after_it() {
    let seen = both(one_file, |root| {
        let reader = File::open(root.join("f")).unwrap();
        OpenOptions::new().write(true).open(root.join("f")).unwrap().write_all_at(b"b", 0).unwrap();
        let mut byte = [0];
        reader.read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    });
    assert!(seen.is_none_or(|seen| seen == (b'b', b'b')));
}

/// Rule 14: Who has the file open goes on with the same file: a handle that was opened for reading before the copy-up
/// reads what is written after it, by read(2) and by mmap(2).
#[test]
fn mapping_from_before_a_copy_up_shows_what_is_written_after_it_and_overlayfs_does_not() {
    let seen = both(one_file, |root| {
        let reader = File::open(root.join("f")).unwrap();
        first_of_mapping(&reader, || {
            OpenOptions::new().write(true).open(root.join("f")).unwrap().write_all_at(b"b", 0).unwrap();
        })
    });
    // overlayfs, "Non-standard behavior", c: the mapping stays with the lower file.
    assert!(seen.is_none_or(|seen| seen == (b'b', b'a')));
}

/// Rule 31: A program can make a character device 0:0.
#[test]
fn device_0_0_by_mknod_is_a_device_and_overlayfs_refuses_it() {
    let seen = both(one_file, |root| {
        rustix::fs::unlinkat(CWD, root.join("f"), rustix::fs::AtFlags::empty()).unwrap();
        rustix::fs::mknodat(CWD, root.join("f"), FileType::CharacterDevice, Mode::RUSR, 0)
    });
    assert!(seen.is_none_or(|seen| seen == (Ok(()), Err(Errno::PERM))));
}

/// Rule 23: `RENAME_NOREPLACE` and `RENAME_EXCHANGE` work for all files, lower and upper mixed.
#[test]
fn rename_that_leaves_a_whiteout_leaves_a_device_and_overlayfs_refuses_it() {
    let seen = both(one_file, |root| {
        let flags = RenameFlags::WHITEOUT;
        rustix::fs::renameat_with(CWD, root.join("f"), CWD, root.join("g"), flags)?;
        Ok(fs::symlink_metadata(root.join("f")).map(|stat| (stat.mode() & 0o170_000, stat.rdev())).unwrap())
    });
    assert!(seen.is_none_or(|seen| seen == (Ok((0o020_000, 0)), Err(Errno::INVAL))));
}

/// Rule 59: `O_TMPFILE` is EOPNOTSUPP.
#[test]
fn file_without_a_name_is_refused_and_overlayfs_makes_it() {
    let seen = both(one_file, |root| rustix::fs::open(root, OFlags::TMPFILE | OFlags::WRONLY, Mode::RUSR).map(drop));
    assert!(seen.is_none_or(|seen| seen == (Err(Errno::OPNOTSUPP), Ok(()))));
}

/// Rule 35: What is mounted on a lower directory is not part of it.
#[test]
fn what_is_mounted_on_a_layer_is_no_part_of_it() {
    let mounted = |base: &Path| {
        fs::create_dir(base.join("d")).unwrap();
        fs::write(base.join("d/below"), "").unwrap();
        rustix::mount::mount("tmpfs", base.join("d"), "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(base.join("d/above"), "").unwrap();
    };
    let seen = both(mounted, |root| {
        let names: Vec<_> = fs::read_dir(root.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let base = root.parent().unwrap().join("base/d");
        rustix::mount::unmount(base, UnmountFlags::empty()).unwrap();
        names
    });
    assert!(seen.is_none_or(|(mica, kernel)| mica == ["below"] && kernel == mica));
}

/// Rule 55: statfs(2) tells the space of the upper's disk, or of the lower's when nothing can be written.
#[test]
fn space_is_that_of_the_uppers_disk() {
    let seen = both(one_file, |root| {
        let disk = rustix::fs::statvfs(root.parent().unwrap()).unwrap();
        let mount = rustix::fs::statvfs(root).unwrap();
        (mount.f_blocks * mount.f_frsize, mount.f_namemax) == (disk.f_blocks * disk.f_frsize, disk.f_namemax)
    });
    assert!(seen.is_none_or(|seen| seen == (true, true)));
}

/// Rule 20: chmod, chown, truncate, utimensat, fallocate, lseek for holes, copy_file_range do what the upper's disk
/// does.
#[test]
fn holes_stay_holes_over_a_copy_up_and_ranges_are_the_disks_business() {
    let sparse = |base: &Path| {
        let file = File::create(base.join("f")).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"data", 512 << 10).unwrap();
    };
    let seen = both(sparse, |root| {
        let file = OpenOptions::new().read(true).write(true).open(root.join("f")).unwrap();
        let data = rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap();
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, data, 4096).unwrap();
        let empty = rustix::fs::seek(&file, SeekFrom::Data(0));
        let to = File::create(root.join("g")).unwrap();
        file.write_all_at(b"moved", 0).unwrap();
        let copied = rustix::fs::copy_file_range(&file, None, &to, Some(&mut 3), 5);
        // The position is at the end after seeking for holes.
        (data, hole, empty, copied.is_ok(), file.metadata().unwrap().len())
    });
    if let Some((mica, kernel)) = seen {
        assert_eq!(mica, (512 << 10, (512 << 10) + 4096, Err(Errno::NXIO), true, 1 << 20));
        // overlayfs fills the holes behind the data when it copies a file up.
        assert_eq!((kernel.0, kernel.3, kernel.4), (mica.0, mica.3, mica.4));
    }
}

/// Rule 57: Locks (flock, POSIX, of open file descriptions) hold between all processes that use the mount.
#[test]
fn locks_hold_between_all_who_use_the_mount() {
    use rustix::fs::{FlockOperation, flock};
    let seen = both(one_file, |root: &Path| {
        let open = |path: PathBuf| OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (one, other) = (open(root.join("f")), open(root.join("f")));
        flock(&one, FlockOperation::LockExclusive).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive)
    });
    assert!(seen.is_none_or(|seen| seen == (Err(Errno::AGAIN), Err(Errno::AGAIN))));
}

/// Every file that shows: contents, mode, owner and attributes of programs.
type Shown = std::collections::BTreeMap<PathBuf, (Vec<u8>, u32, u32, super::reference::Xattrs)>;

fn shown(root: &Path) -> Shown {
    let mut shown = Shown::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let bytes = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            assert_eq!(bytes.len() as u64, if stat.is_file() { stat.len() } else { 0 });
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            shown.insert(name, (bytes, stat.mode(), stat.uid(), super::posix::xattrs(&path)));
            if stat.is_dir() {
                dirs.push(path);
            }
        }
    }
    shown
}

/// Rule 28: A file that overlayfs copied up without contents (`metacopy=on`) has those of the lower.
#[test]
fn files_that_the_kernel_left_without_contents_have_them_in_mica_and_then_in_the_kernel() {
    if !may_mount() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("base");
    fs::create_dir_all(base.join("dir/inner")).unwrap();
    for name in ["same", "moved", "dir/deep", "dir/inner/x", "linked", "cut"] {
        fs::write(base.join(name), format!("contents of {name}").repeat(1000)).unwrap();
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set =
        |path: PathBuf| rustix::fs::setxattr(path, "security.capability", &capability, rustix::fs::XattrFlags::empty());
    set(base.join("same")).unwrap();
    let kernel = Kernel::with(Place::new(dir), "metacopy=on,");
    let root = kernel.root();
    // Attributes alone, so that no contents are copied; names and directories move.
    for name in ["same", "moved", "dir/deep", "dir/inner/x", "linked", "cut"] {
        std::os::unix::fs::chown(root.join(name), Some(77), None).unwrap();
    }
    set(root.join("same")).unwrap();
    fs::rename(root.join("moved"), root.join("dir/elsewhere")).unwrap();
    fs::rename(root.join("dir"), root.join("renamed")).unwrap();
    fs::rename(root.join("renamed/deep"), root.join("renamed/deeper")).unwrap();
    let expected = shown(&root);
    let place = kernel.end();
    let left: Vec<_> = ["same", "dir/elsewhere", "linked"]
        .into_iter()
        .filter(|name| {
            let path = place.upper().join(name.replace("dir/", "renamed/"));
            rustix::fs::getxattr(path, "trusted.overlay.metacopy", &mut [0; 64]).is_ok()
        })
        .collect();
    assert_eq!(left, ["same", "dir/elsewhere", "linked"], "the kernel copied contents after all");

    let mica = Mica::new(place);
    let root = mica.root();
    // Each of these needs the contents before it changes something.
    fs::hard_link(root.join("linked"), root.join("link")).unwrap();
    fs::rename(root.join("linked"), root.join("renamed/linked")).unwrap();
    OpenOptions::new().write(true).open(root.join("cut")).unwrap().set_len(4).unwrap();
    let seen = shown(&root);
    let mut expected = expected;
    let linked = expected.remove(Path::new("linked")).unwrap();
    expected.insert("link".into(), linked.clone());
    expected.insert("renamed/linked".into(), linked);
    expected.get_mut(Path::new("cut")).unwrap().0.truncate(4);
    assert_eq!(seen, expected);
    let kernel = Kernel::with(mica.end(), "metacopy=on,");
    let again = shown(&kernel.root());
    kernel.end();
    assert_eq!(again.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, expected) in expected {
        let again = &again[&path];
        assert_eq!((&again.0, again.1, again.2), (&expected.0, expected.1, expected.2), "{path:?}");
    }
}

/// What the kernel would show as zeros if it believed the upper file, it refuses unless it is told to look for contents
/// in the lower.
///
/// Rule 27: Contents that Mica left in the lower are found by overlayfs with `metacopy=on`; without, it refuses the
/// file (EPERM).
#[test]
fn contents_that_mica_left_in_the_lower_are_found_by_a_kernel_that_may_and_refused_by_one_that_may_not() {
    if !may_mount() {
        return;
    }
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    one_file(&dir.path().join("base"));
    let mica = Mica::with(Place::new(dir), true);
    std::os::unix::fs::chown(mica.root().join("f"), Some(77), None).unwrap();
    fs::rename(mica.root().join("f"), mica.root().join("g")).unwrap();
    let kernel = Kernel::with(mica.end(), "metacopy=off,");
    assert_eq!(fs::read(kernel.root().join("g")).unwrap_err().raw_os_error(), Some(libc::EPERM));
    let kernel = Kernel::with(kernel.end(), "metacopy=on,");
    assert_eq!(fs::read(kernel.root().join("g")).unwrap(), vec![b'a'; 8192]);
    assert_eq!(fs::metadata(kernel.root().join("g")).unwrap().uid(), 77);
    kernel.end();
}

/// Rule 101: A file of which a part is copied is refused by overlayfs, and as a layer by Mica (EIO), until it is whole.
///
/// The kernel knows no file of which a part is elsewhere: it must neither show zeros for that nor copy the lower's bytes over
/// what was written.
#[test]
fn file_that_mica_copied_in_part_is_refused_by_the_kernel_until_it_is_whole() {
    if !may_mount() {
        return;
    }
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    one_file(&dir.path().join("base"));
    let mica = Mica::by_blocks(Place::new(dir));
    OpenOptions::new().write(true).open(mica.root().join("f")).unwrap().write_all_at(b"b", 5000).unwrap();
    let mut place = mica.end();
    for options in ["metacopy=on,", "metacopy=off,"] {
        let kernel = Kernel::with(place, options);
        let path = kernel.root().join("f");
        for error in [fs::read(&path).unwrap_err(), OpenOptions::new().write(true).open(&path).unwrap_err()] {
            let errno = error.raw_os_error().unwrap();
            assert!([libc::EPERM, libc::EIO, libc::EINVAL].contains(&errno), "{error} with {options}");
        }
        place = kernel.end();
    }
    // Neither does a union that has it among its layers.
    let layers = [place.upper(), place.layers[0].clone()];
    let lower = mica_fs::lower::DirsLower::open(&layers, mica_fs::Format::Trusted).unwrap();
    let upper = None;
    let union = mica_fs::Union::new(mica_fs::Below::Ready(std::sync::Arc::new(lower)), upper).unwrap();
    if let Ok(Some(attr)) = union.lookup(mica_fs::ROOT, b"f") {
        assert_eq!(union.open(attr.ino, OFlags::RDONLY).unwrap_err().errno(), Errno::IO);
    }
    let mica = Mica::by_blocks(place);
    let mut expected = vec![b'a'; 8192];
    expected[5000] = b'b';
    assert_eq!(fs::read(mica.root().join("f")).unwrap(), expected);
    mica.settle();
    let kernel = Kernel::new(mica.end());
    assert_eq!(fs::read(kernel.root().join("f")).unwrap(), expected);
    kernel.end();
}
