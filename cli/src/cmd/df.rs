//! `mica df`

use mica_layerdb::Tally;
use mica_layerdb::df::Df;
use mica_snapshotter::admin::Call;

use super::Context;
use crate::backend::Backend;
use crate::output::{Table, bytes};
use crate::{Failure, output};

/// Tells what takes space.
pub fn run(context: &Context) -> Result<(), Failure> {
    let df: Df = Backend::of(&context.root())?.call(Call::Df, &())?;
    if context.json {
        return Ok(output::json(&df)?);
    }
    let mut table = Table::new(["", "BYTES", "ON DISK", "WHAT"]);
    let mut row = |name: &str, size: Tally, what: &str| {
        table.row([name.to_owned(), bytes(size.bytes), bytes(size.disk_bytes), what.to_owned()]);
    };
    row("stored", df.stored, "objects, trees and recipes");
    row("shared", df.shared, "saved by sharing between images");
    row("reclaimable", df.reclaimable, "given back by `mica gc`");
    row("total", df.total, "all of the store, as du counts");
    table.row([
        "logical".to_owned(),
        bytes(df.logical_bytes),
        String::new(),
        "all images, as if nothing were shared".to_owned(),
    ]);
    table.print()?;
    output::line("")?;
    let mut table = Table::new(["KIND", "FILES", "BYTES", "ON DISK"]);
    for (name, size) in df.kinds.each().into_iter().filter(|(_, size)| size.count > 0) {
        table.row([name.to_owned(), size.count.to_string(), bytes(size.bytes), bytes(size.disk_bytes)]);
    }
    table.print()?;
    if !df.images.is_empty() {
        output::line("")?;
        let mut table = Table::new(["IMAGE", "LOGICAL", "STORED", "SHARED", "EXCLUSIVE"]);
        for image in df.images {
            let [stored, shared, exclusive] =
                [image.stored, image.shared, image.exclusive].map(|size| bytes(size.disk_bytes));
            table.row([image.name, bytes(image.logical_bytes), stored, shared, exclusive]);
        }
        table.print()?;
    }
    if !df.snapshots.is_empty() {
        output::line("")?;
        let mut table = Table::new(["SNAPSHOT", "FILES", "BYTES", "ON DISK"]);
        for snapshot in df.snapshots {
            let name = snapshot.name.unwrap_or_else(|| snapshot.number.to_string());
            let size = snapshot.files;
            table.row([name, size.count.to_string(), bytes(size.bytes), bytes(size.disk_bytes)]);
        }
        table.print()?;
    }
    for layer in df.unreadable {
        output::complain(&format!("mica: layer {} can't be read: {}", layer.diff_id, layer.reason));
    }
    Ok(())
}
