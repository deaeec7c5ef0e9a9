//! Programs that are measured, and Mica's store.

use std::path::{Path, PathBuf};
use std::process::Command;

use mica_tests::command::succeed;
use mica_tests::wait::LATER;
use mica_tests::{Result, ensure, place};

use crate::machine::sources;

/// What subjects are mounted with.
pub struct Tools {
    /// fuse-overlayfs 2.0.
    pub fuse_overlayfs: PathBuf,
    /// fuse-overlayfs 1.
    pub fuse_overlayfs_c: PathBuf,
    /// Where images are.
    pub store: Store,
}

impl Tools {
    /// Finds them; a crate that is not there yet is installed into the cache.
    pub fn find(store: Store) -> Result<Tools> {
        let fuse_overlayfs_c = PathBuf::from("/usr/bin/fuse-overlayfs");
        ensure!(fuse_overlayfs_c.exists(), "{} is missing: run scripts/setup", fuse_overlayfs_c.display());
        Ok(Tools { fuse_overlayfs: tool("fuse-overlayfs")?, fuse_overlayfs_c, store })
    }
}

/// A program that `scripts/tool` installs.
fn tool(name: &str) -> Result<PathBuf> {
    let printed = succeed(Command::new(sources().join("scripts/tool")).arg(name), 10 * LATER)?;
    Ok(PathBuf::from(printed.text().trim_end()))
}

/// A store that no daemon has open.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    state: PathBuf,
}

impl Store {
    /// One in `root`, with sockets in `state`; it is made by the first command.
    pub fn new(root: PathBuf, state: PathBuf) -> Store {
        Store { root, state }
    }

    /// `mica` on this store.
    pub fn command(&self) -> Command {
        let mut command = Command::new(place::mica().unwrap_or_else(|_| PathBuf::from("mica")));
        command.env_remove("MICA_ROOT").env_remove("MICA_STATE");
        command.arg("--root").arg(&self.root).arg("--state").arg(&self.state);
        command
    }

    /// Takes an image in under a name: a folder of files, or a layout.
    pub fn import(&self, source: &Path, name: &str) -> Result {
        succeed(self.command().args(["image", "import"]).arg(source).args(["--name", name]), 5 * LATER).map(|_| ())
    }
}
