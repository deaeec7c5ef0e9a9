//! Servers that are killed, and the next ones.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, XattrFlags, removexattr, renameat_with, setxattr};

use super::served::{Place, can_mount, remembered};

const WHILE: Duration = Duration::from_millis(200);

/// Rule 17: An open file whose last name is removed stays, with its contents, until it is closed, also when the
/// daemon is killed in between.
#[test]
fn files_that_are_open_when_the_server_is_killed_go_on_with_the_next() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("lower/dir")).unwrap();
    for name in 0..300 {
        fs::write(place.path(&format!("lower/dir/{name}")), "x").unwrap();
    }
    fs::write(place.path("lower/below"), vec![b'b'; 3 << 20]).unwrap();
    fs::write(place.path("lower/unseen"), "unseen").unwrap();
    let mut server = place.mount("");

    let mut below = File::open(place.mnt("below")).unwrap();
    let mut start = [0; 16];
    below.read_exact(&mut start).unwrap();
    let mut above =
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(place.mnt("above")).unwrap();
    above.write_all(b"before ").unwrap();
    let mut gone = OpenOptions::new().create_new(true).read(true).write(true).open(place.mnt("gone")).unwrap();
    gone.write_all(b"unlinked").unwrap();
    fs::remove_file(place.mnt("gone")).unwrap();
    let mut listing = fs::read_dir(place.mnt("dir")).unwrap();
    let first = listing.next().unwrap().unwrap().file_name();
    let ino = fs::metadata(place.mnt("above")).unwrap().ino();

    let next = place.next("");
    server.kill();
    let waiting = std::thread::spawn({
        let unseen = place.mnt("unseen");
        move || fs::read(unseen)
    });
    sleep(WHILE);
    assert!(!waiting.is_finished());
    server = next.resume();
    assert_eq!(waiting.join().unwrap().unwrap(), b"unseen");

    let mut rest = Vec::new();
    below.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), (3 << 20) - 16);
    assert!(rest.iter().all(|&byte| byte == b'b'));
    above.write_all(b"after").unwrap();
    above.sync_all().unwrap();
    assert_eq!(fs::read(place.mnt("above")).unwrap(), b"before after");
    assert_eq!(above.metadata().unwrap().ino(), ino);
    let mut bytes = [0; 8];
    gone.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"unlinked");
    let mut names: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    names.push(first);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 300);
    drop((below, above, gone));
    fs::write(place.mnt("later"), "x").unwrap();
    assert_eq!(fs::read(place.path("upper/above")).unwrap(), b"before after");

    let next = place.next("");
    server.kill();
    server = next.resume();
    sleep(WHILE);
    assert_eq!(server.counts(), [0, 0, 0], "handles of closed files");
    assert_eq!(server.order("unmount"), "unmounted");
}

#[test]
fn requests_that_the_killed_server_had_in_hand_are_done_once() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut server = place.mount("");
    fs::write(place.mnt("one"), "1").unwrap();
    fs::write(place.mnt("two"), "2").unwrap();
    for dir in ["made", "created", "removed", "emptied", "moved", "looked"] {
        fs::create_dir(place.mnt(dir)).unwrap();
    }
    fs::write(place.mnt("removed/file"), "x").unwrap();
    fs::create_dir(place.mnt("emptied/dir")).unwrap();
    fs::write(place.mnt("moved/file"), "x").unwrap();

    // It goes on to read requests, and answers none.
    let next = place.next("");
    assert_eq!(server.order("leave"), "left");
    let waited = std::thread::scope(|scope| {
        let waiting = [
            scope.spawn(|| renameat_with(CWD, place.mnt("one"), CWD, place.mnt("two"), RenameFlags::EXCHANGE).unwrap()),
            scope.spawn(|| fs::create_dir(place.mnt("made/dir")).unwrap()),
            scope.spawn(|| fs::write(place.mnt("created/file"), "new").unwrap()),
            scope.spawn(|| fs::remove_file(place.mnt("removed/file")).unwrap()),
            scope.spawn(|| fs::remove_dir(place.mnt("emptied/dir")).unwrap()),
            scope.spawn(|| fs::rename(place.mnt("moved/file"), place.mnt("moved/there")).unwrap()),
            scope.spawn(|| assert!(fs::metadata(place.mnt("looked/absent")).is_err())),
        ];
        sleep(WHILE);
        let waited = waiting.iter().filter(|waiting| !waiting.is_finished()).count();
        server.kill();
        sleep(WHILE);
        server = next.resume();
        waited
    });
    assert_eq!(waited, 7);
    assert_eq!(fs::read(place.mnt("one")).unwrap(), b"2");
    assert_eq!(fs::read(place.mnt("two")).unwrap(), b"1");
    assert!(fs::metadata(place.mnt("made/dir")).unwrap().is_dir());
    assert_eq!(fs::read(place.mnt("created/file")).unwrap(), b"new");
    for empty in ["removed", "emptied", "looked"] {
        assert_eq!(fs::read_dir(place.mnt(empty)).unwrap().count(), 0, "{empty}");
    }
    assert!(place.mnt("moved/there").exists() && !place.mnt("moved/file").exists());
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 3: A name once removed does not come back, and one that exists does not vanish, also when the power fails
/// between two instructions: every change of a name is one rename, exchange or link on the upper's disk.
#[test]
fn changes_are_exact_however_often_the_server_is_killed_under_load() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    for worker in 0..4 {
        fs::create_dir(place.path(&format!("lower/below{worker}"))).unwrap();
        for name in 0..400 {
            fs::write(place.path(&format!("lower/below{worker}/{name}")), "below").unwrap();
        }
    }
    let mut server = place.mount("");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                scope.spawn({
                    let (place, stop) = (&place, &stop);
                    move || work(&place.mnt(&format!("w{worker}")), &place.mnt(&format!("below{worker}")), stop)
                })
            })
            .collect();
        for round in 0..25u64 {
            sleep(Duration::from_millis(20 + round * 7 % 40));
            let next = place.next("");
            server.kill();
            server = next.resume();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let rounds: Vec<u64> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        assert!(rounds.iter().all(|&rounds| rounds > 0), "{rounds:?}");
    });
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Every step must have exactly its effect, whatever happens to the server.
fn work(dir: &std::path::Path, below: &std::path::Path, stop: &std::sync::atomic::AtomicBool) -> u64 {
    let mut rounds = 0;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        fs::create_dir(dir).unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| dir.join(name));
        let mut file = OpenOptions::new().create_new(true).write(true).open(&a).unwrap();
        file.write_all(format!("{rounds}").as_bytes()).unwrap();
        drop(file);
        fs::write(&b, "b").unwrap();
        renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
        assert_eq!(fs::read(&a).unwrap(), b"b");
        assert_eq!(fs::read(&b).unwrap(), format!("{rounds}").as_bytes());
        std::os::unix::fs::symlink("b", &link).unwrap();
        assert_eq!(fs::read(&link).unwrap(), format!("{rounds}").as_bytes());
        fs::hard_link(&b, dir.join("hard")).unwrap();
        assert_eq!(fs::metadata(&b).unwrap().nlink(), 2);
        fs::rename(&a, dir.join("c")).unwrap();
        for name in ["b", "c", "hard", "link"] {
            fs::remove_file(dir.join(name)).unwrap();
        }
        fs::remove_dir(dir).unwrap();
        if rounds < 400 {
            change(&below.join(rounds.to_string()));
        }
        rounds += 1;
    }
    rounds
}

/// Changes a file of the lower: copied up, marked, moved, removed.
fn change(file: &std::path::Path) {
    let ino = fs::metadata(file).unwrap().ino();
    let mut open = OpenOptions::new().append(true).open(file).unwrap();
    open.write_all(b" and above").unwrap();
    drop(open);
    setxattr(file, "user.mark", b"1", XattrFlags::CREATE).unwrap();
    removexattr(file, "user.mark").unwrap();
    assert_eq!(removexattr(file, "user.mark"), Err(rustix::io::Errno::NODATA));
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    let moved = file.with_extension("moved");
    fs::rename(file, &moved).unwrap();
    assert_eq!(fs::read(&moved).unwrap(), b"below and above");
    let after = fs::metadata(&moved).unwrap();
    assert_eq!((after.ino(), after.mode() & 0o777), (ino, 0o600));
    fs::remove_file(&moved).unwrap();
    assert!(!file.exists() && !moved.exists());
}

#[test]
fn what_the_kernel_knows_needs_no_server() {
    if !can_mount() {
        return;
    }
    remembered(|| {
        let place = Place::new();
        fs::create_dir(place.path("lower/dir")).unwrap();
        fs::write(place.path("lower/dir/file"), "text").unwrap();
        std::os::unix::fs::symlink("dir/file", place.path("lower/link")).unwrap();
        let mut server = place.mount("");
        fs::read(place.mnt("link")).unwrap();
        let before = fs::metadata(place.mnt("dir/file")).unwrap();
        assert!(!place.mnt("dir/absent").exists());
        let next = place.next("");
        server.kill();
        // A lookup would wait: names that exist, names that do not, and links are cached.
        let without;
        (server, (), without) = next.try_resume_after(|| {
            let after = fs::metadata(place.mnt("dir/file")).unwrap();
            assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
            assert_eq!(fs::metadata(place.mnt("dir/absent")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
            assert_eq!(fs::metadata(place.mnt("link")).unwrap().ino(), before.ino());
        });
        fs::write(place.mnt("dir/absent"), "there").unwrap();
        assert_eq!(fs::read(place.mnt("dir/absent")).unwrap(), b"there");
        assert_eq!(server.order("unmount"), "unmounted");
        without
    });
}

/// Rule 49: Without an upper, every change is EROFS.
#[test]
fn a_read_only_mount_opens_and_lists_without_messages() {
    if !can_mount() {
        return;
    }
    remembered(|| {
        let place = Place::new();
        fs::create_dir(place.path("lower/dir")).unwrap();
        fs::write(place.path("lower/dir/file"), "text").unwrap();
        let options = format!("lowerdir={},ro", place.path("lower").display());
        let mut server = place.dirs("keeper", &options).unwrap();
        assert_eq!(fs::read(place.mnt("dir/file")).unwrap(), b"text");
        assert_eq!(fs::read_dir(place.mnt("dir")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(place.mnt("dir")).unwrap().count(), 1);
        let error = fs::write(place.mnt("dir/file"), "new").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        let error = fs::create_dir(place.mnt("new")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        assert_eq!(server.counts(), [0, 0, 0]);
        let next = place.next_dirs(&options);
        server.kill();
        let without;
        (server, (), without) = next.try_resume_after(|| {
            assert_eq!(fs::read(place.mnt("dir/file")).unwrap(), b"text");
            assert_eq!(fs::read_dir(place.mnt("dir")).unwrap().count(), 1);
        });
        assert_eq!(server.order("unmount"), "unmounted");
        without
    });
}
