//! What is asked of differences and of history.

use std::io::Write;
use std::sync::Arc;

use mica_layerdb::diff::{Change, DiffOptions, Stack, Summary, diff};
use mica_layerdb::image::HistoryStep;
use mica_layerdb::{DiffId, Hold, Image, Layer};
use serde::{Deserialize, Serialize};

use super::Admin;
use crate::error::{Error, Result};
use crate::snapshots::Now;
use crate::store::Rows;

/// Two things that were compared; the changes came as data, one JSON object to a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffReport {
    /// The first.
    pub before: Compared,
    /// The second.
    pub after: Compared,
    /// All changes, counted.
    pub summary: Summary,
}

/// Something that was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// `image`, `layer` or `snapshot`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name of the image or snapshot, diff-id of the layer.
    pub name: String,
    /// Its layers, bottom first.
    pub layers: Vec<DiffId>,
}

/// An image's history; the changes of its layers came as data, if they were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// The image.
    pub image: Image,
    /// Its steps, first the oldest.
    pub history: Vec<HistoryStep>,
}

/// One line of the data of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryLine {
    /// The next step. What it changed follows.
    Step(Box<HistoryStep>),
    /// A change of the step before.
    Change(Box<Change>),
}

enum Side {
    Image(Image),
    Snapshot(String, Now),
    Layer(Layer),
}

impl Side {
    fn told(&self) -> Compared {
        let (kind, name, layers) = match self {
            Side::Image(image) => ("image", image.name.clone(), image.layers.clone()),
            Side::Snapshot(key, now) => ("snapshot", key.clone(), now.layers.clone()),
            Side::Layer(layer) => ("layer", layer.diff_id.to_string(), vec![layer.diff_id]),
        };
        Compared { kind: kind.to_owned(), name, layers }
    }
}

impl Admin {
    pub(super) fn diff(&self, before: &str, after: &str, times: bool, out: &mut dyn Write) -> Result<DiffReport> {
        let (one, other) = (self.side(before)?, self.side(after)?);
        if matches!(one, Side::Layer(_)) != matches!(other, Side::Layer(_)) {
            let reason =
                format!("a layer can be compared with a layer alone, and {before} and {after} are not both layers");
            return Err(Error::Invalid { what: "diff".to_owned(), reason });
        }
        let (before, after) = (one.told(), other.told());
        let _holds = self.hold(&before.layers, &after.layers)?;
        let (from, to) = (self.stack(&one)?, self.stack(&other)?);
        let summary = tell(&from, &to, times, out)?;
        Ok(DiffReport { before, after, summary })
    }

    pub(super) fn diff_snapshot(&self, key: &str, times: bool, out: &mut dyn Write) -> Result<DiffReport> {
        let key = &self.key(key)?;
        let now = self.now(key)?;
        let kind = "snapshot".to_owned();
        let parent = Compared { kind: "parent".to_owned(), name: format!("below {key}"), layers: now.below.clone() };
        let after = Compared { kind, name: key.to_owned(), layers: now.layers.clone() };
        let (from, to) = (self.store.stack(&now.below)?, self.store.stack(&now.layers)?);
        let summary = tell(&from, &to, times, out)?;
        Ok(DiffReport { before: parent, after, summary })
    }

    pub(super) fn history(&self, reference: &str, files: bool, out: &mut dyn Write) -> Result<HistoryReport> {
        let image = self.image(reference)?;
        let _holds = self.hold(&image.layers, &[])?;
        let history = self.store.image_history(&image)?;
        let mut at = 0;
        for step in history.iter().filter(|_| files) {
            line(out, &HistoryLine::Step(Box::new(step.clone())))?;
            if step.layer.is_some() {
                let mut visit = |change| line(out, &HistoryLine::Change(Box::new(change)));
                self.store.layer_changes(&image, at, DiffOptions::default(), &mut visit)?;
                at += 1;
            }
        }
        Ok(HistoryReport { image, history })
    }

    /// The snapshot as it is now.
    pub(super) fn now(&self, key: &str) -> Result<Now> {
        let key = self.key(key)?;
        match &self.daemon {
            Some((snapshots, _)) => snapshots.now(&key),
            None => Now::of_store(&self.store, &key),
        }
    }

    /// The snapshot that a person means: the one of this key, or the only one whose key ends with it after a slash.
    /// containerd keeps the snapshot of container `web` as `NAMESPACE/NUMBER/web`.
    pub(super) fn key(&self, text: &str) -> Result<String> {
        let rows = Rows::open(Arc::clone(&self.store))?;
        if rows.get(text)?.is_some() {
            return Ok(text.to_owned());
        }
        let mut found = Vec::new();
        rows.each(|key, _| {
            if key.strip_suffix(text).is_some_and(|rest| rest.ends_with('/')) {
                found.push(key.to_owned());
            }
        })?;
        if found.len() > 1 {
            return Err(mica_layerdb::Error::Ambiguous { name: text.to_owned(), matches: found }.into());
        }
        found.pop().filter(|_| !text.is_empty()).ok_or_else(|| Error::NoSnapshot { key: text.to_owned() })
    }

    fn side(&self, text: &str) -> Result<Side> {
        if let Some(image) = self.store.image(text)? {
            return Ok(Side::Image(image));
        }
        match self.key(text) {
            Ok(key) => {
                let now = self.now(&key)?;
                return Ok(Side::Snapshot(key, now));
            }
            Err(Error::NoSnapshot { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.store.find_layer(text)? {
            Some(layer) => Ok(Side::Layer(layer)),
            None => Err(mica_layerdb::Error::NoneNamed { name: text.to_owned() }.into()),
        }
    }

    fn stack(&self, side: &Side) -> Result<Stack> {
        Ok(match side {
            Side::Image(image) => self.store.stack(&image.layers)?,
            Side::Snapshot(_, now) => self.store.stack(&now.layers)?,
            Side::Layer(layer) => self.store.single_layer(layer.diff_id)?,
        })
    }

    fn hold(&self, one: &[DiffId], other: &[DiffId]) -> Result<[Hold; 2]> {
        Ok([self.store.hold(one)?, self.store.hold(other)?])
    }
}

fn tell(from: &Stack, to: &Stack, times: bool, out: &mut dyn Write) -> Result<Summary> {
    Ok(diff(from, to, DiffOptions { times }, &mut |change| line(out, &change))?)
}

fn line<T: Serialize>(out: &mut dyn Write, value: &T) -> mica_layerdb::Result<()> {
    let mut text =
        serde_json::to_vec(value).map_err(|error| mica_layerdb::Error::io("write a change")(error.into()))?;
    text.push(b'\n');
    out.write_all(&text).map_err(mica_layerdb::Error::io("write a change"))
}
