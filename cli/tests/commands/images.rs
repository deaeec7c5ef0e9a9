//! Images in and out, what they are called, and how they differ.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use mica_layerdb::Digest;
use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags};
use serde_json::{Value, json};

use crate::{Daemon, Place, is_root, tar};

/// A folder with something of everything that a user can make.
fn folder(place: &Place, name: &str) {
    let root = place.path(name);
    fs::create_dir_all(root.join("etc/empty")).unwrap();
    fs::write(root.join("etc/motd"), "hello\n").unwrap();
    fs::write(root.join("large"), vec![7; 300_000]).unwrap();
    fs::hard_link(root.join("large"), root.join("etc/large-too")).unwrap();
    std::os::unix::fs::symlink("../large", root.join("etc/link")).unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not-\xff-text")), "x").unwrap();
    rustix::fs::mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    // Temporary folders may lie on a filesystem without attributes.
    let _ = rustix::fs::setxattr(root.join("large"), "user.mime", b"text", XattrFlags::empty());
    fs::set_permissions(root.join("etc"), fs::Permissions::from_mode(0o1751)).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for path in ["large", "etc/motd", "etc/empty", "etc", "."] {
        File::open(root.join(path)).unwrap().set_modified(old).unwrap();
    }
}

/// Everything below a folder: type and mode, owner, time, links, and contents or target.
fn listing(root: &Path) -> Vec<(Vec<u8>, String)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let data = fs::symlink_metadata(&path).unwrap();
        let contents = if data.is_file() {
            let mut value = [0; 64];
            let xattr = rustix::fs::getxattr(&path, "user.mime", &mut value).unwrap_or(0);
            format!("{} {}", Digest::of(&fs::read(&path).unwrap()), value[..xattr].escape_ascii())
        } else if data.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            String::new()
        };
        if data.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let time = if data.is_symlink() { 0 } else { data.mtime_nsec() };
        let links = if data.is_dir() { 0 } else { data.nlink() };
        let told = format!("{:o} {} {} {time} {links} {contents}", data.mode(), data.uid(), data.gid());
        found.push((path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), told));
    }
    found.sort();
    found
}

fn digests(report: &Value) -> (String, Vec<String>) {
    let layers = report["image"]["layers"].as_array().unwrap();
    let config = report["image"]["config"].as_str().unwrap().to_owned();
    (config, layers.iter().map(|layer| layer.as_str().unwrap().to_owned()).collect())
}

#[test]
fn folder_survives_import_and_export() {
    let place = Place::new();
    folder(&place, "tree");
    let images =
        place.json(&["image", "import", "tree", "--name", "tree", "--change", "CMD [\"sh\"]", "--message", "m"]);
    assert_eq!(images[0]["name"], "tree:latest");
    assert_eq!(place.good(&["image", "export", "tree", "--format", "dir", "out/"]).lines().count(), 1);
    assert_eq!(listing(&place.path("out")), listing(&place.path("tree")));
    let shown = place.good(&["image", "show", "tree"]);
    assert!(shown.contains("cmd       [\"sh\"]"), "{shown}");
    let history = place.json(&["image", "history", "tree"]);
    assert_eq!(history["history"][0]["comment"], "m");
    assert_eq!(history["history"][0]["changes"]["added"]["files"], 4);
    assert_eq!(history["history"][0]["changes"]["added"]["bytes_after"], 300_007);

    // The same again is the same layer, also by way of a tar, and of a compressed one.
    let again = place.json(&["image", "import", "tree", "--name", "again"]);
    assert_eq!(again[0]["layers"], images[0]["layers"]);
    place.good(&["image", "export", "tree", "--format", "tar", "tree.tar"]);
    place.good(&["image", "import", "tree.tar", "--name", "from-tar"]);
    let compressed = zstd(&fs::read(place.path("tree.tar")).unwrap());
    fs::write(place.path("tree.tar.zst"), compressed).unwrap();
    place.good(&["image", "import", "tree.tar.zst", "--name", "from-zst", "--platform", "linux/arm/v7"]);
    assert_eq!(place.json(&["image", "show", "from-zst"])["config"]["variant"], "v7");
    for name in ["from-tar", "from-zst"] {
        let diff = place.json(&["image", "diff", "--times", "tree", name]);
        assert_eq!(diff["changes"], json!([]), "{name}");
    }
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

#[test]
fn image_survives_every_form_of_archive() {
    let place = Place::new();
    place.layout();
    place.good(&["image", "import", "layout", "--name", "app:1"]);
    let original = place.json(&["image", "show", "app:1"]);
    let manifest = original["image"]["manifest"].as_str().unwrap().to_owned();
    for (at, (form, target)) in
        [("oci", "one"), ("oci-archive", "two.tar"), ("docker-archive", "three.tar")].into_iter().enumerate()
    {
        let told = place.json(&["image", "export", "app:1", target, "--format", form]);
        // Its one blob is the tar itself, which comes back as it was: so does the manifest.
        assert_eq!((told["manifest"].as_str(), &told["layers"][0]["blob"]), (Some(&*manifest), &json!("original")));
        let root = format!("root-{at}");
        let import = ["--root", &root, "image", "import", target];
        let images = place.json(&import);
        assert_eq!(images[0]["name"], "app:1", "{form}");
        let again = place.json(&["--root", &root, "image", "show", "app:1"]);
        assert_eq!(digests(&again), digests(&original), "{form}");
        // docker's archives have no manifest: they get one.
        assert!(form == "docker-archive" || again["image"]["manifest"] == original["image"]["manifest"]);
    }
    // Standard output holds the archive and nothing else.
    let stdout = place.command(&["image", "export", "app:1", "-"]).output().unwrap();
    assert!(stdout.stdout == fs::read(place.path("two.tar")).unwrap());
    let umask = fs::metadata(place.path("one")).unwrap().mode() & 0o777;
    assert_eq!(umask, 0o755);
}

#[test]
fn blobs_that_are_made_again_are_told_and_then_stay() {
    let place = Place::new();
    place.layout();
    place.good(&["image", "import", "layout", "--name", "app:1"]);
    let original = place.json(&["image", "show", "app:1"]);
    for compression in ["gzip", "zstd"] {
        let target = format!("{compression}.oci");
        let told = place.json(&["image", "export", "app:1", &target, "--compression", compression]);
        assert_eq!(told["layers"][0]["blob"], "remade");
        let manifest = fs::read(place.path(&target).join(blob(told["manifest"].as_str().unwrap()))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let layer = &manifest["layers"][0];
        assert_eq!(layer["annotations"]["mica.blob"], "remade");
        assert_eq!(layer["annotations"]["mica.blob.original"], original["manifest"]["layers"][0]["digest"]);
        assert_eq!(manifest["annotations"]["mica.manifest.original"], original["image"]["manifest"]);
        assert!(layer["mediaType"].as_str().unwrap().ends_with(compression));
        // What Mica has compressed, it compresses the same: the second export is the first one.
        let root = format!("root-{compression}");
        place.good(&["--root", &root, "image", "import", &target]);
        assert_eq!(digests(&place.json(&["--root", &root, "image", "show", "app:1"])), digests(&original));
        let again = place.json(&["--root", &root, "image", "export", "app:1", &format!("{target}-again")]);
        assert_eq!((&again["manifest"], &again["layers"][0]["blob"]), (&told["manifest"], &json!("original")));
    }
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap())
}

#[test]
fn layer_comes_back_byte_for_byte_and_is_shown() {
    let place = Place::new();
    place.layout();
    place.good(&["image", "import", "layout", "--name", "app:1"]);
    let layer = place.json(&["layer", "ls"])[0]["diff_id"].as_str().unwrap().to_owned();
    let plain = tar("app", &vec![b'x'; 9000]);
    let out = place.command(&["layer", "export", &layer[..14]]).output().unwrap();
    assert!(out.stdout == plain);
    place.good(&["layer", "export", &layer, "-o", "layer.tar"]);
    assert!(fs::read(place.path("layer.tar")).unwrap() == plain);
    let shown = place.good(&["layer", "show", &layer]);
    assert!(shown.contains("used by  image app:1") && shown.contains("1 with 8.79 KiB"), "{shown}");
    assert_eq!(place.json(&["layer", "show", &layer])["contents"]["files"], 1);
    assert!(place.bad(&["layer", "show", "sha256:0000"], 1).contains("there is no layer sha256:0000"));
    assert!(place.bad(&["layer", "export", "cafe", "-o", "x"], 1).contains("there is no layer cafe"));
    assert!(place.bad(&["layer", "export", &layer, "-o", "nowhere/x"], 1).contains("nowhere/x"));
    assert!(place.bad(&["layer", "export", &layer, "-o", "layout"], 1).contains("layout"));

    // Damage shows in the digest at the end: the file of before stays, and no other.
    let object =
        objects(&place.path("root/objects")).into_iter().find(|path| fs::metadata(path).unwrap().len() == 9000);
    let object = object.unwrap();
    fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&object, vec![b'y'; 9000]).unwrap();
    fs::write(place.path("layer.tar"), "before").unwrap();
    let before = names(&place.path("."));
    place.bad(&["layer", "export", &layer, "-o", "layer.tar"], 1);
    assert_eq!(fs::read(place.path("layer.tar")).unwrap(), b"before");
    for form in ["oci", "oci-archive", "docker-archive", "tar", "dir"] {
        let said = place.run(&["image", "export", "app:1", "out", "--format", form]);
        assert_eq!(said.code, Some(1), "{form}: {said:?}");
    }
    assert_eq!(names(&place.path(".")), before);
}

fn objects(folder: &Path) -> Vec<std::path::PathBuf> {
    let list = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    list(folder).iter().filter(|path| path.is_dir()).flat_map(|path| list(path)).collect()
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn differences_are_told_by_path_and_property() {
    let place = Place::new();
    folder(&place, "one");
    folder(&place, "two");
    let two = place.path("two");
    fs::write(two.join("etc/motd"), "hello, world\n").unwrap();
    fs::set_permissions(two.join("etc/empty"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(two.join("etc/large-too")).unwrap();
    fs::remove_file(two.join("pipe")).unwrap();
    fs::create_dir(two.join("pipe")).unwrap();
    fs::write(two.join(std::ffi::OsStr::from_bytes(b"new-\xfe\n")), "12").unwrap();
    for name in ["one", "two"] {
        place.good(&["image", "import", name, "--name", name]);
    }
    let diff = place.json(&["image", "diff", "one", "two"]);
    let told: Vec<(&str, &str, String)> = diff["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            let what = change["what"].as_array().map(|what| what.iter().filter_map(Value::as_str).collect::<Vec<_>>());
            let (kind, path) = (change["change"].as_str().unwrap(), change["path"].as_str().unwrap());
            (kind, path, what.unwrap_or_default().join(" "))
        })
        .collect();
    let expected = [
        ("changed", "/etc/empty", "mode"),
        ("removed", "/etc/large-too", ""),
        ("changed", "/etc/motd", "content"),
        ("changed", "/large", "links"),
        ("added", "/new-\\xfe\\x0a", ""),
        ("changed", "/pipe", "type"),
    ];
    assert_eq!(told, expected.map(|(kind, path, what)| (kind, path, what.to_owned())));
    assert_eq!((&diff["summary"]["added"]["files"], &diff["summary"]["removed"]["files"]), (&json!(1), &json!(1)));
    assert_eq!((&diff["before"]["name"], &diff["after"]["type"]), (&json!("one:latest"), &json!("image")));
    let text = place.good(&["image", "diff", "one", "two"]);
    assert!(text.contains("C /etc/motd  content, 6 B -> 13 B\n"), "{text}");
    assert!(
        text.contains("A /new-\\xfe\\x0a  file, 2 B\n") && text.contains("C /etc/empty  mode 0755 -> 0700"),
        "{text}"
    );
    // Layers by their digests, and each step's files.
    let layer = |name: &str| place.json(&["image", "show", name])["image"]["layers"][0].as_str().unwrap().to_owned();
    let layers = place.json(&["image", "diff", &layer("one"), &layer("two")]);
    assert_eq!(layers["changes"], diff["changes"]);
    assert!(place.bad(&["image", "diff", "one", &layer("two")], 1).contains("layer"));
    assert_eq!(
        place.bad(&["image", "diff", "one", "nobody"], 1),
        "mica: there is no image, snapshot or layer nobody\n"
    );
    let files = place.json(&["image", "history", "one", "--files"]);
    assert_eq!(files["history"][0]["files"].as_array().unwrap().len(), 8);
    assert_eq!(files["image"]["name"], "one:latest");
    assert!(place.good(&["image", "history", "one", "--files"]).contains("\n  A /etc/link  symlink to ../large\n"));
}

#[test]
fn images_are_found_by_every_name_that_means_them() {
    let place = Place::new();
    place.layout();
    place.good(&["image", "import", "layout", "--name", "app:1"]);
    assert!(place.good(&["image", "tag", "app:1", "docker.io/me/app"]).starts_with("docker.io/me/app:latest sha256:"));
    let manifest = place.json(&["image", "show", "app:1"])["image"]["manifest"].as_str().unwrap().to_owned();
    for (reference, name) in [
        ("docker.io/library/app:1".to_owned(), "app:1"),
        ("me/app".to_owned(), "docker.io/me/app:latest"),
        (format!("app@{manifest}"), "app:1"),
        (format!("docker.io/me/app:latest@{manifest}"), "docker.io/me/app:latest"),
    ] {
        assert_eq!(place.json(&["image", "show", &reference])["image"]["name"], name, "{reference}");
    }
    assert_eq!(place.json(&["image", "show", &manifest[7..15]])["image"]["manifest"], manifest);
    for reference in ["other", "app:2", "app", &format!("other@{manifest}")] {
        assert!(place.bad(&["image", "show", reference], 1).contains("there is no image"), "{reference}");
    }
    for name in ["App:1", "a b", "", "x@sha256:0", "-x"] {
        let said = place.run(&["image", "tag", "app:1", "--", name]);
        assert!(said.code == Some(1) && (said.err.contains("name") || said.err.contains("digest")), "{said:?}");
    }
    place.good(&["image", "rm", "me/app"]);
    assert_eq!(place.json(&["image", "ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn wrong_sources_and_targets_are_refused_and_leave_nothing() {
    let place = Place::new();
    folder(&place, "tree");
    fs::create_dir(place.path("deleted")).unwrap();
    fs::write(place.path("deleted/.wh.x"), "").unwrap();
    fs::create_dir(place.path("broken")).unwrap();
    fs::write(place.path("broken/oci-layout"), "{}").unwrap();
    fs::write(place.path("empty.tar"), "").unwrap();
    fs::write(place.path("cut.tar"), &tar("app", &[1; 2000])[..1000]).unwrap();
    place.layout();
    for (words, named) in [
        (&["tree"][..], "--name"),
        (&["tree", "--name", "Upper"], "lower case"),
        (&["tree", "--name", "x", "--change", "FLY away"], "FLY away"),
        (&["tree", "--name", "x", "--platform", "amd64"], "amd64"),
        (&["tree", "--name", "x", "--format", "oci"], "index.json"),
        (&["deleted", "--name", "x"], ".wh.x"),
        (&["broken", "--name", "x"], "index.json"),
        (&["empty.tar", "--name", "x"], "empty"),
        (&["cut.tar", "--name", "x"], "cut.tar"),
        (&["cut.tar", "--name", "x", "--format", "tar"], "cut.tar"),
        (&["layout", "--platform", "plan9/mips"], "plan9/mips"),
        (&["layout", "--change", "CMD x"], "configuration"),
    ] {
        let err = place.bad(&[&["image", "import"], words].concat(), 1);
        assert!(err.contains(named), "{words:?}: {err}");
    }
    assert_eq!(place.json(&["image", "ls"]), json!([]));
    assert_eq!(names(&place.path("root/tmp")), [""; 0]);

    place.good(&["image", "import", "tree", "--name", "x"]);
    let before = names(&place.path("."));
    for (words, code, named) in [
        (&["y", "out"][..], 1, "there is no image y"),
        (&["x", "tree", "--format", "dir"], 1, "not empty"),
        (&["x", "nowhere/out", "--format", "dir"], 1, "nowhere/out"),
        (&["x", "nowhere/out.tar"], 1, "nowhere/out.tar"),
        (&["x", "layout", "--format", "tar"], 1, "directory"),
        (&["x", "-", "--format", "dir"], 2, "standard output"),
        (&["x", "out", "--format", "tar", "--compression", "gzip"], 2, "--compression"),
        (&["x", "out", "--format", "zip"], 2, "zip"),
    ] {
        let err = place.bad(&[&["image", "export"], words].concat(), code);
        assert!(err.contains(named), "{words:?}: {err}");
    }
    assert_eq!(names(&place.path(".")), before);
}

#[test]
fn interrupted_export_leaves_nothing() {
    let place = Place::new();
    let root = place.path("many");
    for dir in 0..40 {
        fs::create_dir_all(root.join(dir.to_string())).unwrap();
        for file in 0..100 {
            fs::write(root.join(format!("{dir}/{file}")), "x").unwrap();
        }
    }
    place.good(&["image", "import", "many", "--name", "many"]);
    let before = names(&place.path("."));
    for _ in 0..3 {
        let mut child = place.command(&["image", "export", "many", "out", "--format", "dir"]).spawn().unwrap();
        while names(&place.path(".")) == before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let status = child.wait().unwrap();
        if status.success() {
            // It was faster than the signal, and then it is whole.
            assert_eq!(listing(&place.path("out")).len(), 4041);
            fs::remove_dir_all(place.path("out")).unwrap();
        }
        assert_eq!(names(&place.path(".")), before, "{status:?}");
    }
}

#[test]
fn a_user_gets_the_files_and_is_told_what_is_missing() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("tree")).unwrap();
    fs::write(place.path("tree/theirs"), "x").unwrap();
    fs::set_permissions(place.path("tree/theirs"), fs::Permissions::from_mode(0o4755)).unwrap();
    rustix::fs::chownat(CWD, place.path("tree/theirs"), Some(rustix::fs::Uid::from_raw(7)), None, AtFlags::empty())
        .unwrap();
    rustix::fs::mknodat(CWD, place.path("tree/null"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))
        .unwrap();
    place.good(&["image", "import", "tree", "--name", "tree"]);
    let mine = place.path("mine");
    fs::create_dir(&mine).unwrap();
    for path in [place.path("."), place.path("root"), mine.clone()] {
        let todo = std::process::Command::new("chown").args(["-R", "1000:1000"]).arg(&path).status().unwrap();
        assert!(todo.success());
    }
    let command = place.command(&["image", "export", "tree", "mine/out", "--format", "dir"]);
    fs::copy(command.get_program(), place.path("mica")).unwrap();
    // Folders of tests are root's own, and no user gets there: this one sees the place elsewhere.
    let script = "mount --bind \"$1\" /mnt && shift && cd /mnt && \
                  exec setpriv --reuid 1000 --regid 1000 --clear-groups ./mica \"$@\"";
    let mut as_user = std::process::Command::new("unshare");
    as_user.args(["--mount", "sh", "-c", script, "sh"]).arg(place.path(".")).args(command.get_args());
    let out = as_user.env("MICA_ROOT", "/mnt/root").output().unwrap();
    let err = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{err}");
    assert!(err.contains("you are not root") && err.contains("1 devices"), "{err}");
    let data = fs::metadata(mine.join("out/theirs")).unwrap();
    assert_eq!((data.uid(), data.mode() & 0o7777), (1000, 0o755));
    assert!(!mine.join("out/null").exists());
}

#[test]
fn transfer_goes_through_a_daemon_too() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    place.layout();
    folder(&place, "tree");
    place.good(&["image", "import", "tree", "--name", "tree"]);
    place.good(&["image", "import", "layout", "--name", "app:1"]);
    let alone = |words: &[&str]| place.command(words).output().unwrap().stdout;
    let calls: [&[&str]; 6] = [
        &["image", "export", "app:1", "-"],
        &["image", "export", "tree", "-", "--format", "tar"],
        &["image", "history", "tree", "--files"],
        &["--json", "image", "diff", "app:1", "tree"],
        &["image", "diff", "app:1", "tree"],
        &["--json", "image", "history", "app:1"],
    ];
    let before: Vec<Vec<u8>> = calls.iter().map(|words| alone(words)).collect();
    assert!(before.iter().all(|out| !out.is_empty()));
    let _daemon = Daemon::start(&place);
    for (words, before) in calls.iter().zip(&before) {
        assert!(alone(words) == *before, "{words:?}");
    }
    place.good(&["image", "export", "tree", "out", "--format", "dir"]);
    assert_eq!(listing(&place.path("out")), listing(&place.path("tree")));
    let layer = place.json(&["image", "show", "app:1"])["image"]["layers"][0].as_str().unwrap().to_owned();
    assert!(alone(&["layer", "export", &layer]) == tar("app", &vec![b'x'; 9000]));
    place.good(&["image", "tag", "app:1", "app:2"]);
    assert!(place.bad(&["image", "export", "nobody", "x"], 1).contains("there is no image nobody"));
    assert!(place.bad(&["snapshot", "diff", "nobody"], 1).contains("nobody"));
    assert!(place.bad(&["snapshot", "commit", "nobody", "--name", "x"], 1).contains("nobody"));
    assert!(place.bad(&["snapshot", "commit", "nobody"], 2).contains("--name"));
    assert!(!place.path("x").exists());
}
