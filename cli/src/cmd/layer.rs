//! `mica layer`

use mica_snapshotter::admin::Call;

use super::Context;
use crate::args;
use crate::backend::Backend;
use crate::output::{Table, bytes, short, when};
use crate::{Failure, output};

/// Lists layers.
pub fn run(context: &Context, arguments: &args::Layer) -> Result<(), Failure> {
    let args::Layer::Ls = arguments;
    let layers: Vec<mica_layerdb::Layer> = Backend::of(&context.root())?.call(Call::LayerLs, &())?;
    if context.json {
        return Ok(output::json(&layers)?);
    }
    table(&layers).print().map_err(Failure::from)
}

/// Layers as rows.
pub fn table(layers: &[mica_layerdb::Layer]) -> Table {
    let mut table = Table::new(["DIFF-ID", "TAR", "CONTENTS", "NEW", "ENTRIES", "CREATED"]);
    for layer in layers {
        table.row([
            short(&layer.diff_id.to_string()),
            bytes(layer.tar_bytes),
            bytes(layer.content_bytes),
            bytes(layer.new_bytes),
            layer.entries.to_string(),
            when(layer.created),
        ]);
    }
    table
}
