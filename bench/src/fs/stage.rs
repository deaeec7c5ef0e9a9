//! What a workload works with: one subject, in one repetition.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mica_tests::{Failure, Result};

use super::Scale;
use super::lower::{Lower, Lowers};
use super::place::{Place, Upper};
use super::samples::Samples;
use super::subject::Subject;
use super::tools::Tools;
use super::watch::Watch;
use super::workload::Workload;
use crate::tell;

/// What outlives a workload's run.
pub struct Bench {
    /// Programs and store.
    pub tools: Tools,
    /// What subjects are mounted over.
    pub lowers: Lowers,
    /// Servers that run.
    pub watch: Watch,
    /// Folder on the disk.
    pub disk: PathBuf,
    /// Folder in memory.
    pub memory: PathBuf,
    /// Folder of mountpoints: short, and open to all users.
    pub mounts: PathBuf,
    /// How much is done.
    pub scale: Scale,
    /// What came of it.
    pub samples: RefCell<Samples>,
    /// Number of the next place.
    pub next: Cell<u32>,
}

impl Bench {
    /// Folders that take the changes of all subjects in one workload; they go with it.
    ///
    /// Not sooner: ext4 passes over inodes that were freed in the last minutes one by one, which would charge a subject
    /// with the one before.
    pub fn clear(&self) -> Result {
        for folder in [&self.disk, &self.memory] {
            let places = folder.join("places");
            if places.exists() {
                fs::remove_dir_all(places)?;
            }
        }
        Ok(())
    }
}

/// One subject in one repetition.
pub struct Stage<'a> {
    bench: &'a Bench,
    subject: Subject,
    repetition: u32,
}

impl<'a> Stage<'a> {
    /// The next.
    pub fn new(bench: &'a Bench, subject: Subject, repetition: u32) -> Stage<'a> {
        Stage { bench, subject, repetition }
    }

    /// Who is measured.
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// How often the workload was repeated before.
    pub fn repetition(&self) -> u32 {
        self.repetition
    }

    /// So many in a full run, a part of it in a small one.
    pub fn of(&self, full: u32) -> u32 {
        self.bench.scale.of(full)
    }

    /// What subjects are mounted over; made by `make` when it is first asked for.
    pub fn lower(&self, name: &str, make: impl FnOnce(&Path) -> Result<Lower>) -> Result<Rc<Lower>> {
        let lower = self.bench.lowers.get(name, make)?;
        if self.subject.is_from_store() {
            self.bench.lowers.import(&lower, &self.bench.tools.store)?;
        }
        Ok(lower)
    }

    /// A store that is made by `make` when it is first asked for, and kept.
    pub fn store(&self, name: &str, make: impl FnOnce(&Path) -> Result) -> Result<PathBuf> {
        let made = self.bench.lowers.get(name, |folder| {
            make(folder)?;
            Ok(Lower::folder(folder, name))
        })?;
        Ok(made.dirs[0].clone())
    }

    /// A place with nothing changed yet.
    pub fn place(&self, lower: &Rc<Lower>, upper: Upper) -> Result<Place<'a>> {
        let number = self.bench.next.get();
        self.bench.next.set(number + 1);
        let folder = if upper == Upper::Memory { &self.bench.memory } else { &self.bench.disk };
        let folder = folder.join("places").join(number.to_string());
        let root = self.bench.mounts.join(number.to_string());
        Place::new(self.subject, &self.bench.tools, &self.bench.watch, Rc::clone(lower), upper, folder, root)
    }

    /// Times an action that does something `number` times. If it fails, that is what the table shows, and the workload goes on.
    pub fn time<T>(&self, key: &str, number: u32, action: impl FnOnce() -> Result<T>) -> Option<T> {
        let start = Instant::now();
        let done = action();
        let took = start.elapsed();
        self.record(key, done.map(|value| (took.as_secs_f64() / f64::from(number), value)))
    }

    /// Records a sample that was taken otherwise: seconds or bytes.
    pub fn sample(&self, key: &str, found: Result<f64>) {
        self.record(key, found.map(|number| (number, ())));
    }

    /// Says why there is nothing to be measured.
    pub fn lacks(&self, key: &str, reason: &str) {
        if let Some(cell) = self.bench.samples.borrow_mut().cell(key, self.subject) {
            cell.failures = vec![reason.to_owned()];
        }
    }

    /// Records why what a workload has not measured is missing.
    pub fn failed(&self, workload: &Workload, failure: &Failure) {
        let mut samples = self.bench.samples.borrow_mut();
        for row in workload.rows {
            if let Some(cell) = samples.cell(row.key, self.subject)
                && !cell.samples.contains_key(&self.repetition)
            {
                cell.failures.push(failure.to_string());
            }
        }
    }

    fn record<T>(&self, key: &str, found: Result<(f64, T)>) -> Option<T> {
        let mut samples = self.bench.samples.borrow_mut();
        let cell = samples.cell(key, self.subject);
        match (found, cell) {
            (Ok((number, value)), Some(cell)) => {
                cell.samples.insert(self.repetition, number);
                Some(value)
            }
            (Err(failure), Some(cell)) => {
                tell(&format!("    {key}, {}: {failure}", self.subject.name()));
                cell.failures.push(failure.to_string());
                None
            }
            (_, None) => None,
        }
    }
}

/// Waits until what was written is on the disk, so that the next measurement is not charged with it.
pub fn settle() {
    rustix::fs::sync();
}

/// Empties the kernel's caches.
pub fn drop_caches() -> Result {
    rustix::fs::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3\n")?)
}

/// Seconds of each of `number` things.
pub fn each(took: Duration, number: u32) -> f64 {
    took.as_secs_f64() / f64::from(number)
}
