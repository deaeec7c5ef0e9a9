//! `mica image`

use std::path::Path;

use mica_layerdb::Image;
use mica_snapshotter::admin::{Call, ImageReport};

use super::{Context, layer};
use crate::backend::Backend;
use crate::output::{ImportProgress, Table, short, when};
use crate::{Failure, args, output};

/// Does one of the image verbs.
pub fn run(context: &Context, arguments: args::Image) -> Result<(), Failure> {
    match arguments {
        args::Image::Import { source, name } => import(context, &source, name),
        args::Image::Ls => list(context),
        args::Image::Show { reference } => show(context, reference),
        args::Image::Rm { reference } => remove(context, reference),
    }
}

fn import(context: &Context, source: &Path, name: Option<String>) -> Result<(), Failure> {
    // A daemon has another working directory.
    let source = std::fs::canonicalize(source)
        .map_err(|error| Failure::text(format!("cannot import from {}: {error}", source.display())))?;
    let progress = ImportProgress::new();
    let call = Call::ImageImport { source, name };
    let imported: Result<Vec<Image>, Failure> = Backend::of_any(&context.root())?.call(call, &progress);
    progress.finish();
    let images = imported?;
    if context.json {
        return Ok(output::json(&images)?);
    }
    for image in images {
        output::line(&format!("{} {}", image.name, image.manifest))?;
    }
    Ok(())
}

fn list(context: &Context) -> Result<(), Failure> {
    let images: Vec<Image> = Backend::of(&context.root())?.call(Call::ImageLs, &())?;
    if context.json {
        return Ok(output::json(&images)?);
    }
    let mut table = Table::new(["NAME", "DIGEST", "LAYERS", "PLATFORM", "IMPORTED"]);
    for image in images {
        table.row([
            image.name,
            short(&image.manifest.to_string()),
            image.layers.len().to_string(),
            format!("{}/{}", image.os, image.architecture),
            when(image.imported),
        ]);
    }
    Ok(table.print()?)
}

fn show(context: &Context, reference: String) -> Result<(), Failure> {
    let report: ImageReport = Backend::of(&context.root())?.call(Call::ImageShow { reference }, &())?;
    if context.json {
        return Ok(output::json(&report)?);
    }
    let ImageReport { image, layers, .. } = report;
    let created = image.created.as_deref().unwrap_or("-");
    for (key, value) in [
        ("name", image.name.as_str()),
        ("manifest", &image.manifest.to_string()),
        ("config", &image.config.to_string()),
        ("platform", &format!("{}/{}", image.os, image.architecture)),
        ("created", created),
        ("imported", &when(image.imported)),
    ] {
        output::line(&format!("{key:<9} {value}"))?;
    }
    output::line("layers, bottom first:")?;
    Ok(layer::table(&layers).print()?)
}

fn remove(context: &Context, reference: String) -> Result<(), Failure> {
    let image: Image = Backend::of(&context.root())?.call(Call::ImageRm { reference }, &())?;
    if context.json {
        return Ok(output::json(&image)?);
    }
    Ok(output::line(&format!("removed {}; `mica gc` gives the space back", image.name))?)
}
