//! Power cuts after a process was killed, or a sync failed: what is found then is visible, but need not be durable.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mica_layerdb::disk::crash::{CrashDisk, Effort, Recorder};
use mica_layerdb::disk::{Disk, FaultyDisk, RealDisk};
use rustix::io::Errno;

use crate::check::{Expected, recover};
use crate::material::Material;
use crate::scenario::{STEPS, Scene, view};
use crate::watch::Watch;
use crate::{folder, long};

/// What comes between the failure and the repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// A new process: the old one was killed where its calls began to fail.
    NewProcess,
    /// The same process goes on; one call failed.
    GoOn,
}

/// Plays up to the request in which call `first` fails, repeats that request, and cuts the power when it is answered.
/// `None` if no request failed. The number of states tried otherwise.
fn play(material: &Material, first: u64, of_disk: bool, then: Then) -> Option<Result<usize, String>> {
    let directory = folder();
    let root = fs::canonicalize(directory.path()).unwrap().join("store");
    fs::create_dir(&root).unwrap();
    let recorder = Arc::new(Recorder::new(&root).unwrap());
    let watch = Watch::new(&root, Some(Arc::clone(&recorder)));
    let real = CrashDisk::new(RealDisk::open(&root).unwrap(), Arc::clone(&recorder));
    let disk = Arc::new(FaultyDisk::new(real));
    let shared: Arc<dyn Disk> = disk.clone();
    let mut scene = Scene::new(&root, Some(shared), material);
    let many = if then == Then::NewProcess { u64::MAX } else { 1 };
    if of_disk {
        disk.fail_at(first, many, Errno::IO);
    } else {
        watch.fail_at(first, many, Errno::IO);
    }
    for step in STEPS {
        if (step.run)(&mut scene).is_ok() {
            continue;
        }
        if then == Then::NewProcess {
            scene.store = None;
        }
        let failed = disk.heal().map(|operation| format!("{operation:?}")).or(watch.heal().map(str::to_owned));
        if scene.store.is_none() || (step.run)(&mut scene).is_err() {
            if let Err(error) = scene.open() {
                return Some(Err(format!("open after {failed:?}: {error}")));
            }
            // What is there already is no answer to a request to make it: the caller must not rely on it.
            if (step.run)(&mut scene).is_err_and(|error| error.kind() == mica_layerdb::Kind::Exists) {
                return None;
            }
        }
        let answered = view(scene.store()).unwrap();
        recorder.mark(0);
        let end = recorder.finish();
        scene.store = None;
        let effort = Effort { stride: 2, torn_bytes: 4096, random: 1, first: end.changes().len() };
        let mut tried = 0;
        let tried_all = end.states(effort, |state| -> Result<(), String> {
            if state.mark.is_none() {
                return Ok(());
            }
            tried += 1;
            let directory = folder();
            state.image.materialize(directory.path()).map_err(|error| error.to_string())?;
            let expected = Expected { before: &answered, after: &answered, next: None };
            recover(&mut Scene::new(directory.path(), None, material), expected).map_err(|wrong| {
                format!("{} was answered after {failed:?} had failed, {:?}: {wrong}", step.name, state.variant)
            })
        });
        return Some(tried_all.map(|_| tried));
    }
    None
}

fn every_call(of_disk: bool, then: Then) {
    let started = Instant::now();
    let material = Material::new();
    let calls = if of_disk { 470 } else { 235 };
    let stride = if long() { 1 } else { 29 };
    let (mut failures, mut tried) = (Vec::new(), 0);
    for first in (0..calls).step_by(stride) {
        match play(&material, first, of_disk, then) {
            Some(Ok(states)) => tried += states,
            Some(Err(wrong)) => failures.push(format!("call {first}: {wrong}")),
            None => {}
        }
    }
    let shown: Vec<&str> = failures.iter().take(12).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), shown.join("\n"));
    let seconds = started.elapsed().as_secs_f64();
    let victim = if of_disk { "the disk" } else { "RocksDB" };
    let _ = writeln!(std::io::stderr(), "{victim} fails, {then:?}, power cut: {tried} states in {seconds:.1} s");
}

#[test]
fn power_cut_after_a_killed_process_was_replaced_keeps_what_the_new_one_acknowledged() {
    every_call(true, Then::NewProcess);
    every_call(false, Then::NewProcess);
}

#[test]
fn power_cut_after_a_call_failed_and_was_repeated_keeps_what_was_acknowledged() {
    every_call(true, Then::GoOn);
    every_call(false, Then::GoOn);
}

/// A disk on which the thread named `slow` waits before it makes names durable.
#[derive(Debug)]
struct SlowDisk {
    disk: CrashDisk,
    waiting: crossbeam_channel::Sender<()>,
    go: crossbeam_channel::Receiver<()>,
    renamed: AtomicU64,
}

impl SlowDisk {
    fn wait(&self) {
        if std::thread::current().name() == Some("slow") && self.renamed.swap(0, Ordering::Relaxed) > 0 {
            self.waiting.send(()).unwrap();
            self.go.recv().unwrap();
        }
    }
}

impl Disk for SlowDisk {
    fn root(&self) -> std::os::fd::BorrowedFd<'_> {
        self.disk.root()
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.disk.set_mode(path, mode)
    }
    fn create(&self, path: &Path) -> io::Result<File> {
        self.disk.create(path)
    }
    fn scratch(&self, directory: &Path) -> io::Result<File> {
        self.disk.scratch(directory)
    }
    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(file, bytes)
    }
    fn sync(&self, file: &File) -> io::Result<()> {
        self.disk.sync(file)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.wait();
        self.disk.sync_dir(path)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.wait();
        self.disk.sync_all()
    }
    fn publish(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.publish(from, to)?;
        if std::thread::current().name() == Some("slow") {
            self.renamed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.replace(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
}

#[test]
fn power_cut_while_another_ingest_publishes_the_same_content_keeps_what_was_acknowledged() {
    let material = Material::new();
    let directory = folder();
    let root = fs::canonicalize(directory.path()).unwrap().join("store");
    fs::create_dir(&root).unwrap();
    let recorder = Arc::new(Recorder::new(&root).unwrap());
    let _watch = Watch::new(&root, Some(Arc::clone(&recorder)));
    let real = CrashDisk::new(RealDisk::open(&root).unwrap(), Arc::clone(&recorder));
    let (waiting, has_renamed) = crossbeam_channel::bounded(1);
    let (release, go) = crossbeam_channel::bounded(1);
    let slow = SlowDisk { disk: real, waiting, go, renamed: AtomicU64::new(0) };
    let mut scene = Scene::new(&root, Some(Arc::new(slow)), &material);
    scene.open().unwrap();
    // The first publication of a process makes everything durable, ours too.
    scene.ingest(&material.top, None).unwrap();
    std::thread::scope(|scope| {
        let store = Arc::clone(scene.store());
        let (tar, options) = (&material.other_again.tar, mica_layerdb::IngestOptions::default());
        let slow = std::thread::Builder::new().name("slow".into());
        let slow = slow.spawn_scoped(scope, move || store.ingest(&mut &tar[..], &options, &()).map(drop)).unwrap();
        has_renamed.recv().unwrap();
        scene.ingest(&material.other, Some("keep/other")).unwrap();
        recorder.mark(0);
        let acknowledged = view(scene.store()).unwrap();
        let recording = recorder.finish();
        release.send(()).unwrap();
        slow.join().unwrap().unwrap();
        let effort = Effort { stride: 1, torn_bytes: 4096, random: 2, first: recording.changes().len() };
        let mut tried = 0;
        recording
            .states(effort, |state| -> Result<(), String> {
                if state.mark.is_none() {
                    return Ok(());
                }
                tried += 1;
                let directory = folder();
                state.image.materialize(directory.path()).unwrap();
                let expected = Expected { before: &acknowledged, after: &acknowledged, next: None };
                recover(&mut Scene::new(directory.path(), None, &material), expected)
                    .map_err(|wrong| format!("{:?}: {wrong}", state.variant))
            })
            .unwrap();
        assert!(tried > 0);
    });
}
