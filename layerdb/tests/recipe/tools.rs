//! Archives as programs write them. A program that isn't here is said to be missing, and what it writes isn't tested;
//! `make setup` installs them all.

#![allow(clippy::print_stderr)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Scene;
use super::forms::noise;

/// A directory with something of everything, made once for each test.
struct Things {
    directory: tempfile::TempDir,
}

impl Things {
    fn new() -> Things {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let at = |name: &str| root.join(name);
        fs::create_dir_all(at("plain/deep/deeper")).unwrap();
        fs::write(at("plain/empty"), b"").unwrap();
        fs::write(at("plain/small"), b"small").unwrap();
        fs::write(at("plain/deep/large"), noise(1, 300_001)).unwrap();
        fs::hard_link(at("plain/deep/large"), at("plain/link")).unwrap();
        std::os::unix::fs::symlink("deep/large", at("plain/symlink")).unwrap();
        let old = File::open(at("plain/small")).unwrap();
        old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789)).unwrap();

        let sparse = File::create(at("plain/sparse")).unwrap();
        sparse.set_len(5 << 20).unwrap();
        for part in 0..30_u64 {
            sparse.write_all_at(&noise(part, 5000), part * 150_000).unwrap();
        }
        File::create(at("plain/hole")).unwrap().set_len(1 << 20).unwrap();

        // What only newer formats can say.
        fs::create_dir_all(at("rich")).unwrap();
        fs::write(at(&format!("rich/{}", "n".repeat(255))), b"long name").unwrap();
        fs::write(at("rich").join(OsStr::from_bytes(b"\xff\xfe not utf-8")), b"strange").unwrap();
        fs::create_dir_all(at(&"rich/a-long-way/to-go/".repeat(12))).unwrap();
        std::os::unix::fs::symlink("t/".repeat(400), at("rich/far")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("rich/pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let ancient = File::create(at("rich/ancient")).unwrap();
        ancient.set_modified(std::time::UNIX_EPOCH - std::time::Duration::new(1_000_000_000, 5)).unwrap();
        fs::write(at("rich/tagged"), b"x").unwrap();
        let tag = rustix::fs::setxattr(at("rich/tagged"), "user.tag", &noise(5, 900), rustix::fs::XattrFlags::empty());
        if let Err(error) = tag {
            eprintln!("without extended attributes: {error}");
        }
        Things { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// The program, if it is here.
fn program(name: &str) -> Option<PathBuf> {
    let found =
        std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: there is no {name}; make setup installs it");
    }
    found
}

/// What the command writes to its standard output.
fn output(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.len() > 10_000, "{command:?} wrote nothing");
    output.stdout
}

#[test]
fn archives_of_gnu_tar_return() {
    let Some(tar) = program("tar") else { return };
    let (scene, things) = (Scene::new(), Things::new());
    let rich = ["plain", "rich"];
    let cases: [(&[&str], &[&str]); 11] = [
        (&["--format=v7"], &["plain"]),
        (&["--format=ustar"], &["plain"]),
        (&["--format=oldgnu"], &rich),
        (&["--format=oldgnu", "--sparse"], &rich),
        (&["--format=gnu"], &rich),
        (&["--format=gnu", "--sparse", "--label=a volume"], &rich),
        (&["--format=posix", "--xattrs", "--xattrs-include=*"], &rich),
        (&["--format=posix", "--sparse", "--sparse-version=0.0"], &rich),
        (&["--format=posix", "--sparse", "--sparse-version=0.1"], &rich),
        (&["--format=posix", "--sparse", "--sparse-version=1.0", "--pax-option=globexthdr.name=g,comment=x"], &rich),
        (&["--format=gnu", "--owner=:4294967294", "--group=:3000000", "--blocking-factor=1", "--sort=name"], &rich),
    ];
    for (options, folders) in cases {
        let mut command = Command::new(&tar);
        command.arg("--create").args(options).arg("--directory").arg(things.path()).args(folders);
        scene.returns(&output(&mut command));
    }
}

#[test]
fn archive_of_gnu_tar_with_appended_newer_files_returns() {
    let Some(tar) = program("tar") else { return };
    let (scene, things) = (Scene::new(), Things::new());
    let archive = things.path().join("archive");
    for _ in 0..3 {
        let mut command = Command::new(&tar);
        command.arg("--append").arg("--file").arg(&archive).arg("--directory").arg(things.path()).arg("plain");
        assert!(command.status().unwrap().success());
    }
    let layer = scene.returns(&fs::read(archive).unwrap());
    assert!(layer.recipe.unwrap().objects > 0);
}

#[test]
fn archives_of_libarchive_return() {
    let Some(bsdtar) = program("bsdtar") else { return };
    let (scene, things) = (Scene::new(), Things::new());
    for (format, folders) in [
        ("v7tar", &["plain"][..]),
        ("ustar", &["plain"]),
        ("gnutar", &["plain", "rich"]),
        ("paxr", &["plain", "rich"]),
        ("pax", &["plain", "rich"]),
    ] {
        let mut command = Command::new(&bsdtar);
        command.args(["--create", "--file", "-", "--format", format]).arg("-C").arg(things.path()).args(folders);
        // Without a locale it can't convert names.
        command.env("LC_ALL", "C.UTF-8");
        scene.returns(&output(&mut command));
    }
}

#[test]
fn archives_of_python_return() {
    const PROGRAM: &str = "
import sys, tarfile
formats = {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=formats[sys.argv[1]]) as tar:
    for folder in sys.argv[2:]:
        tar.add(folder)
";
    let Some(python) = program("python3") else { return };
    let (scene, things) = (Scene::new(), Things::new());
    for (format, folders) in [("ustar", &["plain"][..]), ("gnu", &["plain", "rich"]), ("pax", &["plain", "rich"])] {
        let mut command = Command::new(&python);
        command.args(["-c", PROGRAM, format]).args(folders).current_dir(things.path());
        scene.returns(&output(&mut command));
    }
}

/// As Bazel's `rules_pkg` and other reproducible builders write layers: no parents, times of 0, no names of users,
/// sorted, files by another name first.
#[test]
fn archive_of_a_reproducible_builder_returns() {
    const PROGRAM: &str = "
import io, sys, tarfile
def add(tar, name, **given):
    info = tarfile.TarInfo(name)
    data = given.pop('data', b'')
    info.mtime, info.uid, info.gid, info.size = 0, 0, 0, len(data)
    for key, value in given.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.GNU_FORMAT) as tar:
    add(tar, './app/bin/server', data=bytes(range(256)) * 500, mode=0o555)
    add(tar, './app/bin/server.runfiles/' + 'd/' * 80 + 'deep', data=b'x', mode=0o444)
    add(tar, './app/lib', type=tarfile.SYMTYPE, linkname='bin')
    add(tar, './app/bin/again', type=tarfile.LNKTYPE, linkname='./app/bin/server')
    add(tar, './app/bin/server', data=b'a later one of the same name', mode=0o555)
";
    let Some(python) = program("python3") else { return };
    let scene = Scene::new();
    let layer = scene.returns(&output(Command::new(python).args(["-c", PROGRAM])));
    assert_eq!(layer.entries, 5);
}
