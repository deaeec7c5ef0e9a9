//! podman and buildah with Mica in the place of fuse-overlayfs.

use std::fs;

use mica_tests::engines::{Podman, Registry, podman_reason_to_skip};
use mica_tests::place::{self, Folders};
use mica_tests::{Result, ensure, ensure_eq};

const BUILD: &str = "FROM IMAGE
RUN rm -rf /srv/station/data && mkdir -p /made/inner && ln -s /etc/issue /made/inner/link && echo one > /made/one
RUN ln /made/one /made/two && mv /made/inner /made/moved && chmod 0710 /made && chown 33:44 /made/two
COPY copied /copied
CMD [\"cat\", \"/copied\"]
";

fn play(test: &str, start: fn(&Folders) -> Result<Podman>, scenario: fn(&Podman, &str) -> Result) -> Result {
    if let Some(reason) = podman_reason_to_skip() {
        place::tell_skipped(test, &reason);
        return Ok(());
    }
    let folders = Folders::new()?;
    let registry = Registry::start(&folders.disk().join("registry"))?;
    let reference = registry.push(&place::images()?, "station", "station:1")?;
    let podman = start(&folders)?;
    podman.podman(&["pull", "--quiet", "--tls-verify=false", "--signature-policy", &podman.policy(), &reference])?;
    scenario(&podman, &reference)?;
    podman.finish()
}

/// Runs, changes, tells the difference, commits, and runs what was committed.
fn runs_and_commits(podman: &Podman, image: &str) -> Result {
    let said = podman.run(&["--rm", image, "station"])?;
    ensure!(said.starts_with("station 2: years 2020 2021, 2190 readings"), "it said {said:?}");
    let script = "grep ' / ' /proc/mounts; echo new > /etc/new; rm /etc/issue; chown 5:6 /etc/new; \
                  mv /srv/station/data /srv/moved";
    let said = podman.run(&["--name", "changed", image, "sh", "-c", script])?;
    ensure!(said.starts_with("fuse-overlayfs / fuse.fuse-overlayfs"), "the root is on {said:?}");
    let said = podman.podman(&["diff", "changed"])?;
    for line in ["A /etc/new", "D /etc/issue", "D /srv/station/data", "A /srv/moved/2020.csv"] {
        ensure!(said.lines().any(|known| known == line), "no {line} in {said}");
    }
    podman.podman(&["commit", "--quiet", "changed", "localhost/changed:1"])?;
    let script = "cat /etc/new; ls /srv/moved; ls -ln /etc/new | cut -d ' ' -f 3,4; test -e /etc/issue || echo gone";
    let said = podman.run(&["--rm", "localhost/changed:1", "sh", "-c", script])?;
    ensure_eq!(said, "new\n2020.csv\n2021.csv\n5 6\ngone\n", "the committed image");
    Ok(())
}

/// Builds from a file with steps that delete, link, move and copy.
fn builds(podman: &Podman, image: &str) -> Result {
    let folder = podman.home().join("context");
    fs::create_dir(&folder)?;
    fs::write(folder.join("Containerfile"), BUILD.replace("IMAGE", image))?;
    fs::write(folder.join("copied"), "copied\n")?;
    let policy = podman.policy();
    let file = podman.home_inside().join("context").display().to_string();
    let build = ["build", "--quiet", "--isolation", "chroot", "--layers", "--signature-policy", &policy];
    podman.buildah(&[&build[..], &["--tag", "localhost/built:1", &file]].concat())?;
    ensure_eq!(podman.run(&["--rm", "localhost/built:1"])?, "copied\n", "the command of the built image");
    let script = "ls /srv/station /made; cat /made/two /made/moved/link; stat -c %a /made; stat -c '%a %h' /made/one; \
                  stat -c %u:%g /made/one";
    let said = podman.run(&["--rm", "localhost/built:1", "sh", "-c", script])?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(!lines.contains(&"data") && lines.contains(&"moved"), "{said}");
    ensure!(said.ends_with("one\na station made of layers\n710\n644 2\n33:44\n"), "{said}");
    Ok(())
}

/// Ids of the user in the container, and a volume whose changes are thrown away.
fn maps_ids_and_lays_volumes_over(podman: &Podman, image: &str) -> Result {
    let script = "id -u; touch /tmp/mine; stat -c '%u %n' /tmp/mine /etc/issue";
    let said = podman.run(&["--name", "kept", "--userns=keep-id", image, "sh", "-c", script])?;
    ensure_eq!(said, "12345\n12345 /tmp/mine\n0 /etc/issue\n", "ids in the container");
    podman.podman(&["commit", "--quiet", "kept", "localhost/kept:1"])?;
    let said = podman.run(&["--rm", "localhost/kept:1", "stat", "-c", "%u", "/tmp/mine"])?;
    ensure_eq!(said, "12345\n", "the owner in the committed image");
    let volume = podman.home().join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("given"), "given\n")?;
    std::os::unix::fs::chown(&volume, Some(12_345), Some(12_345))?;
    let option = format!("{}:/volume:O", podman.home_inside().join("volume").display());
    let script = "cat /volume/given; echo x > /volume/added; rm /volume/given; ls /volume";
    let said = podman.run(&["--rm", "--volume", &option, image, "sh", "-c", script])?;
    ensure_eq!(said, "given\nadded\n", "the volume in the container");
    ensure_eq!(fs::read_to_string(volume.join("given"))?, "given\n", "the volume itself");
    ensure!(!volume.join("added").exists(), "the container's file is in the volume itself");
    Ok(())
}

#[test]
fn podman_and_buildah_of_root_run_commit_and_build() -> Result {
    play("podman_and_buildah_of_root_run_commit_and_build", Podman::of_root, |podman, image| {
        runs_and_commits(podman, image)?;
        builds(podman, image)
    })
}

#[test]
fn podman_and_buildah_of_a_user_run_commit_build_and_map_ids() -> Result {
    play("podman_and_buildah_of_a_user_run_commit_build_and_map_ids", Podman::of_user, |podman, image| {
        runs_and_commits(podman, image)?;
        builds(podman, image)?;
        maps_ids_and_lays_volumes_over(podman, image)
    })
}

/// Owners, modes and capabilities of an image that the user's disk has as the user's own.
fn shows_told_owners(podman: &Podman, image: &str) -> Result {
    // The engine's own unpacking loses set-id and sticky bits here, so none is asked of a committed image.
    let script = "stat -c '%u:%g %a' /etc/shadow /etc; echo x > /made; chown 33:44 /made; chmod 4711 /made; \
                  stat -c '%u:%g %a' /made; chmod 710 /made; rm /etc/issue";
    let said = podman.run(&["--name", "told", image, "sh", "-c", script])?;
    ensure_eq!(said, "0:42 640\n0:0 755\n33:44 4711\n", "owners in the container");
    podman.podman(&["commit", "--quiet", "told", "localhost/told:1"])?;
    let script = "stat -c '%u:%g %a' /made /etc/shadow; test -e /etc/issue || echo gone";
    let said = podman.run(&["--rm", "localhost/told:1", "sh", "-c", script])?;
    ensure_eq!(said, "33:44 710\n0:42 640\ngone\n", "owners in the committed image");
    Ok(())
}

/// Rule 68: `xattr_permissions=2` (podman's `force_mask`), `=1`: owner, mode and, of what takes privilege to make,
/// the type are what `user.containers.override_stat` (`security.fuseoverlayfs.override_stat`) says; a file without it
/// is what the disk says, one whose attribute makes no sense is EIO.
#[test]
fn podman_of_a_user_whose_disk_keeps_no_owners_shows_those_of_the_image() -> Result {
    let test = "podman_of_a_user_whose_disk_keeps_no_owners_shows_those_of_the_image";
    play(test, Podman::of_user_with_told_owners, shows_told_owners)
}
