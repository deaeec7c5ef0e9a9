//! What is removed gives its space back; what is shared is stored once.

use mica_tests::leftovers::{disk_bytes, mounts_below};
use mica_tests::scene::Scene;
use mica_tests::wait::{self, SOON};
use mica_tests::{Context as _, Result, ensure, ensure_eq};

use crate::stage::on_both_engines;

on_both_engines!(removed_containers_and_images_give_their_space_back, images_with_the_same_files_store_them_once);

fn removed_containers_and_images_give_their_space_back(scene: &mut Scene) -> Result {
    let snapshots = scene.daemon.root().join("snapshots");
    let objects = scene.daemon.root().join("objects");
    let image = scene.pulled("station")?;
    let full = disk_bytes(&objects)?;
    ensure!(full > 50 << 20, "the image's objects take only {full} bytes");

    let container = scene.containerd.start_container(&image)?;
    let empty = disk_bytes(&snapshots)?;
    container.shell("dd if=/dev/urandom of=/srv/big bs=1M count=20 status=none; sync")?;
    ensure!(disk_bytes(&snapshots)? > empty + (19 << 20), "20 MiB were written and are not there");
    let mounts = mounts_below(scene.daemon.state())?.len();
    container.remove()?;
    // containerd asks for the clean-up after its own collection of garbage.
    wait::until("the container's 20 MiB to be free", SOON, || {
        Ok((disk_bytes(&snapshots)? < empty + (1 << 20)).then_some(()))
    })?;
    wait::until("the container's mount to go", SOON, || {
        Ok((mounts_below(scene.daemon.state())?.len() < mounts).then_some(()))
    })?;

    scene.containerd.remove_image(&image)?;
    ensure_eq!(scene.containerd.snapshots()?, [], "snapshots");
    let layers = || -> Result<usize> {
        let layers = scene.daemon.json(&["layer", "ls"])?;
        Ok(layers.as_array().context("`layer ls` prints a list")?.len())
    };
    wait::until("the image's objects to be free", SOON, || Ok((disk_bytes(&objects)? < full / 20).then_some(())))
        .context(format!("{} of {full} bytes left, {} layers", disk_bytes(&objects)?, layers()?))?;
    ensure_eq!(layers()?, 0, "layers");
    ensure_eq!(mounts_below(&scene.daemon.state().join("mnt"))?.len(), 0, "mounts");

    // And the store still takes it in again.
    scene.containerd.pull(&image)?;
    let said = scene.containerd.run(&image, &[])?.text();
    ensure!(said.starts_with("station 2"), "it said {said:?}");
    Ok(())
}

fn images_with_the_same_files_store_them_once(scene: &mut Scene) -> Result {
    let objects = scene.daemon.root().join("objects");
    scene.pulled("station")?;
    let one = disk_bytes(&objects)?;
    scene.pulled("ledger")?;
    let both = disk_bytes(&objects)?;
    // The ledger's own layer has all of python3 once more: some 30 MB of files that are there already.
    ensure!(both - one < 8 << 20, "the second image added {} bytes to {one}", both - one);
    Ok(())
}
