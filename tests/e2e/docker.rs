//! Images that dockerd made, and images that dockerd takes.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use mica_tests::daemon::Daemon;
use mica_tests::engines::{Docker, docker};
use mica_tests::oci::digest_of;
use mica_tests::place::{self, Folders};
use mica_tests::{Context as _, Failure, Result, ensure, ensure_eq};
use serde_json::Value;

const BUILD: &str = "FROM example.org/station:1
RUN rm -r /srv/station/cache && mkdir -p /made/inner && ln -s /etc/issue /made/inner/link && echo one > /made/one
RUN ln /made/one /made/two && mv /made/inner /made/moved && chmod 6710 /made/one && chown 33:44 /made/two && \
    mkfifo /made/pipe && mknod /made/null c 1 3 && truncate -s 3000000 /made/sparse && rm /etc/debian_version
COPY large /made/large
ENV MADE=yes
CMD [\"sh\", \"-c\", \"cat /made/two; echo $MADE; ls /made; wc -c /made/large\"]
";

const SAYS: &str = "one\nyes\nlarge\nmoved\nnull\none\npipe\nsparse\ntwo\n300000 /made/large\n";

#[test]
fn images_go_to_docker_and_those_it_builds_and_commits_come_back_bit_by_bit() -> Result {
    if let Some(reason) = docker::reason_to_skip() {
        place::tell_skipped("images to and from docker", &reason);
        return Ok(());
    }
    let folders = Folders::new()?;
    let daemon = Daemon::start(&folders.disk().join("store"), &folders.run().join("mica"), &[])?;
    let docker = Docker::start(&folders)?;
    let played = there_and_back(&daemon, &docker, folders.disk());
    played.map_err(|failure| Failure::new(format!("{failure}\n  dockerd:\n    {}", docker.log_tail(15))))?;
    docker.finish()?;
    daemon.mica(&["fsck", "--data", "--deep"])?;
    daemon.finish()
}

fn there_and_back(daemon: &Daemon, docker: &Docker, disk: &Path) -> Result {
    // Mica's export is docker's image.
    daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
    daemon.mica(&["image", "tag", "station", "example.org/station:1"])?;
    load(daemon, docker, "example.org/station:1", &disk.join("station.tar"))?;
    let said = docker.run_image("example.org/station:1", &[])?;
    ensure!(said.starts_with("station 2: years 2020 2021, 2190 readings"), "it said {said:?}");

    // Layers that dockerd makes itself, by a build and of a container.
    let large: Vec<u8> = (0..300_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let context = docker::context(&disk.join("context"), BUILD, &[("large", &large)])?;
    docker.docker(&["build", "--network", "none", "--tag", "example.org/built:1", &context])?;
    ensure_eq!(docker.run_image("example.org/built:1", &[])?, SAYS, "what was built");
    let script = "echo changed > /made/one; rm /made/large; mkdir -m 1777 /made/sticky";
    docker.docker(&["run", "--network", "none", "--name", "changed", "example.org/built:1", "sh", "-c", script])?;
    docker.docker(&["commit", "--change", "CMD [\"cat\", \"/made/one\"]", "changed", "example.org/changed:1"])?;

    let archive = disk.join("saved.tar");
    let file = archive.display().to_string();
    docker.docker(&["save", "--output", &file, "example.org/built:1", "example.org/changed:1"])?;
    daemon.mica(&["image", "import", &file])?;
    let saved = blobs(&archive)?;
    let mut made = 0;
    for image in ["example.org/built:1", "example.org/changed:1"] {
        let known = daemon.json(&["image", "show", image])?;
        let layers = diff_ids_of(&known["image"])?;
        ensure_eq!(layers, docker.diff_ids(image)?, "layers of {image}");
        for layer in &layers {
            let out = disk.join("layer.tar");
            daemon.mica(&["layer", "export", layer, "-o", &out.display().to_string()])?;
            let tar = fs::read(&out)?;
            ensure_eq!(&digest_of(&tar), layer, "the tar that comes back");
            if let Some(blob) = saved.get(layer) {
                ensure!(*blob == tar, "{layer} is not what docker has saved");
                made += 1;
            }
        }
    }
    // docker says by its manifest which blobs are layers; all of them are in the archive as tars.
    ensure!(made >= 8, "only {made} layers were compared with docker's own");

    // And back again, where nothing of them is left.
    docker.docker(&["rm", "changed"])?;
    docker.docker(&["image", "prune", "--all", "--force"])?;
    load(daemon, docker, "example.org/changed:1", &disk.join("changed.tar"))?;
    ensure_eq!(docker.run_image("example.org/changed:1", &[])?, "changed\n", "what was committed");
    let listed = docker.run_image("example.org/changed:1", &["sh", "-c", "ls /made; stat -c '%a %u:%g' /made/two"])?;
    ensure_eq!(listed, "moved\nnull\none\npipe\nsparse\nsticky\ntwo\n710 33:44\n", "files of what was committed");
    load(daemon, docker, "example.org/built:1", &disk.join("built.tar"))?;
    ensure_eq!(docker.run_image("example.org/built:1", &[])?, SAYS, "what was built, loaded again");
    Ok(())
}

/// Exports an image for docker, loads it, and checks that docker has the same layers.
fn load(daemon: &Daemon, docker: &Docker, image: &str, archive: &Path) -> Result {
    let file = archive.display().to_string();
    daemon.mica(&["image", "export", image, &file, "--format", "docker-archive"])?;
    docker.docker(&["load", "--quiet", "--input", &file])?;
    let known = daemon.json(&["image", "show", image])?;
    ensure_eq!(docker.diff_ids(image)?, diff_ids_of(&known["image"])?, "layers of {image} in docker");
    Ok(())
}

fn diff_ids_of(image: &Value) -> Result<Vec<String>> {
    let layers = image["layers"].as_array().context("an image has layers")?;
    layers.iter().map(|layer| Ok(layer.as_str().context("a layer is a digest")?.to_owned())).collect()
}

/// The files of an archive by the digests of their bytes.
fn blobs(archive: &Path) -> Result<HashMap<String, Vec<u8>>> {
    let mut blobs = HashMap::new();
    for entry in tar::Archive::new(fs::File::open(archive)?).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            blobs.insert(digest_of(&bytes), bytes);
        }
    }
    Ok(blobs)
}
