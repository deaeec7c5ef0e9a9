//! `mica df`

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
    let mut table = Table::new(["", "BYTES", "WHAT"]);
    table.row(["logical".to_owned(), bytes(df.logical_bytes), "all images, as if nothing were shared".to_owned()]);
    let stored = format!(
        "on the disk: {} objects with {}, trees with {}",
        df.objects,
        bytes(df.object_bytes),
        bytes(df.layer_tree_bytes + df.chain_tree_bytes)
    );
    table.row(["stored".to_owned(), bytes(df.stored_bytes), stored]);
    table.row(["shared".to_owned(), bytes(df.shared_bytes), "saved by sharing between images".to_owned()]);
    table.row(["reclaimable".to_owned(), bytes(df.reclaimable_bytes), "given back by `mica gc`".to_owned()]);
    table.print()?;
    if df.images.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let mut table = Table::new(["IMAGE", "LOGICAL", "STORED", "SHARED"]);
    for image in df.images {
        table.row([image.name, bytes(image.logical_bytes), bytes(image.stored_bytes), bytes(image.shared_bytes)]);
    }
    Ok(table.print()?)
}
