//! A running container.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::containerd::Containerd;
use super::ctr::remove_container;
use crate::command::{self, Output};
use crate::failure::{Context as _, Result};
use crate::wait::SOON;

/// A container that runs until it is dropped or removed.
#[derive(Debug)]
pub struct Container<'a> {
    engine: &'a Containerd,
    id: String,
    next_exec: AtomicU32,
    removed: bool,
}

impl<'a> Container<'a> {
    /// Starts `words` in a new container of `image`.
    pub fn start(engine: &'a Containerd, image: &str, words: &[&str]) -> Result<Container<'a>> {
        let id = engine.new_id();
        let container = Container { engine, id, next_exec: AtomicU32::new(0), removed: false };
        let start = ["run", "--detach", "--null-io", image, &container.id];
        engine.ctr(&[&start, words].concat())?;
        Ok(container)
    }

    /// Its name, which is also the key of its snapshot.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in it, whatever comes of it. Both its streams are in the output.
    pub fn try_exec(&self, words: &[&str]) -> Result<Output> {
        let exec = format!("exec{}", self.next_exec.fetch_add(1, Ordering::Relaxed));
        self.engine.logged(&["tasks", "exec", "--exec-id", &exec], &[&[self.id.as_str()], words].concat())
    }

    /// What a command in it prints; it must succeed.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        Ok(self.try_exec(words)?.success().context(format!("in container {}", self.id))?.text())
    }

    /// [`Container::exec`] of a shell script.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.exec(&["sh", "-c", script])
    }

    /// Where the engine has mounted its root.
    pub fn rootfs(&self) -> PathBuf {
        let tasks = self.engine.folder.join("state/io.containerd.runtime.v2.task");
        tasks.join(self.engine.namespace()).join(&self.id).join("rootfs")
    }

    /// Ends its process and keeps the container and its snapshot.
    pub fn end(&self) -> Result {
        let ended = command::run(&mut self.engine.command(&["tasks", "delete", "--force", &self.id]), SOON)?;
        let known = command::run(&mut self.engine.command(&["tasks", "ls", "--quiet"]), SOON)?.success()?;
        let runs = known.text().split_whitespace().any(|id| id == self.id);
        crate::ensure!(!runs, "container {} does not end: {ended}", self.id);
        Ok(())
    }

    /// Ends and removes it.
    pub fn remove(mut self) -> Result {
        self.removed = true;
        remove_container(self.engine, &self.id)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if !self.removed {
            let _ = remove_container(self.engine, &self.id);
        }
    }
}
