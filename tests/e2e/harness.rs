//! The harness itself, on the kernel's overlayfs: what fails here is no fault of Mica's.

use mica_tests::engines::{Containerd, Registry, Snapshotter, Version};
use mica_tests::place::{self, Folders};
use mica_tests::{Result, ensure, ensure_eq};

fn overlayfs_runs_containers(version: Version) -> Result {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped("overlayfs_runs_containers", &reason);
        return Ok(());
    }
    let folders = Folders::new()?;
    let registry = Registry::start(&folders.disk().join("registry"))?;
    let engine = folders.run().join("containerd");
    let containerd = Containerd::start(version, Snapshotter::Overlayfs, &engine, &folders.disk().join("containerd"))?;
    let image = registry.push(&place::images()?, "station", "station:1")?;
    containerd.pull(&image)?;
    let said = containerd.run(&image, &[])?.text();
    ensure!(said.starts_with("station 2: years 2020 2021, 2190 readings"), "it said {said:?}");
    let container = containerd.start_container(&image)?;
    ensure_eq!(container.exec(&["cat", "/etc/issue"])?, "a station made of layers\n", "the replaced file");
    ensure_eq!(container.try_exec(&["sh", "-c", "exit 7"])?.status.code(), Some(7), "exit status of an exec");
    container.remove()?;
    ensure_eq!(containerd.snapshots()?.iter().filter(|(_, kind)| kind == "Active").count(), 0, "active snapshots");
    Ok(())
}

#[test]
fn overlayfs_on_containerd_1_6_runs_containers() -> Result {
    overlayfs_runs_containers(Version::V1_6)
}

#[test]
fn overlayfs_on_containerd_1_7_runs_containers() -> Result {
    overlayfs_runs_containers(Version::V1_7)
}
