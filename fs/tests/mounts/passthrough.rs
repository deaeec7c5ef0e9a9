//! Data that the kernel reads and writes itself, and the same bytes without.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use super::served::{Place, Server, can_mount};

/// An image with a program and a text, both large enough to be objects.
fn image(place: &Place) -> (Vec<u8>, Vec<u8>) {
    let program: Vec<u8> = (0u32..100_000).flat_map(u32::to_le_bytes).collect();
    let text = b"a line of text\n".repeat(5000);
    let tree = place.path("tree");
    fs::create_dir(&tree).unwrap();
    for (name, content, mode) in [("program", &program, 0o755), ("text", &text, 0o644)] {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(tree.join(name)).unwrap();
        file.write_all(content).unwrap();
    }
    let tar = std::process::Command::new("tar").arg("-cf").arg(place.path("tar")).arg("-C").arg(tree).arg(".").status();
    assert!(tar.unwrap().success());
    (program, text)
}

/// Whether the kernel can pass through; says why not.
fn passes_through(server: &mut Server, place: &Place) -> bool {
    let _file = File::create(place.mnt("probe")).unwrap();
    let passes = server.counts()[1] == 1;
    if !passes {
        eprintln!("passthrough is not tested: this kernel or disk has none");
    }
    passes
}

#[test]
fn files_of_the_upper_are_passed_through() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut server = place.mount("");
    if !passes_through(&mut server, &place) {
        return;
    }
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(place.mnt("file")).unwrap();
    file.write_all_at(b"through the kernel", 0).unwrap();
    let again = File::open(place.mnt("file")).unwrap();
    assert_eq!(server.counts()[1], 1);
    assert_eq!(file.metadata().unwrap().size(), 18);
    // After it was asked for attributes, the kernel asks once for capabilities before it writes.
    file.write_all_at(b"thr", 0).unwrap();
    let next = place.next("");
    server.kill();
    // Nobody serves, and data flows.
    (server, ()) = next.resume_after(|| {
        file.write_all_at(b"past    ", 0).unwrap();
        let mut bytes = [0; 18];
        again.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"past    the kernel");
    });
    // The next server knows the mode and the backing file, else this open would fail with EIO.
    let mut third = File::open(place.mnt("file")).unwrap();
    let mut text = String::new();
    third.read_to_string(&mut text).unwrap();
    assert_eq!(text, "past    the kernel");
    assert_eq!(server.counts()[1], 1);
    drop((file, again, third));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(server.counts(), [0, 0, 0]);
}

/// Rule 51: **Exception**: program text of an image (anything executable, or ELF) that is passed through and open
/// can't be opened for writing or truncated: ETXTBSY.
#[test]
fn programs_of_an_image_are_passed_through_and_busy_while_open() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (program, text) = image(&place);
    let mut server = place.image("").unwrap();
    let mut running = File::open(place.mnt("program")).unwrap();
    let read = File::open(place.mnt("text")).unwrap();
    let passes = server.counts()[2] == 1;
    assert_eq!(server.counts()[1], 0);
    let mut bytes = Vec::new();
    running.read_to_end(&mut bytes).unwrap();
    assert!(bytes == program);
    if passes {
        let busy = OpenOptions::new().write(true).open(place.mnt("program")).unwrap_err();
        assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY));
        let busy = OpenOptions::new().write(true).truncate(true).open(place.mnt("program")).unwrap_err();
        assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY));
        // Changes of attributes are none of the data's business, and later readers share the open file.
        fs::set_permissions(place.mnt("program"), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(fs::read(place.mnt("program")).unwrap() == program);
        let next = place.next_image();
        server.kill();
        (server, ()) = next.resume_after(|| {
            let mut number = [0; 4];
            running.read_exact_at(&mut number, 4 * 77).unwrap();
            assert_eq!(number, 77u32.to_le_bytes());
        });
        assert!(fs::read(place.mnt("program")).unwrap() == program);
    }
    // What goes through the page cache shows a writer's bytes to an earlier reader.
    let writer = OpenOptions::new().write(true).open(place.mnt("text")).unwrap();
    writer.write_all_at(b"A", 0).unwrap();
    let mut byte = [0];
    read.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"A");
    drop((running, writer, read));
    std::thread::sleep(std::time::Duration::from_millis(100));
    let mut written = OpenOptions::new().append(true).open(place.mnt("program")).unwrap();
    written.write_all(b"more").unwrap();
    drop(written);
    assert!(fs::read(place.mnt("program")).unwrap() == [&program[..], b"more"].concat());
    assert_eq!(fs::read(place.mnt("text")).unwrap()[1..], text[1..]);
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 50: Whoever serves the bytes (the kernel by passthrough, or the daemon), they are the same.
#[test]
fn without_passthrough_the_bytes_are_the_same() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (program, text) = image(&place);
    let mut server = place.image("passthrough=off").unwrap();
    let running = File::open(place.mnt("program")).unwrap();
    assert!(fs::read(place.mnt("program")).unwrap() == program);
    assert!(fs::read(place.mnt("text")).unwrap() == text);
    let mut written = OpenOptions::new().append(true).open(place.mnt("program")).unwrap();
    written.write_all(b"more").unwrap();
    assert_eq!(running.metadata().unwrap().size(), program.len() as u64 + 4);
    let mut end = [0; 4];
    running.read_exact_at(&mut end, program.len() as u64).unwrap();
    assert_eq!(&end, b"more");
    assert_eq!(server.counts()[1..], [0, 0]);
    assert_eq!(server.order("counts").split(' ').next(), Some("2"));
    drop((running, written));
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 50: Whoever serves the bytes (the kernel by passthrough, or the daemon), they are the same.
#[test]
fn where_the_disk_is_stacked_itself_the_bytes_go_through_the_server() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    for name in ["disk", "disk/below", "disk/up", "disk/wk", "over"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    let [below, up, wk] = ["disk/below", "disk/up", "disk/wk"].map(|name| place.path(name).display().to_string());
    let data = std::ffi::CString::new(format!("lowerdir={below},upperdir={up},workdir={wk}")).unwrap();
    // Redirected renames need not work there, and neither do whiteouts; files do.
    let over = place.path("over");
    rustix::mount::mount("overlay", &over, "overlay", rustix::mount::MountFlags::empty(), Some(&*data)).unwrap();
    for name in ["upper", "work"] {
        fs::create_dir(over.join(name)).unwrap();
    }
    let [lower, over_dir] = [place.path("lower"), over.clone()].map(|path| path.display().to_string());
    let options = format!("lowerdir={lower},upperdir={over_dir}/upper,workdir={over_dir}/work,userxattr");
    let served = place.dirs("keeper", &options).map(|mut server| {
        fs::write(place.mnt("file"), "through the server").unwrap();
        let file = File::open(place.mnt("file")).unwrap();
        let counts = server.counts();
        assert_eq!(fs::read(place.mnt("file")).unwrap(), b"through the server");
        drop(file);
        assert_eq!(server.order("unmount"), "unmounted");
        counts
    });
    rustix::mount::unmount(&over, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(served, Ok([1, 0, 0]));
}

#[test]
fn a_server_without_privilege_serves_the_bytes_itself() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("lower/below"), "below").unwrap();
    let mut server = place.unprivileged(&place.options("userxattr")).unwrap();
    let file = OpenOptions::new().append(true).read(true).open(place.mnt("below")).unwrap();
    (&file).write_all(b" and above").unwrap();
    assert_eq!(server.counts(), [1, 0, 0]);
    drop(file);
    assert_eq!(fs::read(place.mnt("below")).unwrap(), b"below and above");
    assert!(server.answer("unmount").contains("can't unmount"));
}

/// Rule 16: `st_mtime` and `st_ctime` move as on any disk; `st_atime` as the upper's disk has it, and not at all for
/// lower files (as on a mount with `noatime`).
#[test]
fn a_store_into_a_mapping_shows_in_the_times() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut server = place.mount("");
    fs::write(place.mnt("mapped"), vec![0; 4096]).unwrap();
    let before = fs::metadata(place.mnt("mapped")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    let file = OpenOptions::new().read(true).write(true).open(place.mnt("mapped")).unwrap();
    store(&file);
    let after = file.metadata().unwrap();
    assert!(after.modified().unwrap() > before.modified().unwrap());
    drop(file);
    assert_eq!(fs::read(place.mnt("mapped")).unwrap()[0], 7);
    let at_last = fs::metadata(place.mnt("mapped")).unwrap();
    assert!(at_last.modified().unwrap() >= after.modified().unwrap());
    assert_eq!(server.order("unmount"), "unmounted");
}

#[allow(unsafe_code)]
fn store(file: &File) {
    // SAFETY: a mapping of our own of a file that nobody truncates; it is unmapped before the pointer is lost.
    unsafe {
        use std::os::fd::AsRawFd;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<u8>().write(7);
        assert_eq!(libc::msync(at, 4096, libc::MS_SYNC), 0);
        libc::munmap(at, 4096);
    }
}

#[test]
fn program_whose_attributes_change_is_passed_through_from_the_image_until_it_is_written_to() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (program, _) = image(&place);
    let mut server = place.image("").unwrap();
    if !passes_through(&mut server, &place) {
        return;
    }
    let early = File::open(place.mnt("program")).unwrap();
    std::os::unix::fs::chown(place.mnt("program"), Some(7), Some(8)).unwrap();
    fs::set_permissions(place.mnt("program"), fs::Permissions::from_mode(0o700)).unwrap();
    let late = File::open(place.mnt("program")).unwrap();
    assert_eq!(server.counts(), [2, 0, 1]);
    let next = place.next_image();
    server.kill();
    server = next.resume();
    let again = File::open(place.mnt("program")).unwrap();
    for file in [&early, &late, &again] {
        let mut bytes = vec![0; program.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == program);
    }
    let metadata = again.metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (7, 8, 0o700));
    assert_eq!((metadata.len(), metadata.blocks()), (program.len() as u64, program.len().div_ceil(512) as u64));
    assert!(fs::metadata(place.path("changes/upper/program")).unwrap().blocks() <= 8);
    let busy = OpenOptions::new().write(true).open(place.mnt("program"));
    assert_eq!(busy.unwrap_err().raw_os_error(), Some(libc::ETXTBSY));
    drop((early, late, again));
    // A process that another test starts has this one's files open for a moment.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let writer = loop {
        match OpenOptions::new().write(true).open(place.mnt("program")) {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => assert!(patience.elapsed().is_zero()),
            opened => break opened.unwrap(),
        }
    };
    writer.write_all_at(b"changed", 1).unwrap();
    drop(writer);
    let expected = [&program[..1], b"changed", &program[8..]].concat();
    assert!(fs::read(place.mnt("program")).unwrap() == expected);
    assert!(fs::read(place.path("changes/upper/program")).unwrap() == expected);
    assert_eq!(server.order("unmount"), "unmounted");
}
