//! `mica gc`

use mica_layerdb::GcReport;
use mica_snapshotter::admin::Call;

use super::Context;
use crate::args::Gc;
use crate::backend::Backend;
use crate::{Failure, output};

/// Removes what nothing refers to.
pub fn run(context: &Context, arguments: &Gc) -> Result<(), Failure> {
    let call = Call::Gc { dry_run: arguments.dry_run };
    let report: GcReport = Backend::of(&context.root())?.call(call, &())?;
    if context.json {
        return Ok(output::json(&report)?);
    }
    let verb = if arguments.dry_run { "would remove" } else { "removed" };
    output::line(&format!(
        "{verb} {} layers, {} merged trees, {} objects, {} snapshots: {}",
        report.layers_removed,
        report.chains_removed,
        report.objects_removed,
        report.snapshots_removed,
        output::bytes(report.bytes_removed)
    ))?;
    Ok(())
}
