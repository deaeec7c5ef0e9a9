//! Programs that people run, in a container's root: the image `annex`, which has python3 with numpy, gcc, git and sqlite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use mica_tests::command::succeed;
use mica_tests::wait::LATER;
use mica_tests::{Context as _, Result, ensure, place as programs};
use serde_json::Value;

use super::Workload;
use crate::fs::files::small_files;
use crate::fs::lower::Lower;
use crate::fs::place::{Mount, Upper};
use crate::fs::row::{Kind, Row, overlayfs};
use crate::fs::stage::{Stage, drop_caches, settle};
use crate::machine::sources;

/// In a container's root.
pub const PROGRAMS: Workload = Workload {
    name: "programs",
    rows: &[
        Row::time("python-cold", "python3 imports numpy, cold", Kind::Work, &[overlayfs(0.8)]),
        Row::time("python", "python3 imports numpy, warm", Kind::Work, &[overlayfs(0.8)]),
        Row::time("gcc", "gcc builds the zstd library", Kind::Work, &[overlayfs(0.8)]),
        Row::time("apt", "apt-get installs 8 packages", Kind::Work, &[overlayfs(0.8)]),
        Row::time("sqlite", "SQLite: load, index, change, vacuum", Kind::Work, &[overlayfs(0.8)]),
    ],
    run,
};

/// In a work tree.
pub const GIT: Workload = Workload {
    name: "git",
    rows: &[Row::time("git", "git status of 20,000 files", Kind::Work, &[overlayfs(0.8)])],
    run: git,
};

const IMAGE: &str = "annex";

/// What apt-get installs: new ones, and one of many files that is there already.
const PACKAGES: [&str; 8] =
    ["less", "nano", "vim-common", "vim-tiny", "libjs-jquery", "libyaml-0-2", "python3-yaml", "perl-modules-5.36"];

const MAKEFILE: &str = "\
CFLAGS = -O0 -DZSTD_DISABLE_ASM -I. -Icommon
OBJECTS = $(patsubst %.c,%.o,$(wildcard common/*.c compress/*.c decompress/*.c))
libzstd.a: $(OBJECTS)
\tar rcs $@ $^
";

const SQL: &str = "\
PRAGMA journal_mode = WAL;
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, body BLOB);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
INSERT INTO item SELECT i, 'name ' || (i * 7919 % 100003), zeroblob(200) FROM n;
COMMIT;
CREATE INDEX by_name ON item (name);
UPDATE item SET body = zeroblob(300) WHERE id % 5 = 0;
DELETE FROM item WHERE id % 3 = 0;
SELECT count(*) FROM item WHERE name LIKE 'name 77%';
VACUUM;
";

fn run(stage: &Stage<'_>) -> Result {
    let lower = root(stage)?;
    let place = stage.place(&lower, Upper::Disk)?;
    drop_caches()?;
    let mount = place.mount()?;
    let numpy = || inside(&mount, &["python3", "-c", "import numpy"]);
    stage.time("python-cold", 1, numpy);
    stage.time("python", 3, || (0..3).try_for_each(|_| numpy()));
    compile(stage, &mount)?;
    install(stage, &mount)?;
    fs::write(mount.path("root/bench.sql"), SQL)?;
    settle();
    stage.time("sqlite", 1, || inside(&mount, &["sqlite3", "/root/bench.db", ".read /root/bench.sql"]));
    mount.end()?;
    settle();
    Ok(())
}

/// A program in the root, as a container has it.
fn inside(mount: &Mount<'_>, words: &[&str]) -> Result {
    let mut command = Command::new("chroot");
    command.arg(mount.root()).args(words).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/root").env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    succeed(&mut command, LATER).map(drop)
}

fn compile(stage: &Stage<'_>, mount: &Mount<'_>) -> Result {
    let own = mount.path("root/zstd");
    succeed(Command::new("cp").arg("-r").arg(zstd()?).arg(&own), LATER)?;
    fs::write(own.join("Makefile.bench"), MAKEFILE)?;
    settle();
    stage.time("gcc", 1, || inside(mount, &["make", "--silent", "-j2", "-C", "/root/zstd", "-f", "Makefile.bench"]));
    Ok(())
}

/// The sources of the zstd library, which Mica is built with.
fn zstd() -> Result<PathBuf> {
    let words = ["metadata", "--format-version=1", "--locked", "--offline"];
    let printed = succeed(Command::new("cargo").args(words).current_dir(sources()), LATER)?;
    let packages: Value = serde_json::from_slice(&printed.stdout)?;
    let mut packages = packages["packages"].as_array().into_iter().flatten();
    let manifest =
        packages.find(|package| package["name"] == "zstd-sys").and_then(|found| found["manifest_path"].as_str());
    let folder = manifest.and_then(|manifest| Path::new(manifest).parent()).context("cargo knows no zstd-sys")?;
    Ok(folder.join("zstd/lib"))
}

fn install(stage: &Stage<'_>, mount: &Mount<'_>) -> Result {
    let kept = programs::cache()?.join("debs");
    fs::create_dir_all(mount.path("root/debs"))?;
    let mut packages = Vec::new();
    for package in PACKAGES {
        let prefix = format!("{package}_");
        let mut found = fs::read_dir(&kept)?
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()));
        let file = found.next().context(format!("no package {package} in {}", kept.display()))?.path();
        fs::copy(&file, mount.path("root/debs").join(format!("{package}.deb")))?;
        packages.push(format!("/root/debs/{package}.deb"));
    }
    settle();
    let mut words = vec![
        "apt-get",
        "install",
        "--yes",
        "--quiet",
        "--reinstall",
        "--no-install-recommends",
        "-o",
        "APT::Sandbox::User=root",
    ];
    words.extend(packages.iter().map(String::as_str));
    stage.time("apt", 1, || inside(mount, &words));
    Ok(())
}

/// The layers of the image, unpacked one by one.
fn root(stage: &Stage<'_>) -> Result<Rc<Lower>> {
    stage.lower(IMAGE, |folder| {
        let layout = programs::bench_images()?;
        let json = |digest: &str| -> Result<Value> {
            let path = layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
            serde_json::from_slice(&fs::read(&path)?).context(path.display())
        };
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == IMAGE;
        let entry = index["manifests"].as_array().and_then(|entries| entries.iter().find(named));
        let manifest = entry.and_then(|entry| entry["digest"].as_str()).context("the layout has no such image")?;
        let mut dirs = Vec::new();
        for layer in json(manifest)?["layers"].as_array().into_iter().flatten() {
            let digest = layer["digest"].as_str().unwrap_or_default().trim_start_matches("sha256:");
            let dir = folder.join(dirs.len().to_string());
            fs::create_dir(&dir)?;
            let blob = layout.join("blobs/sha256").join(digest);
            succeed(
                Command::new("tar").args(["--xattrs", "--numeric-owner", "-xzpf"]).arg(blob).arg("-C").arg(&dir),
                LATER,
            )?;
            let whiteouts = succeed(Command::new("find").arg(&dir).args(["-name", ".wh.*"]), LATER)?;
            ensure!(whiteouts.stdout.is_empty(), "a layer with whiteouts: {}", whiteouts.text());
            dirs.insert(0, dir);
        }
        Ok(Lower::unpacked(dirs, IMAGE, &layout))
    })
}

const FILES: u32 = 20_000;

fn git(stage: &Stage<'_>) -> Result {
    let files = stage.of(FILES);
    let lower = stage.lower("work-tree", |folder| {
        small_files(folder, files)?;
        let git = |words: &[&str]| {
            let mut command = Command::new("git");
            command
                .arg("-C")
                .arg(folder)
                .args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"])
                .args(words);
            succeed(&mut command, LATER).map(drop)
        };
        git(&["init", "--quiet"])?;
        git(&["add", "--all"])?;
        git(&["commit", "--quiet", "--message", "all"])?;
        Ok(Lower::folder(folder, "work-tree"))
    })?;
    let place = stage.place(&lower, Upper::Disk)?;
    let mount = place.mount()?;
    let status = || -> Result {
        let mut command = Command::new("git");
        command.arg("-C").arg(mount.root()).args(["-c", "safe.directory=*", "status", "--short"]);
        let said = succeed(&mut command, LATER)?.text();
        ensure!(said.is_empty(), "git says that something changed: {said}");
        Ok(())
    };
    // The first one finds other inode numbers than those of the index, and looks into every file.
    status()?;
    settle();
    stage.time("git", 3, || (0..3).try_for_each(|_| status()));
    mount.end()
}
