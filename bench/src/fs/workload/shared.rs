//! A library that several images have, in containers of all of them.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use mica_tests::{Context as _, Result};

use super::Workload;
use crate::fs::files::large_file;
use crate::fs::lower::Lower;
use crate::fs::place::Upper;
use crate::fs::row::{Goal, Kind, Row};
use crate::fs::stage::{Stage, drop_caches, each};
use crate::fs::subject::Subject;

/// The rows.
pub const SHARED: Workload = Workload {
    name: "shared",
    rows: &[
        Row::memory(
            "shared-memory",
            "page cache for a library of 32 MiB, 50 containers of 5 images",
            &[Goal::AtMost(48.0 * MIB)],
        ),
        Row::time(
            "shared-read",
            "first read of it in container 2 to 50",
            Kind::Data,
            &[Goal::Times(Subject::Overlayfs, 1.0)],
        ),
    ],
    run,
};

const MIB: f64 = 1024.0 * 1024.0;
const IMAGES: u32 = 5;
const CONTAINERS: u32 = 50;
const MEBIBYTES: u32 = 32;

fn run(stage: &Stage<'_>) -> Result {
    let mut places = Vec::new();
    for image in 0..IMAGES {
        // Each has its own copy, as images that install the same package in different layers.
        let lower = stage.lower(&format!("library-{image}"), |folder| {
            large_file(&folder.join("library.so"), MEBIBYTES)?;
            File::options().write(true).open(folder.join("library.so"))?.write_all_at(b"\x7fELF", 0)?;
            fs::write(folder.join("image"), image.to_string())?;
            Ok(Lower::folder(folder, &format!("library-{image}")))
        })?;
        for _ in 0..stage.of(CONTAINERS) / IMAGES {
            places.push(
                stage.place(&lower, if stage.subject() == Subject::Directory { Upper::None } else { Upper::Disk })?,
            );
        }
    }
    let mounts: Result<Vec<_>> = places.iter().map(crate::fs::place::Place::mount).collect();
    let mounts = mounts?;
    drop_caches()?;
    let before = cached()?;
    let mut later = Duration::ZERO;
    for (number, mount) in mounts.iter().enumerate() {
        let start = Instant::now();
        read(&mount.path("library.so"))?;
        if number > 0 {
            later += start.elapsed();
        }
    }
    stage.sample("shared-read", Ok(each(later, mounts.len() as u32 - 1)));
    stage.sample("shared-memory", Ok((cached()? - before).max(0.0)));
    mounts.into_iter().try_for_each(crate::fs::place::Mount::end)
}

fn read(path: &Path) -> Result {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Bytes in the page cache of the whole machine: other programs' reading is in it too.
fn cached() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Cached:")).context("/proc/meminfo tells what is cached")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}
