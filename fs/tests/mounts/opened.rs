//! What programs do with open files: on a mount it is what it is on the disk below, and never reaches the lower.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::fs::inotify;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::served::{Place, can_mount};

/// The disk that a mount's upper is on, and the mount: what is expected, and what is tested.
fn on_disk_and_mount(options: &str, test: impl Fn(&Path)) {
    let place = Place::new();
    fs::create_dir(place.path("disk")).unwrap();
    let mut server = place.mount(options);
    test(&place.path("disk"));
    test(&place.path("mnt"));
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Starts a program that runs until it is killed.
fn run(program: &Path) -> io::Result<Child> {
    Command::new(program).arg("1000").spawn()
}

fn open(path: &Path, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::fs::open(path, flags, Mode::empty())
}

/// A program that runs can't be written to, and one that is written to can't be run, on any disk (open(2), execve(2):
/// ETXTBSY). Nothing of it is lost by trying.
///
/// Rule 53: A program that runs can't be written to or truncated, and one that is open for writing can't be run:
/// ETXTBSY, and nothing of it is lost.
#[test]
fn running_program_can_not_be_written_to_nor_truncated() {
    if !can_mount() {
        return;
    }
    for options in ["", "passthrough=off"] {
        let place = Place::new();
        for name in ["lower/below", "upper/above"] {
            fs::copy("/bin/sleep", place.path(name)).unwrap();
        }
        let mut server = place.mount(options);
        fs::copy("/bin/sleep", place.mnt("new")).unwrap();
        let length = fs::metadata("/bin/sleep").unwrap().len();
        for name in ["below", "above", "new"] {
            let program = place.mnt(name);
            let mut running = run(&program).unwrap();
            for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::TRUNC, OFlags::TRUNC] {
                assert_eq!(open(&program, flags).unwrap_err(), Errno::TXTBSY, "{name} {flags:?} {options}");
            }
            assert_eq!(fs::metadata(&program).unwrap().len(), length, "{name} {options}");
            assert!(running.try_wait().unwrap().is_none(), "{name} has ended {options}");
            running.kill().unwrap();
            running.wait().unwrap();
            let writer = OpenOptions::new().append(true).open(&program).unwrap();
            assert_eq!(run(&program).unwrap_err().raw_os_error(), Some(libc::ETXTBSY), "{name} {options}");
            drop(writer);
            let mut running = run(&program).unwrap();
            running.kill().unwrap();
            running.wait().unwrap();
            drop(open(&program, OFlags::TRUNC).unwrap());
            assert_eq!(fs::metadata(&program).unwrap().len(), 0, "{name} {options}");
        }
        assert_eq!(server.order("unmount"), "unmounted");
    }
}

/// Every file below, with its contents and the time of its last change.
fn contents(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            all.append(&mut contents(&path));
        } else if stat.is_file() {
            all.insert(path.clone(), (fs::read(&path).unwrap(), stat.mtime(), stat.mtime_nsec()));
        }
    }
    all
}

/// Tries to change a file by way of a descriptor that is open for reading only; then changes it in all the ways there are.
#[allow(unsafe_code)]
fn attack(path: &Path) {
    let reader = File::open(path).unwrap();
    let before = fs::read(path).unwrap();
    let by_fd = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    assert_eq!(rustix::io::pwrite(&reader, b"!", 0), Err(Errno::BADF));
    assert_eq!(rustix::fs::fallocate(&reader, FallocateFlags::empty(), 0, 1 << 20), Err(Errno::BADF));
    assert_eq!(
        rustix::fs::fallocate(&reader, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096),
        Err(Errno::BADF)
    );
    assert!(matches!(rustix::fs::ftruncate(&reader, 0), Err(Errno::INVAL | Errno::BADF)));
    assert!(rustix::fs::ioctl_ficlone(&reader, File::open("/bin/sleep").unwrap()).is_err());
    let source = File::open("/bin/sleep").unwrap();
    assert!(rustix::fs::copy_file_range(&source, None, &reader, None, 4096).is_err());
    // SAFETY: nobody stores into the mapping: that it can't become writable is what is tested.
    let mapping = unsafe { memmap2::Mmap::map(&reader) }.unwrap();
    // SAFETY: the same.
    assert!(unsafe { memmap2::MmapMut::map_mut(&reader) }.is_err());
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
    assert!(memory.write_at(b"!", mapping.as_ptr() as u64).is_err());
    assert!(mapping.make_mut().is_err());
    assert!(fs::read(path).unwrap() == before);
    // A second descriptor of the same file, made of the first, may write: to the union, not to the lower. Where it is
    // refused, as for a program's text that is passed through, the first one is in the way.
    match OpenOptions::new().read(true).write(true).open(&by_fd) {
        Ok(writer) => {
            writer.write_all_at(b"written", 0).unwrap();
            // SAFETY: the file is this test's own and keeps its length.
            let mut mapping = unsafe { memmap2::MmapMut::map_mut(&writer) }.unwrap();
            mapping[8] = b'!';
            mapping.flush().unwrap();
            let _ = rustix::fs::fallocate(&writer, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 4096);
            let mut seen = [0; 9];
            reader.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!((&seen[..7], seen[8]), (&b"written"[..], b'!'));
        }
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY)),
    }
    drop((reader, source));
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let writer = OpenOptions::new().read(true).write(true).open(path).unwrap();
    writer.write_all_at(b"more", 64).unwrap();
    writer.set_len(100).unwrap();
    drop(open(path, OFlags::TRUNC).unwrap());
    fs::write(path, "anew").unwrap();
    fs::remove_file(path).unwrap();
    fs::write(path, "another").unwrap();
}

/// A descriptor of a lower file that is open for reading never lets a write through to the layer or object, however it is tried.
///
/// Rule 52: A descriptor of a lower file that is open for reading never lets a write through to the layer or the
/// object: not by `/proc/self/fd`, mmap(2), mprotect(2), `/proc/self/mem`, fallocate(2), `FICLONE`,
/// copy_file_range(2) or truncation.
#[test]
fn reader_of_a_lower_file_can_not_write_to_the_lower() {
    if !can_mount() {
        return;
    }
    let text = b"a line of the lower\n".repeat(5000);
    for options in ["", "passthrough=off"] {
        let place = Place::new();
        let tree = place.path("tree");
        fs::create_dir(&tree).unwrap();
        for dir in [place.path("lower"), tree.clone()] {
            fs::write(dir.join("text"), &text).unwrap();
            fs::copy("/bin/sleep", dir.join("program")).unwrap();
        }
        let before = contents(&place.path("lower"));
        let mut server = place.mount(options);
        for name in ["text", "program"] {
            attack(&place.mnt(name));
        }
        assert_eq!(server.order("unmount"), "unmounted");
        assert!(contents(&place.path("lower")) == before, "the lower has changed {options}");

        let packed = Command::new("tar").arg("-cf").arg(place.path("tar")).arg("-C").arg(tree).arg(".").status();
        assert!(packed.unwrap().success());
        let mut server = place.image(options).unwrap();
        let before = contents(&place.path("store/objects"));
        assert!(!before.is_empty());
        for name in ["text", "program"] {
            attack(&place.mnt(name));
        }
        assert!(contents(&place.path("store/objects")) == before, "an object has changed {options}");
        assert_eq!(server.order("unmount"), "unmounted");
    }
}

/// A file without a name is as on the disk: it has no links, can be read, written and mapped, and gets no name back (linkat(2): ENOENT).
///
/// Rule 18: Such a file has 0 links, can be read, written, mapped, changed and opened again by `/proc/self/fd`, and
/// gets no name back (linkat(2): ENOENT), as on a disk.
#[test]
fn file_without_a_name_is_what_it_is_on_the_disk() {
    if !can_mount() {
        return;
    }
    #[allow(unsafe_code)]
    let test = |dir: &Path| {
        let path = dir.join("file");
        fs::write(&path, "contents").unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let ino = file.metadata().unwrap().ino();
        fs::remove_file(&path).unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!((stat.ino(), stat.nlink(), stat.len()), (ino, 0, 8));
        // SAFETY: the file is this test's own and is not made shorter while it is mapped.
        let mut mapping = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        mapping[..4].copy_from_slice(b"CONT");
        mapping.flush().unwrap();
        drop(mapping);
        file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        file.set_len(6).unwrap();
        let by_fd = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(fs::read(&by_fd).unwrap(), b"CONTen");
        let mut again = OpenOptions::new().append(true).open(&by_fd).unwrap();
        again.write_all(b"!").unwrap();
        let mut text = String::new();
        (&file).rewind().unwrap();
        (&file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "CONTen!");
        let back = rustix::fs::linkat(CWD, &by_fd, CWD, dir.join("back"), AtFlags::SYMLINK_FOLLOW);
        assert_eq!(back, Err(Errno::NOENT));
        let stat = file.metadata().unwrap();
        assert_eq!((stat.ino(), stat.nlink(), stat.mode() & 0o7777), (ino, 0, 0o640));
    };
    for options in ["", "passthrough=off"] {
        on_disk_and_mount(options, test);
    }
}

/// Memory that direct I/O takes.
#[repr(align(4096))]
struct Block([u8; 8192]);

/// What is written past the page cache is read through it, and the other way round (open(2), `O_DIRECT`).
///
/// Rule 54: `O_DIRECT` works where the disk below has it, and shows the same as the page cache.
#[test]
fn direct_and_buffered_descriptors_show_the_same() {
    if !can_mount() {
        return;
    }
    for options in ["", "passthrough=off"] {
        let place = Place::new();
        fs::write(place.path("lower/below"), [b'l'; 16384]).unwrap();
        fs::write(place.path("upper/above"), [b'l'; 16384]).unwrap();
        let mut server = place.mount(options);
        fs::write(place.mnt("new"), [b'l'; 16384]).unwrap();
        for name in ["below", "above", "new"] {
            let path = place.mnt(name);
            let buffered = File::open(&path).unwrap();
            let mut seen = [0; 16384];
            buffered.read_exact_at(&mut seen, 0).unwrap();
            let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path);
            let direct = match direct {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return eprintln!("direct I/O is not tested: the disk has none");
                }
                direct => direct.unwrap(),
            };
            direct.write_all_at(&Block([b'd'; 8192]).0, 4096).unwrap();
            buffered.read_exact_at(&mut seen, 0).unwrap();
            assert!(seen[4096..12288].iter().all(|byte| *byte == b'd'), "{name} {options}");
            let writer = OpenOptions::new().write(true).open(&path).unwrap();
            writer.write_all_at(&[b'b'; 4096], 8192).unwrap();
            let mut block = Block([0; 8192]);
            direct.read_exact_at(&mut block.0, 8192).unwrap();
            assert!(block.0[..4096].iter().all(|byte| *byte == b'b'), "{name} {options}");
            assert!(block.0[4096..].iter().all(|byte| *byte == b'l'), "{name} {options}");
        }
        assert_eq!(server.order("unmount"), "unmounted");
    }
}

/// Who watches a directory hears of changes in it, in the same order as on the disk (inotify(7)).
///
/// Rule 19: inotify and fanotify tell of changes made through the mount, as on a disk.
#[test]
fn changes_are_heard_of_as_on_the_disk() {
    if !can_mount() {
        return;
    }
    let heard = |dir: &Path| {
        use inotify::{CreateFlags, ReadFlags, Reader, WatchFlags};
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, dir, WatchFlags::ALL_EVENTS).unwrap();
        let file = dir.join("below");
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"!").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(dir.join("new"), "new").unwrap();
        fs::rename(dir.join("new"), dir.join("renamed")).unwrap();
        fs::hard_link(&file, dir.join("link")).unwrap();
        fs::remove_file(&file).unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        fs::remove_dir(dir.join("dir")).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8192];
        let mut reader = Reader::new(&watch, &mut buffer);
        let mut events: Vec<(ReadFlags, Option<String>)> = Vec::new();
        while let Ok(event) = reader.next() {
            events.push((event.events(), event.file_name().map(|name| name.to_string_lossy().into_owned())));
        }
        events
    };
    let place = Place::new();
    fs::create_dir(place.path("disk")).unwrap();
    for dir in ["disk", "lower"] {
        fs::write(place.path(dir).join("below"), "below").unwrap();
    }
    let mut server = place.mount("");
    let expected = heard(&place.path("disk"));
    assert!(expected.len() > 10);
    assert_eq!(heard(&place.path("mnt")), expected);
    assert_eq!(server.order("unmount"), "unmounted");
}
