//! What was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use mica_tests::Result;
use serde::Serialize;

use crate::machine::Machine;
use crate::spread::Spread;

/// Samples of one measurement.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The engine.
    pub engine: &'static str,
    /// What was timed.
    pub what: &'static str,
    /// Subjects in order; the first is the one that others are compared with.
    pub subjects: Vec<&'static str>,
    /// What the samples count.
    pub unit: &'static str,
    /// Every sample, in the order taken.
    pub samples: BTreeMap<&'static str, Vec<f64>>,
}

/// A ratio or amount that a measurement should not exceed.
#[derive(Debug, Serialize)]
pub struct Goal {
    /// What.
    pub what: String,
    /// As measured.
    pub found: f64,
    /// At most.
    pub at_most: f64,
}

impl Row {
    /// Without samples.
    pub fn new(engine: &'static str, what: &'static str, unit: &'static str, subjects: &[&'static str]) -> Row {
        Row { engine, what, subjects: subjects.to_vec(), unit, samples: BTreeMap::new() }
    }

    /// Adds a sample in milliseconds.
    pub fn add(&mut self, subject: &'static str, took: Duration) {
        self.add_number(subject, took.as_secs_f64() * 1000.0);
    }

    /// Adds a sample in the row's unit.
    pub fn add_number(&mut self, subject: &'static str, number: f64) {
        self.samples.entry(subject).or_default().push(number);
    }

    /// The least of a subject's samples; no number if there are none.
    pub fn least(&self, subject: &str) -> f64 {
        self.spread(subject).map_or(f64::NAN, |spread| spread.low)
    }

    /// The median of a subject's samples; no number if there are none.
    pub fn median(&self, subject: &str) -> f64 {
        self.spread(subject).map_or(f64::NAN, |spread| spread.median)
    }

    fn spread(&self, subject: &str) -> Option<Spread> {
        Spread::of(self.samples.get(subject)?.iter().copied())
    }
}

/// A run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where and when.
    #[serde(flatten)]
    pub machine: Machine,
    /// Measurements.
    pub rows: Vec<Row>,
    /// What is compared with a goal.
    pub goals: Vec<Goal>,
}

impl Report {
    /// An empty one.
    pub fn of_this_machine() -> Result<Report> {
        Ok(Report { machine: Machine::now()?, rows: Vec::new(), goals: Vec::new() })
    }

    /// Notes the end.
    pub fn finish(&mut self) -> Result {
        self.machine.finish()
    }

    /// Medians and ratios.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{}\n`{}`\n", self.machine, self.machine.command_line());
        for rows in self.rows.chunk_by(|one, next| one.subjects == next.subjects) {
            tabulate(&mut text, rows);
        }
        if !self.goals.is_empty() {
            let _ = writeln!(text, "\n| what | found | goal |\n|---|--:|--:|");
            for Goal { what, found, at_most } in &self.goals {
                let _ = writeln!(text, "| {what} | {found:.3} | {at_most} |");
            }
        }
        text
    }
}

/// Rows of the same subjects.
fn tabulate(text: &mut String, rows: &[Row]) {
    let subjects = rows.first().map(|row| row.subjects.clone()).unwrap_or_default();
    let peer = subjects.first().copied().unwrap_or_default();
    let _ = write!(text, "\n| engine | what |");
    for subject in &subjects {
        let _ = write!(text, " {subject} |");
    }
    for subject in subjects.iter().skip(1) {
        let _ = write!(text, " {subject} / {peer} |");
    }
    let _ = writeln!(text, "\n|---|---|{}", "--:|".repeat((2 * subjects.len()).saturating_sub(1)));
    for row in rows {
        let _ = write!(text, "| {} | {}, {} |", row.engine, row.what, row.unit);
        for subject in &subjects {
            let _ = match row.spread(subject) {
                None => write!(text, " |"),
                Some(Spread { low, median, high }) => write!(text, " {median:.0} ({low:.0}-{high:.0}) |"),
            };
        }
        for subject in subjects.iter().skip(1) {
            let _ = match row.median(subject) / row.median(peer) {
                none if none.is_nan() => write!(text, " |"),
                ratio => write!(text, " {ratio:.2} |"),
            };
        }
        let _ = writeln!(text);
    }
}
