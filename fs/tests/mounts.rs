//! Real mounts: made, served, killed, taken over, ended. Each test says why when it can't have one.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

#[path = "mounts/served.rs"]
mod served;

#[path = "mounts/blocks.rs"]
mod blocks;
#[path = "mounts/layers.rs"]
mod layers;
#[path = "mounts/opened.rs"]
mod opened;
#[path = "mounts/owners.rs"]
mod owners;
#[path = "mounts/passthrough.rs"]
mod passthrough;
#[path = "mounts/programs.rs"]
mod programs;
#[path = "mounts/rules.rs"]
mod rules;
#[path = "mounts/security.rs"]
mod security;
#[path = "mounts/takeover.rs"]
mod takeover;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mica_fs::keeper::Keeper;
use served::{Place, can_mount};

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&path.display().to_string()))
}

#[test]
fn a_mount_answers_at_once_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("lower/below"), "from below").unwrap();
    let mut server = place.mount("");
    assert_eq!(fs::read(place.mnt("below")).unwrap(), b"from below");
    fs::write(place.mnt("new"), "from above").unwrap();
    let held = place.keeper().held().unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].id.as_str(), held[0].mountpoint.as_path(), held[0].ready), ("one", &*place.path("mnt"), true));
    assert!(is_mounted(&place.path("mnt")));
    assert_eq!(server.order("unmount"), "unmounted");
    assert!(!is_mounted(&place.path("mnt")));
    assert_eq!(place.keeper().held().unwrap(), []);
    assert_eq!(fs::read(place.path("upper/new")).unwrap(), b"from above");
    assert_eq!(fs::read_dir(place.path("mnt")).unwrap().count(), 0);
}

#[test]
fn a_mount_that_is_unmounted_by_somebody_else_ends() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut server = place.mount("");
    rustix::mount::unmount(place.path("mnt"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(server.order("wait"), "ended");
    assert_eq!(place.keeper().held().unwrap(), []);
}

#[test]
fn a_mount_in_use_is_busy_unless_unmounted_lazily() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut server = place.mount("");
    let file = fs::File::create(place.mnt("used")).unwrap();
    assert!(server.answer("unmount").starts_with("failed"));
    assert_eq!(server.order("lazy"), "unmounted");
    assert!(!is_mounted(&place.path("mnt")));
    // Who uses it goes on, and who comes later to serve it could.
    std::os::unix::fs::FileExt::write_all_at(&file, b"still there", 0).unwrap();
    assert_eq!(fs::read(place.path("upper/used")).unwrap(), b"still there");
    assert_eq!(place.keeper().held().unwrap().len(), 1);
}

#[test]
fn without_a_keeper_the_mount_ends_with_its_server() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("lower/below"), "from below").unwrap();
    let mut server = place.dirs("-", &place.options("")).unwrap();
    assert_eq!(fs::read(place.mnt("below")).unwrap(), b"from below");
    server.kill();
    let error = fs::read(place.mnt("below")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn what_can_not_be_mounted_is_refused_by_name_and_nothing_is_held() {
    let place = Place::new();
    let refused = |options: &str| place.dirs("keeper", options).err().unwrap();
    let missing = place.options("").replace("lower,", "absent,");
    assert!(refused(&missing).contains("absent"), "{}", refused(&missing));
    assert!(refused(&place.options("frobnicate")).contains("frobnicate"));
    if can_mount() {
        fs::remove_dir(place.path("mnt")).unwrap();
        let error = refused(&place.options(""));
        assert!(error.contains(&place.path("mnt").display().to_string()), "{error}");
        fs::create_dir(place.path("mnt")).unwrap();
    } else {
        // Without privilege or device the error says what is missing.
        assert!(refused(&place.options("")).starts_with("failed: "));
    }
    assert_eq!(place.keeper().held().unwrap(), []);
}

/// One that was started for nothing doesn't take the place of the other when that one is stopped.
#[test]
fn keeper_that_comes_late_ends() {
    let place = Place::new();
    let (slow, never) = (place.path("slow"), place.path("never"));
    rustix::fs::mknodat(rustix::fs::CWD, &never, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::write(&slow, format!("#!/bin/sh\n: > {0}.started\nread go < {1}\n", slow.display(), never.display())).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o700)).unwrap();
    std::thread::scope(|scope| {
        let late = scope.spawn(|| Keeper::connect_or_start(&place.path("keeper"), &slow).unwrap());
        while !place.path("slow.started").exists() {
            std::thread::yield_now();
        }
        place.keeper();
        // Waits for the process that it has started, if that is the one that serves.
        late.join().unwrap().stop().unwrap();
    });
    assert!(Keeper::connect(&place.path("keeper")).is_err());
}

#[test]
fn one_keeper_serves_a_socket_and_stops_only_when_it_holds_nothing() {
    let place = Place::new();
    let keepers: Vec<Keeper> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..4).map(|_| scope.spawn(|| place.keeper())).collect();
        starting.into_iter().map(|keeper| keeper.join().unwrap()).collect()
    });
    for keeper in &keepers {
        assert_eq!(keeper.held().unwrap(), []);
    }
    keepers[0].forget("unknown").unwrap();
    if can_mount() {
        let mut server = place.mount("");
        let busy = keepers[1].stop().unwrap_err();
        assert_eq!(busy.errno(), rustix::io::Errno::BUSY);
        assert!(place.dirs("keeper", &place.options("index=off")).err().unwrap().contains("mounted already"));
        assert_eq!(server.order("unmount"), "unmounted");
    }
    keepers[0].stop().unwrap();
    assert!(Keeper::connect(&place.path("keeper")).is_err());
    // The next one starts where the old one was.
    place.keeper();
}
