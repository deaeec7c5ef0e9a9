//! What the verbs print and how they end, on stores in temporary folders.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "commands/images.rs"]
mod images;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mica_layerdb::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a store, a state folder and an image layout.
struct Place {
    folder: TempDir,
}

/// What a command said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mica"));
        command.env_remove("MICA_LOG").current_dir(self.folder.path());
        command.env("MICA_ROOT", self.path("root")).env("MICA_STATE", self.path("state")).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Said {
        let Output { status, stdout, stderr } = self.command(words).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    fn good(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert_eq!(said.code, Some(0), "{words:?}: {said:?}");
        said.out
    }

    fn json(&self, words: &[&str]) -> Value {
        let out = self.good(&[&["--json"], words].concat());
        serde_json::from_str(&out).unwrap()
    }

    fn bad(&self, words: &[&str], code: i32) -> String {
        let said = self.run(words);
        assert_eq!(said.code, Some(code), "{words:?}: {said:?}");
        assert_eq!(said.out, "", "{words:?}");
        said.err
    }

    /// An OCI layout with one image of one layer.
    fn layout(&self) -> PathBuf {
        let path = self.path("layout");
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8], media_type: &str| {
            let digest = Digest::of(bytes);
            std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
            json!({"digest": digest.to_string(), "size": bytes.len(), "mediaType": media_type})
        };
        let plain = tar("app", &vec![b'x'; 9000]);
        let layer = put(&plain, "application/vnd.oci.image.layer.v1.tar");
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({"os": "linux", "architecture": architecture, "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
        let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let index = json!({"schemaVersion": 2, "manifests": [put(manifest.to_string().as_bytes(), kind)]});
        std::fs::write(path.join("index.json"), index.to_string()).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        path
    }
}

/// A tar of one file.
fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..136].copy_from_slice(format!("0000755\x000000000\x000000000\0{:011o}\0", bytes.len()).as_bytes());
    header[136..156].copy_from_slice(b"00000000000\0        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = [&header[..], bytes].concat();
    out.resize(out.len().next_multiple_of(512) + 1024, 0);
    out
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "not root: a daemon can't be started, nothing is tested");
    }
    root
}

#[test]
fn version_is_told_as_text_and_as_json() {
    let place = Place::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(place.good(&["version"]), format!("mica {version}\n"));
    assert_eq!(place.good(&["--version"]), format!("mica {version}\n"));
    assert_eq!(place.json(&["version"]), json!({"version": version}));
}

#[test]
fn wrong_use_ends_with_2_and_says_what_is_wrong() {
    let place = Place::new();
    for (words, named) in [
        (&["fly"][..], "fly"),
        (&[], "Usage"),
        (&["image", "show"], "REFERENCE"),
        (&["mount"], "MOUNTPOINT"),
        (&["umount"], "MOUNTPOINT"),
        (&["gc", "--wet-run"], "--wet-run"),
    ] {
        let err = place.bad(words, 2);
        assert!(err.contains(named), "{words:?}: {err}");
    }
}

#[test]
fn a_store_that_is_not_there_is_named_and_not_made() {
    let place = Place::new();
    for words in [&["image", "ls"][..], &["layer", "ls"], &["snapshot", "ls"], &["df"], &["gc"], &["image", "rm", "x"]]
    {
        let err = place.bad(words, 1);
        assert!(err.contains("there is no store at") && err.contains("root"), "{err}");
    }
    assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), 0);
}

#[test]
fn image_goes_through_its_life() {
    let place = Place::new();
    let layout = place.layout();
    let said = place.run(&["image", "import", "layout", "--name", "app:1"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.starts_with("app:1 sha256:"), "{said:?}");
    assert!(said.err.contains("layer ") && said.err.contains("10.5 KiB"), "{said:?}");
    let images = place.json(&["image", "import", &layout.display().to_string(), "--name", "app:2"]);
    assert_eq!(images[0]["name"], "app:2");

    let listed = place.good(&["image", "ls"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].starts_with("NAME") && lines[1].starts_with("app:1") && lines[2].starts_with("app:2"), "{listed}");
    assert_eq!(place.json(&["image", "ls"]).as_array().unwrap().len(), 2);
    let shown = place.good(&["image", "show", "app:1"]);
    assert!(shown.contains("name      app:1") && shown.contains("layers, bottom first"), "{shown}");
    let shown = place.json(&["image", "show", "app:1"]);
    assert_eq!(shown["config"]["os"], "linux");
    assert_eq!(shown["layers"][0]["content_bytes"], 9000);
    assert!(place.good(&["layer", "ls"]).contains("8.79 KiB"));
    let df = place.json(&["df"]);
    assert_eq!((df["logical_bytes"].as_u64(), df["kinds"]["objects"]["count"].as_u64()), (Some(18000), Some(3)));
    assert!(place.good(&["df"]).contains("reclaimable"));

    assert_eq!(place.good(&["image", "rm", "app:1"]), "removed app:1; `mica gc` gives the space back\n");
    assert!(place.good(&["gc", "--dry-run"]).starts_with("would remove 0 layers"));
    place.good(&["image", "rm", "app:2"]);
    assert!(place.good(&["gc", "--dry-run"]).starts_with("would remove 1 layers"));
    let layer = place.json(&["layer", "ls"])[0]["diff_id"].as_str().unwrap().to_owned();
    assert!(place.good(&["gc", "--explain", &layer]).ends_with("  nothing: goes at the next collection\n"));
    assert_eq!(place.json(&["gc", "--explain", &layer])["found"][0]["kept"], false);
    assert!(place.bad(&["gc", "--explain", &"0".repeat(64)], 1).contains("there is no object"));
    assert!(place.bad(&["gc", "--rate", "fast"], 2).contains("is no rate"));
    assert_eq!(place.json(&["gc", "--rate", "1G"])["layer_trees"]["count"], 1);
    assert_eq!(place.json(&["layer", "ls"]), json!([]));
    assert_eq!(place.bad(&["image", "show", "app:1"], 1), "mica: there is no image app:1\n");
}

#[test]
fn import_of_something_else_is_refused_by_name() {
    let place = Place::new();
    std::fs::write(place.path("thesis.tex"), "x").unwrap();
    assert!(place.bad(&["image", "import", "thesis.tex"], 1).contains("thesis.tex"));
    assert!(place.bad(&["image", "import", "nowhere"], 1).contains("nowhere"));
    let layout = place.layout();
    for blob in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap().path();
        if std::fs::metadata(&blob).unwrap().len() > 9000 {
            std::fs::write(&blob, vec![0; 10752]).unwrap();
        }
    }
    let err = place.bad(&["image", "import", "layout"], 1);
    assert!(err.contains("sha256:"), "{err}");
    assert_eq!(place.json(&["image", "ls"]), json!([]));
}

#[test]
fn damage_is_found_named_contained_and_repaired() {
    let place = Place::new();
    let layout = place.layout().display().to_string();
    place.good(&["image", "import", &layout, "--name", "app:1"]);
    assert!(place.good(&["fsck", "--data", "--deep"]).contains("nothing is wrong"));
    assert!(place.good(&["layer", "verify", "--all"]).contains("whole"));
    assert_eq!(place.json(&["scrub"])["complete"], true);

    let id = Digest::of(&vec![b'x'; 9000]);
    let object = place.path("root/objects").join(mica_layerdb::ObjectId(id).relative_path());
    let damage = || {
        std::fs::remove_file(&object).unwrap();
        std::fs::write(&object, vec![b'y'; 9000]).unwrap();
        std::fs::set_permissions(&object, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    };
    damage();
    place.good(&["fsck"]);
    for words in [&["fsck", "--data"][..], &["layer", "verify", "--all"]] {
        let said = place.run(words);
        assert_eq!(said.code, Some(1), "{words:?}: {said:?}");
        assert!(said.out.contains(&id.hex()) && said.out.contains("app:1"), "{words:?}: {said:?}");
    }
    let repaired = place.good(&["layer", "verify", "--all", "--repair", "--from", &layout]);
    assert!(repaired.contains("written anew") && repaired.contains(&id.hex()), "{repaired}");
    damage();
    let said = place.run(&["--json", "scrub"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let fsck = place.run(&["--json", "fsck"]);
    assert_eq!(fsck.code, Some(1), "{fsck:?}");
    let report: Value = serde_json::from_str(&fsck.out).unwrap();
    assert_eq!(report["found"][0]["name"], "missing-object");
    assert_eq!(report["found"][0]["severity"], "error");
    assert_eq!(report["quarantined"].as_array().unwrap().len(), 2);
    place.good(&["image", "import", &layout, "--name", "app:1"]);
    let said = place.good(&["fsck", "--data", "--empty-quarantine"]);
    assert!(said.contains("nothing is wrong"), "{said}");
    assert!(place.bad(&["layer", "verify"], 2).contains("DIGEST"));
    place.bad(&["layer", "verify", "--all", "--from", &layout], 2);
}

#[test]
fn newer_store_is_refused_by_every_verb() {
    let place = Place::new();
    std::fs::create_dir(place.path("root")).unwrap();
    std::fs::write(place.path("root/FORMAT"), r#"{"version":7,"uuid":"u"}"#).unwrap();
    for words in [&["image", "ls"][..], &["serve"], &["gc"]] {
        let err = place.bad(words, 1);
        assert!(err.contains("version 7"), "{words:?}: {err}");
    }
    assert_eq!(std::fs::read_dir(place.path("root")).unwrap().count(), 1);
}

#[test]
fn serve_refuses_what_it_does_not_know() {
    let place = Place::new();
    std::fs::write(place.path("config.toml"), "rooot = \"/x\"\n").unwrap();
    let err = place.bad(&["serve", "--config", "config.toml"], 1);
    assert!(err.contains("rooot") && err.contains("config.toml"), "{err}");
    let err = place.bad(&["serve", "--address", "tcp://127.0.0.1:1"], 1);
    assert!(err.contains("tcp://127.0.0.1:1"), "{err}");
    assert!(!place.path("root").exists());
}

#[test]
fn umount_of_what_is_not_ours_is_refused() {
    let place = Place::new();
    assert!(place.bad(&["umount", "/proc"], 1).contains("/proc is not a mount of Mica"));
    assert!(place.bad(&["umount", "nowhere/at/all"], 1).contains("nowhere/at/all"));
    assert_eq!(place.good(&["umount", "--all"]), "");
}

#[test]
fn doctor_tells_as_json_too() {
    let place = Place::new();
    let said = place.run(&["--json", "doctor", "--containerd", "/nowhere.sock"]);
    let findings: Value = serde_json::from_str(&said.out).unwrap();
    let checks: Vec<&str> = findings.as_array().unwrap().iter().filter_map(|it| it["check"].as_str()).collect();
    assert!(checks.contains(&"fuse device") && checks.contains(&"containerd"), "{checks:?}");
}

/// Ends a daemon, however the test ends.
struct Daemon<'a> {
    place: &'a Place,
    child: std::process::Child,
}

impl Daemon<'_> {
    fn start(place: &Place) -> Daemon<'_> {
        let child = place.command(&["serve"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Daemon { place, child };
        for _ in 0..400 {
            if place.path("root/daemon.json").exists() {
                return daemon;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        panic!("the daemon doesn't answer");
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.place.run(&["umount", "--all"]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn verbs_answer_the_same_through_a_daemon() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    place.layout();
    let alone = place.json(&["image", "import", "layout", "--name", "app:1"]);
    let mut daemon = Daemon::start(&place);
    assert_eq!(place.json(&["image", "ls"]), alone);
    let said = place.run(&["image", "import", "layout", "--name", "app:2"]);
    assert!(said.err.contains("there already"), "{said:?}");
    assert_eq!(place.json(&["image", "ls"]).as_array().unwrap().len(), 2);
    assert_eq!(place.json(&["layer", "ls"]).as_array().unwrap().len(), 1);
    assert_eq!(place.json(&["snapshot", "ls"]), json!([]));
    assert_eq!(place.bad(&["snapshot", "show", "nobody"], 1), "mica: snapshot nobody does not exist\n");
    assert_eq!(place.bad(&["image", "rm", "nobody"], 1), "mica: there is no image nobody\n");
    let second = place.bad(&["serve", "--state", "other"], 1);
    assert!(second.contains(&daemon.child.id().to_string()), "{second}");

    let ended = place.good(&["umount", "--all"]);
    assert!(ended.contains(&format!("daemon {} has ended", daemon.child.id())), "{ended}");
    assert!(daemon.child.wait().unwrap().success());
    assert_eq!(leftovers(&place.path("state")), [] as [PathBuf; 0]);
    assert!(!place.path("root/daemon.json").exists());
    assert_eq!(place.json(&["image", "ls"]).as_array().unwrap().len(), 2);
}

/// Sockets and mountpoints of a state folder.
fn leftovers(state: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = [state.join("mnt"), state.join("mounts")];
    let direct = list(state).filter(|path| !folders.contains(path));
    direct.chain(folders.iter().flat_map(|folder| list(folder))).collect()
}

/// Unmounts, however the test ends.
struct Unmounted<'a>(&'a Place);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        self.0.run(&["umount", "--all"]);
    }
}

#[test]
fn directories_are_mounted_until_they_are_unmounted() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    for (dir, text) in [("top", "top"), ("base", "base")] {
        std::fs::create_dir(place.path(dir)).unwrap();
        std::fs::write(place.path(dir).join("file"), text).unwrap();
    }
    for dir in ["upper", "work", "mnt"] {
        std::fs::create_dir(place.path(dir)).unwrap();
    }
    let _unmounted = Unmounted(&place);
    assert_eq!(place.good(&["mount", "-o", "lowerdir=top:base,upperdir=upper", "-o", "workdir=work", "mnt"]), "");
    assert_eq!(std::fs::read(place.path("mnt/file")).unwrap(), b"top");
    std::fs::write(place.path("mnt/new"), "x").unwrap();
    let open = std::fs::File::open(place.path("mnt/file")).unwrap();
    let err = place.bad(&["umount", "mnt"], 1);
    assert!(err.contains("in use") && err.contains("--lazy"), "{err}");
    drop(open);
    assert_eq!(place.good(&["umount", "mnt"]), "");
    assert_eq!(std::fs::read_dir(place.path("mnt")).unwrap().count(), 0);
    assert_eq!(std::fs::read(place.path("upper/new")).unwrap(), b"x");
    assert_eq!(leftovers(&place.path("state")), [] as [PathBuf; 0]);
    assert!(place.bad(&["umount", "mnt"], 1).contains("is not a mount of Mica"));

    // Without an upper it is read-only; `--all` ends it.
    place.good(&["mount", "-o", "lowerdir=base", "mnt"]);
    assert!(std::fs::write(place.path("mnt/file"), "x").is_err());
    assert!(place.good(&["umount", "--all"]).contains("mnt"));
    assert_eq!(std::fs::read_dir(place.path("mnt")).unwrap().count(), 0);
    for (options, named) in [("lowerdir=nowhere", "nowhere"), ("lowerdir=top,upperdir=base", "upperdir")] {
        let said = place.run(&["mount", "-o", options, "mnt"]);
        assert!(said.code != Some(0) && said.err.contains(named), "{said:?}");
    }
}

#[test]
fn image_is_mounted_alone_and_beside_a_daemon() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    place.layout();
    for dir in ["one", "two"] {
        std::fs::create_dir(place.path(dir)).unwrap();
    }
    place.good(&["image", "import", "layout", "--name", "app:1"]);
    let _unmounted = Unmounted(&place);
    place.good(&["mount", "--image", "app:1", "one"]);
    let _daemon = Daemon::start(&place);
    place.good(&["mount", "--image", "app:1", "--rw", "changes", "two"]);
    for dir in ["one", "two"] {
        // By another program: a descriptor of ours could be in a child that another test starts at this moment, and then
        // the file, a program's text, could not be written.
        let cat = Command::new("cat").arg(place.path(dir).join("app")).output().unwrap();
        assert_eq!(cat.stdout, [b'x'; 9000]);
    }
    std::fs::write(place.path("two/app"), "changed").unwrap();
    assert_eq!(std::fs::read(place.path("changes/upper/app")).unwrap(), b"changed");
    place.good(&["image", "rm", "app:1"]);
    assert_eq!(place.json(&["gc"])["layer_trees"]["count"], 0);
    assert_eq!(std::fs::read(place.path("one/app")).unwrap(), [b'x'; 9000]);
    place.good(&["umount", "one"]);
    assert_eq!(place.json(&["gc"])["layer_trees"]["count"], 0);
    place.good(&["umount", "two"]);
    assert_eq!(place.json(&["gc"])["layer_trees"]["count"], 1);
    assert!(place.bad(&["mount", "--image", "app:1", "one"], 1).contains("app:1"));
    assert_eq!(std::fs::read_dir(place.path("root/mounts")).unwrap().count(), 0);
}

#[test]
fn umount_all_after_a_killed_daemon_leaves_nothing_of_it() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(place.path("root/daemon.json").exists() && place.path("state/mica.sock").exists());
    place.good(&["umount", "--all"]);
    assert_eq!(leftovers(&place.path("state")), [] as [PathBuf; 0]);
    assert!(!place.path("root/daemon.json").exists());
}

#[test]
fn called_as_fuse_overlayfs_or_mount_helper_it_takes_their_command_lines() {
    let place = Place::new();
    for name in ["fuse-overlayfs", "mount.fuse.mica"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mica"), place.path(name)).unwrap();
    }
    let run = |name: &str, words: &[&str]| {
        let output = Command::new(place.path(name)).args(words).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = run("fuse-overlayfs", &["--version"]);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("fuse-overlayfs: version "), "{out}");
    // Unknown options are named, and are not why it fails.
    let missing = place.path("absent").display().to_string();
    let options = format!("lowerdir={missing},private,frob=1");
    let mountpoint = place.folder.path().display().to_string();
    let (code, out, err) = run("fuse-overlayfs", &["-o", &options, "-q", "overlay", &mountpoint]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    for said in ["unknown argument ignored: private", "ignored: frob=1", "ignored: -q", &missing] {
        assert!(err.contains(said), "no {said:?} in {err}");
    }
    let (code, _, err) = run("mount.fuse.mica", &["mica", &mountpoint, "-o", "rw,lowerdir=/,frob=1"]);
    assert!(code == Some(1) && err.contains("frob=1"), "{err}");
    let (code, _, err) = run("mount.fuse.mica", &["mica", &mountpoint, "-sf", "-o", "rw,lowerdir=/,frob=1"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
}
