//! `mica layer`

use std::path::Path;

use mica_layerdb::Layer;
use mica_snapshotter::admin::{Call, LayerReport};

use super::Context;
use crate::args;
use crate::backend::Backend;
use crate::output::{Table, bytes, short, when};
use crate::sink::Sink;
use crate::{Failure, output};

/// Does one of the layer verbs.
pub fn run(context: &Context, arguments: args::Layer) -> Result<(), Failure> {
    match arguments {
        args::Layer::Verify(arguments) => super::fsck::verify(context, arguments),
        args::Layer::Ls => list(context),
        args::Layer::Show { digest } => show(context, digest),
        args::Layer::Export { digest, output } => export(context, digest, output.as_deref()),
    }
}

fn list(context: &Context) -> Result<(), Failure> {
    let layers: Vec<Layer> = Backend::of(&context.root())?.call(Call::LayerLs, &())?;
    if context.json {
        return Ok(output::json(&layers)?);
    }
    table(&layers).print().map_err(Failure::from)
}

fn show(context: &Context, digest: String) -> Result<(), Failure> {
    let report: LayerReport = Backend::of(&context.root())?.call(Call::LayerShow { digest }, &())?;
    if context.json {
        return Ok(output::json(&report)?);
    }
    let LayerReport { layer, contents, used_by } = report;
    let blob = layer.blob.map_or("-".to_owned(), |blob| format!("{blob} with {}", bytes(layer.blob_bytes)));
    for (key, value) in [
        ("diff-id", layer.diff_id.to_string()),
        ("tar", format!("{} in {} entries", bytes(layer.tar_bytes), layer.entries)),
        ("blob", blob),
        ("tree", format!("{} with {}", layer.tree_digest, bytes(layer.tree_bytes))),
        ("created", when(layer.created)),
        (
            "files",
            format!("{} with {}, {} further names", contents.files, bytes(contents.file_bytes), contents.hard_links),
        ),
        ("folders", format!("{}, {} of them only because of what is in them", contents.directories, contents.implied)),
        ("others", format!("{} symbolic links, {} devices, pipes and sockets", contents.symlinks, contents.special)),
        ("hides", format!("{} names (whiteouts), {} folders as a whole (opaque)", contents.whiteouts, contents.opaque)),
    ] {
        output::line(&format!("{key:<8} {value}"))?;
    }
    let users = [("image", used_by.images), ("snapshot", used_by.snapshots), ("mount", used_by.mounts)];
    for (kind, names) in users {
        for name in names {
            output::line(&format!("{:<8} {kind} {name}", "used by"))?;
        }
    }
    Ok(())
}

fn export(context: &Context, digest: String, output: Option<&Path>) -> Result<(), Failure> {
    let backend = Backend::of(&context.root())?;
    let mut sink = Sink::open(output, "a layer's tar")?;
    let layer: Layer = backend.stream(Call::LayerExport { digest }, &(), &mut sink)?;
    sink.finish()?;
    match output.filter(|output| *output != Path::new("-")) {
        // Standard output is the tar.
        None => Ok(()),
        Some(_) if context.json => Ok(output::json(&layer)?),
        Some(output) => {
            let told = format!("{}: {} of layer {}", output.display(), bytes(layer.tar_bytes), layer.diff_id);
            Ok(output::line(&told)?)
        }
    }
}

/// Layers as rows.
pub fn table(layers: &[Layer]) -> Table {
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
