//! `mica image import`

use mica_layerdb::{Image, ImportFormat, ImportOptions};
use mica_snapshotter::admin::Call;

use super::Context;
use crate::args::{self, Import};
use crate::backend::Backend;
use crate::output::ImportProgress;
use crate::{Failure, output};

/// Imports.
pub fn run(context: &Context, arguments: Import) -> Result<(), Failure> {
    let Import { source, name, format, platform, changes, message } = arguments;
    // A daemon has another working directory.
    let source = std::fs::canonicalize(&source)
        .map_err(|error| Failure::text(format!("cannot import from {}: {error}", source.display())))?;
    let format = format.map(|format| match format {
        args::ImportFormat::Oci => ImportFormat::Oci,
        args::ImportFormat::Docker => ImportFormat::Docker,
        args::ImportFormat::Tar => ImportFormat::Tar,
        args::ImportFormat::Dir => ImportFormat::Dir,
    });
    let progress = ImportProgress::new();
    let call = Call::ImageImport { source, options: ImportOptions { name, format, platform, changes, message } };
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
