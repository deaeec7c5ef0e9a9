//! Images that go out of Mica's store to other engines, and containers that become images in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use mica_tests::command::succeed;
use mica_tests::engines::{Podman, Version, podman_reason_to_skip};
use mica_tests::place;
use mica_tests::scene::Scene;
use mica_tests::wait::{LATER, SOON};
use mica_tests::{Context as _, Result, ensure, ensure_eq};
use serde_json::Value;

use crate::stage::{on_both_engines, play};

on_both_engines!(container_becomes_an_image_that_engines_run);

const CHANGE: &str = r"set -e
    echo mine > /srv/mine
    rm /etc/debian_version
    chmod 0700 /srv/station";

const CHECK: &str = r#"set -e
    [ "$(cat /srv/mine)" = mine ] && [ ! -e /etc/debian_version ]
    [ "$(stat -c %a /srv/station)" = 700 ]
    echo "all as committed by $WHO""#;

fn container_becomes_an_image_that_engines_run(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let container = scene.containerd.start_container(&image)?;
    container.shell(CHANGE)?;
    let diff = scene.daemon.json(&["snapshot", "diff", container.id()])?;
    for (change, path) in [("added", "/srv/mine"), ("removed", "/etc/debian_version"), ("changed", "/srv/station")] {
        ensure!(has(&diff, change, path), "{change} {path} is not told: {diff}");
    }
    let commit = ["snapshot", "commit", container.id(), "--name", "changed:1"];
    // The engine pulled the image; the store knows its layers, not its configuration.
    let refusal = scene.daemon.run(&commit)?.refusal()?;
    ensure!(refusal.contains("--base"), "it said {refusal:?}");
    scene.daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
    // An image with any environment has to say where programs are.
    let environment = "ENV PATH=/usr/local/bin:/usr/bin:/bin WHO=tester";
    let words = ["--author", "tester", "--message", "by hand", "--change", environment, "--change", "LABEL a=b"];
    let committed = scene.daemon.json(&[&commit[..], &words].concat())?;
    ensure_eq!(committed["layers"].as_array().map(Vec::len), Some(6), "layers of the new image");

    let shown = scene.daemon.json(&["image", "show", "changed:1"])?;
    let config = &shown["config"];
    ensure_eq!(config["config"]["Cmd"][0], "/usr/local/bin/station", "the command of the image below");
    ensure_eq!(config["config"]["WorkingDir"], "/srv/station", "the folder of the image below");
    ensure_eq!(config["config"]["Labels"]["a"], "b", "the new label");
    ensure_eq!(config["architecture"], "amd64", "the architecture");
    let history = scene.daemon.json(&["image", "history", "changed:1"])?;
    let last = history["history"].as_array().and_then(|steps| steps.last()).context("a history has steps")?.clone();
    ensure_eq!((&last["author"], &last["comment"]), (&"tester".into(), &"by hand".into()), "who and why");
    ensure_eq!(last["changes"]["removed"]["files"], 1, "files that the layer removes");
    let diff = scene.daemon.json(&["image", "diff", "station", "changed:1"])?;
    ensure!(has(&diff, "added", "/srv/mine"), "the images differ by {diff}");

    // The container goes on, and its changes of now are compared with the image of before.
    container.shell("echo more > /srv/more")?;
    let diff = scene.daemon.json(&["image", "diff", "changed:1", container.id()])?;
    ensure!(has(&diff, "added", "/srv/more") && !has(&diff, "added", "/srv/mine"), "since then: {diff}");
    ensure_eq!(container.exec(&["cat", "/srv/mine"])?, "mine\n", "in the container");
    container.remove()?;

    let archive = scene.folders().disk().join("changed.tar");
    export(scene, "changed:1", &archive, &[])?;
    scene.containerd.import(&archive)?;
    let name = "docker.io/library/changed:1";
    let said = scene.containerd.run(name, &["sh", "-c", CHECK])?.text();
    ensure_eq!(said, "all as committed by tester\n", "the exported image");
    ensure!(scene.containerd.run(name, &[])?.text().starts_with("station 2"), "its own command");
    Ok(())
}

#[test]
fn snapshot_is_compared_and_committed_upon_a_named_base_and_without_a_daemon() -> Result {
    play("snapshot without a daemon", Version::V1_7, |scene| {
        let image = scene.pulled("station")?;
        let container = scene.containerd.start_container(&image)?;
        container.shell(CHANGE)?;
        scene.daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
        let key = container.id().to_owned();
        let commit = |scene: &Scene, name: &str, flags: &[&str]| -> Result<Value> {
            let words = [&["snapshot", "commit", &key, "--name", name], flags].concat();
            scene.daemon.json(&words)?;
            scene.daemon.json(&["image", "show", name])
        };
        let told = scene.daemon.json(&["snapshot", "diff", &key])?;
        let usual = commit(scene, "usual:1", &[])?;
        // The files are the container's, whatever image is said to have the configuration.
        let based = commit(scene, "based:1", &["--base", "ledger"])?;
        ensure_eq!(based["image"]["layers"], usual["image"]["layers"], "layers upon another base");
        let ledger = scene.daemon.json(&["image", "show", "ledger"])?;
        ensure_eq!(based["config"]["config"], ledger["config"]["config"], "the configuration of the named base");
        ensure!(usual["config"]["config"] != ledger["config"]["config"], "two images have one configuration");

        scene.daemon.terminate()?;
        ensure_eq!(scene.daemon.json(&["snapshot", "diff", &key])?, told, "the difference, without a daemon");
        let alone = commit(scene, "alone:1", &[])?;
        ensure_eq!(alone["image"]["layers"], usual["image"]["layers"], "layers, without a daemon");
        ensure_eq!(alone["config"]["config"], usual["config"]["config"], "the configuration, without a daemon");
        let refusal = scene.daemon.run(&["snapshot", "commit", "none", "--name", "none:1"])?.refusal()?;
        ensure!(refusal.contains("none"), "it said {refusal:?}");

        scene.daemon.start_again()?;
        scene.containerd.reach_snapshotter()?;
        ensure_eq!(scene.daemon.json(&["snapshot", "diff", &key])?, told, "the difference, after all that");
        ensure_eq!(container.shell("echo more >> /srv/mine; cat /srv/mine")?, "mine\nmore\n", "in the container");
        container.remove()
    })
}

fn has(diff: &Value, change: &str, path: &str) -> bool {
    diff["changes"].as_array().is_some_and(|all| all.iter().any(|it| it["change"] == change && it["path"] == path))
}

fn export(scene: &Scene, image: &str, target: &Path, flags: &[&str]) -> Result {
    let target = target.display().to_string();
    scene.daemon.mica(&[&["image", "export", image, &target], flags].concat())?;
    Ok(())
}

/// The digest of the configuration that another program finds in an export.
fn config_of(source: &str) -> Result<String> {
    let said = succeed(Command::new("skopeo").args(["inspect", "--raw", source]), SOON)?.text();
    let manifest: Value = serde_json::from_str(&said).context(source)?;
    Ok(manifest["config"]["digest"].as_str().context("a manifest names its configuration")?.to_owned())
}

#[test]
fn exported_images_are_taken_by_other_programs() -> Result {
    play("exported images", Version::V1_7, |scene| {
        scene.daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
        scene.daemon.mica(&["image", "tag", "station", "example.org/station:1"])?;
        let known = scene.daemon.json(&["image", "show", "station"])?;
        let config = known["image"]["config"].as_str().context("an image has a configuration")?.to_owned();
        let disk = scene.folders().disk().to_path_buf();
        let forms: [(&str, &str, &[&str]); 5] = [
            ("oci:", "layout", &["--format", "oci"]),
            ("oci-archive:", "plain.tar", &["--compression", "none"]),
            ("oci-archive:", "oci.tar", &["--format", "oci-archive"]),
            ("oci-archive:", "zstd.tar", &["--compression", "zstd"]),
            ("docker-archive:", "docker.tar", &["--format", "docker-archive"]),
        ];
        for (transport, name, flags) in forms {
            let target = disk.join(name);
            export(scene, "example.org/station:1", &target, flags)?;
            ensure_eq!(config_of(&format!("{transport}{}", target.display()))?, config, "{name}");
            // Into a store of its own, where nothing is known: digests are checked, and all is equal.
            let root = disk.join(format!("root-of-{name}"));
            let import = ["--root", &root.display().to_string(), "image", "import", &target.display().to_string()];
            succeed(Command::new(place::mica()?).args(import), LATER)?;
            let show = ["--json", "--root", &root.display().to_string(), "image", "show", "example.org/station:1"];
            let again: Value = serde_json::from_str(&succeed(Command::new(place::mica()?).args(show), SOON)?.text())?;
            for member in ["config", "layers", "name"] {
                let expected =
                    if member == "name" { &Value::from("example.org/station:1") } else { &known["image"][member] };
                ensure_eq!(&again["image"][member], expected, "{member} by way of {name}");
            }
            std::fs::remove_dir_all(root)?;
        }
        taken_by_umoci(scene, &disk)?;
        for name in ["oci.tar", "docker.tar", "zstd.tar"] {
            taken_by_containerd(scene, &disk.join(name))?;
        }
        Ok(())
    })
}

/// What umoci unpacks of a layout, and what Mica unpacks itself, are the same files.
fn taken_by_umoci(scene: &Scene, disk: &Path) -> Result {
    let (bundle, own) = (disk.join("bundle"), disk.join("own"));
    let image = format!("{}:1", disk.join("layout").display());
    succeed(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle), LATER)?;
    export(scene, "station", &own, &["--format", "dir"])?;
    let tool = "cd \"$1\" && find . -printf '%P %y %m %U %G %s %l %n\\n' | grep -v ' d ' | LC_ALL=C sort; \
                getcap -r . | LC_ALL=C sort; LC_ALL=C ls -lAR --time-style=+ dev";
    let listing = |root: PathBuf| succeed(Command::new("sh").args(["-c", tool, "sh"]).arg(root), LATER);
    let (expected, found) = (listing(bundle.join("rootfs"))?.text(), listing(own)?.text());
    let differing = expected.lines().zip(found.lines()).find(|(one, other)| one != other);
    ensure_eq!(differing, None, "what umoci and Mica unpack");
    ensure_eq!(found.lines().count(), expected.lines().count(), "how much umoci and Mica unpack");
    Ok(())
}

fn taken_by_containerd(scene: &Scene, archive: &Path) -> Result {
    scene.containerd.import(archive)?;
    let said = scene.containerd.run("example.org/station:1", &[])?.text();
    ensure!(said.starts_with("station 2"), "{}: it said {said:?}", archive.display());
    scene.containerd.remove_image("example.org/station:1")?;
    Ok(())
}

#[test]
fn exported_images_run_in_podman_and_buildah() -> Result {
    if let Some(reason) = podman_reason_to_skip() {
        place::tell_skipped("exported images in podman", &reason);
        return Ok(());
    }
    play("exported images in podman", Version::V1_7, |scene| {
        scene.daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
        scene.daemon.mica(&["image", "tag", "ledger", "example.org/ledger:1"])?;
        let podman = Podman::of_root(scene.folders())?;
        let archive = |name: &str| scene.folders().disk().join(name);
        for (name, format) in [("oci.tar", "oci-archive"), ("docker.tar", "docker-archive")] {
            export(scene, "example.org/ledger:1", &archive(name), &["--format", format])?;
            let input = archive(name).display().to_string();
            podman.podman(&["load", "--quiet", "--signature-policy", &podman.policy(), "--input", &input])?;
            let said = podman.run(&["--rm", "example.org/ledger:1"])?;
            ensure!(said.starts_with("ledger: 3 accounts"), "{name}: it said {said:?}");
            podman.podman(&["rmi", "example.org/ledger:1"])?;
        }
        let from = format!("oci-archive:{}", archive("oci.tar").display());
        let policy = podman.policy();
        let built = podman.buildah(&["from", "--quiet", "--signature-policy", &policy, "--name", "made", &from])?;
        ensure_eq!(built.trim(), "made", "buildah's container");
        podman.buildah(&["rm", "made"])?;
        podman.finish()
    })
}
