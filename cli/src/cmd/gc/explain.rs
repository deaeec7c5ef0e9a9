//! `mica gc --explain DIGEST`

use mica_layerdb::{Explained, Explanation, Keeper, ObjectUse};
use mica_snapshotter::admin::Call;

use super::super::Context;
use crate::backend::Backend;
use crate::{Failure, output};

const NOTHING: &str = "  nothing: goes at the next collection";

/// Tells who refers to something.
pub fn run(context: &Context, digest: &str) -> Result<(), Failure> {
    let call = Call::GcExplain { digest: digest.to_owned() };
    let explanation: Option<Explanation> = Backend::of(&context.root())?.call(call, &())?;
    let Some(explanation) = explanation else {
        return Err(Failure::text(format!("there is no object, layer, merged tree or document {digest}")));
    };
    if context.json {
        return Ok(output::json(&explanation)?);
    }
    for found in &explanation.found {
        print(&explanation, found)?;
    }
    Ok(())
}

fn print(explanation: &Explanation, found: &Explained) -> Result<(), Failure> {
    match found {
        Explained::Layer { diff_id, keepers, .. } => {
            output::line(&format!("layer {diff_id}"))?;
            lines(keepers, "  ")?;
        }
        Explained::Chain { layers, keepers, .. } => {
            output::line(&format!("merged tree {} of {} layers", explanation.digest, layers.len()))?;
            lines(keepers, "  ")?;
        }
        Explained::Object { file, layers, manifest_of, config_of, unreadable, .. } => {
            let size = file.map_or("its file is missing".to_owned(), |file| output::bytes(file.bytes));
            output::line(&format!("object {} ({size})", explanation.digest))?;
            for image in manifest_of {
                output::line(&format!("  manifest of image {image}"))?;
            }
            for image in config_of {
                output::line(&format!("  configuration of image {image}"))?;
            }
            layers.iter().try_for_each(print_use)?;
            for layer in unreadable {
                output::line(&format!("  layer {layer} can't be read, and may need it"))?;
            }
        }
    }
    if !found.is_kept() {
        output::line(NOTHING)?;
    }
    Ok(())
}

fn print_use(named: &ObjectUse) -> Result<(), Failure> {
    output::line(&format!("  layer {}", named.diff_id))?;
    for path in &named.paths {
        output::line(&format!("    {path}"))?;
    }
    let more = named.paths_total - named.paths.len() as u64;
    if more > 0 {
        output::line(&format!("    and {more} more"))?;
    }
    if named.paths_total == 0 {
        output::line("    (in the tar only: a later entry of the layer takes the file's place)")?;
    }
    lines(&named.keepers, "    ")?;
    if !named.kept {
        output::line("    kept by nothing")?;
    }
    Ok(())
}

fn lines(keepers: &[Keeper], indent: &str) -> Result<(), Failure> {
    for keeper in keepers {
        let text = match keeper {
            Keeper::Image(name) => format!("image {name}"),
            Keeper::Snapshot(name) => format!("snapshot {name}"),
            Keeper::Mount(name) => format!("mount {name}"),
            Keeper::Pin(name) => format!("pin {name}"),
            Keeper::Work => "work under way".to_owned(),
        };
        output::line(&format!("{indent}kept by {text}"))?;
    }
    Ok(())
}
