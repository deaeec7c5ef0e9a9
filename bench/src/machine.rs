//! Where, when and how a run was made.

use std::fmt;
use std::path::Path;
use std::process::Command;

use mica_tests::command::{run, succeed};
use mica_tests::wait::SOON;
use mica_tests::{Context as _, Result};
use serde::Serialize;

/// What figures can't be read without.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// How it was started.
    pub command: Vec<String>,
    /// When, in UTC.
    pub date: String,
    /// The commit that was measured; `-changed` if the sources were not exactly that.
    pub commit: String,
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
}

impl Machine {
    /// As it is before a run.
    pub fn now() -> Result<Machine> {
        let text = |program: &str, words: &[&str]| -> Result<String> {
            Ok(succeed(Command::new(program).args(words), SOON)?.text().trim().to_owned())
        };
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
        let temporary = std::env::temp_dir().display().to_string();
        Ok(Machine {
            command: std::env::args()
                .enumerate()
                .map(|(at, word)| if at == 0 { "mica-bench".to_owned() } else { word })
                .collect(),
            date: text("date", &["-u", "+%Y-%m-%d %H:%M"])?,
            commit: commit()?,
            kernel: text("uname", &["-sr"])?,
            processors: format!(
                "{} x {}",
                std::thread::available_parallelism()?,
                model.trim_start_matches([' ', '\t', ':'])
            ),
            filesystem: text("findmnt", &["--noheadings", "--output", "FSTYPE", "--target", &temporary])?,
            load_before: load()?,
            load_after: String::new(),
        })
    }

    /// Notes the end.
    pub fn finish(&mut self) -> Result {
        self.load_after = load()?;
        Ok(())
    }

    /// How it was started, as a person would type it.
    pub fn command_line(&self) -> String {
        self.command.join(" ")
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { date, commit, kernel, processors, filesystem, load_before, load_after, .. } = self;
        write!(to, "{date}; commit {commit}; {kernel}; {processors}; {filesystem}; ")?;
        write!(to, "load {load_before} before, {load_after} after")
    }
}

/// The load average of the last minute.
pub fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().context("the kernel tells the load")?.to_owned())
}

/// The commit of the sources; a copy without history has none.
fn commit() -> Result<String> {
    let git = |words: &[&str]| run(Command::new("git").arg("-C").arg(sources()).args(words), SOON);
    let Ok(head) = git(&["rev-parse", "--short=10", "HEAD"])?.success() else { return Ok("unknown".to_owned()) };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?.success()?;
    let mark = if changed.stdout.is_empty() { "" } else { "-changed" };
    Ok(format!("{}{mark}", head.text().trim()))
}

/// The project's folder.
pub fn sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
