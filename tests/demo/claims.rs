//! The claims, one function each.

use std::process::Command;
use std::time::Duration;

use mica_tests::command::succeed;
use mica_tests::engines::{Container, Version};
use mica_tests::leftovers::{disk_bytes, mounts_below};
use mica_tests::oci::{Layer, Layout};
use mica_tests::scene::Scene;
use mica_tests::wait::{self, SOON};
use mica_tests::{Context as _, Failure, Result};
use serde_json::Value;

use crate::show::{Show, size, time};

/// What the station image prints, but for its mean.
const STATION: &str = "station 2: years 2020 2021, 2190 readings";
const LEDGER: &str = "ledger: 3 accounts, balance 1815";

/// The scene and its two images.
pub struct Demo<'a> {
    pub scene: &'a Scene,
    pub station: String,
    pub ledger: String,
}

/// What all of this runs on.
pub fn machine(show: &mut Show, scene: &Scene) -> Result {
    let kernel = succeed(Command::new("uname").arg("-sr"), SOON)?.text();
    let version = scene.daemon.mica(&["version"])?;
    let engine = scene.containerd.ctr(&["version"])?.text();
    let engine = engine.lines().rfind(|line| line.contains("Version:")).unwrap_or_default();
    show.fact("machine", &format!("{}, {} processors", kernel.trim(), std::thread::available_parallelism()?));
    show.fact("mica", version.trim().trim_start_matches("mica "));
    show.fact("containerd", engine.trim().trim_start_matches("Version:").trim());
    show.fact("store", &scene.daemon.root().display().to_string());
    Ok(())
}

impl Demo<'_> {
    /// Bytes that the store takes on the disk, without its metadata.
    pub fn bytes(&self) -> Result<u64> {
        let parts = ["objects", "layers", "chains", "snapshots", "tmp"];
        parts.iter().map(|part| disk_bytes(&self.scene.daemon.root().join(part))).sum()
    }

    /// Unpacks the image.
    pub fn pull(&self, show: &mut Show) -> Result {
        let took = self.scene.containerd.pull(&self.station)?;
        let manifest = self.scene.containerd.manifest(&self.station)?;
        let blobs = manifest["layers"].as_array().context("a manifest lists layers")?;
        let packed: u64 = blobs.iter().filter_map(|layer| layer["size"].as_u64()).sum();
        let known = self.known_layers()?;
        let of_image = self.scene.containerd.diff_ids(&self.station)?;
        for (blob, diff_id) in blobs.iter().zip(&of_image) {
            let layer = known.iter().find(|layer| layer["diff_id"] == diff_id.as_str());
            let layer = layer.context(format!("the store has no layer {diff_id}"))?;
            show.fact(
                &diff_id[7..19],
                &format!(
                    "{:>10} packed {:>10} unpacked {:>6} entries",
                    size(blob["size"].as_u64().unwrap_or(0)),
                    size(layer["content_bytes"].as_u64().unwrap_or(0)),
                    layer["entries"]
                ),
            );
        }
        show.fact("pulled and unpacked", &format!("{} of layers in {}", size(packed), time(took)));
        show.holds("the image has at least four layers", of_image.len() >= 4, &of_image.len().to_string());
        let snapshots = self.scene.daemon.json(&["snapshot", "ls"])?;
        let committed = snapshots.as_array().map_or(0, Vec::len);
        show.holds("each is a snapshot of Mica's", committed == of_image.len(), &format!("{committed} snapshots"));
        Ok(())
    }

    /// Runs the image's own command, and looks at a root.
    pub fn run(&self, show: &mut Show) -> Result {
        let output = self.scene.containerd.run(&self.station, &[])?;
        show.fact("the container said", &output.text());
        show.fact("start to end", &time(output.took));
        show.holds("it computed what its layers hold", output.text().starts_with(STATION), &output.text());
        let container = self.scene.containerd.start_container(&self.station)?;
        let columns = "TARGET,SOURCE,FSTYPE,OPTIONS";
        let mut findmnt = Command::new("findmnt");
        let line = succeed(findmnt.args(["-rno", columns, "--mountpoint"]).arg(container.rootfs()), SOON)?.text();
        show.fact("findmnt, outside", &line.split_whitespace().collect::<Vec<_>>().join("\n"));
        let inside = container.exec(&["findmnt", "-rno", "TARGET,SOURCE,FSTYPE", "/"])?;
        show.fact("findmnt, inside", &inside);
        show.holds("the container's root is a FUSE mount of Mica's", is_fuse(&inside), &inside);
        container.remove()
    }

    /// Deleted, replaced, opaque.
    pub fn layers(&self, show: &mut Show) -> Result {
        let container = self.scene.containerd.start_container(&self.station)?;
        for (what, path) in [
            ("a file of the application's layer", "/srv/station/data/2019.csv"),
            ("a folder of it", "/srv/station/drafts"),
            ("a file of python's layer", "/usr/share/doc/python3-numpy/copyright"),
            ("a file of the base", "/etc/issue.net"),
        ] {
            let found = container.try_exec(&["ls", "-d", path])?;
            show.holds(&format!("{what} is gone: {path}"), !found.status.success(), &found.text());
        }
        for (path, contents) in
            [("/etc/issue", "a station made of layers\n"), ("/srv/station/config.json", "{ \"release\": 2 }\n")]
        {
            let found = container.exec(&["cat", path])?;
            show.holds(&format!("a replaced file is new: {path}"), found == contents, &found);
        }
        let found = container.exec(&["ls", "-A", "/srv/station/cache"])?;
        show.holds("a folder replaced as a whole has only the new: /srv/station/cache", found == "fresh\n", &found);
        container.remove()
    }

    /// Two containers of one image.
    pub fn isolation(&self, show: &mut Show) -> Result {
        let engine = &self.scene.containerd;
        let (one, two) = (engine.start_container(&self.station)?, engine.start_container(&self.station)?);
        one.shell("echo one >> /etc/issue; rm -r /usr/share/doc; echo x > /srv/only-in-one")?;
        show.fact("in the first", "echo one >> /etc/issue; rm -r /usr/share/doc; echo x > /srv/only-in-one");
        let look = "cat /etc/issue; ls -d /usr/share/doc; ls /srv";
        let untouched = "a station made of layers\n/usr/share/doc\nstation\n";
        let found = two.shell(look)?;
        show.holds("the second container sees nothing of it", found == untouched, &found);
        let found = one.shell("cat /etc/issue; ls /srv; ls -d /usr/share/doc 2>/dev/null || true")?;
        let changed = "a station made of layers\none\nonly-in-one\nstation\n";
        show.holds("the first has what it wrote", found == changed, &found);
        one.remove()?;
        two.remove()?;
        let found = engine.run(&self.station, &["sh", "-c", look])?.text();
        show.holds("a new container of the image sees nothing of it", found == untouched, &found);
        Ok(())
    }

    /// Ten at once.
    pub fn ten(&self, show: &mut Show) -> Result {
        let engine = &self.scene.containerd;
        let outputs: Vec<Result<(Duration, String)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..10)
                .map(|_| {
                    scope.spawn(|| {
                        let output = engine.run(&self.station, &[])?;
                        Ok((output.took, output.text()))
                    })
                })
                .collect();
            let ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended.map(|ended| ended.unwrap_or_else(|_| Err(Failure::new("a thread panicked")))).collect()
        });
        let mut times = Vec::new();
        for output in outputs {
            let (took, text) = output?;
            if !text.starts_with(STATION) {
                show.holds("each container computes what its layers hold", false, &text);
            }
            times.push(took);
        }
        times.sort();
        let each: Vec<String> = times.iter().map(|took| time(*took)).collect();
        show.fact("start to end, each", &each.join(", "));
        show.fact("median", &time(times[times.len() / 2]));
        show.holds(
            "ten containers ran at once, each with the right output",
            times.len() == 10,
            &times.len().to_string(),
        );
        let left = engine.snapshots()?.iter().filter(|(_, kind)| kind == "Active").count();
        show.holds("none of them left a snapshot", left == 0, &left.to_string());
        Ok(())
    }

    /// Bytes with and without sharing.
    pub fn sharing(&self, show: &mut Show) -> Result {
        let engine = &self.scene.containerd;
        let before = self.bytes()?;
        engine.pull(&self.ledger)?;
        let after = self.bytes()?;
        let said = engine.run(&self.ledger, &[])?.text();
        show.fact("the container said", &said);
        show.holds("the second image runs", said.trim_end() == LEDGER, &said);
        let known = self.known_layers()?;
        let unpacked = |diff_id: &String| {
            let layer = known.iter().find(|layer| layer["diff_id"] == diff_id.as_str());
            layer.and_then(|layer| layer["content_bytes"].as_u64()).unwrap_or(0)
        };
        let station = engine.diff_ids(&self.station)?;
        let ledger = engine.diff_ids(&self.ledger)?;
        let alone: u64 = station.iter().chain(&ledger).map(unpacked).sum();
        let common: u64 = ledger.iter().filter(|layer| station.contains(layer)).map(unpacked).sum();
        let own: u64 = ledger.iter().filter(|layer| !station.contains(layer)).map(unpacked).sum();
        show.fact("nothing shared", &size(alone));
        show.fact("equal layers shared", &size(alone - common));
        show.fact("equal files shared", &format!("{} on the disk, trees included", size(after)));
        show.fact("the second image added", &format!("{} to a layer of {}", size(after - before), size(own)));
        show.holds(
            "files of the second image's own layer that the first has take no space",
            after - before < own / 2,
            &format!("{} bytes added", after - before),
        );
        Ok(())
    }

    /// A change, as a layer.
    pub fn commit(&self, show: &mut Show) -> Result {
        let engine = &self.scene.containerd;
        let container = Container::start(engine, &self.station, &["sleep", "infinity"])?;
        let change = "echo '{ \"release\": 3 }' > config.json; rm data/2020.csv; echo mine > /srv/mine";
        container.shell(&format!("cd /srv/station; {change}"))?;
        show.fact("in a container", change);
        let layer = Layer::of_gzip(engine.diff(container.id())?)?;
        container.remove()?;
        show.fact("its layer", &format!("{} of {}", size(layer.blob.len() as u64), layer.diff_id));
        show.holds("the layer holds the change alone", layer.blob.len() < 4096, &format!("{} bytes", layer.blob.len()));

        let name = self.scene.registry.reference("station:3");
        let disk = self.scene.folders().disk();
        engine.export(&self.station, &disk.join("station.tar"))?;
        let layout = Layout::unpack(&disk.join("station.tar"), &disk.join("station"))?;
        let layers = layout.add_layers(&name, &[layer])?;
        layout.archive(&disk.join("station-3.tar"))?;
        let imported = engine.import(&disk.join("station-3.tar"))?;
        show.fact("exported, imported", &format!("{layers} layers, imported in {}", time(imported.took)));
        let said = engine.run(&name, &[])?.text();
        show.fact("the new image said", &said);
        let expected = "station 3: years 2021, 1095 readings";
        show.holds("the new image runs with the change", said.starts_with(expected), &said);
        let said = engine.run(&self.station, &[])?.text();
        show.holds("the image it was made of is as before", said.starts_with(STATION), &said);
        engine.push(&name)?;
        engine.remove_image(&name)?;
        engine.pull(&name)?;
        let said = engine.run(&name, &["cat", "/srv/mine"])?.text();
        show.holds("pushed, removed and pulled again, it runs", said == "mine\n", &said);
        engine.remove_image(&name)?;
        Ok(())
    }

    /// Everything goes.
    pub fn removal(&self, show: &mut Show, empty: u64) -> Result {
        let engine = &self.scene.containerd;
        let container = engine.start_container(&self.station)?;
        container.shell("dd if=/dev/urandom of=/srv/big bs=1M count=32 status=none; sync")?;
        let full = self.bytes()?;
        container.remove()?;
        let freed = || -> Result<u64> { Ok(full.saturating_sub(self.bytes()?)) };
        let back = wait::until("32 MiB of a removed container", SOON, || Ok((freed()? >= 32 << 20).then_some(())));
        show.check("a removed container gives back the 32 MiB it wrote", back);
        engine.remove_image(&self.station)?;
        engine.remove_image(&self.ledger)?;
        let snapshots = engine.snapshots()?;
        show.holds("no snapshot is left", snapshots.is_empty(), &format!("{snapshots:?}"));
        let state = self.scene.daemon.state().join("mnt");
        let unmounted = wait::until("mounts to go", SOON, || Ok(mounts_below(&state)?.is_empty().then_some(())));
        show.check("no container's mount is left", unmounted);
        let limit = empty + (2 << 20);
        let back = wait::until("the store to be empty", SOON, || Ok((self.bytes()? < limit).then_some(())));
        show.fact(
            "store",
            &format!("{} with everything, {} now, {} at first", size(full), size(self.bytes()?), size(empty)),
        );
        show.check("the space is back", back);
        Ok(())
    }

    fn known_layers(&self) -> Result<Vec<Value>> {
        let layers = self.scene.daemon.json(&["layer", "ls"])?;
        Ok(layers.as_array().context("`mica layer ls` prints a list")?.clone())
    }
}

/// containerd 1.6 knows no differs: it untars through the mount.
pub fn older_engine(show: &mut Show) -> Result {
    let scene = Scene::new(Version::V1_6)?;
    let station = scene.publish("station")?;
    let took = scene.containerd.pull(&station)?;
    show.fact("pulled and unpacked", &time(took));
    let said = scene.containerd.run(&station, &[])?.text();
    show.fact("the container said", &said);
    show.holds("it computed what its layers hold", said.starts_with(STATION), &said);
    let root = scene.containerd.run(&station, &["findmnt", "-rno", "TARGET,SOURCE,FSTYPE", "/"])?.text();
    show.holds("the container's root is a FUSE mount of Mica's", is_fuse(&root), &root);
    show.check("daemon, keeper and engine ended, and no mount of theirs is left", scene.finish());
    Ok(())
}

fn is_fuse(findmnt: &str) -> bool {
    findmnt.split_whitespace().last().is_some_and(|kind| kind.starts_with("fuse"))
}
