//! Full and failing disks at every call.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use mica_layerdb::disk::FaultyDisk;
use mica_layerdb::disk::RealDisk;
use mica_layerdb::{Error, Kind};
use rustix::io::Errno;

use crate::check::{Expected, Verdict, lean, usable, whole};
use crate::material::Material;
use crate::scenario::{STEPS, Scene, View, view};
use crate::watch::Watch;
use crate::{folder, long};

/// Whose calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Disk,
    RocksDb,
}

/// One call, or all from one on, until the request has failed.
#[derive(Clone, Copy, Debug)]
struct Fault {
    victim: Victim,
    first: u64,
    many: u64,
    errno: Errno,
}

const ERRNOS: [Errno; 4] = [Errno::NOSPC, Errno::IO, Errno::DQUOT, Errno::ROFS];

/// A store whose calls can fail.
struct Rig<'a> {
    scene: Scene<'a>,
    disk: Arc<FaultyDisk>,
    watch: Watch,
    _directory: tempfile::TempDir,
}

impl<'a> Rig<'a> {
    fn new(material: &'a Material) -> Rig<'a> {
        let directory = folder();
        let root = fs::canonicalize(directory.path()).unwrap().join("store");
        fs::create_dir(&root).unwrap();
        let watch = Watch::new(&root, None);
        let disk = Arc::new(FaultyDisk::new(RealDisk::open(&root).unwrap()));
        let shared: Arc<dyn mica_layerdb::disk::Disk> = disk.clone();
        Rig { scene: Scene::new(&root, Some(shared), material), disk, watch, _directory: directory }
    }

    fn arm(&self, fault: Fault) {
        match fault.victim {
            Victim::Disk => self.disk.fail_at(fault.first, fault.many, fault.errno),
            Victim::RocksDb => self.watch.fail_at(fault.first, fault.many, fault.errno),
        }
    }

    /// What failed first, if anything did.
    fn heal(&self) -> Option<String> {
        let disk = self.disk.heal().map(|operation| format!("{operation:?}"));
        disk.or(self.watch.heal().map(str::to_owned))
    }
}

/// Views of the scenario without faults, and how many calls there are.
struct Reference {
    views: Vec<View>,
    disk_calls: u64,
    rocksdb_calls: u64,
}

impl Reference {
    fn new(material: &Material) -> Reference {
        let mut rig = Rig::new(material);
        let mut views = vec![View::new()];
        for step in STEPS {
            (step.run)(&mut rig.scene).unwrap();
            views.push(timeless(view(rig.scene.store()).unwrap()));
        }
        let (disk_calls, rocksdb_calls) = (rig.disk.count(), rig.watch.count());
        Reference { views, disk_calls, rocksdb_calls }
    }
}

/// A view without what differs from run to run.
fn timeless(view: View) -> View {
    let strip = |value: Vec<u8>| match serde_json::from_slice::<serde_json::Value>(&value) {
        Ok(serde_json::Value::Object(mut members)) => {
            for member in ["created", "imported", "new_bytes"] {
                members.remove(member);
            }
            serde_json::to_vec(&members).unwrap()
        }
        _ => value,
    };
    view.into_iter().map(|(key, value)| (key, strip(value))).collect()
}

/// Plays the scenario with one fault. `Ok(false)` if nothing failed.
fn play(material: &Material, reference: &Reference, fault: Fault) -> Result<bool, String> {
    let mut rig = Rig::new(material);
    rig.arm(fault);
    let mut hit = None;
    for (number, step) in STEPS.iter().enumerate() {
        let result = (step.run)(&mut rig.scene);
        if result.is_ok() && fault.many == 1 {
            continue;
        }
        let Err(error) = result else { continue };
        let failed = rig
            .heal()
            .ok_or_else(|| format!("{} failed though nothing else did, but for {hit:?} before: {error}", step.name))?;
        let context = format!("{} when {failed} failed", step.name);
        hit = Some(context.clone());
        let expected =
            Expected { before: &reference.views[number], after: &reference.views[number + 1], next: Some(step) };
        after_failure(&mut rig.scene, &error, fault, expected).map_err(|wrong| format!("{context}: {wrong}"))?;
    }
    // A call whose failure is harmless fails in no request.
    let hit = hit.or(rig.heal().map(|failed| format!("unnoticed {failed}")));
    let Some(context) = hit else { return Ok(false) };
    at_the_end(&mut rig.scene, reference).map_err(|wrong| format!("after {context}: {wrong}"))?;
    Ok(true)
}

/// The request failed and the disk works again.
fn after_failure(scene: &mut Scene<'_>, error: &Error, fault: Fault, expected: Expected<'_>) -> Verdict {
    let step = expected.next.expect("a request failed");
    let wanted = match fault.errno {
        Errno::NOSPC | Errno::DQUOT => Kind::NoSpace,
        _ => Kind::Unavailable,
    };
    if error.kind() != wanted {
        return Err(format!("kind {:?} instead of {wanted:?}: {error} ({error:?})", error.kind()));
    }
    if scene.store.is_some() {
        let found = view(scene.store()).map_err(|error| format!("look after \"{error}\" was healed: {error}"))?;
        expected.compare(&timeless(found)).map_err(|wrong| format!("{wrong} (after {error})"))?;
        usable(scene.store(), Some(step))?;
    }
    let again = match (step.run)(scene) {
        Err(Error::Broken { .. }) => {
            scene.open().map_err(|error| format!("open after a failed sync: {error}"))?;
            usable(scene.store(), Some(step))?;
            (step.run)(scene)
        }
        again => again,
    };
    match again {
        Ok(()) => Ok(()),
        // Done, though it was said to have failed.
        Err(again) if matches!(again.kind(), Kind::Exists | Kind::NotFound) => Ok(()),
        Err(again) => Err(format!("repeated: {again} (first: {error})")),
    }
}

fn at_the_end(scene: &mut Scene<'_>, reference: &Reference) -> Verdict {
    scene.open().map_err(|error| format!("open: {error}"))?;
    let found = timeless(view(scene.store()).map_err(|error| error.to_string())?);
    let last = reference.views.last().expect("there are steps");
    Expected { before: last, after: last, next: None }.compare(&found)?;
    whole(scene.store())?;
    scene.gc().map_err(|error| format!("collect: {error}"))?;
    whole(scene.store())?;
    lean(scene.store())
}

fn every_call(victim: Victim, many: u64) {
    let started = Instant::now();
    let material = Material::new();
    let reference = Reference::new(&material);
    let calls = match victim {
        Victim::Disk => reference.disk_calls,
        Victim::RocksDb => reference.rocksdb_calls,
    };
    let stride = if long() { 1 } else { (calls / 25).max(1) };
    let mut failures = Vec::new();
    let mut tried = 0;
    for first in (0..calls).step_by(stride as usize) {
        let errno = ERRNOS[(first / stride) as usize % ERRNOS.len()];
        let fault = Fault { victim, first, many, errno };
        match play(&material, &reference, fault) {
            Ok(hit) => tried += u64::from(hit),
            Err(wrong) => failures.push(format!("call {first}, {errno:?}: {wrong}")),
        }
    }
    let shown: Vec<&str> = failures.iter().take(12).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} of {tried} faults:\n{}", failures.len(), shown.join("\n"));
    tell(&format!("{victim:?} fails, {many} times"), tried, calls, started);
}

fn tell(what: &str, tried: u64, calls: u64, since: Instant) {
    use std::io::Write as _;
    let seconds = since.elapsed().as_secs_f64();
    let _ = writeln!(std::io::stderr(), "{what}: {tried} of {calls} calls in {seconds:.1} s");
}

#[test]
fn failure_of_any_one_call_of_the_disk_is_reported_and_can_be_repeated() {
    every_call(Victim::Disk, 1);
}

#[test]
fn failure_of_the_disk_from_any_call_on_is_reported_and_can_be_repeated() {
    every_call(Victim::Disk, u64::MAX);
}

#[test]
fn failure_of_any_one_call_of_rocksdb_is_reported_and_can_be_repeated() {
    every_call(Victim::RocksDb, 1);
}

#[test]
fn failure_of_rocksdb_from_any_call_on_is_reported_and_can_be_repeated() {
    every_call(Victim::RocksDb, u64::MAX);
}
