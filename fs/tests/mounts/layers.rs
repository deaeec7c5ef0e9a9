//! What may be layers of a mount, and what others have done to them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use super::served::{Place, can_mount};

fn run(program: &str, arguments: &[&str], place: &Place) {
    let status = Command::new(program).args(arguments).current_dir(place.path(".")).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn append(place: &Place, file: &str, text: &str) {
    OpenOptions::new().append(true).open(place.path(file)).unwrap().write_all(text.as_bytes()).unwrap();
}

/// Rule 95: A lower layer may not be the upper or the work directory, lie in one of them, or be or lie in another layer
/// (ELOOP).
#[test]
fn layers_that_are_not_apart_are_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    for dir in ["lower/in", "upper/in", "work/in", "lower/deep/er"] {
        fs::create_dir_all(place.path(dir)).unwrap();
    }
    let mount = |lower: &[&str], upper: &str| {
        let lower: Vec<_> = lower.iter().map(|dir| place.path(dir).display().to_string()).collect();
        let [upper, work] = [upper, "work"].map(|dir| place.path(dir).display().to_string());
        place.dirs("-", &format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":")))
    };
    for lower in [
        &["upper"][..],
        &["work"],
        &["upper/in"],
        &["work/in"],
        &["lower", "lower"],
        &["lower", "lower/in"],
        &["lower/deep/er", "lower"],
        &["lower/in", "upper/../lower/in"],
    ] {
        let refused = mount(lower, "upper").map(drop).unwrap_err();
        assert!(refused.contains("layer"), "{lower:?}: {refused}");
    }
    // Beside each other, and around the upper, they may be.
    for (lower, upper) in [(&["lower/in", "lower/deep"][..], "upper"), (&["lower"], "lower/deep/er")] {
        assert_eq!(mount(lower, upper).unwrap().order("unmount"), "unmounted");
    }
}

/// Rule 96: Two mounts don't write to one upper or work directory at a time: the second waits for some seconds, for one
/// that is being unmounted, and is refused then (EBUSY).
#[test]
fn an_upper_has_one_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("other")).unwrap();
    let mut first = place.mount("");
    fs::write(place.mnt("new"), "x").unwrap();
    let [lower, upper, work, other] =
        ["lower", "upper", "work", "other"].map(|dir| place.path(dir).display().to_string());
    for (upper, work, taken) in [(&upper, &other, &upper), (&other, &work, &work)] {
        let refused =
            place.dirs("-", &format!("lowerdir={lower},upperdir={upper},workdir={work}")).map(drop).unwrap_err();
        assert!(refused.contains("another mount") && refused.contains(taken), "{refused}");
    }
    // What the first is building stays, also where the second is let in.
    fs::write(place.path("work/tmp/7"), "").unwrap();
    let mut second = place.dirs("-", &place.options("index=off")).unwrap();
    assert!(place.path("work/tmp/7").exists());
    assert_eq!(fs::read(place.mnt("new")).unwrap(), b"x");
    assert_eq!(second.order("unmount"), "unmounted");
    assert_eq!(first.order("unmount"), "unmounted");
    // No lock outlives its mount, nor a process that was killed.
    drop((first, second));
    assert_eq!(place.mount("").order("unmount"), "unmounted");
    assert!(!place.path("work/tmp/7").exists());
}

/// Rule 97: Nothing of the work directory shows in the union: neither its default ACL nor its group.
#[test]
fn what_the_work_directory_would_hand_down_is_not_taken() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    for name in ["lower/file", "lower/dir/inner"] {
        fs::create_dir_all(place.path(name).parent().unwrap()).unwrap();
        fs::write(place.path(name), "x").unwrap();
    }
    run("setfacl", &["-d", "-m", "u:1000:rwx,g::rwx,o::rwx", "work"], &place);
    run("chgrp", &["33", "work"], &place);
    fs::set_permissions(place.path("work"), fs::Permissions::from_mode(0o2777)).unwrap();
    let mut server = place.mount("");
    for file in ["mnt/file", "mnt/dir/inner"] {
        append(&place, file, "y");
    }
    fs::write(place.mnt("new"), "").unwrap();
    fs::create_dir(place.mnt("made")).unwrap();
    for name in ["file", "dir", "dir/inner", "new", "made"] {
        let said =
            Command::new("getfacl").args(["--skip-base", "--omit-header"]).arg(place.mnt(name)).output().unwrap();
        assert!(said.status.success() && said.stdout.is_empty(), "{name}: {said:?}");
        assert_eq!(fs::metadata(place.mnt(name)).unwrap().gid(), 0, "{name}");
    }
    assert_eq!(server.order("unmount"), "unmounted");
}

/// Rule 98: Files that were copied within an upper or to another, marks and all, while it was not mounted (`cp -a`,
/// `rsync -X`) are files of their own.
#[test]
fn copies_within_an_upper_are_files_of_their_own() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("lower/file"), "lower ").unwrap();
    fs::create_dir(place.path("lower/dir")).unwrap();
    fs::write(place.path("lower/dir/inner"), "lower ").unwrap();
    let mut server = place.mount("");
    append(&place, "mnt/file", "changed ");
    append(&place, "mnt/dir/inner", "changed ");
    fs::rename(place.mnt("dir"), place.mnt("moved")).unwrap();
    let number = fs::metadata(place.mnt("file")).unwrap().ino();
    assert_eq!(server.order("unmount"), "unmounted");
    drop(server);
    run("cp", &["-a", "upper/file", "upper/copy"], &place);
    run("cp", &["-a", "upper/moved", "upper/twin"], &place);
    append(&place, "upper/file", "original");
    append(&place, "upper/copy", "copy");

    let mut server = place.mount("");
    for (name, text) in [("copy", "lower changed copy"), ("file", "lower changed original")] {
        assert_eq!(fs::read_to_string(place.mnt(name)).unwrap(), text);
    }
    assert_eq!(fs::metadata(place.mnt("file")).unwrap().ino(), number);
    assert_ne!(fs::metadata(place.mnt("copy")).unwrap().ino(), number);
    append(&place, "mnt/copy", "!");
    assert_eq!(fs::read_to_string(place.mnt("file")).unwrap(), "lower changed original");
    let mut names: Vec<_> = fs::read_dir(place.mnt("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["copy", "file", "moved", "twin"]);
    // One of the two is the lower's.
    let inner = ["moved", "twin"].map(|dir| fs::read_to_string(place.mnt(dir).join("inner")));
    let shown: Vec<_> = inner.iter().filter_map(|inner| inner.as_ref().ok()).collect();
    assert_eq!(shown, ["lower changed "]);
    let refused = inner.iter().find_map(|inner| inner.as_ref().err()).unwrap();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert_eq!(server.order("unmount"), "unmounted");
}
