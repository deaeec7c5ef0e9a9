//! Large lower files that are copied up block by block, used in all the ways there are.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapMut};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::served::{Place, can_mount};

/// Every file, wherever it is. What is left is begun to be copied after two seconds.
const FORCED: &str = "block_copy_up=force,block_copy_up_from=4096";

/// Bytes of the lower: no zeros among them.
fn below(size: usize) -> Vec<u8> {
    (0..size).map(|at| 1 + (at / 5 % 240) as u8).collect()
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn all_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Waits until a file has all its blocks, for which the server needs nobody.
fn wait_until_whole(upper: &Path) {
    let patience = Instant::now() + Duration::from_secs(60);
    while rustix::fs::getxattr(upper, "trusted.mica.blocks", &mut [0; 256]).is_ok() {
        assert!(Instant::now() < patience, "nobody copies the rest");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Numbers that look random (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

/// A file, and what it should have.
struct Exercise {
    file: File,
    other: File,
    bytes: Vec<u8>,
    dice: Dice,
    largest: usize,
}

impl Exercise {
    /// Does one thing, and compares what it concerns.
    #[allow(unsafe_code)]
    fn step(&mut self) {
        let size = self.bytes.len();
        let at = match self.dice.below(3) {
            0 => self.dice.below(size / 4096 + 1) * 4096,
            _ => self.dice.below(size + 1),
        };
        let limit = if self.dice.below(4) == 0 { 70_000 } else { 6000 };
        let length = (1 + self.dice.below(limit)).min(self.largest.saturating_sub(at)).max(1);
        let inside = length.min(size.saturating_sub(at));
        let stamp = 241 + self.dice.below(15) as u8;
        match self.dice.below(24) {
            0..7 => {
                self.file.write_all_at(&vec![stamp; length], at as u64).unwrap();
                self.put(at, &vec![stamp; length]);
            }
            7..11 if inside > 0 => {
                // SAFETY: nobody else has the file, and it keeps its length meanwhile.
                let mut map = unsafe { MmapMut::map_mut(&self.file) }.unwrap();
                map[at..at + inside].fill(stamp);
                if self.dice.below(2) == 0 {
                    map.flush().unwrap();
                }
                drop(map);
                self.put(at, &vec![stamp; inside]);
            }
            11 if self.dice.below(8) == 0 => {
                self.file.set_len(at as u64).unwrap();
                self.bytes.resize(at, 0);
            }
            12 if self.dice.below(4) == 0 => {
                let size = (size + length).min(self.largest);
                self.file.set_len(size as u64).unwrap();
                self.bytes.resize(size, 0);
            }
            13 | 14 if inside > 0 => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, mode, at as u64, inside as u64).unwrap();
                self.put(at, &vec![0; inside]);
            }
            15 if inside > 0 => {
                match rustix::fs::fallocate(&self.file, FallocateFlags::ZERO_RANGE, at as u64, inside as u64) {
                    Err(Errno::OPNOTSUPP) => {}
                    done => {
                        done.unwrap();
                        self.put(at, &vec![0; inside]);
                    }
                }
            }
            16 => match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), at as u64, length as u64) {
                Err(Errno::OPNOTSUPP) => {}
                done => {
                    done.unwrap();
                    let size = self.bytes.len().max(at + length);
                    self.bytes.resize(size, 0);
                }
            },
            17 if inside > 0 => self.copy_within(at, inside),
            18 => self.file.sync_data().unwrap(),
            19 if inside > 0 => {
                // SAFETY: as above.
                let map = unsafe { Mmap::map(&self.other) }.unwrap();
                assert!(map[at..at + inside] == self.bytes[at..at + inside], "a mapping of {inside} bytes from {at}");
            }
            20 => self.direct(at / 4096 * 4096, stamp),
            _ => {
                let mut read = vec![0; inside];
                self.other.read_exact_at(&mut read, at as u64).unwrap();
                assert!(read == self.bytes[at..at + inside], "{inside} bytes from {at}");
            }
        }
        assert_eq!(self.other.metadata().unwrap().len(), self.bytes.len() as u64);
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(data);
    }

    /// By copy_file_range(2) from another place of the same file.
    fn copy_within(&mut self, at: usize, length: usize) {
        let from = self.dice.below(self.bytes.len() - length + 1);
        if from.abs_diff(at) < length {
            return;
        }
        let (mut read_at, mut write_at, mut done) = (from as u64, at as u64, 0);
        while done < length {
            let copied = rustix::fs::copy_file_range(
                &self.other,
                Some(&mut read_at),
                &self.file,
                Some(&mut write_at),
                length - done,
            );
            done += copied.unwrap();
        }
        let data = self.bytes[from..from + length].to_vec();
        self.put(at, &data);
    }

    /// Past the page cache, where the disk can.
    fn direct(&mut self, at: usize, stamp: u8) {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        let Ok(file) = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path) else {
            return;
        };
        let mut memory = MmapMut::map_anon(8192).unwrap();
        if at + 8192 <= self.bytes.len() {
            match rustix::io::pread(&file, &mut memory[..], at as u64) {
                Err(Errno::INVAL) => return,
                read => assert_eq!(read.unwrap(), 8192),
            }
            assert!(memory[..] == self.bytes[at..at + 8192], "8192 bytes from {at}, directly");
            memory.fill(stamp);
            file.write_all_at(&memory, at as u64).unwrap();
            self.put(at, &vec![stamp; 8192]);
        }
    }
}

/// Rule 99: Of a large lower file that is changed, only the blocks that change are copied at first and the rest in the
/// background, where the disk can't share blocks and keeps the order of changes over a crash.
///
/// A longer exercise by `MICA_EXERCISE=1000000`, on the disk of `TMPDIR`.
#[test]
fn random_operations_on_partly_copied_files_are_those_of_a_file() {
    const FILES: usize = 20;
    const SIZE: usize = 300_000;
    if !can_mount() {
        return;
    }
    let operations = std::env::var("MICA_EXERCISE").ok().and_then(|count| count.parse().ok()).unwrap_or(4000);
    let mut done = 0;
    let mut seed = 1;
    while done < operations {
        let place = Place::new();
        for number in 0..FILES {
            fs::write(place.path(&format!("lower/{number}")), below(SIZE)).unwrap();
        }
        let mut server = place.mount(FORCED);
        for number in 0..FILES {
            let path = place.mnt(&number.to_string());
            seed += 1;
            // What reads was there before what writes.
            let other = File::open(&path).unwrap();
            let dice = Dice(seed * 0x9e37_79b9);
            let mut exercise = Exercise { file: open(&path), other, bytes: below(SIZE), dice, largest: SIZE + 50_000 };
            for step in 0..operations.min(200 * FILES) / FILES {
                if step == 100 && number % 8 == 0 {
                    let next = place.next(FORCED);
                    server.kill();
                    server = next.resume();
                }
                exercise.step();
                done += 1;
            }
            assert!(all_of(&exercise.file) == exercise.bytes, "file {number}, seed {seed}");
            assert!(fs::read(&path).unwrap() == exercise.bytes, "file {number}, seed {seed}, opened again");
            fs::write(place.path(&format!("expected{number}")), &exercise.bytes).unwrap();
        }
        assert_eq!(server.order("unmount"), "unmounted");
        drop(server);
        // Whoever mounts it next finds the same, and makes it whole.
        let mut server = place.mount(FORCED);
        for number in 0..FILES {
            let (path, expected) = (number.to_string(), fs::read(place.path(&format!("expected{number}"))).unwrap());
            assert!(fs::read(place.mnt(&path)).unwrap() == expected, "file {number}, mounted again");
            wait_until_whole(&place.path(&format!("upper/{path}")));
            assert!(fs::read(place.path(&format!("upper/{path}"))).unwrap() == expected, "file {number}, whole");
            assert!(fs::read(place.mnt(&path)).unwrap() == expected, "file {number}, whole, read");
        }
        // The last map goes after the marks.
        let patience = Instant::now() + Duration::from_secs(60);
        while fs::read_dir(place.path("work/blocks")).unwrap().count() > 0 {
            assert!(Instant::now() < patience, "maps of whole files stay");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(server.order("unmount"), "unmounted");
    }
}

/// Rule 99: Of a large lower file that is changed, only the blocks that change are copied at first and the rest in the
/// background, where the disk can't share blocks and keeps the order of changes over a crash.
#[test]
fn partly_copied_file_goes_on_with_the_next_server_and_is_passed_through_once_it_is_whole() {
    const SIZE: usize = 3 << 20;
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("lower/large"), below(SIZE)).unwrap();
    let mut server = place.mount(FORCED);
    let mut expected = below(SIZE);
    let before = File::open(place.mnt("large")).unwrap();
    let file = open(&place.mnt("large"));
    for at in [1, 5000, 2 << 20, SIZE - 3] {
        file.write_all_at(b"new", at as u64).unwrap();
        expected[at..at + 3].copy_from_slice(b"new");
    }
    let upper = place.path("upper/large");
    assert!(fs::metadata(&upper).unwrap().blocks() < 200, "more than a few blocks are copied");
    assert_eq!(file.metadata().unwrap().blocks(), SIZE as u64 / 512);
    let (mtime, nanos) = { file.metadata().map(|metadata| (metadata.mtime(), metadata.mtime_nsec())).unwrap() };
    // What was not synced is there all the same: the kernel has it.
    let next = place.next(FORCED);
    server.kill();
    server = next.resume();
    assert!(all_of(&before) == expected && all_of(&file) == expected);
    file.sync_all().unwrap();
    let deleted = place.mnt("deleted");
    fs::hard_link(place.mnt("large"), &deleted).unwrap();
    fs::rename(place.mnt("large"), place.mnt("renamed")).unwrap();
    fs::remove_file(deleted).unwrap();
    wait_until_whole(&place.path("upper/renamed"));
    assert!(fs::read(place.path("upper/renamed")).unwrap() == expected);
    let metadata = fs::metadata(place.path("upper/renamed")).unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (mtime, nanos));
    file.write_all_at(b"later", 77).unwrap();
    expected[77..82].copy_from_slice(b"later");
    assert!(all_of(&before) == expected);
    assert_eq!(server.counts()[1], 0, "handles from before are not passed through");
    drop((file, before));
    std::thread::sleep(Duration::from_millis(200));
    let probe = File::create(place.mnt("probe")).unwrap();
    let passes = server.counts()[1];
    let mut again = File::open(place.mnt("renamed")).unwrap();
    assert_eq!(server.counts()[1], 2 * passes);
    let mut read = Vec::new();
    again.read_to_end(&mut read).unwrap();
    assert!(read == expected);
    drop((again, probe));
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 99: Of a large lower file that is changed, only the blocks that change are copied at first and the rest in the
/// background, where the disk can't share blocks and keeps the order of changes over a crash.
#[test]
fn partly_copied_file_that_is_deleted_while_open_keeps_its_contents_and_then_gives_its_space_back() {
    const SIZE: usize = 1 << 20;
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("lower/large"), below(SIZE)).unwrap();
    let mut server = place.mount(FORCED);
    let file = open(&place.mnt("large"));
    file.write_all_at(b"new", 9000).unwrap();
    fs::remove_file(place.mnt("large")).unwrap();
    let next = place.next(FORCED);
    server.kill();
    server = next.resume();
    let mut expected = below(SIZE);
    expected[9000..9003].copy_from_slice(b"new");
    assert!(all_of(&file) == expected);
    file.write_all_at(b"more", 500_000).unwrap();
    expected[500_000..500_004].copy_from_slice(b"more");
    assert!(all_of(&file) == expected);
    drop(file);
    assert_eq!(server.order("unmount"), "unmounted");
    drop(server);
    let mut server = place.mount(FORCED);
    assert!(!place.mnt("large").exists());
    assert_eq!(fs::read_dir(place.path("work/blocks")).unwrap().count(), 0);
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 99: Of a large lower file that is changed, only the blocks that change are copied at first and the rest in the
/// background, where the disk can't share blocks and keeps the order of changes over a crash.
#[test]
fn holes_of_a_partly_copied_file_are_those_of_both_its_parts() {
    const SIZE: usize = 1 << 20;
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let sparse = File::create(place.path("lower/sparse")).unwrap();
    sparse.set_len(SIZE as u64).unwrap();
    sparse.write_all_at(&[1; 4096], 256 << 10).unwrap();
    let mut server = place.mount(FORCED);
    let file = open(&place.mnt("sparse"));
    file.write_all_at(&[2; 4096], 512 << 10).unwrap();
    let seek = |to| rustix::fs::seek(&file, to);
    assert_eq!(seek(SeekFrom::Data(0)), Ok(256 << 10));
    assert_eq!(seek(SeekFrom::Hole(256 << 10)), Ok(260 << 10));
    assert_eq!(seek(SeekFrom::Data(260 << 10)), Ok(512 << 10));
    assert_eq!(seek(SeekFrom::Data(520 << 10)), Err(Errno::NXIO));
    drop(file);
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 99: Of a large lower file that is changed, only the blocks that change are copied at first and the rest in the
/// background, where the disk can't share blocks and keeps the order of changes over a crash.
#[test]
fn full_disk_costs_a_partly_copied_file_nothing_that_it_had() {
    const SIZE: usize = 16 << 20;
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("lower/large"), below(SIZE)).unwrap();
    // The disk of the upper has a quarter of that.
    fs::create_dir(place.path("small")).unwrap();
    rustix::mount::mount("small", place.path("small"), "tmpfs", MountFlags::empty(), Some(c"size=4m")).unwrap();
    for name in ["upper", "work"] {
        fs::create_dir(place.path(&format!("small/{name}"))).unwrap();
    }
    let [lower, upper, work] =
        ["lower", "small/upper", "small/work"].map(|name| place.path(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},{FORCED}");
    let mut server = place.dirs("keeper", &options).unwrap();
    let file = open(&place.mnt("large"));
    let (mut expected, mut written, mut refused) = (below(SIZE), 0, 0);
    for at in (100..SIZE - 10_000).step_by(10_000) {
        match file.write_at(&[250; 6000], at as u64) {
            Ok(count) => {
                expected[at..at + count].fill(250);
                written += 1;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                refused += 1;
            }
        }
    }
    assert!(written > 100 && refused > 100, "{written} written, {refused} refused");
    assert!(all_of(&file) == expected);
    let next = place.next_dirs(&options);
    server.kill();
    server = next.resume();
    assert!(all_of(&file) == expected);
    drop(file);
    assert!(fs::read(place.mnt("large")).unwrap() == expected);
    assert_eq!(server.order("unmount"), "unmounted");
    drop(server);
    rustix::mount::unmount(place.path("small"), UnmountFlags::DETACH).unwrap();
}

/// `FS_IOC_SHUTDOWN` without a flush of the log: what a power cut leaves, as far as the filesystem can make it so.
#[allow(unsafe_code)]
fn cut_power(disk: &Path) {
    let dir = File::open(disk).unwrap();
    let without_log: u32 = 2;
    // SAFETY: the ioctl reads one number, which lives until the call returns.
    let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&dir), 0x8004_587d, &raw const without_log) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A filesystem in an image; false if there are no tools for it.
fn mount_image(place: &Place, kind: &str) -> bool {
    let (image, disk) = (place.path("image"), place.path("disk"));
    fs::create_dir(&disk).unwrap();
    File::create(&image).unwrap().set_len(400 << 20).unwrap();
    let quiet: &[&str] = if kind == "ext4" { &["-q", "-F"] } else { &["-q"] };
    let made = std::process::Command::new(format!("mkfs.{kind}")).args(quiet).arg(&image).status();
    made.is_ok_and(|made| made.success()) && mount_again(place)
}

fn mount_again(place: &Place) -> bool {
    let mut mount = std::process::Command::new("mount");
    mount.args(["-o", "loop"]).arg(place.path("image")).arg(place.path("disk"));
    mount.status().is_ok_and(|mounted| mounted.success())
}

/// Rule 100: After a power cut each block of such a file is what it was when the file was synced last, or what was
/// written since.
#[test]
fn power_cut_of_a_real_disk_takes_back_no_synced_block_and_shows_no_zeros() {
    const BLOCKS: usize = 1024;
    if !can_mount() {
        return;
    }
    for kind in ["ext4", "xfs"] {
        let place = Place::new();
        if !mount_image(&place, kind) {
            eprintln!("power cuts of {kind} are not tested: it can't be made or mounted");
            continue;
        }
        for name in ["upper", "work"] {
            fs::create_dir(place.path(&format!("disk/{name}"))).unwrap();
        }
        let lower = below(BLOCKS * 4096);
        fs::write(place.path("lower/large"), &lower).unwrap();
        let [dir, upper, work] =
            ["lower", "disk/upper", "disk/work"].map(|name| place.path(name).display().to_string());
        // Not forced: these disks keep the order of changes.
        let options =
            format!("lowerdir={dir},upperdir={upper},workdir={work},block_copy_up=on,block_copy_up_from=4096");
        let mut server = place.dirs("keeper", &options).unwrap();
        let file = open(&place.mnt("large"));
        let other = File::create(place.mnt("other")).unwrap();
        assert!(rustix::fs::getxattr(place.path("disk/upper/large"), "trusted.mica.blocks", &mut [0; 256]).is_ok());
        let mut dice = Dice(0x5eed);
        // What each block may be: as it was synced last, or as it was written since; 0 stands for the lower's.
        let mut known: Vec<Vec<u8>> = vec![vec![0]; BLOCKS];
        // The rest is copied from the second second on.
        let begin = Instant::now();
        for number in (0..3000).take_while(|number| *number < 300 || begin.elapsed() < Duration::from_millis(1500)) {
            let block = dice.below(BLOCKS);
            let stamp = 241 + (number % 15) as u8;
            file.write_all_at(&[stamp; 4096], (block * 4096) as u64).unwrap();
            known[block].push(stamp);
            match dice.below(100) {
                0 => {
                    file.sync_data().unwrap();
                    for states in &mut known {
                        states.drain(..states.len() - 1);
                    }
                }
                // The journal goes on without this file's data.
                1..4 => other.sync_all().unwrap(),
                _ => {}
            }
        }
        cut_power(&place.path("disk"));
        // A close asks the server.
        drop((file, other));
        server.kill();
        rustix::mount::unmount(place.path("mnt"), UnmountFlags::DETACH).unwrap();
        // What is passed through the kernel has open as long as there is the connection.
        place.keeper().forget("one").unwrap();
        let patience = Instant::now() + Duration::from_secs(60);
        while let Err(errno) = rustix::mount::unmount(place.path("disk"), UnmountFlags::empty()) {
            assert!(errno == Errno::BUSY && Instant::now() < patience, "{errno}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(mount_again(&place));
        for map in fs::read_dir(place.path("disk/work/blocks")).unwrap() {
            // The machine is the same all along; this makes it another boot.
            let map = OpenOptions::new().write(true).open(map.unwrap().path()).unwrap();
            map.write_all_at(b"another boot....", 8).unwrap();
        }
        let mut server = place.dirs("keeper2", &options).unwrap();
        let found = fs::read(place.mnt("large")).unwrap();
        assert_eq!(found.len(), lower.len());
        let mut kept = 0;
        for (block, states) in known.iter().enumerate() {
            let range = block * 4096..(block + 1) * 4096;
            let is = |state: u8| match state {
                0 => found[range.clone()] == lower[range.clone()],
                stamp => found[range.clone()].iter().all(|&byte| byte == stamp),
            };
            assert!(states.iter().any(|&state| is(state)), "{kind}: block {block} is none of {states:?}");
            kept += usize::from(!is(0));
        }
        assert!(kept > 10, "{kind}: {kept} blocks are not the lower's");
        assert_eq!(server.order("unmount"), "unmounted");
        drop(server);
        rustix::mount::unmount(place.path("disk"), UnmountFlags::DETACH).unwrap();
        // The keeper that the place knows still has the first mount.
        mica_fs::Keeper::connect(&place.path("keeper2")).unwrap().stop().unwrap();
    }
}
