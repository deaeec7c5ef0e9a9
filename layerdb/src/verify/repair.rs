//! Writing damaged parts of a layer anew, from where there is another copy.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Pace, Source, Verdict};
use crate::digest::{Digest, Hasher, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::image::ImportSource;
use crate::ingest::Progress;
use crate::layer::Layer;
use crate::object::Staging;
use crate::quarantine::Damaged;
use crate::store::Store;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Where whole copies are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairSource {
    /// An image that has the layer: the layer is taken in again from it.
    Image(ImportSource),
    /// The root of another store, which nobody has open: damaged files are copied from it one by one.
    Store(PathBuf),
}

impl RepairSource {
    /// What lies at `path`: a store, or else an image in any form.
    pub fn detect(path: PathBuf) -> RepairSource {
        if path.join("FORMAT").is_file() {
            RepairSource::Store(path)
        } else {
            RepairSource::Image(ImportSource::Detect(path))
        }
    }
}

/// One part of a layer that was to be repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// The part.
    pub what: Damaged,
    /// Why it couldn't be; `None` if it is whole now.
    pub failure: Option<String>,
}

/// Writes the damaged parts anew, and says for each what became of it.
pub(super) fn repair(
    store: &Arc<Store>,
    layer: &Layer,
    damaged: &[Damaged],
    source: &RepairSource,
    progress: &dyn Progress,
) -> Result<Vec<Repaired>> {
    match source {
        RepairSource::Image(source) => {
            let failure = match store.ingest_from(source, layer.diff_id, progress) {
                Ok(Some(_)) => None,
                Ok(None) => Some("the source doesn't have the layer".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            damaged.iter().map(|what| outcome(store, layer, *what, failure.as_deref())).collect()
        }
        RepairSource::Store(root) => {
            let other = Store::open(root)?;
            let failures = copy(store, &other, layer, damaged)?;
            let told = damaged.iter().zip(failures);
            told.map(|(what, failure)| outcome(store, layer, *what, failure.as_deref())).collect()
        }
    }
}

/// Looks at a part anew.
fn outcome(store: &Arc<Store>, layer: &Layer, what: Damaged, failure: Option<&str>) -> Result<Repaired> {
    let now = store.layer(layer.diff_id)?;
    let expected = now.as_ref().and_then(|layer| expected(layer, what));
    let whole = match (expected, what.path()) {
        (Some(expected), Some(path)) => {
            let verdict = store.verify_file(&path, expected, &Pace::default(), Source::Cache, &mut |_| {})?;
            matches!(verdict, Verdict::Whole(_))
        }
        _ => false,
    };
    let failure = (!whole).then(|| failure.unwrap_or("it is still not whole").to_owned());
    Ok(Repaired { what, failure })
}

fn expected(layer: &Layer, what: Damaged) -> Option<Digest> {
    match what {
        Damaged::Object(id) => Some(id.0),
        Damaged::Tree(_) => Some(layer.tree_digest),
        Damaged::Recipe(_) => layer.recipe.map(|recipe| recipe.digest),
        Damaged::Stray => None,
    }
}

/// Copies from another store what is whole there, and says of each part why it couldn't be.
fn copy(store: &Arc<Store>, other: &Store, layer: &Layer, damaged: &[Damaged]) -> Result<Vec<Option<String>>> {
    let mut staging = Staging::new(store, store.hold(&[layer.diff_id])?)?;
    let mut failures = Vec::new();
    for what in damaged {
        let (Some(digest), Some(path)) = (expected(layer, *what), what.path()) else {
            failures.push(Some("nobody knows what it should be".to_owned()));
            continue;
        };
        let verdict = other.verify_file(&path, digest, &Pace::default(), Source::Cache, &mut |_| {})?;
        let file = disk::open(other.disk(), &path).map_err(Error::io(format!("open {}", path.display())))?;
        failures.push(match (verdict, file) {
            (Verdict::Whole(_), Some(file)) => {
                if let Damaged::Object(id) = what {
                    copy_object(&mut staging, *id, &file)?;
                } else {
                    let to = staging.create(path)?;
                    each_piece(&file, |piece| store.disk().write(&to, piece).map_err(Error::io("copy a file")))?;
                }
                None
            }
            (Verdict::Missing, _) | (_, None) => Some("the other store doesn't have it".to_owned()),
            _ => Some("it is damaged in the other store too".to_owned()),
        });
    }
    staging.publish()?;
    store.forget_layer_tree(layer.diff_id);
    Ok(failures)
}

fn copy_object(staging: &mut Staging, id: ObjectId, file: &File) -> Result<()> {
    let mut writer = staging.begin()?;
    let mut hasher = Hasher::new();
    each_piece(file, |piece| {
        hasher.update(piece);
        staging.write(&mut writer, piece)
    })?;
    let found = ObjectId(hasher.finish());
    // It was whole a moment ago. Otherwise what was written has its own name and belongs to nothing.
    staging.finish(writer, found)?;
    if found == id {
        return Ok(());
    }
    Err(Error::DigestMismatch { what: format!("object {id} of the other store"), expected: id.0, actual: found.0 })
}

fn each_piece(mut file: &File, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let read = file.read(&mut buffer).map_err(Error::io("copy a file"))?;
        if read == 0 {
            return Ok(());
        }
        each(&buffer[..read])?;
    }
}
