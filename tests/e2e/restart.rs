//! The daemon goes and comes back while containers run.

use mica_tests::engines::Container;
use mica_tests::scene::Scene;
use mica_tests::wait::{self, SOON};
use mica_tests::{Context as _, Result, ensure, ensure_eq};

use crate::forms::mount_by_the_kernel;
use crate::stage::on_both_engines;

on_both_engines!(
    container_writes_on_while_the_daemon_restarts,
    container_writes_on_while_the_daemon_is_killed,
    container_on_a_mount_of_the_kernel_writes_on_while_the_daemon_is_killed,
    snapshots_are_back_after_a_restart,
);

/// Counts in a file, line by line, and beside it makes, renames, reads and removes; whatever goes wrong is told in
/// another file.
const BUSY: &str = r#"
import os, traceback
def note(text):
    with open("/srv/errors", "a") as file:
        file.write(text + "\n")
count = 0
log = open("/srv/log", "a", buffering=1)
held = open("/usr/share/common-licenses/GPL-3", "rb")
while True:
    count += 1
    try:
        log.write(f"{count}\n")
        os.mkdir(f"/srv/d{count}")
        with open(f"/srv/d{count}/f", "w") as file:
            file.write(str(count))
        os.rename(f"/srv/d{count}/f", "/srv/latest")
        os.rmdir(f"/srv/d{count}")
        if open("/srv/latest").read() != str(count):
            note(f"{count}: another content")
        if open("/etc/issue").read() != "a station made of layers\n":
            note(f"{count}: a lower file reads wrong")
        held.seek(0)
        if len(held.read()) < 1000:
            note(f"{count}: an open file reads short")
    except Exception:
        note(f"{count}: {traceback.format_exc()}")
        if count > 1000000:
            break
"#;

fn container_writes_on_while_the_daemon_restarts(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let busy = Container::start(&scene.containerd, &image, &["python3", "-c", BUSY])?;
    for _ in 0..2 {
        advance(&busy)?;
        let status = scene.daemon.terminate()?;
        ensure!(status.success(), "SIGTERM ended the daemon with {status}");
        scene.daemon.start_again()?;
        advance(&busy)?;
    }
    judge(scene, &image, busy)
}

fn container_writes_on_while_the_daemon_is_killed(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let busy = Container::start(&scene.containerd, &image, &["python3", "-c", BUSY])?;
    for _ in 0..3 {
        advance(&busy)?;
        scene.daemon.kill()?;
        scene.daemon.start_again()?;
        advance(&busy)?;
    }
    judge(scene, &image, busy)
}

/// Rule 92: Mounts go on while no daemon runs.
fn container_on_a_mount_of_the_kernel_writes_on_while_the_daemon_is_killed(scene: &mut Scene) -> Result {
    mount_by_the_kernel(scene)?;
    container_writes_on_while_the_daemon_is_killed(scene)
}

/// Waits until the container has counted on.
fn advance(busy: &Container<'_>) -> Result {
    let count = || -> Result<u64> {
        // The file is not there before the first line is written.
        let last = busy.try_exec(&["tail", "-n", "1", "/srv/log"])?.text();
        Ok(last.trim().parse().unwrap_or(0))
    };
    let before = count()?;
    wait::until("the container to write on", SOON, || Ok((count()? > before + 20).then_some(())))
}

fn count(log: &str) -> usize {
    log.lines().count()
}

fn judge(scene: &Scene, image: &str, busy: Container<'_>) -> Result {
    let errors = busy.try_exec(&["cat", "/srv/errors"])?;
    ensure!(!errors.status.success(), "the container saw errors:\n{}", errors.text());
    let log = busy.exec(&["cat", "/srv/log"])?;
    let complete = log.strip_suffix('\n').unwrap_or_else(|| log.rsplit_once('\n').map_or("", |(whole, _)| whole));
    for (at, line) in complete.lines().enumerate() {
        ensure_eq!(line.parse::<usize>().ok(), Some(at + 1), "line {} of the container's log", at + 1);
    }
    // The one that it works on just now may be there.
    let folders = busy.shell("cd /srv; ls -d d[0-9]* 2>/dev/null || true")?;
    ensure!(
        folders.lines().count() < 2,
        "folders that were removed are there: {folders:?}, log ends at {}",
        count(&log)
    );
    scene.containerd.reach_snapshotter()?;
    let said = scene.containerd.run(image, &[])?.text();
    ensure!(said.starts_with("station 2"), "a new container said {said:?}");
    busy.remove()
}

fn snapshots_are_back_after_a_restart(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let container = scene.containerd.start_container(&image)?;
    container.shell("echo kept > /srv/kept; rm /etc/debian_version")?;
    let number = container.exec(&["stat", "-c", "%i", "/srv/kept", "/etc/passwd", "/srv"])?;
    container.end()?;
    let before = scene.containerd.snapshots()?;
    scene.daemon.terminate()?;
    scene.containerd.ctr_refused(&["snapshots", "ls"])?;
    scene.daemon.start_again()?;
    scene.containerd.reach_snapshotter()?;
    ensure_eq!(scene.containerd.snapshots()?, before, "snapshots after the restart");
    // The container starts again on what it had written.
    scene.containerd.ctr(&["tasks", "start", "--detach", "--null-io", container.id()])?;
    ensure_eq!(container.exec(&["cat", "/srv/kept"])?, "kept\n", "what was written before");
    ensure!(!container.try_exec(&["ls", "/etc/debian_version"])?.status.success(), "a deleted file is back");
    let again = container.exec(&["stat", "-c", "%i", "/srv/kept", "/etc/passwd", "/srv"])?;
    ensure_eq!(again, number, "inode numbers after the restart");
    container.remove().context("remove after the restart")
}
