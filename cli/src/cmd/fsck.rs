//! `mica fsck`, `mica layer verify`, `mica scrub`

use mica_layerdb::Quarantined;
use mica_layerdb::fsck::{Found, FsckReport, Outcome, Severity};
use mica_layerdb::verify::{LayerCheck, ScrubReport};
use mica_snapshotter::admin::{Call, FsckCall, VerifyCall};

use super::{Context, absolute};
use crate::args::{Fsck, Scrub, Verify};
use crate::backend::Backend;
use crate::output::{bytes, when};
use crate::{Failure, output};

/// Bytes in a second, of MiB in a second.
fn rate(mib: u64) -> u64 {
    mib.saturating_mul(1 << 20)
}

/// Checks the store.
pub fn run(context: &Context, arguments: &Fsck) -> Result<(), Failure> {
    let call = Call::Fsck(FsckCall {
        data: arguments.data,
        deep: arguments.deep,
        repair: arguments.repair,
        empty_quarantine: arguments.empty_quarantine,
        bytes_per_second: rate(arguments.rate),
    });
    let report: FsckReport = Backend::of(&context.root())?.call(call, &output::Steps)?;
    if context.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    if report.is_sound() { Ok(()) } else { Err(Failure::Said) }
}

fn print(report: &FsckReport) -> Result<(), Failure> {
    report.found.iter().try_for_each(found)?;
    quarantine(&report.quarantined)?;
    output::line(&format!(
        "{} layers, {} merged trees, {} images, {} objects with {}, {} of them unused",
        report.layers,
        report.chains,
        report.images,
        report.objects,
        bytes(report.object_bytes),
        report.unused_objects
    ))?;
    if report.read_bytes > 0 {
        output::line(&format!("{} of contents were read and are whole", bytes(report.read_bytes)))?;
    }
    let (fatals, errors, warnings) = (report.fatals, report.errors, report.warnings);
    output::line(&match (fatals, errors, warnings) {
        (0, 0, 0) if report.repaired == 0 => "nothing is wrong".to_owned(),
        (0, 0, 0) => format!("{} defects were repaired; nothing else is wrong", report.repaired),
        _ => format!(
            "{fatals} fatal defects, {errors} errors, {warnings} warnings are left; {} repaired",
            report.repaired
        ),
    })?;
    Ok(())
}

fn found(found: &Found) -> Result<(), Failure> {
    let severity = match found.severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
        Severity::Fatal => "fatal",
    };
    output::line(&format!("{severity}: {} [{}]", found.text, found.name))?;
    output::line(&match &found.outcome {
        Outcome::Left => format!("    {}", found.advice),
        Outcome::Repaired(how) => format!("    repaired: {how}"),
        Outcome::Contained(how) => format!("    contained: {how}"),
        Outcome::Failed(reason) => format!("    not repaired: {reason}"),
    })?;
    Ok(())
}

fn quarantine(quarantined: &[Quarantined]) -> Result<(), Failure> {
    for note in quarantined {
        output::line(&format!(
            "in quarantine since {}: {} with {}: {} ({} layers, {} images need it)",
            when(note.since),
            note.name,
            bytes(note.bytes),
            note.reason,
            note.layers_total,
            note.images_total
        ))?;
    }
    Ok(())
}

/// Verifies layers.
pub fn verify(context: &Context, arguments: Verify) -> Result<(), Failure> {
    let call = Call::LayerVerify(VerifyCall {
        digests: arguments.digests,
        repair: arguments.repair,
        from: arguments.from.map(|path| absolute(&path)),
        bytes_per_second: rate(arguments.rate),
    });
    let checks: Vec<LayerCheck> = Backend::of(&context.root())?.call(call, &output::Steps)?;
    if context.json {
        output::json(&checks)?;
    } else {
        checks.iter().try_for_each(layer)?;
    }
    if checks.iter().all(|check| check.whole) { Ok(()) } else { Err(Failure::Said) }
}

fn layer(check: &LayerCheck) -> Result<(), Failure> {
    let tar = match check.tar {
        Some(true) => "its tar comes out right",
        Some(false) => "its tar comes out wrong",
        None => "its tar was not made",
    };
    let state = if check.whole { "whole" } else { "DAMAGED" };
    output::line(&format!(
        "{}: {state}: {} objects with {}; {tar}",
        check.diff_id,
        check.objects,
        bytes(check.object_bytes)
    ))?;
    check.found.iter().try_for_each(found)?;
    for repaired in &check.repaired {
        output::line(&match &repaired.failure {
            None => format!("    written anew: {}", repaired.what),
            Some(reason) => format!("    not written anew: {}: {reason}", repaired.what),
        })?;
    }
    Ok(())
}

/// Reads all contents.
pub fn scrub(context: &Context, arguments: &Scrub) -> Result<(), Failure> {
    let call = Call::Scrub { bytes_per_second: rate(arguments.rate), restart: arguments.restart };
    let report: ScrubReport = Backend::of(&context.root())?.call(call, &output::Steps)?;
    if context.json {
        output::json(&report)?;
    } else {
        quarantine(&report.quarantined)?;
        output::line(&format!(
            "{} objects with {} were read{}; {} are damaged",
            report.scrub.objects,
            bytes(report.scrub.bytes),
            if report.resumed { ", some by an earlier scrub" } else { "" },
            report.scrub.damaged
        ))?;
    }
    if report.quarantined.is_empty() { Ok(()) } else { Err(Failure::Said) }
}
