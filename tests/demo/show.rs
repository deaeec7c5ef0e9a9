//! What the spectator reads.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mica_tests::{Failure, Result};

/// Prints sections, facts and checks, and counts what held.
#[derive(Debug)]
pub struct Show {
    colour: bool,
    sections: u32,
    held: u32,
    failed: Vec<String>,
}

impl Show {
    /// Nothing shown yet.
    pub fn new() -> Show {
        Show { colour: std::io::stdout().is_terminal(), sections: 0, held: 0, failed: Vec::new() }
    }

    /// A heading.
    pub fn section(&mut self, title: &str) {
        self.sections += 1;
        let title = self.paint("1", &format!("{}. {title}", self.sections));
        print(&format!("\n{title}\n"));
    }

    /// A section whose failure does not keep the others from being shown.
    pub fn part(&mut self, title: &str, body: impl FnOnce(&mut Show) -> Result) {
        self.section(title);
        let start = Instant::now();
        if let Err(failure) = body(self) {
            self.check(&format!("part {} runs to its end", self.sections), Err(failure));
        }
        print(&self.paint("2", &format!("     ({})\n", time(start.elapsed()))));
    }

    /// A fact.
    #[allow(clippy::unused_self)] // Facts are part of the show.
    pub fn fact(&mut self, name: &str, value: &str) {
        let mut lines = value.trim_end().lines();
        print(&format!("     {name:<22} {}\n", lines.next().unwrap_or_default()));
        for line in lines {
            print(&format!("     {:<22} {line}\n", ""));
        }
    }

    /// Something that must hold.
    pub fn check(&mut self, what: &str, held: Result) {
        match held {
            Ok(()) => {
                self.held += 1;
                print(&format!("  {} {what}\n", self.paint("32", "ok")));
            }
            Err(failure) => {
                self.failed.push(what.to_owned());
                let reason = failure.to_string().replace('\n', "\n     ");
                print(&format!("  {} {what}\n     {reason}\n", self.paint("31", "FAILED")));
            }
        }
    }

    /// Something that must be true, with what was found if it is not.
    pub fn holds(&mut self, what: &str, held: bool, found: &str) {
        self.check(what, if held { Ok(()) } else { Err(Failure::new(format!("found: {found}"))) });
    }

    /// The verdict.
    pub fn end(&self, took: Duration) -> ExitCode {
        if self.failed.is_empty() {
            print(&format!("\nall {} checks held, in {}\n", self.held, time(took)));
            return ExitCode::SUCCESS;
        }
        print(&format!("\n{} of {} checks FAILED:\n", self.failed.len(), self.held + self.failed.len() as u32));
        for what in &self.failed {
            print(&format!("  {what}\n"));
        }
        ExitCode::FAILURE
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A time for people.
pub fn time(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", tenths(1 << 10)),
        _ => format!("{} MiB", tenths(1 << 20)),
    }
}

fn print(text: &str) {
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
