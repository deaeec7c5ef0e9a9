//! How an image came to be what it is, layer by layer.

use serde::{Deserialize, Serialize};

use super::Image;
use crate::diff::{Change, DiffOptions, Summary, diff};
use crate::digest::DiffId;
use crate::error::Result;
use crate::store::Store;

/// One step of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryStep {
    /// When it was made (RFC 3339), as the configuration says.
    pub created: Option<String>,
    /// What made it.
    pub created_by: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// What they said about it.
    pub comment: Option<String>,
    /// Whether it changed the configuration alone.
    pub empty_layer: bool,
    /// Its layer.
    pub layer: Option<DiffId>,
    /// Length of the layer's tar.
    pub tar_bytes: Option<u64>,
    /// What the layer adds to those below it, changes and removes.
    pub changes: Option<Summary>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    history: Vec<HistoryStep>,
}

impl Store {
    /// The steps of an image's history, first the oldest. Layers of which it says nothing have steps without words.
    pub fn image_history(&self, image: &Image) -> Result<Vec<HistoryStep>> {
        let config: Config = serde_json::from_slice(&self.image_config(image)?).unwrap_or_default();
        let mut layers = image.layers.iter();
        let mut steps = Vec::new();
        for mut step in config.history {
            // What a foreign document says under our own names counts for nothing.
            (step.layer, step.tar_bytes, step.changes) = (None, None, None);
            if !step.empty_layer {
                step.layer = layers.next().copied();
            }
            steps.push(step);
        }
        steps.extend(layers.map(|layer| HistoryStep { layer: Some(*layer), ..HistoryStep::default() }));
        let mut at = 0;
        for step in &mut steps {
            let Some(layer) = step.layer else { continue };
            step.tar_bytes = self.layer(layer)?.map(|layer| layer.tar_bytes);
            step.changes = Some(self.layer_changes(image, at, DiffOptions::default(), &mut |_| Ok(()))?);
            at += 1;
        }
        Ok(steps)
    }

    /// What an image's layer, counted from the bottom, changes in those below it.
    pub fn layer_changes(
        &self,
        image: &Image,
        at: usize,
        options: DiffOptions,
        visit: &mut dyn FnMut(Change) -> Result<()>,
    ) -> Result<Summary> {
        let (below, with) = (self.stack(&image.layers[..at])?, self.stack(&image.layers[..=at])?);
        diff(&below, &with, options, visit)
    }
}
