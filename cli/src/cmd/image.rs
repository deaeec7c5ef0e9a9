//! `mica image`

mod export;
mod history;
mod import;

use mica_layerdb::Image;
use mica_snapshotter::admin::{Call, ImageReport};
use serde_json::Value;

use super::{Context, diff, layer};
use crate::backend::Backend;
use crate::output::{Table, short, when};
use crate::{Failure, args, output};

/// Does one of the image verbs.
pub fn run(context: &Context, arguments: args::Image) -> Result<(), Failure> {
    match arguments {
        args::Image::Import(arguments) => import::run(context, arguments),
        args::Image::Export(arguments) => export::run(context, arguments),
        args::Image::Ls => list(context),
        args::Image::Show { reference } => show(context, reference),
        args::Image::Rm { reference } => remove(context, reference),
        args::Image::Tag { reference, new } => tag(context, reference, new),
        args::Image::History { reference, files } => history::run(context, reference, files),
        args::Image::Diff { before, after, times } => diff::run(context, Call::Diff { before, after, times }),
    }
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
    let ImageReport { image, layers, config, .. } = report;
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
    for line in running(&config["config"]) {
        output::line(&line)?;
    }
    output::line("layers, bottom first:")?;
    Ok(layer::table(&layers).print()?)
}

/// What containers of an image are run with, a line for each.
fn running(config: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let mut tell = |key: &str, value: String| lines.push(format!("{key:<9} {value}"));
    for (key, member) in [("user", "User"), ("workdir", "WorkingDir"), ("stop", "StopSignal")] {
        if let Some(text) = config[member].as_str().filter(|text| !text.is_empty()) {
            tell(key, plain(text));
        }
    }
    for (key, member) in [("entry", "Entrypoint"), ("cmd", "Cmd")] {
        if config[member].is_array() {
            tell(key, config[member].to_string());
        }
    }
    for line in config["Env"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        tell("env", plain(line));
    }
    for (key, member) in [("port", "ExposedPorts"), ("volume", "Volumes")] {
        for name in config[member].as_object().into_iter().flatten().map(|(name, _)| name) {
            tell(key, plain(name));
        }
    }
    for (name, value) in config["Labels"].as_object().into_iter().flatten() {
        tell("label", plain(&format!("{name}={}", value.as_str().unwrap_or_default())));
    }
    lines
}

/// Somebody else's text, without what would control a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn remove(context: &Context, reference: String) -> Result<(), Failure> {
    let image: Image = Backend::of(&context.root())?.call(Call::ImageRm { reference }, &())?;
    if context.json {
        return Ok(output::json(&image)?);
    }
    Ok(output::line(&format!("removed {}; `mica gc` gives the space back", image.name))?)
}

fn tag(context: &Context, reference: String, name: String) -> Result<(), Failure> {
    let image: Image = Backend::of(&context.root())?.call(Call::ImageTag { reference, name }, &())?;
    if context.json {
        return Ok(output::json(&image)?);
    }
    Ok(output::line(&format!("{} {}", image.name, image.manifest))?)
}
