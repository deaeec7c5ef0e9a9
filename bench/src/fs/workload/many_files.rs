//! Many small files made and removed, as unpacking and installing does.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use mica_tests::Result;
use mica_tests::command::succeed;
use mica_tests::wait::LATER;

use super::Workload;
use crate::fs::files::{Numbers, small_files};
use crate::fs::lower::Lower;
use crate::fs::place::Upper;
use crate::fs::row::{Kind, Row, overlayfs};
use crate::fs::stage::{Stage, settle};

/// The rows.
pub const MANY_FILES: Workload = Workload {
    name: "many-files",
    rows: &[
        Row::time("tar", "tar x of 30,000 files, ext4", Kind::Work, &[overlayfs(0.8)]),
        Row::time("rm", "rm -rf of them, ext4", Kind::Work, &[overlayfs(0.8)]),
        Row::time("npm", "300 packages of 30 files as npm installs them, ext4", Kind::Work, &[overlayfs(0.8)]),
    ],
    run,
};

const FILES: u32 = 30_000;
const PACKAGES: u32 = 300;
const IN_PACKAGE: u32 = 30;

fn run(stage: &Stage<'_>) -> Result {
    let files = stage.of(FILES);
    let lower = stage.lower("archive", |folder| {
        let (files_in, lower) = (folder.join("files"), folder.join("lower"));
        small_files(&files_in, files)?;
        succeed(
            Command::new("tar").arg("-cf").arg(folder.join("archive.tar")).arg("-C").arg(&files_in).arg("."),
            LATER,
        )?;
        fs::create_dir_all(lower.join("home"))?;
        Ok(Lower::folder(&lower, "archive"))
    })?;
    let archive = lower.dirs[0].with_file_name("archive.tar");
    std::io::copy(&mut fs::File::open(&archive)?, &mut std::io::sink())?;
    let place = stage.place(&lower, Upper::Disk)?;
    let mount = place.mount()?;
    let unpacked = mount.path("home/unpacked");
    fs::create_dir(&unpacked)?;
    stage.time("tar", 1, || succeed(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&unpacked), LATER));
    settle();
    stage.time("rm", 1, || succeed(Command::new("rm").arg("-rf").arg(&unpacked), LATER));
    settle();
    let packages = stage.of(PACKAGES);
    stage.time("npm", 1, || install(&mount.path("home/app"), packages));
    mount.end()?;
    settle();
    Ok(())
}

/// Each package is unpacked beside its place and renamed into it; some bring a program.
fn install(app: &Path, packages: u32) -> Result {
    let modules = app.join("node_modules");
    fs::create_dir_all(modules.join(".bin"))?;
    let bytes = Numbers::new(3).bytes(8192);
    let mut numbers = Numbers::new(5);
    for package in 0..packages {
        let unpacked = modules.join(format!(".package-{package}-unpacked"));
        fs::create_dir_all(unpacked.join("lib"))?;
        fs::write(unpacked.join("package.json"), format!("{{ \"name\": \"package-{package}\" }}\n"))?;
        for file in 1..IN_PACKAGE {
            let length = numbers.below(bytes.len() as u64) as usize;
            fs::write(unpacked.join(format!("lib/file-{file}.js")), &bytes[..length])?;
        }
        let installed = modules.join(format!("package-{package}"));
        fs::rename(&unpacked, &installed)?;
        if package % 4 == 0 {
            symlink(format!("../package-{package}/lib/file-1.js"), modules.join(format!(".bin/program-{package}")))?;
        }
        fs::metadata(installed.join("package.json"))?;
    }
    Ok(())
}
