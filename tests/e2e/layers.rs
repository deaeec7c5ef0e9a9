//! Layers that a careless or hostile author made: refused by name and place, and nothing of them stays.

use std::path::{Path, PathBuf};

use mica_tests::engines::Version;
use mica_tests::oci::{Layer, Layout, Tar};
use mica_tests::scene::Scene;
use mica_tests::{Context as _, Result, ensure, ensure_eq};

use crate::stage::{on_both_engines, play};

on_both_engines!(broken_layers_are_refused_when_an_engine_unpacks_them, layer_changed_after_its_download_is_refused);

/// A bad layer and words that the refusal must have.
struct Case {
    name: &'static str,
    layer: Layer,
    tells: Vec<String>,
}

fn case(name: &'static str, layer: Layer, tells: &[&str]) -> Case {
    Case { name, layer, tells: tells.iter().map(ToString::to_string).collect() }
}

/// What no reader of layers can accept.
fn broken() -> Result<Vec<Case>> {
    let good = Layer::gzip(&some_files())?;
    let cut = good.clone().truncated();
    let lying = good.clone().with_wrong_diff_id();
    Ok(vec![
        case("cut-gzip", cut, &[]),
        Case { name: "wrong-diff-id", layer: lying, tells: vec![good.diff_id] },
        case("cut-zstd", Layer::zstd(&some_files())?.truncated(), &[]),
    ])
}

/// What Mica does not accept: names that lead out of the image.
fn hostile() -> Result<Vec<Case>> {
    let tar = || Tar::new().directory("srv/").file("srv/good", b"good");
    let layer = |tar: Tar| Layer::gzip(&tar.finish());
    Ok(vec![
        case("dots", layer(tar().file("../escaped", b"x"))?, &["../escaped", "offset"]),
        case("dots-inside", layer(tar().file("srv/../../escaped", b"x"))?, &["srv/../../escaped", "offset"]),
        case("absolute", layer(tar().file("/etc/escaped", b"x"))?, &["/etc/escaped", "offset"]),
        case("hard-link-out", layer(tar().hard_link("srv/link", "../../etc/passwd"))?, &["srv/link", "offset"]),
        case("hard-link-nowhere", layer(tar().hard_link("srv/link", "srv/none"))?, &["srv/link", "offset"]),
    ])
}

fn some_files() -> Vec<u8> {
    // Noise does not compress, so that a cut falls into a file.
    let noise: Vec<u8> = (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Tar::new().directory("srv/").file("srv/good", b"good").file("srv/noise", &noise).finish()
}

fn broken_layers_are_refused_when_an_engine_unpacks_them(scene: &mut Scene) -> Result {
    for case in broken()? {
        let archive = archive_of(scene, &case)?;
        let refusal = scene.containerd.ctr_refused(&["image", "import", &archive.display().to_string()])?;
        for word in &case.tells {
            ensure!(refusal.contains(word), "{}: {word:?} is not told by {refusal:?}", case.name);
        }
        scene.containerd.remove_image(&name_of(&case)).context("remove what was imported")?;
        require_nothing_left(scene, case.name)?;
    }
    require_alive(scene)
}

#[test]
fn layers_that_lead_out_of_the_image_are_refused() -> Result {
    play("layers that lead out", Version::V1_7, |scene| {
        for case in hostile()? {
            let archive = archive_of(scene, &case)?;
            let refusal = scene.containerd.ctr_refused(&["image", "import", &archive.display().to_string()])?;
            for word in &case.tells {
                ensure!(refusal.contains(word), "{}: {word:?} is not told by {refusal:?}", case.name);
            }
            scene.containerd.remove_image(&name_of(&case))?;
            require_nothing_left(scene, case.name)?;
            ensure!(!Path::new("/etc/escaped").exists(), "{} escaped", case.name);
        }
        require_alive(scene)
    })
}

#[test]
fn bad_layers_are_refused_when_mica_imports_them() -> Result {
    play("bad layers in an import", Version::V1_7, |scene| {
        let mut cases = broken()?;
        cases.extend(hostile()?);
        let changed = Layer::gzip(&some_files())?.corrupted();
        let digest = changed.digest.clone();
        // An engine tells only what it found; Mica also tells what was expected.
        for case in cases.iter_mut().filter(|case| case.name == "wrong-diff-id") {
            case.tells.push(case.layer.diff_id.clone());
        }
        cases.push(Case { name: "changed-blob", layer: changed, tells: vec![digest] });
        for case in cases {
            let archive = archive_of(scene, &case)?;
            let folder = scene.folders().disk().join(case.name);
            for source in [archive, folder] {
                let refusal = scene.daemon.run(&["image", "import", &source.display().to_string()])?.refusal()?;
                for word in &case.tells {
                    ensure!(refusal.contains(word), "{}: {word:?} is not told by {refusal:?}", case.name);
                }
                ensure!(refusal.contains("sha256:"), "{}: no layer is named by {refusal:?}", case.name);
            }
            require_nothing_left(scene, case.name)?;
        }
        require_alive(scene)
    })
}

/// A name below a symbolic link of the same layer is followed inside the image, as engines do it.
#[test]
fn names_below_a_symbolic_link_stay_inside_the_image() -> Result {
    play("names below a symbolic link", Version::V1_7, |scene| {
        let tar = Tar::new().directory("etc/").symlink("srv", "/etc").symlink("out", "../../../etc");
        let tar = tar.file("srv/escaped", b"one").file("out/escaped2", b"two");
        let layout = Layout::create(&scene.folders().disk().join("linked"))?;
        layout.add_image("linked", &[Layer::gzip(&tar.finish())?])?;
        let image = scene.registry.push(layout.path(), "linked", "linked:1")?;
        scene.containerd.pull(&image)?;
        let mounted = scene.containerd.mount_image(&image, "mica")?;
        let read = ["etc/escaped", "etc/escaped2"].map(|name| std::fs::read_to_string(mounted.path().join(name)));
        let [one, two] = read;
        ensure_eq!((one?.as_str(), two?.as_str()), ("one", "two"), "files below symbolic links");
        ensure!(!Path::new("/etc/escaped").exists(), "a file escaped");
        Ok(())
    })
}

/// The blob in the engine's content store is not what its name says.
fn layer_changed_after_its_download_is_refused(scene: &mut Scene) -> Result {
    let layer = Layer::gzip(&some_files())?;
    let layout = Layout::create(&scene.folders().disk().join("good"))?;
    layout.add_image("good", std::slice::from_ref(&layer))?;
    let image = scene.registry.push(layout.path(), "good", "good:1")?;
    scene.containerd.fetch(&image)?;
    let blob = scene.containerd.blob(&layer.digest);
    std::fs::write(&blob, layer.corrupted().blob).context(blob.display())?;
    // Running an image that is not unpacked unpacks it first.
    let refusal = scene.containerd.run_refused(&image, &["true"])?;
    ensure!(refusal.contains("extract") || refusal.contains("layer"), "it was not the unpacking: {refusal:?}");
    scene.containerd.remove_image(&image)?;
    require_nothing_left(scene, "a changed blob")?;
    require_alive(scene)
}

fn name_of(case: &Case) -> String {
    format!("example.org/bad/{}:1", case.name)
}

fn archive_of(scene: &Scene, case: &Case) -> Result<PathBuf> {
    let layout = Layout::create(&scene.folders().disk().join(case.name))?;
    let below = Layer::gzip(&Tar::new().directory("usr/").file("usr/below", case.name.as_bytes()).finish())?;
    layout.add_image(&name_of(case), &[below, case.layer.clone()])?;
    let archive = scene.folders().disk().join(format!("{}.tar", case.name));
    layout.archive(&archive)?;
    Ok(archive)
}

/// No snapshot, no mount, no temporary file. The good layer below the bad one may stay until it is collected.
fn require_nothing_left(scene: &Scene, case: &str) -> Result {
    ensure_eq!(scene.containerd.snapshots()?, [], "snapshots after {case}");
    let listed = scene.daemon.json(&["snapshot", "ls"])?;
    ensure_eq!(listed.as_array().map(Vec::len), Some(0), "snapshots of the daemon after {case}");
    for folder in ["tmp", "snapshots", "quarantine"] {
        let names: Vec<_> = std::fs::read_dir(scene.daemon.root().join(folder))?.flatten().collect();
        ensure!(names.is_empty(), "after {case}, {folder} has {names:?}");
    }
    let mounts = mica_tests::leftovers::mounts_below(&scene.daemon.state().join("mnt"))?;
    ensure!(mounts.is_empty(), "mounts after {case}: {mounts:?}");
    scene.daemon.mica(&["gc"])?;
    let layers = scene.daemon.json(&["layer", "ls"])?;
    ensure_eq!(layers.as_array().map(Vec::len), Some(0), "layers after {case} and a collection");
    Ok(())
}

fn require_alive(scene: &Scene) -> Result {
    let image = scene.pulled("base")?;
    let said = scene.containerd.run(&image, &["echo", "alive"])?.text();
    ensure_eq!(said, "alive\n", "a container after all that");
    Ok(())
}
