//! Mounting: how long it takes, and what memory a mount keeps.
//!
//! Mica is measured as containers have it: in one daemon that serves all mounts. Others have a process for each mount, or none.

use std::fs;
use std::path::Path;
use std::time::Instant;

use mica_tests::daemon::Daemon;
use mica_tests::rpc::{Answer, Rpc};
use mica_tests::{Context as _, Failure, Result, ensure, ensure_eq};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::Workload;
use super::depth::stack;
use crate::fs::files::{small_files, walk};
use crate::fs::lower::Lower;
use crate::fs::place::Upper;
use crate::fs::row::{Goal, Kind, Row};
use crate::fs::stage::Stage;
use crate::fs::subject::Subject;
use crate::spread::Spread;

/// The rows.
pub const MOUNTS: Workload = Workload {
    name: "mounts",
    rows: &[
        Row::time("mount", "mount of 128 layers", Kind::Metadata, &[Goal::AtMost(0.003)]).of_kernel(None),
        Row::memory(
            "mount-memory",
            "memory of the server for a mount (mica: of 1,000 in one daemon)",
            &[Goal::AtMost(65_536.0)],
        ),
        Row::memory("walked-memory", "memory on top after walking 30,000 files", &[Goal::AtMost(1_048_576.0)]),
    ],
    run,
};

const LAYERS: u32 = 128;
const MOUNTED: u32 = 1000;
/// In each repetition but the first: for the time.
const MOUNTED_LATER: u32 = 100;
const FILES: u32 = 30_000;
/// What all mounts together may take before it is given up, so that the machine keeps some.
const TOO_MUCH: f64 = 2.0 * 1024.0 * 1024.0 * 1024.0;

fn run(stage: &Stage<'_>) -> Result {
    match stage.subject() {
        Subject::Directory => {
            for row in MOUNTS.rows {
                stage.lacks(row.key, "no mount");
            }
            Ok(())
        }
        Subject::Mica => in_daemon(stage, "fuse"),
        Subject::MicaKernel => in_daemon(stage, "kernel"),
        _ => alone(stage),
    }
}

/// Each mount by itself.
fn alone(stage: &Stage<'_>) -> Result {
    let depth = stage.of(LAYERS);
    let lower = stage.lower(&format!("depth-{depth}"), |folder| stack(folder, depth))?;
    let place = stage.place(&lower, Upper::Disk)?;
    let mount = place.mount()?;
    stage.sample("mount", Ok(mount.took().as_secs_f64()));
    mount.end()?;
    let files = stage.of(FILES);
    let lower = stage.lower("walked", |folder| {
        small_files(folder, files)?;
        Ok(Lower::folder(folder, "walked"))
    })?;
    let place = stage.place(&lower, Upper::Disk)?;
    let mount = place.mount()?;
    if let Some(server) = mount.server() {
        let idle = memory(server)?;
        stage.sample("mount-memory", Ok(idle));
        walk(mount.root())?;
        stage.sample("walked-memory", Ok((memory(server)? - idle).max(0.0)));
    } else {
        for row in ["mount-memory", "walked-memory"] {
            stage.lacks(row, "in the kernel");
        }
    }
    mount.end()
}

/// As snapshots of one daemon.
fn in_daemon(stage: &Stage<'_>, form: &str) -> Result {
    let (layers, files) = (stage.of(LAYERS), stage.of(FILES));
    let state = tempfile::Builder::new().prefix("mica-bench-").tempdir_in("/run")?;
    let store = stage.store("daemon", |root| {
        let daemon = Daemon::start(root, &state.path().join("making"), &[])?;
        let rpc = Rpc::at(&daemon.socket())?;
        let mut parent = String::new();
        for layer in 0..layers {
            let (key, name) = (format!("making-{layer}"), format!("layer-{layer}"));
            let source = source(rpc.prepare(&key, &parent))?;
            if layer == 0 {
                small_files(Path::new(&source), files)?;
            }
            fs::write(Path::new(&source).join(&name), &name)?;
            answer(rpc.commit(&name, &key))?;
            parent = name;
        }
        drop(rpc);
        daemon.finish()
    })?;
    let daemon = Daemon::start(&store, &state.path().join("state"), &["--mount".to_owned(), form.to_owned()])?;
    let measured = in_this(stage, &daemon, state.path(), &format!("layer-{}", layers - 1), files);
    daemon.finish()?;
    measured
}

fn in_this(stage: &Stage<'_>, daemon: &Daemon, state: &Path, parent: &str, files: u32) -> Result {
    let rpc = Rpc::at(&daemon.socket())?;
    let server = daemon.pid().context("the daemon runs")?;
    let target = state.join("target");
    fs::create_dir(&target)?;
    let key = |number: u32| format!("container-{}-{number}", stage.repetition());
    let mount = |number: u32| -> Result {
        mount_bind(source(rpc.prepare(&key(number), parent))?, &target)?;
        Ok(())
    };
    // The first one waits for the layers to be merged, which happens once for an image.
    mount(0)?;
    fs::metadata(target.join("layer-0"))?;
    unmount(&target, UnmountFlags::empty())?;
    let idle = memory(server)?;
    let mounted = if stage.repetition() == 0 { stage.of(MOUNTED) } else { stage.of(MOUNTED_LATER) };
    let mut times = Vec::new();
    for number in 1..=mounted {
        let start = Instant::now();
        mount(number)?;
        times.push(start.elapsed().as_secs_f64());
        if number % 100 == 0 {
            let taken = memory(server)?;
            ensure!(taken < TOO_MUCH, "{number} mounts take {:.0} MiB", taken / 1_048_576.0);
        }
        if number < mounted {
            unmount(&target, UnmountFlags::empty())?;
        }
    }
    let before = memory(server)?;
    stage.sample("mount", Spread::of(times).map(|times| times.median).context("no mounts"));
    stage.sample("mount-memory", Ok((before - idle).max(0.0) / f64::from(mounted)));
    let found = walk(&target)?;
    ensure_eq!(found, files + files.div_ceil(100) + stage.of(LAYERS), "number of entries");
    stage.sample("walked-memory", Ok((memory(server)? - before).max(0.0)));
    unmount(&target, UnmountFlags::empty())?;
    (0..=mounted).try_for_each(|number| answer(rpc.remove(&key(number))))
}

/// What is to be mounted.
fn source(mounts: Answer<Vec<mica_snapshotter::grpc::proto::containerd::types::Mount>>) -> Result<String> {
    answer(mounts)?.pop().map(|mount| mount.source).context("the daemon tells no mount")
}

fn answer<T>(answer: Answer<T>) -> Result<T> {
    answer.map_err(|status| Failure::new(status.to_string()))
}

/// Bytes of a process that no file has: what the kernel can't get back by itself. Mapped trees and program text, which it can, and
/// which several processes share, are not among them.
fn memory(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("/proc/PID/status tells RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}
