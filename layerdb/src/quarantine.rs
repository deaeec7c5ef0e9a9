//! Taking damaged files out of use without losing them.
//!
//! A damaged object, tree or recipe moves to `quarantine/`, where nothing serves it from; beside it lies a note with
//! the same name and `.json`. It is a rename: whoever has the file open or mapped, a container by way of passthrough
//! included, goes on with the bytes it had.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::damage::{self, DamagedLayer, Touched};
use crate::digest::{DiffId, Digest, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::ingest::unix_seconds;
use crate::store::{Batch, Store};
use crate::{layer, object};

pub(crate) const FOLDER: &str = "quarantine";

/// Layers and images that a note names; it says how many more there are.
const NAMED_MAX: usize = 100;

/// Something that can be damaged and has no other copy in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "digest")]
pub enum Damaged {
    /// A content, by its digest.
    Object(ObjectId),
    /// The tree of a layer.
    Tree(DiffId),
    /// The recipe of a layer.
    Recipe(DiffId),
    /// A file that has no place in the store.
    Stray,
}

impl Damaged {
    /// Where it lies below the store's root while it is in use.
    pub(crate) fn path(self) -> Option<PathBuf> {
        Some(match self {
            Damaged::Object(id) => object::path(id),
            Damaged::Tree(diff_id) => layer::path(diff_id),
            Damaged::Recipe(diff_id) => layer::recipe_path(diff_id),
            Damaged::Stray => return None,
        })
    }

    fn name(self) -> String {
        match self {
            Damaged::Object(id) => format!("object-{}", id.hex()),
            Damaged::Tree(diff_id) => format!("tree-{}", diff_id.hex()),
            Damaged::Recipe(diff_id) => format!("recipe-{}", diff_id.hex()),
            Damaged::Stray => "stray".to_owned(),
        }
    }
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damaged::Object(id) => write!(out, "object {id}"),
            Damaged::Tree(diff_id) => write!(out, "the tree of layer {diff_id}"),
            Damaged::Recipe(diff_id) => write!(out, "the recipe of layer {diff_id}"),
            Damaged::Stray => write!(out, "a stray file"),
        }
    }
}

/// How a file was found to be damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub reason: String,
    /// The digest that it should have, if that is known.
    pub expected: Option<Digest>,
    /// The digest that it has, if it was read.
    pub actual: Option<Digest>,
    /// Number of the inode that was looked at: another one of the same name is left alone.
    pub inode: Option<u64>,
}

/// What is known of a file in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Name of its file in `quarantine/`.
    pub name: String,
    /// What it was.
    pub what: Damaged,
    /// When it was taken out of use, in seconds since the epoch.
    pub since: u64,
    /// What is wrong with it.
    pub reason: String,
    /// The digest it should have.
    pub expected: Option<Digest>,
    /// The digest it has.
    pub actual: Option<Digest>,
    /// Its length.
    pub bytes: u64,
    /// Layers that need it; not all if they are many.
    #[serde(default)]
    pub layers: Vec<DiffId>,
    /// How many layers need it.
    #[serde(default)]
    pub layers_total: u64,
    /// Images that need it; not all if they are many.
    #[serde(default)]
    pub images: Vec<String>,
    /// How many images need it.
    #[serde(default)]
    pub images_total: u64,
}

/// The file that a note in `quarantine/` belongs to. `None` if the name is that of no note.
pub(crate) fn noted(name: &str) -> Option<&str> {
    name.strip_suffix(".json")
}

impl Store {
    /// Takes a damaged file out of use, and marks the layers that need it. `None` if it is gone, or not the file that
    /// was looked at. The layers are looked for after the file is out of use; that takes a walk over all trees.
    pub fn quarantine(&self, what: Damaged, finding: &Finding) -> Result<Option<Quarantined>> {
        self.require_writable()?;
        let Some(mut note) = self.set_aside(what, finding)? else { return Ok(None) };
        let mut touched = match what {
            Damaged::Object(id) => self.mark_layers(&[id].into())?.remove(&id).unwrap_or_default(),
            Damaged::Tree(diff_id) | Damaged::Recipe(diff_id) => self.touched_by_layer(diff_id)?,
            Damaged::Stray => Touched::default(),
        };
        tracing::error!(
            file = %what, reason = finding.reason, layers = touched.layers(), images = touched.images(),
            "a damaged file was moved to quarantine"
        );
        note.layers_total = touched.layers.len() as u64;
        note.images_total = touched.images.len() as u64;
        touched.layers.truncate(NAMED_MAX);
        touched.images.truncate(NAMED_MAX);
        (note.layers, note.images) = (touched.layers, touched.images);
        self.write_note(&note)?;
        self.sync_dir(Path::new(FOLDER))?;
        Ok(Some(note))
    }

    /// Everything in quarantine that has a note, by name.
    pub fn quarantined(&self) -> Result<Vec<Quarantined>> {
        let mut notes = Vec::new();
        for name in self.quarantine_names()? {
            if noted(&name).is_some() {
                notes.extend(self.read_note(&name)?);
            }
        }
        notes.sort_by(|one: &Quarantined, other| one.name.cmp(&other.name));
        Ok(notes)
    }

    /// Deletes what is in quarantine; returns how many files, and how many bytes.
    pub fn empty_quarantine(&self) -> Result<(u64, u64)> {
        let (mut files, mut bytes) = (0, 0);
        for name in self.quarantine_names()? {
            let path = Path::new(FOLDER).join(&name);
            let action = || format!("remove {}", self.root().join(&path).display());
            if let Some(stat) = disk::stat(self.disk(), &path).map_err(Error::io(action()))? {
                disk::remove_tree(self.disk(), &path).map_err(Error::io(action()))?;
                files += 1;
                bytes += stat.st_size as u64;
            }
        }
        self.sync_dir(Path::new(FOLDER))?;
        Ok((files, bytes))
    }

    pub(crate) fn quarantine_names(&self) -> Result<Vec<String>> {
        let action = || format!("read {}", self.root().join(FOLDER).display());
        let names = match disk::list(self.disk(), Path::new(FOLDER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(Error::io(action()))?,
        };
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// Reads a note. `None` if the file is gone or is none.
    pub(crate) fn read_note(&self, name: &str) -> Result<Option<Quarantined>> {
        use io::Read as _;
        const LONGEST: u64 = 1 << 20;
        let path = Path::new(FOLDER).join(name);
        let action = || format!("read {}", self.root().join(&path).display());
        let Some(file) = disk::open(self.disk(), &path).map_err(Error::io(action()))? else { return Ok(None) };
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text).map_err(Error::io(action()))?;
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Moves a file that has no place in the store to quarantine, and says so.
    pub(crate) fn quarantine_stray(&self, path: &Path) -> Result<String> {
        self.require_writable()?;
        let _damage = self.damage.lock();
        let finding = Finding { reason: format!("it lay at {}", path.display()), ..Finding::default() };
        let Some(note) = self.note_of(Damaged::Stray, path, &finding)? else { return Ok("it is gone".into()) };
        self.write_note(&note)?;
        self.move_away(path, &note.name)?;
        Ok(format!("moved to quarantine/{}", note.name))
    }

    /// Marks first, moves then. The lock keeps [`Store::settle_damage`] from looking between the two.
    fn set_aside(&self, what: Damaged, finding: &Finding) -> Result<Option<Quarantined>> {
        let _damage = self.damage.lock();
        let Some(from) = what.path() else { return Ok(None) };
        let Some(note) = self.note_of(what, &from, finding)? else { return Ok(None) };
        self.write_note(&note)?;
        let mut batch = Batch::new();
        let marked = |diff_id| -> Result<DamagedLayer> {
            Ok(self.layer_damage(diff_id)?.unwrap_or_else(|| DamagedLayer::new(diff_id)))
        };
        match what {
            // Its length is not told: a wrong one may be what is the matter.
            Damaged::Object(id) => damage::put_object(&mut batch, id, None, &finding.reason)?,
            Damaged::Tree(diff_id) => {
                damage::put_layer(&mut batch, &DamagedLayer { tree: true, ..marked(diff_id)? })?;
            }
            Damaged::Recipe(diff_id) => {
                damage::put_layer(&mut batch, &DamagedLayer { recipe: true, ..marked(diff_id)? })?;
            }
            Damaged::Stray => {}
        }
        self.db().commit(batch)?;
        self.move_away(&from, &note.name)?;
        if let Damaged::Tree(diff_id) = what {
            self.forget_layer_tree(diff_id);
        }
        Ok(Some(note))
    }

    /// The note of a file that is to be moved. `None` if it is gone, or another than was looked at.
    fn note_of(&self, what: Damaged, path: &Path, finding: &Finding) -> Result<Option<Quarantined>> {
        let action = || format!("stat {}", self.root().join(path).display());
        let Some(stat) = disk::stat(self.disk(), path).map_err(Error::io(action()))? else { return Ok(None) };
        if finding.inode.is_some_and(|inode| inode != stat.st_ino) {
            return Ok(None);
        }
        Ok(Some(Quarantined {
            name: self.free_name(what)?,
            what,
            since: unix_seconds(),
            reason: finding.reason.clone(),
            expected: finding.expected,
            actual: finding.actual,
            bytes: stat.st_size as u64,
            layers: Vec::new(),
            layers_total: 0,
            images: Vec::new(),
            images_total: 0,
        }))
    }

    fn move_away(&self, from: &Path, name: &str) -> Result<()> {
        let action = || format!("move {} to quarantine", self.root().join(from).display());
        match self.disk().publish(from, &Path::new(FOLDER).join(name)) {
            // A collection was first.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.map_err(Error::io(action()))?,
        }
        self.sync_dir(Path::new(FOLDER))?;
        self.sync_dir(from.parent().unwrap_or(Path::new(".")))
    }

    fn free_name(&self, what: Damaged) -> Result<String> {
        let taken: HashSet<String> = self.quarantine_names()?.into_iter().collect();
        let name = what.name();
        let others = (1_u64..).map(|attempt| format!("{name}.{attempt}"));
        Ok(std::iter::once(name.clone()).chain(others).find(|name| !taken.contains(name)).unwrap_or_default())
    }

    /// Writes a note over an earlier one.
    fn write_note(&self, note: &Quarantined) -> Result<()> {
        let path = Path::new(FOLDER).join(format!("{}.json", note.name));
        let action = || format!("write {}", self.root().join(&path).display());
        let mut text = serde_json::to_vec_pretty(note).map_err(|error| Error::io(action())(io::Error::other(error)))?;
        text.push(b'\n');
        let temporary = self.new_temporary();
        let file = self.disk().create(&temporary).map_err(Error::io(action()))?;
        let written = self
            .disk()
            .write(&file, &text)
            .map_err(Error::io(action()))
            .and_then(|()| self.sync_file(&file))
            .and_then(|()| self.disk().replace(&temporary, &path).map_err(Error::io(action())));
        if written.is_err() {
            // It goes when the store is opened next, at the latest.
            let _ = self.disk().remove(&temporary);
        }
        written
    }
}
