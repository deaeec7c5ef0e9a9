//! `mica snapshot`

use mica_layerdb::Image;
use mica_snapshotter::admin::{Call, CommitOptions, SnapshotReport, SnapshotRow};

use super::{Context, diff};
use crate::backend::Backend;
use crate::output::{Table, bytes, when};
use crate::{Failure, args, output};

/// Does one of the snapshot verbs.
pub fn run(context: &Context, arguments: args::Snapshot) -> Result<(), Failure> {
    match arguments {
        args::Snapshot::Ls => list(context),
        args::Snapshot::Show { key } => show(context, key),
        args::Snapshot::Diff { key, times } => diff::run(context, Call::SnapshotDiff { key, times }),
        args::Snapshot::Commit(arguments) => commit(context, arguments),
    }
}

fn list(context: &Context) -> Result<(), Failure> {
    let snapshots: Vec<SnapshotRow> = Backend::of(&context.root())?.call(Call::SnapshotLs, &())?;
    if context.json {
        return Ok(output::json(&snapshots)?);
    }
    let mut table = Table::new(["NAME", "KIND", "PARENT", "CREATED"]);
    for snapshot in snapshots {
        let SnapshotRow { name, kind, parent, created, .. } = snapshot;
        table.row([name, kind.name().to_owned(), or_dash(parent), when(created)]);
    }
    Ok(table.print()?)
}

fn show(context: &Context, key: String) -> Result<(), Failure> {
    let report: SnapshotReport = Backend::of(&context.root())?.call(Call::SnapshotShow { key }, &())?;
    if context.json {
        return Ok(output::json(&report)?);
    }
    let SnapshotReport { row, usage, mountpoints } = report;
    let usage = usage.map_or("-".to_owned(), |usage| format!("{} in {} inodes", bytes(usage.size), usage.inodes));
    for (key, value) in [
        ("name", row.name),
        ("kind", row.kind.name().to_owned()),
        ("parent", or_dash(row.parent)),
        ("created", when(row.created)),
        ("updated", when(row.updated)),
        ("usage", usage),
    ] {
        output::line(&format!("{key:<8} {value}"))?;
    }
    for mountpoint in mountpoints {
        output::line(&format!("{:<8} {}", "mounted", mountpoint.display()))?;
    }
    for (label, value) in row.labels {
        output::line(&format!("{:<8} {label}={value}", "label"))?;
    }
    Ok(())
}

fn commit(context: &Context, arguments: args::Commit) -> Result<(), Failure> {
    let args::Commit { key, name, base, author, message, changes } = arguments;
    let options = CommitOptions { name, base, author, message, changes };
    let image: Image = Backend::of(&context.root())?.call(Call::SnapshotCommit { key, options }, &())?;
    if context.json {
        return Ok(output::json(&image)?);
    }
    Ok(output::line(&format!("{} {}", image.name, image.manifest))?)
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}
