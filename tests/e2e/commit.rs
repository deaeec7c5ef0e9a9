//! Changes of a container as a new layer.

use std::process::Command;

use mica_tests::command::succeed;
use mica_tests::oci::{Layer, Layout};
use mica_tests::scene::Scene;
use mica_tests::wait::SOON;
use mica_tests::{Context as _, Result, ensure, ensure_eq};

use crate::stage::on_both_engines;

on_both_engines!(changes_become_an_image_that_is_pushed_pulled_and_run, committed_container_is_seen_by_a_child,);

const CHANGE: &str = r"set -e
    echo mine > /srv/mine
    echo changed > /etc/issue
    rm /etc/debian_version
    rm -r /srv/station/cache && mkdir /srv/station/cache && echo newer > /srv/station/cache/newer
    mkdir -p /srv/deep/er && ln /srv/mine /srv/deep/er/twin && ln -s ../mine /srv/deep/link
    chmod 4755 /srv/station/latest";

const CHECK: &str = r#"set -e
    [ "$(cat /srv/mine)" = mine ]
    [ "$(cat /etc/issue)" = changed ]
    [ ! -e /etc/debian_version ]
    [ "$(ls -A /srv/station/cache)" = newer ]
    [ /srv/mine -ef /srv/deep/er/twin ]
    [ "$(readlink /srv/deep/link)" = ../mine ]
    [ "$(stat -c %a /srv/station/data/2021.csv)" = 4755 ]
    [ /srv/station/data/2021.csv -ef /srv/station/newest.csv ]
    echo all as committed"#;

fn changes_become_an_image_that_is_pushed_pulled_and_run(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let container = scene.containerd.start_container(&image)?;
    container.shell(CHANGE)?;
    let layer = Layer::of_gzip(scene.containerd.diff(container.id())?)?;
    container.remove()?;
    require_names_of_changes_only(&layer)?;

    let new = scene.registry.reference("changed:1");
    let archive = scene.folders().disk().join("exported.tar");
    scene.containerd.export(&image, &archive)?;
    let layout = Layout::unpack(&archive, &scene.folders().disk().join("layout"))?;
    ensure_eq!(layout.add_layers(&new, &[layer])?, 6, "layers of the new image");
    let archive = scene.folders().disk().join("changed.tar");
    layout.archive(&archive)?;
    scene.containerd.import(&archive)?;
    let said = scene.containerd.run(&new, &["sh", "-c", CHECK])?.text();
    ensure_eq!(said, "all as committed\n", "the imported image");

    scene.containerd.push(&new)?;
    scene.containerd.remove_image(&new)?;
    scene.containerd.remove_image(&image)?;
    ensure!(scene.containerd.snapshots()?.is_empty(), "snapshots are left: {:?}", scene.containerd.snapshots()?);
    scene.containerd.pull(&new)?;
    let said = scene.containerd.run(&new, &["sh", "-c", CHECK])?.text();
    ensure_eq!(said, "all as committed\n", "the image pulled again");
    Ok(())
}

/// The layer has what was changed, and the folders on the way, but no copy of what was not.
fn require_names_of_changes_only(layer: &Layer) -> Result {
    let mut names = Vec::new();
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(layer.blob.as_slice())).entries()? {
        names.push(entry?.path()?.display().to_string().trim_matches('/').to_owned());
    }
    for wanted in ["srv/mine", "etc/issue", "etc/.wh.debian_version", "srv/station/cache/newer", "srv/deep/er/twin"] {
        ensure!(names.iter().any(|name| name == wanted), "the layer lacks {wanted}: {names:?}");
    }
    let hidden = ["srv/station/cache/.wh..wh..opq", "srv/station/cache/.wh.fresh"];
    ensure!(names.iter().any(|name| hidden.contains(&name.as_str())), "nothing hides the old folder: {names:?}");
    ensure!(names.len() < 30, "the layer has {} entries: {names:?}", names.len());
    Ok(())
}

fn committed_container_is_seen_by_a_child(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let container = scene.containerd.start_container(&image)?;
    container.shell(CHANGE)?;
    container.end()?;
    scene.containerd.ctr(&["snapshots", "commit", "changed", container.id()])?;
    scene.containerd.ctr(&["snapshots", "prepare", "child", "changed"])?;
    let child = scene.containerd.mount_snapshot("child")?;
    ensure_eq!(child.filesystem()?, "fuse.mica", "what is mounted");
    let seen = succeed(Command::new("chroot").arg(child.path()).args(["sh", "-c", CHECK]), SOON)?;
    ensure_eq!(seen.text(), "all as committed\n", "the child");
    std::fs::write(child.path().join("srv/mine"), "the child's").context("write in the child")?;

    // A second child does not see what the first one wrote, and the committed snapshot can't go before them.
    scene.containerd.ctr(&["snapshots", "prepare", "second", "changed"])?;
    let second = scene.containerd.mount_snapshot("second")?;
    ensure_eq!(std::fs::read_to_string(second.path().join("srv/mine"))?, "mine\n", "the second child");
    drop((child, second));
    scene.containerd.ctr_refused(&["snapshots", "rm", "changed"])?;
    for key in ["second", "child", "changed"] {
        scene.containerd.ctr(&["snapshots", "rm", key])?;
    }
    Ok(())
}
