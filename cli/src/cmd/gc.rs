//! `mica gc`

mod explain;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mica_layerdb::{GcReport, Progress, Tally};
use mica_snapshotter::admin::Call;

use super::Context;
use crate::args::Gc;
use crate::backend::Backend;
use crate::{Failure, output};

/// Removes what nothing refers to, or tells who refers to something.
pub fn run(context: &Context, arguments: &Gc) -> Result<(), Failure> {
    if let Some(digest) = &arguments.explain {
        return explain::run(context, digest);
    }
    let call = Call::Gc { dry_run: arguments.dry_run, rate: arguments.rate };
    let report: GcReport = Backend::of(&context.root())?.call(call, &Interrupt::listen()?)?;
    if context.json {
        output::json(&report)?;
    } else {
        print(&report, arguments.dry_run)?;
    }
    if report.unreadable.is_empty() && !report.stopped { Ok(()) } else { Err(Failure::Said) }
}

fn print(report: &GcReport, dry_run: bool) -> Result<(), Failure> {
    let verb = if dry_run { "would remove" } else { "removed" };
    let total = report.total();
    output::line(&format!(
        "{verb} {} layers, {} merged trees, {} objects, {} snapshots: {} ({} on the disk)",
        report.layer_trees.count,
        report.chain_trees.count,
        report.objects.count,
        report.snapshots.count,
        output::bytes(total.bytes),
        output::bytes(total.disk_bytes)
    ))?;
    let kinds = [
        ("objects", report.objects),
        ("layer trees", report.layer_trees),
        ("recipes", report.recipes),
        ("merged trees", report.chain_trees),
        ("snapshots", report.snapshots),
    ];
    for (name, Tally { bytes, disk_bytes, .. }) in kinds.into_iter().filter(|(_, tally)| tally.count > 0) {
        output::line(&format!("  {name}: {} ({} on the disk)", output::bytes(bytes), output::bytes(disk_bytes)))?;
    }
    if let Some(shard) = report.resumed_at {
        output::line(&format!("went on at objects/{shard:02x}, where an earlier collection ended"))?;
    }
    for layer in &report.unreadable {
        let images = if layer.images.is_empty() { "no image".to_owned() } else { layer.images.join(", ") };
        output::complain(&format!("mica: layer {} of {images} can't be read: {}", layer.diff_id, layer.reason));
    }
    if !report.unreadable.is_empty() {
        output::complain("mica: no objects were collected, since nobody knows which of them these layers need");
    }
    if report.stopped {
        output::complain("mica: interrupted; the next collection goes on from here");
    }
    Ok(())
}

/// Control-C ends a collection between two steps; a second one ends the program.
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn listen() -> Result<Interrupt, Failure> {
        let pressed = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let told = Arc::clone(&pressed);
        std::thread::spawn(move || {
            runtime.block_on(async {
                let first = tokio::signal::ctrl_c().await;
                told.store(first.is_ok(), Ordering::Release);
                if first.is_ok() && tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(130);
                }
            });
        });
        Ok(Interrupt(pressed))
    }
}

impl Progress for Interrupt {
    fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
