//! Whether a store is whole, and holds what it should.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_layerdb::fsck::{FsckOptions, Severity};
use mica_layerdb::{Digest, Hasher, Store};

use crate::scenario::{Scene, Step, View, view};

pub type Verdict = Result<(), String>;

/// What may be found.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The view when the last request was answered.
    pub before: &'a View,
    /// The view when the next one was.
    pub after: &'a View,
    /// The next one.
    pub next: Option<&'a Step>,
}

impl Expected<'_> {
    /// Each row is as it was before or after; of an atomic request all are the one or all the other.
    pub fn compare(&self, found: &View) -> Verdict {
        if self.next.is_none_or(|next| next.atomic) && (found == self.before || found == self.after) {
            return Ok(());
        }
        let keys: BTreeSet<&String> = [found, self.before, self.after].iter().flat_map(|view| view.keys()).collect();
        for key in keys {
            let value = found.get(key);
            if value != self.before.get(key) && value != self.after.get(key) {
                let shown = value.map(|value| String::from_utf8_lossy(value).into_owned());
                return Err(format!("row {key} is {shown:?}, as it never was"));
            }
        }
        match self.next {
            Some(next) if !next.atomic => Ok(()),
            _ => Err("a part of an atomic request is there".into()),
        }
    }
}

/// Opens what a crash left, looks at everything, collects garbage, repeats the request that was in flight.
pub fn recover(scene: &mut Scene<'_>, expected: Expected<'_>) -> Verdict {
    let says = |what: &'static str| move |error: mica_layerdb::Error| format!("{what}: {error}");
    scene.open().map_err(says("open"))?;
    expected.compare(&view(scene.store()).map_err(says("look"))?)?;
    usable(scene.store(), expected.next)?;
    let left: Vec<PathBuf> = files(&scene.root.join("tmp"));
    if let Some(left) = left.iter().find(|path| !path.starts_with(scene.root.join("tmp/removed-7"))) {
        return Err(format!("{} is left", left.display()));
    }
    scene.gc().map_err(says("collect"))?;
    let harmed = expected.next.is_some_and(|next| next.harms);
    if !harmed {
        lean(scene.store())?;
        sound(scene.store())?;
    }
    if let Some(next) = expected.next {
        match (next.run)(scene) {
            Err(error) if !matches!(error.kind(), mica_layerdb::Kind::Exists | mica_layerdb::Kind::NotFound) => {
                return Err(format!("{} repeated: {error}", next.name));
            }
            _ => {}
        }
    }
    whole(scene.store())?;
    if harmed {
        scene.gc().map_err(says("collect after all"))?;
        lean(scene.store())?;
        sound(scene.store())?;
    }
    for image in scene.store().images().map_err(says("list images"))? {
        scene.store().chain(&image.layers).map_err(says("chain"))?;
    }
    Ok(())
}

/// Every row's files are there, and `fsck` finds no error; in the middle of a request that takes contents out of use, no
/// other than that they are missing.
pub fn usable(store: &Arc<Store>, during: Option<&Step>) -> Verdict {
    let harmed = during.is_some_and(|step| step.harms);
    if !harmed {
        whole(store)?;
    }
    let report = store.fsck(&FsckOptions::default(), &[], &()).map_err(|error| format!("fsck: {error}"))?;
    let bad = report.found.iter().filter(|found| found.severity > Severity::Warning);
    match bad.clone().find(|found| !harmed || found.name != "missing-object") {
        Some(found) => Err(format!("fsck: {}", found.text)),
        None => Ok(()),
    }
}

/// `fsck` finds nothing.
pub fn sound(store: &Arc<Store>) -> Verdict {
    let report = store.fsck(&FsckOptions::default(), &[], &()).map_err(|error| format!("fsck: {error}"))?;
    match report.found.first() {
        Some(found) => Err(format!("fsck: {}", found.text)),
        None => Ok(()),
    }
}

/// Every row's files are there, bit for bit.
pub fn whole(store: &Arc<Store>) -> Verdict {
    let mut seen = BTreeSet::new();
    for layer in store.layers().map_err(|error| error.to_string())? {
        let tree = store.root().join("layers/sha256").join(layer.diff_id.hex());
        same(&tree, layer.tree_bytes, layer.tree_digest)?;
        let mut wrong = Ok(());
        let visit = |id: mica_layerdb::ObjectId, bytes| {
            if seen.insert(id) && wrong.is_ok() {
                wrong = same(&store.objects_path().join(id.relative_path()), bytes, id.0);
            }
        };
        store.each_layer_object(&layer, visit).map_err(|error| error.to_string())?;
        wrong.map_err(|wrong| format!("layer {}: {wrong}", layer.diff_id))?;
        if layer.recipe.is_some() {
            let mut hasher = Sum(Hasher::new());
            store.export_layer(layer.diff_id, &mut hasher).map_err(|error| error.to_string())?;
            if hasher.0.finish() != layer.diff_id.0 {
                return Err(format!("layer {} is exported with another digest", layer.diff_id));
            }
        }
    }
    for image in store.images().map_err(|error| error.to_string())? {
        store.image_manifest(&image).map_err(|error| format!("manifest: {error}"))?;
        store.image_config(&image).map_err(|error| format!("configuration: {error}"))?;
        for layer in &image.layers {
            if store.layer(*layer).map_err(|error| error.to_string())?.is_none() {
                return Err(format!("image {} lacks layer {layer}", image.name));
            }
        }
    }
    for chain in store.chain_records().map_err(|error| error.to_string())? {
        let id = mica_layerdb::ChainId::of(&chain.layers).expect("a chain has layers");
        same(&store.chain_path(id), chain.tree_bytes, chain.tree_digest)?;
    }
    Ok(())
}

struct Sum(Hasher);

impl std::io::Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// There is nothing that no row needs, and nothing temporary.
pub fn lean(store: &Arc<Store>) -> Verdict {
    let root = store.root();
    let mut needed = BTreeSet::new();
    for layer in store.layers().map_err(|error| error.to_string())? {
        let tree = root.join("layers/sha256").join(layer.diff_id.hex());
        if layer.recipe.is_some() {
            needed.insert(tree.with_extension("recipe"));
        }
        needed.insert(tree);
        let visit = |id: mica_layerdb::ObjectId, _| {
            needed.insert(store.objects_path().join(id.relative_path()));
        };
        store.each_layer_object(&layer, visit).map_err(|error| error.to_string())?;
    }
    for image in store.images().map_err(|error| error.to_string())? {
        for digest in [image.manifest, image.config] {
            needed.insert(store.objects_path().join(mica_layerdb::ObjectId(digest).relative_path()));
        }
    }
    for chain in store.chain_records().map_err(|error| error.to_string())? {
        let id = mica_layerdb::ChainId::of(&chain.layers).expect("a chain has layers");
        needed.insert(store.chain_path(id));
    }
    let kept = ["objects", "layers", "chains", "tmp", "quarantine"];
    for path in kept.iter().flat_map(|directory| files(&root.join(directory))) {
        if !needed.remove(&path) {
            return Err(format!("{} stays though nothing needs it", path.display()));
        }
    }
    match needed.first() {
        Some(path) => Err(format!("{} is missing", path.display())),
        None => Ok(()),
    }
}

fn same(path: &Path, bytes: u64, digest: Digest) -> Verdict {
    let found = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if found.len() as u64 != bytes {
        return Err(format!("{} has {} bytes instead of {bytes}", path.display(), found.len()));
    }
    if Digest::of(&found) != digest {
        return Err(format!("{} has other bytes", path.display()));
    }
    Ok(())
}

/// All that is no directory below one; and directories directly in `tmp`.
fn files(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![directory.to_path_buf()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if directory.ends_with("tmp") {
                    found.push(entry.path());
                }
                pending.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found
}
