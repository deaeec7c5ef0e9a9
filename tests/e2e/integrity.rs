//! Damage under a running daemon: it harms its own file alone, is told by name, and is undone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use mica_tests::command::Output;
use mica_tests::daemon::Daemon;
use mica_tests::engines::Version;
use mica_tests::oci::digest_of;
use mica_tests::place::Folders;
use mica_tests::wait::{self, SOON};
use mica_tests::{Context as _, Result, ensure, ensure_eq, place};

use crate::stage::play;

/// A file of the station that is an object, and that nothing reads unless it is told to.
const VICTIM: &str = "/srv/station/data/2021.csv";

/// Rule 58: Damaged data is EIO and is logged with the name of the object or tree; it is never shown.
#[test]
fn corrupt_object_is_an_error_for_its_file_alone_until_the_image_comes_again() -> Result {
    play("corrupt object under a daemon", Version::V1_7, |scene| {
        let image = scene.pulled("station")?;
        let said = scene.containerd.run(&image, &["sha256sum", VICTIM])?.text();
        let digest = said.split_whitespace().next().context("sha256sum says a digest")?.to_owned();
        let object = object_in(&scene.daemon, &digest)?;
        // What was served is not looked at again: a new daemon looks once more.
        scene.daemon.terminate()?;
        scene.daemon.add_flags(&["--verify", "first-use", "--verify-trees"]);
        scene.daemon.start_again()?;
        scene.containerd.reach_snapshotter()?;

        let container = scene.containerd.start_container(&image)?;
        flip(&object)?;
        let read = format!("cat {VICTIM} >/dev/null 2>/tmp/said; echo $?; cat /tmp/said");
        for _ in 0..2 {
            let said = container.shell(&read)?;
            ensure!(said.starts_with("1\n") && said.contains("nput/output error"), "a corrupt file: it said {said:?}");
        }
        ensure_eq!(container.exec(&["cat", "/etc/issue"])?, "a station made of layers\n", "another file");
        wait::until("the object to be in quarantine", SOON, || Ok((!object.exists()).then_some(())))?;
        ensure!(container.shell(&read)?.starts_with("1\n"), "a missing file was read");

        for words in [&["layer", "verify", "--all"][..], &["fsck"]] {
            let found = scene.daemon.run(words)?;
            ensure_eq!(found.status.code(), Some(1), "exit status of {words:?}");
            let said = both(&found);
            ensure!(said.contains(&digest), "{words:?} said {said}");
        }
        wait::until("the log to name it", SOON, || {
            let log = scene.daemon.log_tail(200);
            Ok((log.contains(&digest) && log.contains("quarantine")).then_some(()))
        })?;

        scene.daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
        let said = container.exec(&["sha256sum", VICTIM])?;
        ensure!(said.starts_with(&digest), "after the repair it said {said:?}");
        scene.daemon.mica(&["layer", "verify", "--all"])?;
        let said = scene.daemon.mica(&["fsck", "--data", "--deep", "--empty-quarantine"])?;
        ensure!(said.contains("nothing is wrong"), "fsck said {said:?}");
        container.remove()?;
        all_trees_are_erofs(scene.daemon.root())
    })
}

#[test]
fn mounted_image_is_compared_with_its_digests_as_the_daemon_does() -> Result {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped("mounted image with a corrupt object", &reason);
        return Ok(());
    }
    let folders = Folders::new()?;
    let flags = ["--verify".to_owned(), "first-use".to_owned()];
    let daemon = Daemon::start(&folders.disk().join("store"), &folders.run().join("mica"), &flags)?;
    daemon.mica(&["image", "import", &place::images()?.display().to_string()])?;
    let mountpoint = folders.run().join("image");
    fs::create_dir(&mountpoint)?;
    let shown = mountpoint.display().to_string();
    let victim = mountpoint.join(VICTIM.trim_start_matches('/'));
    // What a look at the mounted image finds; unmounted again whatever that is.
    let look = |flags: &[&str]| -> Result<[io::Result<Vec<u8>>; 2]> {
        daemon.mica(&[&["mount", "--image", "station"], flags, &[&shown]].concat())?;
        let found = [fs::read(&victim), fs::read(mountpoint.join("etc/issue"))];
        daemon.mica(&["umount", &shown])?;
        Ok(found)
    };
    let [whole, _] = look(&[])?;
    let whole = whole?;
    let object = object_in(&daemon, &digest_of(&whole))?;
    flip(&object)?;
    let [read, other] = look(&[])?;
    ensure_eq!(read.err().and_then(|error| error.raw_os_error()), Some(libc::EIO), "the error of a corrupt file");
    ensure_eq!(other?, b"a station made of layers\n", "another file");
    // Told not to look, it doesn't: the bytes are what the disk has.
    let [read, _] = look(&["--verify", "never"])?;
    let read = read?;
    ensure!(read != whole && read.len() == whole.len(), "the corrupt file was not read as it is");
    daemon.finish()
}

/// The file of an object.
fn object_in(daemon: &Daemon, digest: &str) -> Result<PathBuf> {
    let (shard, rest) = digest.strip_prefix("sha256:").unwrap_or(digest).split_at(2);
    let object = daemon.root().join("objects").join(shard).join(rest);
    ensure!(object.is_file(), "there is no object {digest}");
    Ok(object)
}

/// The tool of the format's own makers accepts every tree of a store.
fn all_trees_are_erofs(root: &Path) -> Result {
    let mut checked = 0;
    for folder in ["layers/sha256", "chains/sha256"] {
        for entry in fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            if path.extension().is_some() {
                continue;
            }
            let mut fsck = std::process::Command::new("fsck.erofs");
            let output = mica_tests::command::run(fsck.arg("--extract").arg(&path), SOON)?.success()?;
            let said = both(&output);
            // Not every complaint shows in the exit status.
            ensure!(!said.contains("<E>"), "fsck.erofs {}: {said}", path.display());
            checked += 1;
        }
    }
    ensure!(checked > 3, "only {checked} trees");
    Ok(())
}

/// What a command said on both channels.
fn both(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Changes one byte of a sealed file in place.
pub fn flip(path: &Path) -> Result {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100)?;
    byte[0] ^= 1;
    file.write_all_at(&byte, 100)?;
    file.sync_all()?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o400))?)
}
