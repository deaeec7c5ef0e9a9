//! A process of its own is killed at random moments while it imports and collects garbage; always the same store. The
//! same with the power of a real filesystem cut under it. Afterwards the store is sound and has every image that
//! was acknowledged.
//!
//! `MICA_SEED` chooses other moments.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use mica_layerdb::fsck::FsckOptions;
use mica_layerdb::{GcOptions, ImportSource, StoreOptions};

use crate::check::{lean, sound, whole};
use crate::material::Material;
use crate::{folder, long, open, power_switch};

/// Images that the store has at a time.
const KEPT: usize = 12;

const ACKNOWLEDGED: &str = "acknowledged";

struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(std::env::var("MICA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed))
    }

    fn up_to(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_micros(self.0 % (limit.as_micros() as u64).max(1))
    }
}

/// The process that is killed: imports one image, while another thread collects garbage again and again.
#[test]
#[ignore = "other tests run it as a process of its own"]
fn worker() {
    let variable = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let store = open(&variable("MICA_KILL_ROOT"), &StoreOptions::default()).unwrap();
    let source = ImportSource::Detect(variable("MICA_KILL_SOURCE"));
    let collector = std::sync::Arc::clone(&store);
    std::thread::spawn(move || while collector.gc(GcOptions::default()).is_ok() {});
    store.import(&source, None, &()).unwrap();
    let mut out = std::io::stdout();
    out.write_all(ACKNOWLEDGED.as_bytes()).and_then(|()| out.flush()).unwrap();
    std::process::exit(0);
}

fn start(root: &Path, source: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::worker", "--ignored", "--nocapture"])
        .env("MICA_KILL_ROOT", root)
        .env("MICA_KILL_SOURCE", source)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills it, and says whether it had acknowledged its import.
fn kill(mut worker: Child) -> bool {
    let _ = worker.kill();
    worker.wait().unwrap();
    let mut said = String::new();
    worker.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    said.contains(ACKNOWLEDGED)
}

/// Which images the store must have.
#[derive(Default)]
struct Ledger(VecDeque<String>);

impl Ledger {
    fn check(&mut self, root: &Path, name: &str, acknowledged: bool) -> Result<(), String> {
        let said = |error: mica_layerdb::Error| error.to_string();
        let store = open(root, &StoreOptions::default()).map_err(said)?;
        let left = fs::read_dir(root.join("tmp")).unwrap().count();
        if left > 0 {
            return Err(format!("{left} leftovers in tmp/"));
        }
        let found: BTreeSet<String> = store.images().map_err(said)?.into_iter().map(|image| image.name).collect();
        if acknowledged || found.contains(name) {
            self.0.push_back(name.to_owned());
        }
        let wanted: BTreeSet<String> = self.0.iter().cloned().collect();
        if found != wanted {
            return Err(format!("images {found:?} instead of {wanted:?}"));
        }
        whole(&store)?;
        let report = store.fsck(&FsckOptions { data: true, ..FsckOptions::default() }, &[], &()).map_err(said)?;
        if !report.is_sound() {
            return Err(format!("fsck: {:?}", report.found));
        }
        while self.0.len() > KEPT {
            store.remove_image(&self.0.pop_front().unwrap()).map_err(said)?;
        }
        Ok(())
    }

    fn finish(&self, root: &Path) {
        let store = open(root, &StoreOptions::default()).unwrap();
        store.gc(GcOptions::default()).unwrap();
        assert_eq!(store.images().unwrap().len(), self.0.len());
        whole(&store).and_then(|()| sound(&store)).and_then(|()| lean(&store)).unwrap();
    }
}

/// Imports image after image; `cut` ends each round in its own way and says whether the import was acknowledged.
fn rounds(what: &str, root: &Path, rounds: usize, mut cut: impl FnMut(Child, Duration) -> bool) {
    let (started, mut random, mut ledger) = (Instant::now(), Random::new(), Ledger::default());
    let material = Material::new();
    material.many("whole", usize::MAX);
    let begun = Instant::now();
    assert!(start(root, &material.image("whole")).wait().unwrap().success(), "an undisturbed import failed");
    let usual = begun.elapsed();
    ledger.check(root, "whole", true).unwrap();
    let mut acknowledged = 0;
    for round in 0..rounds {
        let name = format!("image-{round}");
        material.many(&name, round);
        let delay = random.up_to(usual.mul_f64(1.2));
        let answered = cut(start(root, &material.image(&name)), delay);
        acknowledged += usize::from(answered);
        let checked = ledger.check(root, &name, answered);
        checked.unwrap_or_else(|wrong| panic!("round {round}, after {delay:?}: {wrong}"));
        fs::remove_dir_all(material.image(&name)).unwrap();
    }
    ledger.finish(root);
    let seconds = started.elapsed().as_secs_f64();
    let _ = writeln!(
        std::io::stderr(),
        "{what}: {rounds} times, {acknowledged} imports acknowledged before, {seconds:.1} s"
    );
}

#[test]
fn kill_at_any_moment_of_an_import_keeps_what_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let many = if long() { 200 } else { 10 };
    rounds("killed", &directory.path().join("store"), many, |worker, delay| {
        sleep(delay);
        kill(worker)
    });
}

/// A filesystem in a file, on a loop device; unmounted when dropped.
struct LoopDisk {
    directory: tempfile::TempDir,
}

impl LoopDisk {
    fn new(mkfs: &str) -> Result<LoopDisk, String> {
        let disk = LoopDisk { directory: folder() };
        File::create(disk.image()).and_then(|file| file.set_len(400 << 20)).map_err(|error| error.to_string())?;
        run(Command::new(mkfs).arg("-q").arg(disk.image()))?;
        fs::create_dir(disk.mountpoint()).map_err(|error| error.to_string())?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.mountpoint()))
    }

    fn unmount(&self) -> Result<(), String> {
        run(Command::new("umount").arg(self.mountpoint()))
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn power_cut_of_a_real_filesystem_keeps_what_was_acknowledged() {
    for mkfs in ["mkfs.ext4", "mkfs.xfs"] {
        let disk = match LoopDisk::new(mkfs) {
            Ok(disk) => disk,
            Err(reason) => {
                let _ = writeln!(std::io::stderr(), "power of a real filesystem not cut: {reason}");
                continue;
            }
        };
        let many = if long() { 50 } else { 4 };
        let root = disk.mountpoint().join("store");
        rounds(&format!("power cut, {mkfs}"), &root, many, |worker, delay| {
            sleep(delay);
            power_switch::cut(&disk.mountpoint()).unwrap();
            // What it said up to here, it said before anything could fail.
            let acknowledged = kill(worker);
            disk.unmount().and_then(|()| disk.mount()).unwrap();
            acknowledged
        });
    }
}
