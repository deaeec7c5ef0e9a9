//! Mica as snapshotter of containerd, beside containerd's own.
//!
//! `subject/<name>.rs` is who is measured, `workload/<name>.rs` what is done; `ingest` compares ways into a store, which
//! begin with an empty one; `report` keeps the samples and prints them.

mod ingest;
mod process;
mod report;
mod subject;
mod workload;

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mica_tests::engines::Version;
use mica_tests::scene::Scene;
use mica_tests::{Context as _, Result, place};

use crate::tell;
use report::{Report, Row};

/// What to compare, and how often.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How often each workload is done on each subject.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Engines to run on; may be repeated.
    #[arg(long = "engine", default_values = ["1.7", "1.6"])]
    engines: Vec<Engine>,
    /// Only workloads whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Where samples, machine and command are written as JSON.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    #[value(name = "1.6")]
    Old,
    #[value(name = "1.7")]
    New,
}

/// Measures, prints the table and writes the samples.
pub fn measure(arguments: &Arguments) -> Result {
    let mut report = Report::of_this_machine()?;
    if wanted(arguments, "ingest") {
        ingest::measure(arguments.repetitions, &mut report)?;
    }
    for engine in &arguments.engines {
        if !workload::all().iter().any(|workload| wanted(arguments, workload.name())) {
            break;
        }
        let version = match engine {
            Engine::Old => Version::V1_6,
            Engine::New => Version::V1_7,
        };
        let scene = Scene::new(version)?;
        let image = scene.publish("station")?;
        for workload in workload::all() {
            if !wanted(arguments, workload.name()) {
                continue;
            }
            tell(&format!("{}: {}, {} times", version.name(), workload.name(), arguments.repetitions));
            let rows = interleave(arguments.repetitions, &*workload, &scene, &image, version)?;
            report.rows.extend(rows);
        }
        scene.finish()?;
    }
    report.finish()?;
    std::io::stdout().lock().write_all(report.table().as_bytes())?;
    let output = match &arguments.output {
        Some(output) => output.clone(),
        None => place::cache()?.join("bench.json"),
    };
    std::fs::write(&output, serde_json::to_vec_pretty(&report)?).context(output.display())?;
    tell(&format!("samples: {}", output.display()));
    Ok(())
}

fn wanted(arguments: &Arguments, name: &str) -> bool {
    arguments.only.as_ref().is_none_or(|text| name.contains(text.as_str()))
}

/// One workload on every subject, in turn; who comes first changes from round to round.
fn interleave(
    rounds: u32,
    workload: &dyn workload::Workload,
    scene: &Scene,
    image: &str,
    version: Version,
) -> Result<Vec<Row>> {
    let subjects = workload.subjects();
    workload.prepare(scene, image, &subjects)?;
    let names: Vec<&'static str> = subjects.iter().map(|subject| subject.name()).collect();
    let mut rows: Vec<Row> = Vec::new();
    for round in 0..rounds as usize {
        for turn in 0..subjects.len() {
            let subject = &*subjects[(round + turn) % subjects.len()];
            for (what, took) in workload.measure(scene, image, subject)? {
                let at = if let Some(at) = rows.iter().position(|row| row.what == what) {
                    at
                } else {
                    rows.push(Row::new(version.name(), what, "ms", &names));
                    rows.len() - 1
                };
                rows[at].add(subject.name(), took);
            }
        }
    }
    workload.clean_up(scene, image, &subjects)?;
    Ok(rows)
}
