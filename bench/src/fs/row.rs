//! What is measured: a line of the table, and what it should come to.

use serde::Serialize;

use super::subject::Subject;

/// A line of the table. Samples are times or amounts: less is better.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Row {
    /// Its name in samples and on the command line.
    pub key: &'static str,
    /// What is done.
    pub what: &'static str,
    /// What a sample counts.
    pub unit: Unit,
    /// What Mica should reach.
    pub goals: &'static [Goal],
    /// What Mica's kernel form should reach, in times overlayfs; without, the goals of the other form.
    pub of_kernel: Option<f64>,
    /// What is compared with fuse-overlayfs.
    pub kind: Kind,
}

/// What a sample counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Seconds.
    Time,
    /// Bytes.
    Memory,
}

/// What Mica should reach.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Goal {
    /// A throughput of at least so many times that of a subject.
    Times(Subject, f64),
    /// At most so much, in the unit of the row.
    AtMost(f64),
    /// At most so many times its own sample of another row.
    Growth(&'static str, f64),
}

/// What the work is, which decides how far ahead of fuse-overlayfs Mica should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// Contents are moved.
    Data,
    /// Names and attributes are the work.
    Metadata,
    /// Programs that people use.
    Work,
}

impl Row {
    /// A time.
    pub const fn time(key: &'static str, what: &'static str, kind: Kind, goals: &'static [Goal]) -> Row {
        Row { key, what, unit: Unit::Time, goals, of_kernel: Some(0.95), kind }
    }

    /// An amount of memory.
    pub const fn memory(key: &'static str, what: &'static str, goals: &'static [Goal]) -> Row {
        Row { key, what, unit: Unit::Memory, goals, of_kernel: None, kind: Kind::Data }
    }

    /// The same, with another goal of the kernel form.
    pub const fn of_kernel(self, times: Option<f64>) -> Row {
        Row { of_kernel: times, ..self }
    }

    /// What a subject should reach.
    pub fn goals_of(&self, subject: Subject) -> Vec<Goal> {
        match self.of_kernel {
            Some(times) if subject == Subject::MicaKernel => vec![overlayfs(times)],
            _ => self.goals.to_vec(),
        }
    }

    /// How many times as fast as fuse-overlayfs 2.0 Mica should be.
    pub fn lead(&self) -> f64 {
        if self.kind == Kind::Metadata { 2.0 } else { 1.0 }
    }
}

/// At least so many times the kernel's overlayfs.
pub const fn overlayfs(times: f64) -> Goal {
    Goal::Times(Subject::Overlayfs, times)
}

/// At least so many times the kernel's overlayfs with all its features.
pub const fn overlayfs_all(times: f64) -> Goal {
    Goal::Times(Subject::OverlayfsAll, times)
}
