//! What was measured, where and how.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use mica_tests::command::succeed;
use mica_tests::wait::SOON;
use mica_tests::{Context as _, Result};
use serde::Serialize;

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

    /// The least of a subject's samples.
    pub fn least(&self, subject: &str) -> f64 {
        self.range(subject).0
    }

    /// The middle one of a subject's samples, or between the middle two; no number if there are none.
    pub fn median(&self, subject: &str) -> f64 {
        let mut samples = self.samples.get(subject).cloned().unwrap_or_default();
        samples.sort_by(f64::total_cmp);
        match samples.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => samples[count / 2],
            count => f64::midpoint(samples[count / 2 - 1], samples[count / 2]),
        }
    }

    fn range(&self, subject: &str) -> (f64, f64) {
        let samples = self.samples.get(subject).map(Vec::as_slice).unwrap_or_default();
        samples.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &at| (low.min(at), high.max(at)))
    }
}

/// A run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How it was started.
    pub command: Vec<String>,
    /// When, in UTC.
    pub date: String,
    /// Kernel.
    pub kernel: String,
    /// Processor and their number.
    pub processors: String,
    /// Filesystem that everything was stored on.
    pub filesystem: String,
    /// Load of the machine before: more than nothing makes the figures doubtful.
    pub load_before: String,
    /// Load of the machine after; the measurements themselves are in it.
    pub load_after: String,
    /// Measurements.
    pub rows: Vec<Row>,
    /// What is compared with a goal.
    pub goals: Vec<Goal>,
}

impl Report {
    /// An empty one.
    pub fn of_this_machine() -> Result<Report> {
        let text = |program: &str, words: &[&str]| -> Result<String> {
            Ok(succeed(Command::new(program).args(words), SOON)?.text().trim().to_owned())
        };
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
        let temporary = std::env::temp_dir().display().to_string();
        Ok(Report {
            command: std::env::args()
                .enumerate()
                .map(|(at, word)| if at == 0 { "mica-bench".to_owned() } else { word })
                .collect(),
            date: text("date", &["-u", "+%Y-%m-%d %H:%M"])?,
            kernel: text("uname", &["-sr"])?,
            processors: format!(
                "{} x {}",
                std::thread::available_parallelism()?,
                model.trim_start_matches([' ', '\t', ':'])
            ),
            filesystem: text("stat", &["-f", "-c", "%T", &temporary])?,
            load_before: load()?,
            load_after: String::new(),
            rows: Vec::new(),
            goals: Vec::new(),
        })
    }

    /// Notes the end.
    pub fn finish(&mut self) -> Result {
        self.load_after = load()?;
        Ok(())
    }

    /// Medians and ratios.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}; {}; {}; {}; load {} before, {} after",
            self.date, self.kernel, self.processors, self.filesystem, self.load_before, self.load_after
        );
        let _ = writeln!(text, "`{}`\n", self.command.join(" "));
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
            let (low, high) = row.range(subject);
            let _ = match row.median(subject) {
                none if none.is_nan() => write!(text, " |"),
                median => write!(text, " {median:.0} ({low:.0}-{high:.0}) |"),
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

fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().context("the kernel tells the load")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_numbers_of_samples() {
        let mut row = Row::new("engine", "what", "ms", &["a"]);
        for milliseconds in [5, 1, 9] {
            row.add("a", Duration::from_millis(milliseconds));
        }
        assert!((row.median("a") - 5.0).abs() < 1e-9);
        row.add("a", Duration::from_millis(7));
        assert!((row.median("a") - 6.0).abs() < 1e-9);
        assert!(row.median("b").is_nan());
    }
}
