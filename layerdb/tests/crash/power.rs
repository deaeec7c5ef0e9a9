//! Power cuts at every instant of the scenario.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use mica_layerdb::disk::RealDisk;
use mica_layerdb::disk::crash::{Change, CrashDisk, CrashState, Effort, Image, Recorder, Recording};
use parking_lot::Mutex;

use crate::check::{Expected, Verdict, recover};
use crate::material::Material;
use crate::scenario::{STEPS, Scene, Step, View, view};
use crate::watch::Watch;
use crate::{folder, long};

/// The scenario, played once.
struct Played {
    recording: Recording,
    /// What was seen before the first step, and after each.
    views: Vec<View>,
}

impl Played {
    fn new(material: &Material) -> Played {
        let directory = folder();
        let root = fs::canonicalize(directory.path()).unwrap().join("store");
        fs::create_dir(&root).unwrap();
        let recorder = Arc::new(Recorder::new(&root).unwrap());
        let watch = Watch::new(&root, Some(Arc::clone(&recorder)));
        let disk = CrashDisk::new(RealDisk::open(&root).unwrap(), Arc::clone(&recorder));
        let mut scene = Scene::new(&root, Some(Arc::new(disk)), material);
        let mut views = vec![View::new()];
        for (number, step) in STEPS.iter().enumerate() {
            (step.run)(&mut scene).unwrap_or_else(|error| panic!("{}: {error}", step.name));
            recorder.mark(number + 1);
            views.push(view(scene.store()).unwrap());
        }
        scene.store = None;
        let recording = recorder.finish();
        drop(watch);
        let real = Recorder::new(&root).unwrap().finish().end();
        let past: Vec<_> =
            recording.end().differences(&real).into_iter().filter(|path| !path.ends_with("lock")).collect();
        assert!(past.is_empty(), "written past the record: {past:?}");
        Played { recording, views }
    }

    fn expected(&self, mark: Option<usize>) -> Expected<'_> {
        let done = mark.unwrap_or(0);
        let after = self.views.get(done + 1).unwrap_or(&self.views[done]);
        Expected { before: &self.views[done], after, next: STEPS.get(done) }
    }
}

/// Runs `check` on states, by as many threads as there are processors, and says what went wrong.
fn each_state<'a>(
    recording: &Recording,
    effort: Effort,
    check: impl Fn(&CrashState) -> Verdict + Sync + 'a,
) -> (usize, usize) {
    let failures: Mutex<Vec<String>> = Mutex::default();
    let (sender, receiver) = crossbeam_channel::bounded::<CrashState>(4);
    let threads = thread::available_parallelism().map_or(2, usize::from).min(4);
    let mut tried = 0;
    let possible = thread::scope(|scope| {
        for _ in 0..threads {
            let (receiver, check, failures) = (receiver.clone(), &check, &failures);
            scope.spawn(move || {
                for state in receiver {
                    if let Err(wrong) = check(&state) {
                        let next = STEPS.get(state.mark.unwrap_or(0)).map_or("the end", |step| step.name);
                        let context = shown(recording.changes(), state.at);
                        failures.lock().push(format!(
                            "during \"{next}\", after {} changes, {:?}: {wrong}\n{context}",
                            state.at, state.variant
                        ));
                    }
                }
            });
        }
        let sender = sender;
        let visit = |state| {
            tried += 1;
            sender.send(state)
        };
        recording.states(effort, visit).expect("the checkers end after the last state")
    });
    let failures = failures.into_inner();
    let first: Vec<&String> = failures.iter().take(5).collect();
    assert!(failures.is_empty(), "{} of {tried} states are wrong:\n{}", failures.len(), join(&first));
    (tried, possible)
}

fn join(texts: &[&String]) -> String {
    texts.iter().map(|text| text.as_str()).collect::<Vec<_>>().join("\n")
}

/// The changes before a point, in short.
fn shown(changes: &[Change], at: usize) -> String {
    let lines = changes[at.saturating_sub(12)..(at + 2).min(changes.len())].iter().map(|change| match change {
        Change::Write { file, at, bytes } => format!("    Write {file:?} at {at}, {} bytes", bytes.len()),
        other => format!("    {other:?}"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn tell(what: &str, (tried, possible): (usize, usize), since: Instant) {
    use std::io::Write as _;
    let seconds = since.elapsed().as_secs_f64();
    let _ = writeln!(std::io::stderr(), "{what}: {tried} of {possible} states in {seconds:.1} s");
}

#[test]
fn power_cut_at_any_instant_keeps_what_was_acknowledged_and_nothing_else() {
    let started = Instant::now();
    let material = Material::new();
    let played = Played::new(&material);
    let effort = if long() {
        Effort { stride: 1, torn_bytes: 64, random: 4, first: 0 }
    } else {
        Effort { stride: 16, torn_bytes: 512, random: 1, first: 0 }
    };
    let counts = each_state(&played.recording, effort, |state| {
        let directory = folder();
        state.image.materialize(directory.path()).map_err(|error| error.to_string())?;
        recover(&mut Scene::new(directory.path(), None, &material), played.expected(state.mark))
    });
    tell("power cuts", counts, started);
}

#[test]
fn power_cut_while_a_store_is_opened_after_a_power_cut_loses_nothing() {
    let started = Instant::now();
    let material = Material::new();
    let played = Played::new(&material);
    let first = Effort { stride: if long() { 97 } else { 1999 }, torn_bytes: 4096, random: 0, first: 0 };
    let every = if long() { 10 } else { 15 };
    let total = Mutex::new((0, 0));
    let mut points = 0;
    played
        .recording
        .states(first, |state| -> Result<(), ()> {
            points += 1;
            if points % every != 0 {
                return Ok(());
            }
            let (recovery, opened, collected) = recovery(&state.image, &material);
            let effort = Effort { stride: if long() { 3 } else { 40 }, torn_bytes: 1024, random: 1, first: 0 };
            let counts = each_state(&recovery, effort, |again| {
                let directory = folder();
                again.image.materialize(directory.path()).map_err(|error| error.to_string())?;
                let expected = match again.mark {
                    None => played.expected(state.mark),
                    Some(_) => Expected { before: &opened, after: &collected, next: Some(&COLLECT) },
                };
                recover(&mut Scene::new(directory.path(), None, &material), expected)
            });
            let mut total = total.lock();
            *total = (total.0 + counts.0, total.1 + counts.1);
            Ok(())
        })
        .unwrap();
    tell("power cuts during recovery", total.into_inner(), started);
}

const COLLECT: Step = Step { name: "collect", atomic: false, harms: false, run: |scene| scene.gc() };

/// The opening of what a power cut left, and a collection of garbage; and what was seen after each.
fn recovery(image: &Image, material: &Material) -> (Recording, View, View) {
    let directory = folder();
    let root = fs::canonicalize(directory.path()).unwrap();
    image.materialize(&root).unwrap();
    let recorder = Arc::new(Recorder::new(&root).unwrap());
    let _watch = Watch::new(&root, Some(Arc::clone(&recorder)));
    let disk = CrashDisk::new(RealDisk::open(&root).unwrap(), Arc::clone(&recorder));
    let mut scene = Scene::new(&root, Some(Arc::new(disk)), material);
    scene.open().unwrap();
    let opened = view(scene.store()).unwrap();
    recorder.mark(0);
    scene.gc().unwrap();
    let collected = view(scene.store()).unwrap();
    scene.store = None;
    (recorder.finish(), opened, collected)
}
