//! What is done to a store, step by step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_layerdb::disk::Disk;
use mica_layerdb::verify::Defective;
use mica_layerdb::{
    Batch, DiffId, Error, Family, Finding, GcOptions, ImportSource, IngestOptions, Result, Store, StoreOptions,
};

use crate::material::{Layer, Material};

/// A store at work.
#[derive(Debug)]
pub struct Scene<'a> {
    pub root: PathBuf,
    pub disk: Option<Arc<dyn Disk>>,
    pub store: Option<Arc<Store>>,
    pub material: &'a Material,
}

/// One request. When it has returned, what it did must last.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub name: &'static str,
    /// Its rows come all at once, or not at all.
    pub atomic: bool,
    /// In the middle of it a content may be missing, which the store then says.
    pub harms: bool,
    pub run: fn(&mut Scene<'_>) -> Result<()>,
}

const fn step(name: &'static str, atomic: bool, run: fn(&mut Scene<'_>) -> Result<()>) -> Step {
    Step { name, atomic, harms: false, run }
}

const fn harm(name: &'static str, run: fn(&mut Scene<'_>) -> Result<()>) -> Step {
    Step { name, atomic: false, harms: true, run }
}

/// The scenario.
// A method of a scene that borrows is no function for every borrow.
#[allow(clippy::redundant_closure_for_method_calls)]
pub const STEPS: &[Step] = &[
    step("open a new store", true, |scene| scene.open()),
    step("ingest base, pinned", true, |scene| scene.ingest(&scene.material.base, Some("keep/base"))),
    step("ingest wide", true, |scene| scene.ingest(&scene.material.wide, None)),
    step("ingest base again, pinned once more", true, |scene| scene.ingest(&scene.material.base, Some("keep/more"))),
    step("ingest with a wrong digest", true, |scene| {
        match scene.ingest_as(&scene.material.other, scene.material.top.diff_id) {
            Err(Error::DigestMismatch { .. }) => Ok(()),
            other => other,
        }
    }),
    step("import one", false, |scene| scene.import("one")),
    step("import one again", true, |scene| scene.import("one")),
    step("chain of one", true, |scene| scene.chain(&[&scene.material.base, &scene.material.top])),
    step("import two", false, |scene| scene.import("two")),
    step("chain of two", true, |scene| scene.chain(&[&scene.material.base, &scene.material.other])),
    step("new snapshot directory", true, |scene| scene.snapshot_dir(7)),
    step("another snapshot directory", true, |scene| scene.snapshot_dir(8)),
    step("remove a snapshot directory", true, |scene| scene.store().remove_snapshot_dir(7)),
    step("remove image one", true, |scene| scene.store().remove_image("one").map(drop)),
    step("unpin", true, |scene| scene.unpin("keep/base")),
    step("collect wide, top and a chain", false, |scene| scene.gc()),
    step("ingest wide again", true, |scene| scene.ingest(&scene.material.wide, Some("keep/wide"))),
    harm("take a content out of use, and in again", |scene| scene.renew()),
    step("open again", true, |scene| scene.open()),
    step("unpin the rest", false, |scene| scene.unpin("keep/wide").and_then(|()| scene.unpin("keep/more"))),
    step("remove image two", true, |scene| scene.store().remove_image("two").map(drop)),
    step("collect everything", false, |scene| scene.gc()),
    step("import two once more", false, |scene| scene.import("two")),
];

impl<'a> Scene<'a> {
    pub fn new(root: &Path, disk: Option<Arc<dyn Disk>>, material: &'a Material) -> Scene<'a> {
        Scene { root: root.to_path_buf(), disk, store: None, material }
    }

    pub fn store(&self) -> &Arc<Store> {
        self.store.as_ref().expect("the first step opens it")
    }

    pub fn open(&mut self) -> Result<()> {
        self.store = None;
        let options = StoreOptions {
            verify_trees: true,
            disk: self.disk.clone(),
            batch_objects: Some(9),
            ..StoreOptions::default()
        };
        self.store = Some(crate::open(&self.root, &options)?);
        Ok(())
    }

    pub fn ingest(&self, layer: &Layer, pin: Option<&str>) -> Result<()> {
        let options = IngestOptions {
            expect_diff_id: Some(layer.diff_id),
            pin: pin.map(|pin| pin.as_bytes().to_vec()),
            ..IngestOptions::default()
        };
        self.store().ingest(&mut &layer.tar[..], &options, &()).map(drop)
    }

    fn ingest_as(&self, layer: &Layer, diff_id: DiffId) -> Result<()> {
        let options = IngestOptions { expect_diff_id: Some(diff_id), ..IngestOptions::default() };
        self.store().ingest(&mut &layer.tar[..], &options, &()).map(drop)
    }

    fn import(&self, name: &str) -> Result<()> {
        let source = ImportSource::Detect(self.material.image(name));
        self.store().import(&source, None, &()).map(drop)
    }

    fn chain(&self, layers: &[&Layer]) -> Result<()> {
        let layers: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
        self.store().chain(&layers).map(drop)
    }

    /// Says that a content of `wide` is damaged, takes the layer in again, and throws away what was damaged.
    fn renew(&self) -> Result<()> {
        let id = self.material.renewed;
        let finding = Finding { reason: "it is said to be".to_owned(), expected: Some(id.0), ..Finding::default() };
        self.store().report_defective(id, &Defective::Damaged(finding))?;
        self.ingest(&self.material.wide, Some("keep/wide"))?;
        self.store().empty_quarantine().map(drop)
    }

    fn snapshot_dir(&self, number: u64) -> Result<()> {
        self.store().new_snapshot_dir(number).map(drop)
    }

    fn unpin(&self, pin: &str) -> Result<()> {
        let mut batch = Batch::new();
        batch.delete(Family::Pins, pin.as_bytes());
        self.store().db().commit(batch)
    }

    pub fn gc(&mut self) -> Result<()> {
        self.store().gc(GcOptions::default()).map(drop)
    }
}

/// What callers see of a store: all rows, and the snapshot directories.
pub type View = BTreeMap<String, Vec<u8>>;

/// Looks at a store.
pub fn view(store: &Store) -> Result<View> {
    let mut view = View::new();
    for family in Family::ALL {
        for (key, value) in store.db().scan(family, b"")? {
            // How far a collection got is nobody's business but its own, and what is damaged comes and goes within a request.
            if key == b"gc-progress" || key.starts_with(b"damage/") {
                continue;
            }
            view.insert(format!("{family:?}/{}", key.escape_ascii()), value);
        }
    }
    for number in store.snapshot_dirs()? {
        view.insert(format!("snapshots/{number}"), Vec::new());
    }
    Ok(view)
}
