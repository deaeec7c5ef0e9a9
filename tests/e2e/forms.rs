//! Mounts that the kernel serves by itself, and snapshots that change their form.

use std::fs;
use std::process::Command;

use mica_tests::command::succeed;
use mica_tests::daemon::Daemon;
use mica_tests::leftovers::mounts_below;
use mica_tests::oci::Layer;
use mica_tests::place::{self, Folders};
use mica_tests::scene::Scene;
use mica_tests::wait::{self, LATER, SOON};
use mica_tests::{Result, ensure, ensure_eq};

use crate::stage::on_both_engines;

on_both_engines!(container_of_the_kernel_is_compared_committed_and_goes_on_with_fuse);

/// From now on the daemon has the kernel mount what it can.
pub fn mount_by_the_kernel(scene: &mut Scene) -> Result {
    scene.daemon.terminate()?;
    scene.daemon.add_flags(&["--mount", "kernel"]);
    scene.daemon.start_again()?;
    scene.containerd.reach_snapshotter()
}

/// Waits until nobody uses a tree, and some time more.
fn trees_are_unmounted(daemon: &Daemon) -> Result {
    let trees = daemon.state().join("trees");
    wait::until("trees to be unmounted", LATER, || Ok(mounts_below(&trees)?.is_empty().then_some(())))
}

/// What is mounted as a snapshot's root, the only one of the daemon's that is not a tree.
fn form(daemon: &Daemon) -> Result<String> {
    let folder = daemon.state().join("mnt");
    let mounts = mica_fs::mountinfo::listed()?;
    let kinds = mounts.iter().filter(|mount| mount.place.parent() == Some(&folder));
    let kinds: Vec<String> = kinds.map(|mount| String::from_utf8_lossy(&mount.kind).into_owned()).collect();
    Ok(kinds.join(" "))
}

const CHANGE: &str = r"set -e
    echo mine > /srv/mine
    rm /etc/debian_version
    chmod 0700 /usr/local/bin/station
    mv /usr/share/common-licenses /usr/share/licences
    rm -r /srv/station/cache && mkdir /srv/station/cache && echo newer > /srv/station/cache/newer";

const CHECK: &str = r#"set -e
    [ "$(cat /srv/mine)" = mine ] && [ ! -e /etc/debian_version ]
    [ "$(stat -c %a /usr/local/bin/station)" = 700 ]
    [ "$(wc -c < /usr/share/licences/GPL-3)" -gt 1000 ] && [ ! -e /usr/share/common-licenses ]
    [ "$(ls -A /srv/station/cache)" = newer ]
    /usr/local/bin/station | head -c 9"#;

/// Rule 88: A snapshot goes from one form to the other and back with all its changes: new, changed, cut and removed
/// files, attributes alone, renamed folders and files, opaque folders, whiteouts, links, devices, holes.
fn container_of_the_kernel_is_compared_committed_and_goes_on_with_fuse(scene: &mut Scene) -> Result {
    mount_by_the_kernel(scene)?;
    let image = scene.pulled("station")?;
    let container = scene.containerd.start_container(&image)?;
    ensure_eq!(form(&scene.daemon)?, "overlay", "what is mounted");
    container.shell(CHANGE)?;
    let checked = "station 2";
    ensure_eq!(container.shell(CHECK)?, checked, "in the container");

    // By Mica's differ, or by the engine's own, which walks through the mount; and by Mica for itself.
    let layer = Layer::of_gzip(scene.containerd.diff(container.id())?)?;
    let mut station = Vec::new();
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(layer.blob.as_slice())).entries()? {
        let mut entry = entry?;
        if entry.path()?.ends_with("usr/local/bin/station") {
            std::io::Read::read_to_end(&mut entry, &mut station)?;
        }
    }
    let shown = fs::read(container.rootfs().join("usr/local/bin/station"))?;
    ensure!(!shown.is_empty() && station == shown, "the layer has {} of {} bytes", station.len(), shown.len());
    scene.daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
    scene.daemon.mica(&["snapshot", "commit", container.id(), "--name", "changed:1", "--base", "station"])?;

    // The same snapshot, mounted in the other form.
    container.end()?;
    let label = ["snapshots", "label", container.id(), "containerd.io/snapshot/mica.mount=fuse"];
    scene.containerd.ctr(&label)?;
    for mountpoint in fs::read_dir(scene.daemon.state().join("mnt"))? {
        succeed(Command::new("umount").arg(mountpoint?.path()), SOON)?;
    }
    scene.containerd.ctr(&["tasks", "start", "--detach", "--null-io", container.id()])?;
    ensure_eq!(form(&scene.daemon)?, "fuse.mica", "what is mounted");
    ensure_eq!(container.shell(CHECK)?, checked, "in the container, by FUSE");
    // It was the last one by the kernel.
    trees_are_unmounted(&scene.daemon)?;
    container.remove()
}

#[test]
fn image_is_mounted_by_the_kernel_with_changes_that_fuse_goes_on_with() -> Result {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped("image mounted by the kernel", &reason);
        return Ok(());
    }
    let folders = Folders::new()?;
    let root = folders.disk().join("store");
    let mountpoint = folders.run().join("image");
    fs::create_dir(&mountpoint)?;
    let daemon = Daemon::start(&root, &folders.run().join("mica"), &[])?;
    daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
    let (shown, changes) = (mountpoint.display().to_string(), folders.disk().join("changes").display().to_string());
    let kind = || -> Result<String> {
        let text = succeed(Command::new("findmnt").args(["-rno", "FSTYPE", "--mountpoint"]).arg(&mountpoint), SOON)?;
        Ok(text.text().trim().to_owned())
    };
    let mount = |form: &str, more: &[&str]| {
        daemon.mica(&[&["mount", "--image", "station", "--mount", form], more, &[&shown]].concat())
    };

    mount("kernel", &[])?;
    ensure_eq!(kind()?, "overlay", "what is mounted");
    ensure!(fs::write(mountpoint.join("new"), "x").is_err(), "a mount without --rw is written to");
    daemon.mica(&["umount", &shown])?;

    mount("kernel", &["--rw", &changes])?;
    fs::write(mountpoint.join("srv/mine"), "mine")?;
    let program = mountpoint.join("usr/local/bin/station");
    let before = fs::read(&program)?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    fs::rename(mountpoint.join("usr/share/common-licenses"), mountpoint.join("usr/share/licences"))?;
    // It is in use, whoever has forgotten its image.
    daemon.mica(&["image", "rm", "station"])?;
    daemon.mica(&["image", "rm", "ledger"])?;
    daemon.mica(&["image", "rm", "base"])?;
    daemon.mica(&["gc"])?;
    ensure!(fs::metadata(mountpoint.join("usr/share/licences/GPL-3"))?.len() > 1000, "a file is cut");
    ensure!(fs::read(mountpoint.join("usr/share/licences/GPL-3"))?.len() > 1000, "contents are lost");
    daemon.mica(&["umount", &shown])?;

    daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
    mount("auto", &["--rw", &changes, "--verify", "first-use"])?;
    ensure_eq!(kind()?, "fuse.mica", "what is mounted where contents are verified");
    ensure_eq!(fs::read_to_string(mountpoint.join("srv/mine"))?, "mine", "what the kernel has written");
    ensure_eq!(fs::read(&program)?.len(), before.len(), "contents whose attributes changed");
    ensure!(mountpoint.join("usr/share/licences/GPL-3").exists(), "a folder that was moved");
    fs::write(mountpoint.join("srv/mine"), "by fuse")?;
    daemon.mica(&["umount", &shown])?;
    let refusal = daemon.run(&["mount", "--image", "station", "--mount", "kernel", "--verify", "first-use", &shown])?;
    ensure!(refusal.refusal()?.contains("digests"), "the kernel mounts what is to be verified");

    mount("auto", &["--rw", &changes])?;
    ensure_eq!(kind()?, "overlay", "what is mounted");
    ensure_eq!(fs::read_to_string(mountpoint.join("srv/mine"))?, "by fuse", "what FUSE has written");
    ensure_eq!(mounts_below(&mountpoint)?.len(), 1, "mounts");
    daemon.mica(&["umount", &shown])?;
    daemon.finish()
}
