//! Stores that are damaged, foreign, busy or full.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use mica_tests::daemon::Daemon;
use mica_tests::disk::{SmallDisk, free_bytes};
use mica_tests::engines::Version;
use mica_tests::oci::{Layer, Layout, Tar};
use mica_tests::place::{self, Folders};
use mica_tests::scene::Scene;
use mica_tests::wait::{self, SOON};
use mica_tests::{Context as _, Result, command, ensure, ensure_eq};

use crate::stage::play;

/// A daemon alone, unless this machine can't have one.
fn daemon(test: &str) -> Result<Option<(Daemon, Folders)>> {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped(test, &reason);
        return Ok(None);
    }
    let folders = Folders::new()?;
    let daemon = Daemon::start(&folders.disk().join("store"), &folders.run().join("mica"), &[])?;
    Ok(Some((daemon, folders)))
}

/// `mica serve` that should refuse to start; what it says.
fn refused_to_serve(root: &Path, state: &Path) -> Result<String> {
    let mut serve = std::process::Command::new(place::mica()?);
    serve.arg("--root").arg(root).arg("--state").arg(state);
    serve.args(["serve", "--address", &format!("unix://{}/mica.sock", state.display())]);
    command::run(&mut serve, SOON)?.refusal()
}

#[test]
fn store_of_a_newer_format_is_refused_and_left_alone() -> Result {
    let Some((mut daemon, folders)) = daemon("store of a newer format")? else { return Ok(()) };
    daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
    daemon.terminate()?;
    let format = daemon.root().join("FORMAT");
    let text = fs::read_to_string(&format)?;
    let mut newer: serde_json::Value = serde_json::from_str(&text)?;
    newer["version"] = 99.into();
    fs::write(&format, newer.to_string())?;
    let before = listing(daemon.root())?;
    for refusal in
        [refused_to_serve(daemon.root(), &folders.run().join("other"))?, daemon.run(&["image", "ls"])?.refusal()?]
    {
        for word in ["99", &daemon.root().display().to_string()] {
            ensure!(refusal.contains(word), "{word:?} is not told by {refusal:?}");
        }
    }
    ensure_eq!(listing(daemon.root())?, before, "files of the store after the refusal");
    fs::write(&format, text)?;
    daemon.start_again()?;
    let images = daemon.json(&["image", "ls"])?;
    ensure_eq!(images.as_array().map(Vec::len), Some(3), "images of the store when it is ours again");
    daemon.finish()
}

#[test]
fn second_daemon_on_the_same_root_or_socket_is_refused() -> Result {
    let Some((daemon, folders)) = daemon("second daemon")? else { return Ok(()) };
    let refusal = refused_to_serve(daemon.root(), &folders.run().join("other"))?;
    let root = daemon.root().display().to_string();
    ensure!(refusal.contains(&root) && refusal.contains("in use"), "it said {refusal:?}");
    let refusal = refused_to_serve(&folders.disk().join("other"), daemon.state())?;
    ensure!(refusal.contains(&daemon.state().display().to_string()), "it said {refusal:?}");
    // The first one serves on.
    ensure_eq!(daemon.json(&["layer", "ls"])?.as_array().map(Vec::len), Some(0), "layers of the first daemon");
    daemon.finish()
}

#[test]
fn layer_tree_cut_in_half_is_told_and_others_are_served() -> Result {
    play("layer tree cut in half", Version::V1_7, |scene| {
        scene.leave_damaged();
        let station = scene.pulled("station")?;
        let ledger = scene.pulled("ledger")?;
        // Only the station has its second layer.
        let layers = scene.containerd.diff_ids(&station)?;
        let victim = scene.daemon.root().join("layers/sha256").join(hex(&layers[1]));
        scene.daemon.terminate()?;
        cut_in_half(&victim)?;
        for tree in fs::read_dir(scene.daemon.root().join("chains/sha256"))? {
            let path = tree?.path();
            if path.is_file() { fs::remove_file(path)? } else { fs::remove_dir_all(path)? }
        }
        scene.daemon.start_again()?;
        scene.containerd.reach_snapshotter()?;
        let refusal = scene.containerd.run_refused(&station, &[])?;
        let told = format!("{refusal}{}", scene.daemon.log_tail(40));
        ensure!(told.contains(hex(&layers[1])) && told.contains("corrupt"), "it said {told}");
        let said = scene.containerd.run(&ledger, &[])?.text();
        ensure!(said.starts_with("ledger: 3 accounts"), "the other image said {said:?}");
        Ok(())
    })
}

#[test]
fn chain_tree_cut_in_half_is_made_anew() -> Result {
    play("chain tree cut in half", Version::V1_7, |scene| {
        let station = scene.pulled("station")?;
        scene.containerd.run(&station, &["true"])?;
        scene.daemon.terminate()?;
        let mut cut = 0;
        for tree in fs::read_dir(scene.daemon.root().join("chains/sha256"))? {
            let path = tree?.path();
            if path.is_file() {
                cut_in_half(&path)?;
                cut += 1;
            }
        }
        ensure!(cut > 0, "there was no chain tree");
        scene.daemon.start_again()?;
        scene.containerd.reach_snapshotter()?;
        let said = scene.containerd.run(&station, &[])?.text();
        ensure!(said.starts_with("station 2"), "it said {said:?}");
        Ok(())
    })
}

#[test]
fn full_disk_during_ingest_is_told_and_leaves_room() -> Result {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped("full disk", &reason);
        return Ok(());
    }
    let folders = Folders::new()?;
    let disk = SmallDisk::new(96)?;
    let scene = Scene::with_root(Version::V1_7, folders, &disk.path().join("store"))?;
    let small = noise_image(&scene, "small", 4)?;
    let large = noise_image(&scene, "large", 120)?;
    scene.daemon.mica(&["image", "import", &small.display().to_string()])?;
    let before = free_bytes(&disk.path())?;
    let archive = large.display().to_string();
    for refusal in [
        scene.daemon.run(&["image", "import", &archive])?.refusal()?,
        scene.containerd.ctr_refused(&["image", "import", &archive])?,
    ] {
        ensure!(refusal.to_lowercase().contains("no space left"), "it said {refusal:?}");
        wait::until("the space to be free again", SOON, || {
            Ok((free_bytes(&disk.path())? + (2 << 20) > before).then_some(()))
        })?;
    }
    let leftovers: Vec<_> = fs::read_dir(scene.daemon.root().join("tmp"))?.flatten().collect();
    ensure!(leftovers.is_empty(), "tmp has {leftovers:?}");
    // What was there is there, and what fits is taken in.
    let another = noise_image(&scene, "another", 8)?;
    scene.daemon.mica(&["image", "import", &another.display().to_string()])?;
    scene.containerd.import(&another)?;
    let images = scene.daemon.json(&["image", "ls"])?;
    ensure_eq!(images.as_array().map(Vec::len), Some(2), "images of the store");
    scene.finish()?;
    drop(disk);
    Ok(())
}

/// An archive of an image with one file of so many MiB that can't be compressed.
fn noise_image(scene: &Scene, name: &str, mebibytes: usize) -> Result<PathBuf> {
    use std::io::Read as _;
    let mut noise = Vec::new();
    File::open("/dev/urandom")?.take((mebibytes as u64) << 20).read_to_end(&mut noise)?;
    let layer = Layer::gzip(&Tar::new().file("noise", &noise).finish())?;
    let layout = Layout::create(&scene.folders().disk().join(name))?;
    layout.add_image(&format!("example.org/{name}:1"), &[layer])?;
    let archive = scene.folders().disk().join(format!("{name}.tar"));
    layout.archive(&archive)?;
    Ok(archive)
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn cut_in_half(path: &Path) -> Result {
    use std::os::unix::fs::PermissionsExt as _;
    let length = fs::metadata(path).context(path.display())?.len();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    File::options().write(true).open(path)?.set_len(length / 2)?;
    Ok(())
}

/// Names and lengths of everything below a folder.
fn listing(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_path_buf()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let data = entry.metadata()?;
            if data.is_dir() {
                todo.push(entry.path());
            }
            found.push((entry.path(), if data.is_dir() { 0 } else { data.len() }));
        }
    }
    found.sort();
    Ok(found)
}
