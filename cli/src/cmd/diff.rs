//! Differences, as they come.

use std::io::{self, BufWriter, Write};

use mica_layerdb::diff::{Change, ChangeKind, Counts, NodeKind, Property, Seen, Summary};
use mica_snapshotter::admin::{Call, DiffReport};
use serde::Serialize;

use super::Context;
use crate::Failure;
use crate::backend::Backend;
use crate::lines::Lines;
use crate::output::bytes;

/// Asks for a comparison and prints it. As JSON it is one object whose `changes` are written as they come.
pub fn run(context: &Context, call: Call) -> Result<(), Failure> {
    let backend = Backend::of(&context.root())?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut list = List::new(context.json);
    let mut lines = Lines::new(|line: &[u8]| {
        if list.json {
            return list.item(&mut out, line);
        }
        let change: Change = serde_json::from_slice(line)?;
        writeln!(out, "{}", line_of(&change))
    });
    let report: DiffReport = backend.stream(call, &(), &mut lines)?;
    drop(lines);
    if context.json {
        list.end(&mut out, &report)?;
    } else {
        writeln!(out, "{}", summary_of(&report.summary))?;
    }
    Ok(out.flush()?)
}

/// One JSON object with a list that is written before the other members are known.
pub struct List {
    json: bool,
    begun: bool,
}

impl List {
    /// Nothing is written before the first item.
    pub fn new(json: bool) -> List {
        List { json, begun: false }
    }

    /// Writes the next item of `changes`.
    pub fn item(&mut self, out: &mut dyn Write, item: &[u8]) -> io::Result<()> {
        out.write_all(if self.begun { b",\n" } else { b"{\"changes\":[\n" })?;
        self.begun = true;
        out.write_all(item)
    }

    /// Ends the list and writes the other members.
    pub fn end<T: Serialize>(self, out: &mut dyn Write, rest: &T) -> io::Result<()> {
        if !self.begun {
            out.write_all(b"{\"changes\":[")?;
        }
        let rest = serde_json::to_vec(rest)?;
        out.write_all(b"],\n")?;
        // The other members without the brace that opens their object.
        out.write_all(rest.get(1..).unwrap_or_default())?;
        out.write_all(b"\n")
    }
}

/// `A /path  file, 12 B`, `C /path  content, mode; 12 B -> 14 B`, `D /path  folder`.
pub fn line_of(change: &Change) -> String {
    let Change { path, what, xattrs, before, after, .. } = change;
    let letter = match change.change {
        ChangeKind::Added => 'A',
        ChangeKind::Changed => 'C',
        ChangeKind::Removed => 'D',
    };
    let told = match (before, after) {
        (Some(before), Some(after)) => {
            let mut parts: Vec<String> =
                what.iter().map(|property| property_of(*property, before, after, xattrs)).collect();
            if before.size != after.size {
                parts.push(format!("{} -> {}", bytes(before.size), bytes(after.size)));
            }
            parts.join(", ")
        }
        (Some(seen), None) | (None, Some(seen)) => node_of(seen),
        (None, None) => String::new(),
    };
    format!("{letter} {path}  {told}")
}

fn property_of(property: Property, before: &Seen, after: &Seen, xattrs: &[mica_layerdb::diff::Name]) -> String {
    match property {
        Property::Mode => format!("mode {} -> {}", before.mode, after.mode),
        Property::Owner => format!("owner {}:{} -> {}:{}", before.uid, before.gid, after.uid, after.gid),
        Property::Type => format!("{} -> {}", before.kind.name(), after.kind.name()),
        Property::Xattr => {
            let names: Vec<String> = xattrs.iter().map(ToString::to_string).collect();
            format!("xattr {}", names.join(" "))
        }
        Property::Target => {
            let target = |seen: &Seen| seen.target.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("target {} -> {}", target(before), target(after))
        }
        other => other.name().to_owned(),
    }
}

fn node_of(seen: &Seen) -> String {
    match (&seen.kind, &seen.target, &seen.device) {
        (NodeKind::File, ..) => format!("file, {}", bytes(seen.size)),
        (kind, Some(target), _) => format!("{} to {target}", kind.name()),
        (kind, _, Some(device)) if *kind != NodeKind::Whiteout => format!("{} {device}", kind.name()),
        (kind, ..) => kind.name().to_owned(),
    }
}

/// All changes in one line.
pub fn summary_of(summary: &Summary) -> String {
    let Summary { added, changed, removed } = summary;
    format!(
        "added {}, changed {}, removed {}",
        counts_of(added, added.bytes_after),
        counts_of(changed, changed.bytes_after),
        counts_of(removed, removed.bytes_before)
    )
}

/// `12 (3.4 MiB)`: paths, and the bytes of the files among them.
pub fn counts_of(counts: &Counts, size: u64) -> String {
    if counts.paths() == 0 { "0".to_owned() } else { format!("{} ({})", counts.paths(), bytes(size)) }
}
