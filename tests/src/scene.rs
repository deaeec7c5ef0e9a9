//! A registry, a daemon and a containerd that know each other.

use std::path::Path;

use crate::daemon::Daemon;
use crate::engines::{Containerd, Registry, Snapshotter, Version};
use crate::failure::Result;
use crate::place::{self, Folders};

/// Everything a container needs. Fields are dropped in this order: containers and their engine first.
#[derive(Debug)]
pub struct Scene {
    /// The engine.
    pub containerd: Containerd,
    /// Mica.
    pub daemon: Daemon,
    /// Where images come from.
    pub registry: Registry,
    folders: Folders,
    damaged: bool,
}

impl Scene {
    /// Starts one with an empty store.
    pub fn new(version: Version) -> Result<Scene> {
        let folders = Folders::new()?;
        let root = folders.disk().join("store");
        Scene::with_root(version, folders, &root)
    }

    /// Starts one whose store is at `root`.
    pub fn with_root(version: Version, folders: Folders, root: &Path) -> Result<Scene> {
        let registry = Registry::start(&folders.disk().join("registry"))?;
        let engine = folders.run().join("containerd");
        let socket = Containerd::socket_in(&engine);
        let flags = ["--containerd".to_owned(), socket.display().to_string()];
        let daemon = Daemon::start(root, &folders.run().join("mica"), &flags)?;
        let snapshotter = Snapshotter::Mica { socket: daemon.socket(), root: root.to_path_buf() };
        let containerd = Containerd::start(version, snapshotter, &engine, &folders.disk().join("containerd"))?;
        Ok(Scene { containerd, daemon, registry, folders, damaged: false })
    }

    /// The store is damaged on purpose: its end is not checked.
    pub fn leave_damaged(&mut self) {
        self.damaged = true;
    }

    /// Its temporary folders.
    pub fn folders(&self) -> &Folders {
        &self.folders
    }

    /// Pushes a test image (`base`, `station`, `ledger`) to the registry; returns its reference.
    pub fn publish(&self, image: &str) -> Result<String> {
        self.registry.push(&place::images()?, image, &format!("{image}:1"))
    }

    /// Pushes and pulls a test image; returns its reference.
    pub fn pulled(&self, image: &str) -> Result<String> {
        let reference = self.publish(image)?;
        self.containerd.pull(&reference)?;
        Ok(reference)
    }

    /// Ends everything and checks that nothing is left, and nothing wrong with the store.
    pub fn finish(self) -> Result {
        let Scene { containerd, daemon, registry, folders, damaged } = self;
        if !damaged {
            // Beside containers and the engine's own work first, alone after.
            daemon.mica(&["fsck"])?;
        }
        drop(containerd);
        if !damaged {
            daemon.mica(&["fsck", "--data", "--deep"])?;
        }
        let finished = daemon.finish();
        drop(registry);
        drop(folders);
        finished
    }
}
