//! What a person or a script sees: tables, JSON, byte counts, progress.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mica_layerdb::Progress;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Writes one JSON document and a newline to standard output.
pub fn json<T: Serialize>(value: &T) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// Writes a line to standard output; an error (a closed pipe) is returned, never a panic.
pub fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Writes a line to standard error. Nothing can be done when that fails.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Rows under a heading, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column names.
    pub fn new<const N: usize>(heading: [&str; N]) -> Table {
        Table { rows: vec![heading.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Prints the table.
    pub fn print(&self) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
            .map(Option::unwrap_or_default)
            .collect();
        let mut out = io::stdout().lock();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// `bytes` for people: three significant digits, binary units.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss)] // Three digits are shown.
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.2} {}", UNITS[unit]) } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// The first twelve hexadecimal digits of a digest.
pub fn short(digest: &str) -> String {
    digest.rsplit(':').next().unwrap_or(digest).chars().take(12).collect()
}

/// What progress is told of: a layer by its digest, anything else by its name.
fn label(name: &str) -> String {
    if name.starts_with("sha256:") { format!("layer {}", short(name)) } else { name.to_owned() }
}

/// Seconds since the epoch as UTC (RFC 3339).
pub fn when(seconds: u64) -> String {
    mica_layerdb::image::rfc3339(seconds)
}

/// Starts the log, on standard error.
pub fn log(filter: &str) {
    let known = EnvFilter::try_new(filter);
    let wrong = known.as_ref().err().map(ToString::to_string);
    let filter = known.unwrap_or_else(|_| EnvFilter::new("warn"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    if let Some(reason) = started.err().map(|error| error.to_string()).or(wrong) {
        complain(&format!("mica: log filter: {reason}"));
    }
}

/// Progress of an import on standard error: bars on a terminal, a line per layer elsewhere.
#[derive(Debug)]
pub struct ImportProgress {
    bars: Option<MultiProgress>,
    layers: Mutex<HashMap<String, (ProgressBar, u64)>>,
}

impl ImportProgress {
    /// Nothing is shown before a layer begins.
    pub fn new() -> ImportProgress {
        let bars = io::stderr().is_terminal().then(MultiProgress::new);
        ImportProgress { bars, layers: Mutex::default() }
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        if let Some(bars) = &self.bars {
            // Bars are only decoration.
            let _ = bars.clear();
        }
    }

    fn bar(&self, name: &str, total_bytes: Option<u64>) -> ProgressBar {
        let Some(bars) = &self.bars else { return ProgressBar::hidden() };
        let bar = bars.add(ProgressBar::new(total_bytes.unwrap_or(0)));
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label(name));
        bar
    }
}

impl Progress for ImportProgress {
    fn begin(&self, name: &str, total_bytes: Option<u64>) {
        let bar = self.bar(name, total_bytes);
        if let Ok(mut layers) = self.layers.lock() {
            layers.insert(name.to_owned(), (bar, 0));
        }
    }

    fn read(&self, name: &str, bytes: u64) {
        if let Ok(mut layers) = self.layers.lock()
            && let Some((bar, read)) = layers.get_mut(name)
        {
            *read += bytes;
            bar.set_position(*read);
        }
    }

    fn end(&self, name: &str, known: bool) {
        let layer = self.layers.lock().ok().and_then(|mut layers| layers.remove(name));
        let Some((bar, read)) = layer else { return };
        bar.finish();
        if self.bars.is_none() {
            let what = if known { "there already".to_owned() } else { bytes(read) };
            complain(&format!("{}: {what}", label(name)));
        }
    }
}

/// Progress of checks on standard error, on a terminal only: what is being looked at.
#[derive(Debug)]
pub struct Steps;

impl Progress for Steps {
    fn begin(&self, name: &str, _total_bytes: Option<u64>) {
        if io::stderr().is_terminal() {
            complain(&format!("looking at {name}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_every_size_read_well() {
        let shown: Vec<String> = [0, 1023, 1024, 1536, 10 * 1024, 1 << 20, u64::MAX].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "10.0 KiB", "1.00 MiB", "16.0 EiB"]);
    }

    #[test]
    fn when_knows_the_calendar() {
        let shown: Vec<String> = [0, 951_782_400, 1_709_164_799, 4_102_444_800].into_iter().map(when).collect();
        let expected = ["1970-01-01T00:00:00Z", "2000-02-29T00:00:00Z", "2024-02-28T23:59:59Z", "2100-01-01T00:00:00Z"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn short_drops_the_algorithm() {
        assert_eq!(short("sha256:0123456789abcdef0123"), "0123456789ab");
    }
}
