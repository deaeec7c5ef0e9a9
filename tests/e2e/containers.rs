//! Images and containers as their users see them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use mica_tests::command::succeed;
use mica_tests::scene::Scene;
use mica_tests::wait::LATER;
use mica_tests::{Context as _, Result, ensure, ensure_eq, fail};

use crate::stage::on_both_engines;

on_both_engines!(
    container_of_many_layers_prints_what_they_hold,
    container_sees_deleted_replaced_and_opaque_entries,
    containers_of_one_image_do_not_see_each_others_writes,
    container_changes_files_of_every_layer,
    mounted_image_equals_overlayfs,
    view_refuses_writes,
);

fn container_of_many_layers_prints_what_they_hold(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let said = scene.containerd.run(&image, &[])?.text();
    ensure!(said.starts_with("station 2: years 2020 2021, 2190 readings"), "it said {said:?}");
    ensure!(said.trim_end().ends_with("cache fresh"), "it said {said:?}");
    let other = scene.pulled("ledger")?;
    ensure_eq!(scene.containerd.run(&other, &[])?.text(), "ledger: 3 accounts, balance 1815\n", "the second image");
    // Every installed file that its package still knows is as the package made it.
    let verified = scene.containerd.run(&image, &["sh", "-c", "dpkg --verify; echo end"])?.text();
    let mut changed: Vec<&str> = verified.lines().filter_map(|line| line.split_whitespace().last()).collect();
    // The images are made without caches and logs.
    changed.retain(|path| !path.starts_with("/var/"));
    changed.sort_unstable();
    ensure_eq!(
        changed,
        ["/etc/issue", "/etc/issue.net", "/usr/share/doc/python3-numpy/copyright", "end"],
        "files that differ from their packages"
    );
    Ok(())
}

fn container_sees_deleted_replaced_and_opaque_entries(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let container = scene.containerd.start_container(&image)?;
    for gone in [
        "/srv/station/data/2019.csv",
        "/srv/station/drafts",
        "/srv/station/cache/stale",
        "/usr/share/doc/python3-numpy/copyright",
        "/etc/issue.net",
    ] {
        let listed = container.try_exec(&["ls", "-d", gone])?;
        ensure!(!listed.status.success(), "{gone} is deleted in an upper layer, and is there");
        let parent = Path::new(gone).parent().context("has a parent")?.display().to_string();
        let names = container.exec(&["ls", "-A", &parent])?;
        let name = gone.rsplit('/').next().unwrap_or_default();
        ensure!(!names.lines().any(|line| line == name), "{parent} lists {name}");
        ensure!(!names.contains(".wh."), "{parent} shows marks: {names}");
    }
    ensure_eq!(container.exec(&["cat", "/etc/issue"])?, "a station made of layers\n", "a replaced file");
    ensure_eq!(container.exec(&["cat", "/srv/station/config.json"])?, "{ \"release\": 2 }\n", "a replaced file");
    ensure_eq!(container.exec(&["ls", "-A", "/srv/station/cache"])?, "fresh\n", "a replaced folder");
    ensure_eq!(container.exec(&["stat", "-c", "%a", "/srv/station/data"])?, "700\n", "a changed mode");
    let linked = container.exec(&["stat", "-c", "%h %i", "/srv/station/data/2021.csv", "/srv/station/newest.csv"])?;
    let mut lines = linked.lines();
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    ensure!(first == second && first.starts_with("2 "), "links and inode of a hard-linked pair: {linked:?}");
    ensure_eq!(container.exec(&["readlink", "/srv/station/latest"])?, "data/2021.csv\n", "a symbolic link");
    let probe = container.rootfs().join("usr/local/bin/probe");
    let capability = succeed(Command::new("getcap").arg(probe), LATER)?.text();
    ensure!(capability.contains("cap_net_raw"), "capability of a program: {capability:?}");
    container.remove()
}

fn containers_of_one_image_do_not_see_each_others_writes(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let (one, two) = (scene.containerd.start_container(&image)?, scene.containerd.start_container(&image)?);
    one.shell("echo one > /srv/mine; echo one >> /etc/issue; rm /etc/debian_version; rm -r /usr/share/doc")?;
    two.shell("echo two > /srv/mine; echo two >> /etc/issue")?;
    ensure_eq!(one.exec(&["cat", "/srv/mine"])?, "one\n", "its own file");
    ensure_eq!(two.exec(&["cat", "/srv/mine"])?, "two\n", "its own file");
    ensure_eq!(one.exec(&["cat", "/etc/issue"])?, "a station made of layers\none\n", "its own change");
    ensure_eq!(two.exec(&["cat", "/etc/issue"])?, "a station made of layers\ntwo\n", "its own change");
    two.exec(&["cat", "/etc/debian_version"])?;
    two.exec(&["ls", "-d", "/usr/share/doc/python3-numpy"])?;
    one.remove()?;
    two.remove()?;
    let script = "ls /srv; cat /etc/issue; ls -d /usr/share/doc /etc/debian_version";
    let fresh = scene.containerd.run(&image, &["sh", "-c", script])?.text();
    ensure_eq!(
        fresh,
        "station\na station made of layers\n/etc/debian_version\n/usr/share/doc\n",
        "the image after its containers"
    );
    Ok(())
}

fn container_changes_files_of_every_layer(scene: &mut Scene) -> Result {
    let image = scene.pulled("station")?;
    let container = scene.containerd.start_container(&image)?;
    container.shell(
        r#"set -e
        cd /srv/station
        # a reader that was there before sees what is written afterwards
        exec 3< config.json
        echo '{ "release": 3 }' > config.json
        [ "$(cat <&3)" = '{ "release": 3 }' ]
        exec 3<&-
        # both names of a hard-linked pair change, and stay a pair
        echo 2021-999,00,0.00 >> newest.csv
        tail -n 1 data/2021.csv | grep -q 2021-999
        [ "$(stat -c %i newest.csv)" = "$(stat -c %i data/2021.csv)" ]
        # a folder of a lower layer changes its name, keeps its contents and takes new ones
        before=$(ls data | sort)
        mv data readings
        [ ! -e data ]
        [ "$(ls readings | sort)" = "$before" ]
        mkdir data
        [ -z "$(ls -A data)" ]
        echo new > readings/new
        rm -r readings
        [ ! -e readings ]
        mkdir readings
        [ -z "$(ls -A readings)" ]
        # of the bottom layer: a big folder moves away and back
        mv /usr/share/doc /usr/share/doc.away
        mv /usr/share/doc.away /usr/share/doc
        ls /usr/share/doc/base-files >/dev/null
        # owner, mode and times without contents
        touch -d 2001-02-03T04:05:06Z /etc/passwd
        chmod 0600 /etc/passwd
        chown 12:34 /etc/passwd
        [ "$(stat -c '%Y %a %u %g' /etc/passwd)" = '981173106 600 12 34' ]
        grep -q ^root: /etc/passwd
        # special files
        mkfifo pipe
        ln -s nowhere dangling
        ln config.json twin
        [ "$(stat -c %h twin)" = 2 ]
        "#,
    )?;
    container.exec(&[
        "python3",
        "-c",
        r#"
import mmap, os
# shared memory of a file of a lower layer
with open("/usr/share/common-licenses/GPL-3", "r+b") as file:
    length = len(file.read())
    view = mmap.mmap(file.fileno(), 0)
    view[0:5] = b"mica!"
    view.flush()
    view.close()
assert open("/usr/share/common-licenses/GPL-3", "rb").read(5) == b"mica!"
assert os.stat("/usr/share/common-licenses/GPL-3").st_size == length
# an unlinked file lives while it is open
file = open("/etc/login.defs", "r+b")
os.unlink("/etc/login.defs")
file.write(b"still here")
file.seek(0)
assert file.read(10) == b"still here"
assert os.fstat(file.fileno()).st_nlink == 0
file.close()
# a name that was there is taken over in one step
open("/etc/new", "w").write("new")
os.replace("/etc/new", "/etc/hostname")
assert open("/etc/hostname").read() == "new"
os.setxattr("/etc/hostname", "user.colour", b"grey")
assert os.getxattr("/etc/hostname", "user.colour") == b"grey"
# a sparse file stays one
with open("/srv/sparse", "wb") as file:
    file.truncate(1 << 30)
    file.seek(1 << 29)
    file.write(b"island")
assert os.stat("/srv/sparse").st_blocks < 1024
"#,
    ])?;
    container.remove()
}

/// The same image, unpacked by containerd's own snapshotter, is the oracle: every name, attribute and content.
fn mounted_image_equals_overlayfs(scene: &mut Scene) -> Result {
    let start = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64().floor();
    let image = scene.pulled("station")?;
    scene.containerd.ctr(&["image", "pull", "--plain-http", "--snapshotter", "overlayfs", &image])?;
    let mut trees = Vec::new();
    for (snapshotter, kind) in [("mica", "fuse.mica"), ("overlayfs", "overlay")] {
        let mounted = scene.containerd.mount_image(&image, snapshotter)?;
        ensure_eq!(mounted.filesystem()?, kind, "what is mounted for {snapshotter}");
        trees.push(tree_of(mounted.path())?);
    }
    let (mica, overlayfs) = (&trees[0], &trees[1]);
    ensure!(overlayfs.len() > 5000, "the oracle has only {} entries", overlayfs.len());
    let names: BTreeSet<&String> = mica.keys().chain(overlayfs.keys()).collect();
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| !equal(mica.get(*name), overlayfs.get(*name), start))
        .map(|name| format!("{name}:\n  overlayfs {:?}\n  mica {:?}", overlayfs.get(name), mica.get(name)))
        .collect();
    ensure!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing[..differing.len().min(20)].join("\n"));
    Ok(())
}

/// What a tree has under one name.
#[derive(Debug, Default)]
struct Entry {
    attributes: String,
    modified: f64,
    contents: String,
}

/// A directory that a layer doesn't list but has entries in gets the time of the unpacking wherever a mount is made for
/// it. There is nothing to compare then.
fn equal(mica: Option<&Entry>, overlayfs: Option<&Entry>, start: f64) -> bool {
    let (Some(mica), Some(overlayfs)) = (mica, overlayfs) else { return false };
    let by_chance = overlayfs.attributes.starts_with('d') && overlayfs.modified >= start;
    mica.attributes == overlayfs.attributes
        && mica.contents == overlayfs.contents
        && (by_chance || mica.modified.total_cmp(&overlayfs.modified).is_eq())
}

/// Every entry with kind, mode, owner, links, size, time and target, and every file with its digest. Sizes and links
/// of directories are each filesystem's own.
fn tree_of(root: &Path) -> Result<BTreeMap<String, Entry>> {
    let (directory, other) = (r"%P\t%T@\t%y %m %U:%G\n", r"%P\t%T@\t%y %m %U:%G %n %s %l\n");
    let mut command = Command::new("find");
    command.arg(root).args(["-type", "d", "-printf", directory, "-o", "-printf", other]);
    let listed = succeed(&mut command, LATER)?.text();
    let mut tree: BTreeMap<String, Entry> = BTreeMap::new();
    for line in listed.lines() {
        let mut parts = line.splitn(3, '\t');
        let (Some(name), Some(modified), Some(attributes)) = (parts.next(), parts.next(), parts.next()) else {
            fail!("a line of find: {line:?}");
        };
        let entry = Entry { attributes: attributes.to_owned(), modified: modified.parse()?, contents: String::new() };
        tree.insert(name.to_owned(), entry);
    }
    let script = "find . -type f -print0 | sort -z | xargs -0 sha256sum";
    let digests = succeed(Command::new("sh").args(["-c", script]).current_dir(root), LATER)?.text();
    for line in digests.lines() {
        let (digest, name) = line.split_once("  ./").context(format!("a line of sha256sum: {line:?}"))?;
        tree.entry(name.to_owned()).or_default().contents += digest;
    }
    let script = "getfattr -R -P -h -d -m '^(user|security|trusted)' .";
    let attributes = succeed(Command::new("sh").args(["-c", script]).current_dir(root), LATER)?.text();
    for block in attributes.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let (name, values) = block.trim().split_once('\n').context(format!("a block of getfattr: {block:?}"))?;
        let mut values: Vec<&str> = values.lines().collect();
        values.sort_unstable();
        tree.entry(name.trim_start_matches("# file: ").to_owned()).or_default().contents += &values.join(" ");
    }
    Ok(tree)
}

fn view_refuses_writes(scene: &mut Scene) -> Result {
    let image = scene.pulled("base")?;
    let mounted = scene.containerd.mount_image(&image, "mica")?;
    ensure_eq!(mounted.filesystem()?, "fuse.mica", "what is mounted");
    let written = std::fs::write(mounted.path().join("new"), "x");
    let opened = std::fs::File::options().write(true).open(mounted.path().join("etc/passwd"));
    let removed = std::fs::remove_file(mounted.path().join("etc/passwd"));
    for refused in [written.err(), opened.err(), removed.err()] {
        let error = refused.context("a change of a view succeeded")?;
        ensure_eq!(error.raw_os_error(), Some(libc::EROFS), "a change of a view");
    }
    Ok(())
}
