//! `mica image import`

use mica_layerdb::{Image, ImportFormat, ImportOptions, Limits};
use mica_snapshotter::admin::Call;
use mica_snapshotter::config;

use super::Context;
use crate::args::{self, Import};
use crate::backend::Backend;
use crate::output::ImportProgress;
use crate::{Failure, output};

/// Imports.
pub fn run(context: &Context, arguments: Import) -> Result<(), Failure> {
    let Import { source, name, format, platform, changes, message, limits } = arguments;
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
    let backend = Backend::of_any(&context.root(), &config::limits(Limits::default(), &limits)?)?;
    if !limits.is_empty() && matches!(backend, Backend::Daemon(_)) {
        return Err(Failure::Usage("a daemon serves the store; its limits are given to `mica serve`".to_owned()));
    }
    let imported: Result<Vec<Image>, Failure> = backend.call(call, &progress);
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
