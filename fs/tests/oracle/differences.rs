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

#[test]
fn device_0_0_by_mknod_is_a_device_and_overlayfs_refuses_it() {
    let seen = both(one_file, |root| {
        rustix::fs::unlinkat(CWD, root.join("f"), rustix::fs::AtFlags::empty()).unwrap();
        rustix::fs::mknodat(CWD, root.join("f"), FileType::CharacterDevice, Mode::RUSR, 0)
    });
    assert!(seen.is_none_or(|seen| seen == (Ok(()), Err(Errno::PERM))));
}

#[test]
fn rename_that_leaves_a_whiteout_leaves_a_device_and_overlayfs_refuses_it() {
    let seen = both(one_file, |root| {
        let flags = RenameFlags::WHITEOUT;
        rustix::fs::renameat_with(CWD, root.join("f"), CWD, root.join("g"), flags)?;
        Ok(fs::symlink_metadata(root.join("f")).map(|stat| (stat.mode() & 0o170_000, stat.rdev())).unwrap())
    });
    assert!(seen.is_none_or(|seen| seen == (Ok((0o020_000, 0)), Err(Errno::INVAL))));
}

#[test]
fn file_without_a_name_is_refused_and_overlayfs_makes_it() {
    let seen = both(one_file, |root| rustix::fs::open(root, OFlags::TMPFILE | OFlags::WRONLY, Mode::RUSR).map(drop));
    assert!(seen.is_none_or(|seen| seen == (Err(Errno::OPNOTSUPP), Ok(()))));
}

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

#[test]
fn space_is_that_of_the_uppers_disk() {
    let seen = both(one_file, |root| {
        let disk = rustix::fs::statvfs(root.parent().unwrap()).unwrap();
        let mount = rustix::fs::statvfs(root).unwrap();
        (mount.f_blocks * mount.f_frsize, mount.f_namemax) == (disk.f_blocks * disk.f_frsize, disk.f_namemax)
    });
    assert!(seen.is_none_or(|seen| seen == (true, true)));
}

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
