//! What subjects are mounted over: the same files as directories and as an image of Mica's store.
//!
//! Each is made once in a run, when the first workload wants it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use mica_tests::command::succeed;
use mica_tests::oci::{Layer, Layout};
use mica_tests::wait::LATER;
use mica_tests::{Context as _, Result};

use super::tools::Store;
use crate::tell;

/// A stack of directories and the image that holds the same.
#[derive(Debug)]
pub struct Lower {
    /// Topmost first.
    pub dirs: Vec<PathBuf>,
    /// Its name in the store.
    pub image: String,
    source: Source,
}

/// What the image is taken in from.
#[derive(Debug)]
enum Source {
    Folder(PathBuf),
    Layout(PathBuf),
}

impl Lower {
    /// One directory.
    pub fn folder(folder: &Path, name: &str) -> Lower {
        let folder = folder.to_path_buf();
        Lower { dirs: vec![folder.clone()], image: name.to_owned(), source: Source::Folder(folder) }
    }

    /// Directories, topmost first, that become the layers of an image; its layout is written to `layout`.
    pub fn layers(dirs: Vec<PathBuf>, name: &str, layout: &Path) -> Result<Lower> {
        let written = Layout::create(layout)?;
        let packed: Result<Vec<Layer>> = dirs.iter().rev().map(|dir| pack(dir)).collect();
        written.add_image(name, &packed?)?;
        Ok(Lower { dirs, image: name.to_owned(), source: Source::Layout(layout.to_path_buf()) })
    }

    /// Directories, topmost first, that are the unpacked layers of an image of a layout.
    pub fn unpacked(dirs: Vec<PathBuf>, name: &str, layout: &Path) -> Lower {
        Lower { dirs, image: name.to_owned(), source: Source::Layout(layout.to_path_buf()) }
    }
}

/// All that were made, by name.
pub struct Lowers {
    folder: PathBuf,
    made: RefCell<HashMap<String, Rc<Lower>>>,
    imported: RefCell<HashMap<String, Rc<Lower>>>,
}

impl Lowers {
    /// None yet; they are made in `folder`.
    pub fn new(folder: PathBuf) -> Lowers {
        Lowers { folder, made: RefCell::default(), imported: RefCell::default() }
    }

    /// The one of this name, which is made by `make` in an empty folder if there is none yet.
    pub fn get(&self, name: &str, make: impl FnOnce(&Path) -> Result<Lower>) -> Result<Rc<Lower>> {
        if let Some(lower) = self.made.borrow().get(name) {
            return Ok(Rc::clone(lower));
        }
        tell(&format!("    preparing {name}"));
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let made = make(&folder);
        if made.is_err() {
            // The next who asks tries again.
            fs::remove_dir_all(&folder)?;
        }
        let lower = Rc::new(made.context(format!("prepare {name}"))?);
        self.made.borrow_mut().insert(name.to_owned(), Rc::clone(&lower));
        Ok(lower)
    }

    /// Sees to it that the store has the image.
    pub fn import(&self, lower: &Rc<Lower>, store: &Store) -> Result {
        if self.imported.borrow().contains_key(&lower.image) {
            return Ok(());
        }
        let (Source::Folder(source) | Source::Layout(source)) = &lower.source;
        store.import(source, &lower.image)?;
        self.imported.borrow_mut().insert(lower.image.clone(), Rc::clone(lower));
        Ok(())
    }
}

/// A directory as a layer.
fn pack(dir: &Path) -> Result<Layer> {
    let tar = succeed(Command::new("tar").args(["--sort=name", "-cf", "-", "-C"]).arg(dir).arg("."), LATER)?;
    Layer::gzip(&tar.stdout)
}
