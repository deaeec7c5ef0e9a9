//! Ways of an image into a store that has nothing yet, up to its first container.
//!
//! Each round has a scene of its own, in folders that no other used, and nothing is deleted before the end: ext4 passes
//! over inodes that were freed in the last minutes one by one, which would charge a round with the one before.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mica_tests::command::{self, Output};
use mica_tests::engines::Version;
use mica_tests::scene::Scene;
use mica_tests::wait::{LATER, SOON};
use mica_tests::{Result, ensure, place};

use crate::engines::process::{self, Used};
use crate::engines::report::{Goal, Report, Row};
use crate::tell;

/// containerd's own snapshotter: the first subject, which others are compared with.
const PEER: &str = "overlayfs";
/// `mica image import` of an OCI layout, durable when it ends, and `mica mount` for the container.
const IMPORT: &str = "mica import";
/// containerd with Mica as snapshotter and differ.
const ENGINE: &str = "mica in containerd";
const SUBJECTS: [&str; 3] = [PEER, IMPORT, ENGINE];

const ENGINE_VERSION: Version = Version::V1_7;
const IMAGE: &str = "workshop";
const SHARING: &str = "annex";

/// The first container: an interpreter with some of its library, as programs start.
const PROGRAM: [&str; 3] = ["/usr/bin/python3", "-c", "import ssl, json, http.client; print('up')"];

/// What is measured, in the order of the table.
const IN: (&str, &str) = ("image in", "ms");
const IN_CPU: (&str, &str) = ("image in, processor time", "ms");
const IN_AND_RUN: (&str, &str) = ("image in and first container", "ms");
const AGAIN: (&str, &str) = ("the same image again", "ms");
const SHARED: (&str, &str) = ("an image that shares its layers", "ms");
const SHARED_WRITTEN: (&str, &str) = ("an image that shares its layers, written", "KiB");
const PEAK: (&str, &str) = ("image in, peak memory", "MiB");

/// Measures, adds rows and goals.
pub fn measure(rounds: u32, report: &mut Report) -> Result {
    let layout = place::bench_images()?;
    let mut table = Table { rows: Vec::new() };
    let mut scenes = Vec::new();
    spread(&std::env::temp_dir())?;
    for round in 0..rounds as usize {
        tell(&format!("{}: ingest, round {} of {rounds}", ENGINE_VERSION.name(), round + 1));
        let scene = Scene::new(ENGINE_VERSION)?;
        let registry = &scene.registry;
        let images = [IMAGE, SHARING].map(|tag| registry.push(&layout, tag, &format!("{tag}:1")));
        let [image, sharing] = images;
        let (image, sharing) = (image?, sharing?);
        scene.containerd.fetch(&image)?;
        scene.containerd.fetch(&sharing)?;
        for turn in 0..SUBJECTS.len() {
            rustix::fs::sync();
            warm(&layout)?;
            match SUBJECTS[(round + turn) % SUBJECTS.len()] {
                IMPORT => import(&scene, &layout, &mut table)?,
                subject => pull(&scene, subject, &image, &sharing, &mut table)?,
            }
        }
        scenes.push(scene);
    }
    report.goals.extend(table.goals());
    report.rows.extend(table.rows);
    scenes.into_iter().try_for_each(Scene::finish)
}

/// containerd unpacks an image whose blobs it has.
fn pull(scene: &Scene, subject: &'static str, image: &str, sharing: &str, table: &mut Table) -> Result {
    let mut workers = vec![scene.containerd.pid()];
    workers.extend(scene.daemon.pid().filter(|_| subject == ENGINE));
    let snapshotter = if subject == ENGINE { "mica" } else { subject };
    let take_in = |image: &str| -> Result<(Duration, Used)> {
        let before = Used::of_all(&workers)?;
        let took = scene.containerd.ctr(&["image", "pull", "--plain-http", "--snapshotter", snapshotter, image])?.took;
        Ok((took, Used::of_all(&workers)?.since(before)))
    };
    let (took, used) = take_in(image)?;
    table.add(IN, subject, milliseconds(took));
    table.add(IN_CPU, subject, milliseconds(used.cpu));
    let ran = up(scene.containerd.try_run_on(snapshotter, image, &PROGRAM)?)?;
    table.add(IN_AND_RUN, subject, milliseconds(took + ran));
    rustix::fs::sync();
    table.add(AGAIN, subject, milliseconds(take_in(image)?.0));
    let (took, used) = take_in(sharing)?;
    table.add(SHARED, subject, milliseconds(took));
    table.add(SHARED_WRITTEN, subject, units(used.written_bytes, 1 << 10));
    Ok(())
}

/// Mica alone takes it in from a layout.
fn import(scene: &Scene, layout: &Path, table: &mut Table) -> Result {
    let store = scene.folders().disk().join("imported");
    let state = scene.folders().run().join("import");
    let program = place::mica()?;
    let mica = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.env_remove("MICA_ROOT").env_remove("MICA_STATE").stderr(std::process::Stdio::null());
        command.arg("--root").arg(&store).arg("--state").arg(&state).args(words);
        command
    };
    let source = layout.display().to_string();
    let take_in = |image: &str| process::run(&mut mica(&["image", "import", &source, "--name", image]));
    let first = take_in(IMAGE)?;
    table.add(IN, IMPORT, milliseconds(first.took));
    table.add(IN_CPU, IMPORT, milliseconds(first.used.cpu));
    table.add(PEAK, IMPORT, units(first.peak_bytes, 1 << 20));
    let start = Instant::now();
    let mounted = Mounted::new(&mica, &scene.folders().disk().join("rw"), scene.folders().run().join("mnt"))?;
    up(scene.containerd.try_run_in(&mounted.target, &PROGRAM)?)?;
    table.add(IN_AND_RUN, IMPORT, milliseconds(first.took + start.elapsed()));
    mounted.end(&mica)?;
    rustix::fs::sync();
    table.add(AGAIN, IMPORT, milliseconds(take_in(IMAGE)?.took));
    let shared = take_in(SHARING)?;
    table.add(SHARED, IMPORT, milliseconds(shared.took));
    table.add(SHARED_WRITTEN, IMPORT, units(shared.used.written_bytes, 1 << 10));
    Ok(())
}

/// Bytes in a larger unit. No amount that is measured here has more digits than a float.
#[allow(clippy::cast_precision_loss)]
fn units(bytes: u64, unit: u32) -> f64 {
    bytes as f64 / f64::from(unit)
}

/// The imported image, mounted for a container.
struct Mounted {
    target: PathBuf,
}

impl Mounted {
    fn new(mica: &impl Fn(&[&str]) -> Command, changes: &Path, target: PathBuf) -> Result<Mounted> {
        std::fs::create_dir_all(&target)?;
        let words = ["mount", "--image", IMAGE, "--rw", &changes.display().to_string(), &target.display().to_string()];
        command::succeed(&mut mica(&words), LATER)?;
        Ok(Mounted { target })
    }

    fn end(self, mica: &impl Fn(&[&str]) -> Command) -> Result {
        command::succeed(&mut mica(&["umount", &self.target.display().to_string()]), SOON).map(|_| ())
    }
}

/// How long the container ran, if it did what it should.
fn up(output: Output) -> Result<Duration> {
    let output = output.success()?;
    ensure!(output.text().contains("up"), "the container printed {:?}", output.text());
    Ok(output.took)
}

/// Lets ext4 put the folders that are made in `folder` into block groups of their own.
fn spread(folder: &Path) -> Result {
    // Other filesystems refuse, and don't need it.
    command::run(Command::new("chattr").arg("+T").arg(folder), SOON).map(|_| ())
}

/// Blobs are read from the page cache by every subject: what is compared is not the disk that they came from.
fn warm(layout: &Path) -> Result {
    for blob in std::fs::read_dir(layout.join("blobs/sha256"))? {
        std::io::copy(&mut std::fs::File::open(blob?.path())?, &mut std::io::sink())?;
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

struct Table {
    rows: Vec<Row>,
}

impl Table {
    fn add(&mut self, (what, unit): (&'static str, &'static str), subject: &'static str, number: f64) {
        let at = self.rows.iter().position(|row| row.what == what).unwrap_or(self.rows.len());
        if at == self.rows.len() {
            self.rows.push(Row::new(ENGINE_VERSION.name(), what, unit, &SUBJECTS));
        }
        self.rows[at].add_number(subject, number);
    }

    fn ratio(&self, of: (&str, &str), subject: &str, to: (&str, &str), number: impl Fn(&Row, &str) -> f64) -> f64 {
        let find = |what| self.rows.iter().find(|row| row.what == what);
        match (find(of.0), find(to.0)) {
            (Some(of), Some(to)) => number(of, subject) / number(to, PEER),
            _ => f64::NAN,
        }
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let mut ratio = |what: &str, of, subject, to, at_most| {
            let found = self.ratio(of, subject, to, Row::median);
            let least = self.ratio(of, subject, to, Row::least);
            goals.push(Goal { what: format!("{what} (of the shortest: {least:.3})"), found, at_most });
        };
        ratio("import / unpacking by overlayfs", IN, IMPORT, IN, 0.25);
        ratio("pull / pull with overlayfs", IN, ENGINE, IN, 0.35);
        ratio("import and container / both with overlayfs", IN_AND_RUN, IMPORT, IN_AND_RUN, 0.35);
        ratio("pull and container / both with overlayfs", IN_AND_RUN, ENGINE, IN_AND_RUN, 0.35);
        ratio("the same again / unpacking by overlayfs", AGAIN, IMPORT, IN, 0.02);
        if let Some(peak) = self.rows.iter().find(|row| row.what == PEAK.0) {
            goals.push(Goal {
                what: "peak memory of the import, MiB".into(),
                found: peak.median(IMPORT),
                at_most: 64.0,
            });
        }
        goals
    }
}
