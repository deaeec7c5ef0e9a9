//! Layers: each has the tree and the recipe that its row describes, and they make sense.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Fsck, Issue};
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::layer::{self, Layer};
use crate::quarantine::{Damaged, Finding};
use crate::recipe::RecipeRecord;
use crate::store::Store;
use crate::tree::{Form, Tree};
use crate::verify::{Pace, Source, Verdict};

/// What is wrong with a file of a layer, and what to tell quarantine of it.
pub(crate) type Wrong = (Issue, Option<(Damaged, Finding)>);

impl Fsck<'_> {
    pub(super) fn layers(&mut self) -> Result<()> {
        let mut sound = Vec::new();
        for layer in std::mem::take(&mut self.layers) {
            self.report.layers += 1;
            let mut wrong = check_layer(self.store, &layer)?;
            if !wrong.is_empty() {
                // It may have been taken in anew meanwhile.
                let Some(now) = self.store.layer(layer.diff_id)? else { continue };
                wrong = check_layer(self.store, &now)?;
            }
            self.progress.read("layers", layer.tree_bytes);
            let diff_id = layer.diff_id;
            if wrong.is_empty() {
                sound.push(layer);
            }
            for (issue, damaged) in wrong {
                match damaged {
                    Some((what, finding)) => self.quarantine(&issue, what, &finding),
                    None => self.lost(&issue, diff_id),
                }
            }
        }
        self.layers = sound;
        Ok(())
    }

    /// Reports a tree or recipe that is not there, and marks the layer.
    fn lost(&mut self, issue: &Issue, diff_id: DiffId) {
        let store = self.store;
        self.findings().containable(issue, || {
            store.report_lost(diff_id)?;
            Ok("the layer was marked, so that the next import repairs it".into())
        });
    }
}

/// Compares tree and recipe with the row, and walks through the tree.
pub(crate) fn check_layer(store: &Store, layer: &Layer) -> Result<Vec<Wrong>> {
    let mut wrong: Vec<Wrong> = check_tree(store, layer)?.into_iter().collect();
    if layer.recipe.is_some() {
        wrong.extend(check_recipe(store, layer)?);
    }
    Ok(wrong)
}

fn check_tree(store: &Store, layer: &Layer) -> Result<Option<Wrong>> {
    let (diff_id, path) = (layer.diff_id, layer::path(layer.diff_id));
    let damaged = |issue: Issue, reason: String, actual: Option<Digest>, inode: u64| {
        let finding = Finding { reason, expected: Some(layer.tree_digest), actual, inode: Some(inode) };
        Ok(Some((issue, Some((Damaged::Tree(diff_id), finding)))))
    };
    // Read as a file first: what the disk doesn't give back would end a process that has it mapped.
    match verify(store, &path, layer.tree_digest)? {
        Verdict::Missing => Ok(Some((Issue::MissingTree { diff_id }, None))),
        Verdict::Unreadable { reason, inode } => {
            damaged(Issue::UnreadableTree { diff_id, reason: reason.clone() }, reason, None, inode)
        }
        Verdict::Corrupt { actual, inode } => {
            let found = length(store, &path)?;
            if found == layer.tree_bytes {
                let issue = Issue::CorruptTree { diff_id, expected: layer.tree_digest, actual };
                return damaged(issue, "its digest is another".into(), Some(actual), inode);
            }
            let expected = layer.tree_bytes;
            let reason = format!("it has {found} bytes instead of {expected}");
            damaged(Issue::WrongTreeLength { diff_id, expected, found }, reason, Some(actual), inode)
        }
        // The row is wrong: another import writes it anew, with the same file.
        Verdict::Whole(found) if found != layer.tree_bytes => {
            let expected = layer.tree_bytes;
            let reason = format!("its row says that it has {expected} bytes");
            let finding = Finding { reason, ..Finding::default() };
            Ok(Some((Issue::WrongTreeLength { diff_id, expected, found }, Some((Damaged::Tree(diff_id), finding)))))
        }
        Verdict::Whole(_) => {
            let Some(file) = open(store, &path)? else { return Ok(Some((Issue::MissingTree { diff_id }, None))) };
            let walked = Tree::open(&file, &diff_id.to_string()).and_then(|tree| tree.examine(Form::Layer, |_, _| ()));
            match walked {
                Ok(()) => Ok(None),
                Err(error) => {
                    let inode = file.metadata().map_err(Error::io("stat a tree"))?.ino();
                    let reason = error.to_string();
                    damaged(Issue::InvalidTree { diff_id, reason: reason.clone() }, reason, None, inode)
                }
            }
        }
    }
}

fn check_recipe(store: &Store, layer: &Layer) -> Result<Option<Wrong>> {
    let Some(recipe) = layer.recipe else { return Ok(None) };
    let (diff_id, path) = (layer.diff_id, layer::recipe_path(layer.diff_id));
    let damaged = |reason: String, actual: Option<Digest>, inode: Option<u64>| {
        let issue = Issue::CorruptRecipe { diff_id, reason: reason.clone() };
        let finding = Finding { reason, expected: Some(recipe.digest), actual, inode };
        Ok(Some((issue, Some((Damaged::Recipe(diff_id), finding)))))
    };
    match verify(store, &path, recipe.digest)? {
        Verdict::Missing => Ok(Some((Issue::MissingRecipe { diff_id }, None))),
        Verdict::Unreadable { reason, inode } => damaged(reason, None, Some(inode)),
        Verdict::Corrupt { actual, inode } => {
            let reason = format!("its digest is {actual} instead of {}", recipe.digest);
            damaged(reason, Some(actual), Some(inode))
        }
        Verdict::Whole(found) if found != recipe.bytes => {
            damaged(format!("its row says that it has {} bytes", recipe.bytes), None, None)
        }
        // The digest is right: what can't be read was written so.
        Verdict::Whole(_) => match walk_recipe(store, layer, &recipe) {
            Err(Error::CorruptRecipe { reason, .. }) => damaged(reason, None, None),
            walked => walked.map(|()| None),
        },
    }
}

/// Reads a recipe as one would who rebuilds the tar.
fn walk_recipe(store: &Store, layer: &Layer, recipe: &RecipeRecord) -> Result<()> {
    let mut reader = store.open_recipe(layer, recipe)?;
    reader.each_object(|_, _| ())?;
    while reader.step()?.is_some() {}
    Ok(())
}

fn verify(store: &Store, path: &Path, expected: Digest) -> Result<Verdict> {
    store.verify_file(path, expected, &Pace::default(), Source::Cache, &mut |_| {})
}

fn open(store: &Store, path: &Path) -> Result<Option<std::fs::File>> {
    disk::open(store.disk(), path).map_err(Error::io(format!("open {}", store.root().join(path).display())))
}

fn length(store: &Store, path: &Path) -> Result<u64> {
    let action = || format!("stat {}", store.root().join(path).display());
    let stat = disk::stat(store.disk(), path).map_err(Error::io(action()))?;
    Ok(stat.map_or(0, |stat| stat.st_size as u64))
}
