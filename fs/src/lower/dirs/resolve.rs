//! Which directories of the layers make up a merged directory.

use std::sync::Arc;

use super::layer::{Layers, Real};
use super::marks::{Marks, Redirect};
use super::merge::walk;
use crate::error::Result;
use crate::lower::Format;

/// A directory of one layer that is part of a merged one.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) real: Arc<Real>,
    /// Whether empty files in it may be deleted names.
    pub(super) whiteouts: bool,
}

/// The parts of the root.
pub(super) fn root(layers: &Layers, format: Format) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for layer in 0..layers.count() {
        let real = layers.root(layer).clone();
        let marks = Marks::read(layers, &real, format)?;
        parts.push(Part { real, whiteouts: marks.whiteouts });
        if marks.opaque {
            break;
        }
    }
    Ok(parts)
}

/// The parts of a directory, top first: the directories of its name, `candidates`, as far as no mark says otherwise.
/// `beside` are the parts of the directory that holds it.
pub(super) fn parts(layers: &Layers, format: Format, candidates: &[Arc<Real>], beside: &[Part]) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for real in candidates {
        let marks = Marks::read(layers, real, format)?;
        parts.push(Part { real: real.clone(), whiteouts: marks.whiteouts });
        if marks.opaque {
            break;
        }
        if let Some(redirect) = marks.redirect {
            follow(layers, format, real.layer, redirect, beside, &mut parts)?;
            break;
        }
    }
    Ok(parts)
}

/// Adds the parts that a redirect found in layer `above` leads to. Each step goes down a layer, so that there is an end
/// whatever the redirects say.
fn follow(
    layers: &Layers,
    format: Format,
    above: u16,
    mut redirect: Redirect,
    beside: &[Part],
    parts: &mut Vec<Part>,
) -> Result<()> {
    for layer in above + 1..layers.count() {
        let step = match &redirect {
            Redirect::Name(name) => {
                let Some(part) = beside.iter().find(|part| part.real.layer == layer) else { continue };
                walk(layers, &part.real, std::slice::from_ref(name), format)?
            }
            Redirect::Path(path) => walk(layers, layers.root(layer), path, format)?,
        };
        parts.extend(step.found);
        if step.stop {
            break;
        }
        redirect = match (redirect, step.below) {
            (Redirect::Name(_), mut below) if !step.absolute => Redirect::Name(below.remove(0)),
            (_, below) => Redirect::Path(below),
        };
    }
    Ok(())
}
