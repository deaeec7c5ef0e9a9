//! `mica image history`

use std::io::{self, BufWriter, Write};

use mica_layerdb::image::HistoryStep;
use mica_snapshotter::admin::{Call, HistoryLine, HistoryReport};
use serde_json::json;

use super::Context;
use super::diff::{counts_of, line_of, summary_of};
use crate::backend::Backend;
use crate::lines::Lines;
use crate::output::{Table, bytes, short};
use crate::{Failure, output};

/// Prints the steps, first the oldest.
pub fn run(context: &Context, reference: String, files: bool) -> Result<(), Failure> {
    let backend = Backend::of(&context.root())?;
    let call = Call::ImageHistory { reference, files };
    if files {
        return with_files(context, &backend, call);
    }
    let report: HistoryReport = backend.call(call, &())?;
    if context.json {
        return Ok(output::json(&report)?);
    }
    let mut table = Table::new(["LAYER", "CREATED", "TAR", "ADDED", "CHANGED", "REMOVED", "BY"]);
    for step in &report.history {
        let changes = step.changes.unwrap_or_default();
        let counts = |counts: String| if step.layer.is_some() { counts } else { "-".to_owned() };
        table.row([
            step.layer.map_or("-".to_owned(), |layer| short(&layer.to_string())),
            super::plain(step.created.as_deref().unwrap_or("-")),
            step.tar_bytes.map_or("-".to_owned(), bytes),
            counts(counts_of(&changes.added, changes.added.bytes_after)),
            counts(counts_of(&changes.changed, changes.changed.bytes_after)),
            counts(counts_of(&changes.removed, changes.removed.bytes_before)),
            by(step),
        ]);
    }
    Ok(table.print()?)
}

/// Who made a step, and how, in one line.
fn by(step: &HistoryStep) -> String {
    let parts = [&step.author, &step.created_by, &step.comment];
    let parts: Vec<String> =
        parts.into_iter().flatten().filter(|it| !it.is_empty()).map(|it| super::plain(it)).collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join("; ") }
}

/// As JSON: one object; each step has its changes, which are written as they come.
fn with_files(context: &Context, backend: &Backend, call: Call) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut told = Told { json: context.json, steps: 0, changes: 0 };
    let mut lines = Lines::new(|line: &[u8]| told.line(&mut out, serde_json::from_slice(line)?));
    let report: HistoryReport = backend.stream(call, &(), &mut lines)?;
    drop(lines);
    if context.json {
        told.end(&mut out, &report)?;
    }
    Ok(out.flush()?)
}

struct Told {
    json: bool,
    steps: usize,
    changes: usize,
}

impl Told {
    fn line(&mut self, out: &mut dyn Write, line: HistoryLine) -> io::Result<()> {
        match (line, self.json) {
            (HistoryLine::Step(step), true) => {
                out.write_all(if self.steps > 0 { b"]},\n" } else { b"{\"history\":[\n" })?;
                (self.steps, self.changes) = (self.steps + 1, 0);
                let step = json!(step).to_string();
                // Room for one more member.
                out.write_all(step.strip_suffix('}').unwrap_or(&step).as_bytes())?;
                out.write_all(b",\"files\":[")
            }
            (HistoryLine::Change(change), true) => {
                out.write_all(if self.changes > 0 { b",\n" } else { b"\n" })?;
                self.changes += 1;
                Ok(serde_json::to_writer(out, &change)?)
            }
            (HistoryLine::Step(step), false) => {
                let layer = step.layer.map_or("-".to_owned(), |layer| layer.to_string());
                let created = super::plain(step.created.as_deref().unwrap_or("-"));
                writeln!(out, "{layer} {created} {}", by(&step))?;
                match &step.changes {
                    Some(changes) => writeln!(out, "  {}", summary_of(changes)),
                    None => Ok(()),
                }
            }
            (HistoryLine::Change(change), false) => writeln!(out, "  {}", line_of(&change)),
        }
    }

    fn end(&self, out: &mut dyn Write, report: &HistoryReport) -> io::Result<()> {
        out.write_all(if self.steps > 0 { b"]}],\n\"image\":" } else { b"{\"history\":[],\n\"image\":" })?;
        serde_json::to_writer(&mut *out, &report.image)?;
        out.write_all(b"}\n")
    }
}
