//! Contents of a large file: read, mapped, written.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use mica_tests::Result;

use super::Workload;
use crate::fs::files::{Numbers, large_file};
use crate::fs::lower::Lower;
use crate::fs::mapping::{PAGE, Touch};
use crate::fs::place::{Mount, Upper};
use crate::fs::row::{Kind, Row, overlayfs};
use crate::fs::stage::{Stage, settle};

/// The rows.
pub const DATA: Workload = Workload {
    name: "data",
    rows: &[
        Row::time("read", "sequential read of 1 GiB, warm", Kind::Data, &[overlayfs(0.95)]),
        Row::time("read-random", "4 KiB random read, warm", Kind::Data, &[overlayfs(0.95)]),
        Row::time("map", "mmap, sequential touch of a page of 1 GiB", Kind::Data, &[overlayfs(1.5)]),
        Row::time("map-random", "mmap, random touch of a page of 1 GiB", Kind::Data, &[overlayfs(4.0)]),
        Row::time("write", "sequential write of 1 GiB, ext4", Kind::Data, &[overlayfs(0.95)]),
        Row::time("append", "4 KiB append, ext4", Kind::Data, &[overlayfs(0.95)]),
        Row::time("write-memory", "sequential write of 1 GiB, tmpfs", Kind::Data, &[overlayfs(0.95)]),
        Row::time("append-memory", "4 KiB append, tmpfs", Kind::Data, &[overlayfs(0.95)]),
    ],
    run,
};

const RANDOM_READS: u32 = 50_000;
const RANDOM_TOUCHES: u32 = 100_000;
const APPENDS: u32 = 20_000;

/// The lower with one file `large` of 1 GiB.
pub fn large(stage: &Stage<'_>) -> Result<Rc<Lower>> {
    let mebibytes = mebibytes(stage);
    stage.lower("large", |folder| {
        large_file(&folder.join("large"), mebibytes)?;
        Ok(Lower::folder(folder, "large"))
    })
}

/// The length of the large file.
pub fn mebibytes(stage: &Stage<'_>) -> u32 {
    stage.of(1024)
}

fn run(stage: &Stage<'_>) -> Result {
    let lower = large(stage)?;
    let reader = stage.place(&lower, Upper::None)?;
    read(stage, &reader.mount()?)?;
    let small = stage.lower("one", |folder| {
        std::fs::write(folder.join("one"), "1")?;
        Ok(Lower::folder(folder, "one"))
    })?;
    for (upper, write, append) in [(Upper::Disk, "write", "append"), (Upper::Memory, "write-memory", "append-memory")] {
        let place = stage.place(&small, upper)?;
        let mount = place.mount()?;
        stage.time(write, 1, || written(&mount, mebibytes(stage)));
        std::fs::remove_file(mount.path("written"))?;
        let appends = stage.of(APPENDS);
        stage.time(append, appends, || appended(&mount, appends));
        mount.end()?;
        place.delete()?;
        settle();
    }
    Ok(())
}

fn read(stage: &Stage<'_>, mount: &Mount<'_>) -> Result {
    let mut file = File::open(mount.path("large"))?;
    let length = u64::from(mebibytes(stage)) << 20;
    let mut buffer = vec![0; 1 << 20];
    // The first pass brings it into the page cache.
    while file.read(&mut buffer)? > 0 {}
    drop(file);
    stage.time("read", 1, || {
        let mut file = File::open(mount.path("large"))?;
        while file.read(&mut buffer)? > 0 {}
        Ok(())
    });
    let file = File::open(mount.path("large"))?;
    let mut numbers = Numbers::new(1);
    let pages = length / PAGE as u64;
    let reads = stage.of(RANDOM_READS);
    stage.time("read-random", reads, || {
        for _ in 0..reads {
            file.read_exact_at(&mut buffer[..PAGE], numbers.below(pages) * PAGE as u64)?;
        }
        Ok(())
    });
    drop(file);
    stage.sample("map", Touch::all(mount.path("large")).measure());
    stage.sample("map-random", Touch::random(mount.path("large"), stage.of(RANDOM_TOUCHES)).measure());
    Ok(())
}

fn written(mount: &Mount<'_>, mebibytes: u32) -> Result {
    let block = vec![7; 1 << 20];
    let mut file = File::create(mount.path("written"))?;
    for _ in 0..mebibytes {
        file.write_all(&block)?;
    }
    Ok(())
}

fn appended(mount: &Mount<'_>, number: u32) -> Result {
    let mut file = File::options().create(true).append(true).open(mount.path("appended"))?;
    for _ in 0..number {
        file.write_all(&[7; PAGE])?;
    }
    Ok(())
}
