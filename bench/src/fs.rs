//! Mounts of Mica beside plain directories, the kernel's overlayfs and fuse-overlayfs.
//!
//! | room | what |
//! |---|---|
//! | [`subject`] | who is measured: one entry each, and how it is mounted |
//! | [`workload`] | what is done: rows of the table, with their goals |
//! | [`lower`], [`place`], [`stage`] | what it is done on: layers, uppers, mounts |
//! | [`samples`], [`table`], [`plot`] | what came of it: ratios within each repetition, and how they are shown |
//!
//! Every workload runs on all subjects in turn before it is repeated, and who comes first changes. The program has to run
//! below `scripts/contained`, which ends everything that is left when it is killed.

mod files;
mod lower;
pub mod mapping;
mod place;
mod plot;
mod row;
mod samples;
mod stage;
mod subject;
mod table;
mod tools;
mod watch;
mod workload;

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use mica_tests::command::run;
use mica_tests::place::{Folders, cache};
use mica_tests::wait::SOON;
use mica_tests::{Context as _, Result, ensure};
use serde::Serialize;

use crate::machine::{Machine, load, sources};
use crate::tell;
use lower::Lowers;
use samples::Samples;
use stage::{Bench, Stage};
use subject::Subject;
use tools::{Store, Tools};
use watch::Watch;
use workload::Workload;

/// What to compare, and how often.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How often each workload is done on each subject.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Only workloads whose name, or one of whose rows, contains one of these.
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these subjects.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<Subject>,
    /// How much is done: what the table names, or little, to try a change.
    #[arg(long, value_enum, default_value_t = Scale::Full)]
    scale: Scale,
    /// Folder for samples, table and plots [default: `bench/runs/DATE-COMMIT` for a complete run, which is published in
    /// `docs/BENCHMARKS.md` as well; else `bench-runs/DATE-COMMIT` in the cache].
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// What the table names.
    Full,
    /// A tenth of it.
    Small,
}

impl Scale {
    /// So many of something of which a full run has that many.
    fn of(self, full: u32) -> u32 {
        if self == Scale::Full { full } else { (full / 10).max(2) }
    }
}

/// How long one workload may take on one subject.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is kept of a run.
#[derive(Serialize)]
struct Run<'a> {
    #[serde(flatten)]
    machine: &'a Machine,
    scale: Scale,
    repetitions: u32,
    seconds: u64,
    rows: &'a Samples,
}

/// Measures, prints the table, writes samples and plots.
pub fn measure(arguments: &Arguments) -> Result {
    ensure!(std::env::var_os("MICA_SESSION").is_some(), "run it below scripts/contained, as `make bench` does");
    let mut machine = Machine::now()?;
    let subjects: Vec<Subject> =
        if arguments.subjects.is_empty() { Subject::value_variants().to_vec() } else { arguments.subjects.clone() };
    let workloads: Vec<&Workload> = workload::ALL.iter().filter(|workload| wanted(arguments, workload)).collect();
    ensure!(!workloads.is_empty(), "no workload is called {}", arguments.only.join(" or "));
    let start = Instant::now();
    let folders = Folders::new()?;
    let samples = compare(arguments, &folders, &subjects, &workloads)?;
    machine.finish()?;
    let seconds = start.elapsed().as_secs();
    tell(&format!("{} min {} s", seconds / 60, seconds % 60));
    let table = table::markdown(&machine, &samples, &subjects, arguments.repetitions, arguments.scale, seconds);
    std::io::stdout().lock().write_all(table.as_bytes())?;
    let whole = arguments.scale == Scale::Full && arguments.only.is_empty() && arguments.subjects.is_empty();
    let name = format!("{}-{}", machine.date.split(' ').next().unwrap_or_default(), machine.commit);
    let output = match &arguments.output {
        Some(output) => output.clone(),
        None if whole => sources().join("bench/runs").join(name),
        None => cache()?.join("bench-runs").join(name),
    };
    fs::create_dir_all(&output).context(output.display())?;
    let run =
        Run { machine: &machine, scale: arguments.scale, repetitions: arguments.repetitions, seconds, rows: &samples };
    fs::write(output.join("samples.json"), serde_json::to_vec_pretty(&run)?)?;
    fs::write(output.join("README.md"), &table)?;
    fs::write(output.join("ratios.svg"), plot::ratios(&samples, &subjects))?;
    fs::write(output.join("layers.svg"), plot::layers(&samples, &subjects))?;
    tell(&format!("samples, table and plots: {}", output.display()));
    if whole && arguments.output.is_none() {
        table::publish(&sources().join("docs/BENCHMARKS.md"), &table)?;
    }
    Ok(())
}

fn wanted(arguments: &Arguments, workload: &Workload) -> bool {
    let mut names = workload.rows.iter().map(|row| row.key).chain([workload.name]);
    arguments.only.is_empty() || names.any(|name| arguments.only.iter().any(|text| name.contains(text.as_str())))
}

/// Every workload on every subject, in turn.
fn compare(arguments: &Arguments, folders: &Folders, subjects: &[Subject], workloads: &[&Workload]) -> Result<Samples> {
    // Programs without privilege work in the mounts, which are below the one, and not on the disk, which is the other.
    fs::set_permissions(folders.run(), fs::Permissions::from_mode(0o755))?;
    let (disk, memory) = (folders.disk().join("disk"), folders.run().join("memory"));
    for folder in [&disk, &memory] {
        fs::create_dir(folder)?;
    }
    // ext4 then puts the folder of each place into a block group of its own. Other filesystems refuse, and don't need it.
    run(Command::new("chattr").arg("+T").arg(&disk), SOON)?;
    let store = Store::new(folders.disk().join("store"), folders.run().join("state"));
    let bench = Bench {
        tools: Tools::find(store)?,
        lowers: Lowers::new(folders.disk().join("lower")),
        watch: Watch::default(),
        disk,
        memory,
        mounts: folders.run().join("mounts"),
        scale: arguments.scale,
        samples: RefCell::default(),
        next: Cell::new(0),
    };
    for row in workloads.iter().flat_map(|workload| workload.rows) {
        bench.samples.borrow_mut().declare(*row);
    }
    for workload in workloads {
        for repetition in 0..arguments.repetitions {
            let start = Instant::now();
            for turn in 0..subjects.len() {
                let subject = subjects[(repetition as usize + turn) % subjects.len()];
                let stage = Stage::new(&bench, subject, repetition);
                let done = bench.watch.within(PATIENCE, || (workload.run)(&stage));
                if let Err(failure) = done {
                    tell(&format!("    {}, {}: {failure}", workload.name, subject.name()));
                    stage.failed(workload, &failure);
                }
            }
            let (name, took) = (workload.name, start.elapsed().as_secs_f64());
            tell(&format!("{name} {}/{}: {took:.1} s, load {}", repetition + 1, arguments.repetitions, load()?));
        }
        bench.clear()?;
    }
    Ok(bench.samples.into_inner())
}
