//! containerd by its own command line.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use super::container::Container;
use super::containerd::Containerd;
use crate::command::{self, Output, succeed};
use crate::failure::{Context as _, Result};
use crate::wait::{LATER, SOON};
use crate::{place, wait};

impl Containerd {
    /// `ctr WORDS...` on this engine, ready to run.
    pub fn command(&self, words: &[&str]) -> Command {
        let program = place::engine(self.version.name()).map(|folder| folder.join("bin/ctr"));
        let mut command = Command::new(program.unwrap_or_else(|_| "ctr".into()));
        command.arg("--address").arg(self.socket()).args(["--namespace", &self.namespace]).args(words);
        command.env("CONTAINERD_SNAPSHOTTER", self.snapshotter.name());
        command
    }

    /// Runs `ctr WORDS...`; it must succeed.
    pub fn ctr(&self, words: &[&str]) -> Result<Output> {
        let done = command::run(&mut self.command(words), LATER)?.success();
        done.context(format!("{} on {}", self.version.name(), self.snapshotter.name()))
    }

    /// Runs `ctr WORDS...`, which must fail, and returns what it said.
    pub fn ctr_refused(&self, words: &[&str]) -> Result<String> {
        command::run(&mut self.command(words), LATER)?.refusal()
    }

    /// Pulls and unpacks an image; returns how long that took.
    pub fn pull(&self, reference: &str) -> Result<Duration> {
        Ok(self.ctr(&["image", "pull", "--plain-http", reference])?.took)
    }

    /// Fetches an image's blobs and unpacks nothing.
    pub fn fetch(&self, reference: &str) -> Result<Output> {
        self.ctr(&["content", "fetch", "--plain-http", reference])
    }

    /// Pushes an image.
    pub fn push(&self, reference: &str) -> Result<Output> {
        self.ctr(&["image", "push", "--plain-http", reference])
    }

    /// Removes an image and waits until containerd has collected what only it needed.
    pub fn remove_image(&self, reference: &str) -> Result<Output> {
        self.ctr(&["image", "rm", "--sync", reference])
    }

    /// Writes an image as an OCI archive.
    pub fn export(&self, reference: &str, archive: &Path) -> Result<Output> {
        succeed(self.command(&["image", "export"]).arg(archive).arg(reference), LATER)
    }

    /// Takes in an OCI archive and unpacks it.
    pub fn import(&self, archive: &Path) -> Result<Output> {
        succeed(self.command(&["image", "import"]).arg(archive), LATER)
    }

    /// The manifest digest of an image.
    pub fn digest(&self, reference: &str) -> Result<String> {
        let list = self.ctr(&["image", "ls", &format!("name=={reference}")])?.text();
        let digest = list.split_whitespace().find(|word| word.starts_with("sha256:"));
        Ok(digest.context(format!("`ctr image ls` knows no {reference}: {list}"))?.to_owned())
    }

    /// A blob of the content store.
    pub fn content(&self, digest: &str) -> Result<Vec<u8>> {
        Ok(self.ctr(&["content", "get", digest])?.stdout)
    }

    /// The manifest of an image.
    pub fn manifest(&self, reference: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.content(&self.digest(reference)?)?)?)
    }

    /// The diff-ids of an image's layers, bottom first.
    pub fn diff_ids(&self, reference: &str) -> Result<Vec<String>> {
        let manifest = self.manifest(reference)?;
        let config = manifest["config"]["digest"].as_str().context("a manifest names a configuration")?;
        let config: Value = serde_json::from_slice(&self.content(config)?)?;
        let ids = config["rootfs"]["diff_ids"].as_array().context("a configuration lists its layers")?;
        Ok(ids.iter().filter_map(|id| id.as_str().map(ToOwned::to_owned)).collect())
    }

    /// The layer of a container's changes, or of a snapshot against its parent.
    pub fn diff(&self, key: &str) -> Result<Vec<u8>> {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Ok(self.ctr(&["snapshots", "diff", "--media-type", media_type, key])?.stdout)
    }

    /// Snapshot keys that containerd knows, with their kinds.
    pub fn snapshots(&self) -> Result<Vec<(String, String)>> {
        let list = self.ctr(&["snapshots", "ls"])?.text();
        // KEY PARENT KIND, where PARENT may be empty.
        let rows = list.lines().skip(1).filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some(((*words.first()?).to_owned(), (*words.last()?).to_owned()))
        });
        Ok(rows.collect())
    }

    /// Waits until the engine has a connection to its snapshotter again: after one was lost it tries anew only now and
    /// then, and refuses everything in between.
    pub fn reach_snapshotter(&self) -> Result {
        wait::until("containerd to reach its snapshotter", SOON, || Ok(self.snapshots().ok().map(|_| ())))
    }

    /// A name for a container that no other has.
    pub fn new_id(&self) -> String {
        format!("c{}", self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs a container of `image` on one of the engine's snapshotters to its end, whatever comes of it, with `words` as
    /// the command instead of the image's own if there are any.
    pub fn try_run_on(&self, snapshotter: &str, image: &str, words: &[&str]) -> Result<Output> {
        self.try_run_with(&["--snapshotter", snapshotter], image, words)
    }

    /// The same with other flags of `ctr run`.
    pub fn try_run_with(&self, flags: &[&str], image: &str, words: &[&str]) -> Result<Output> {
        let id = self.new_id();
        self.logged(&[&["run", "--rm"], flags].concat(), &[&[image, &id], words].concat())
    }

    /// Runs a container whose root is the folder `rootfs`, to its end, whatever comes of it.
    pub fn try_run_in(&self, rootfs: &Path, words: &[&str]) -> Result<Output> {
        let (id, rootfs) = (self.new_id(), rootfs.display().to_string());
        self.logged(&["run", "--rm", "--rootfs"], &[&[rootfs.as_str(), &id], words].concat())
    }

    /// [`Containerd::try_run_on`] this engine's snapshotter; it must succeed.
    pub fn run(&self, image: &str, words: &[&str]) -> Result<Output> {
        let done = self.try_run_on(self.snapshotter.name(), image, words)?.success();
        done.context(format!("{} on {}", self.version.name(), self.snapshotter.name()))
    }

    /// [`Containerd::run`] that must fail; what it said.
    pub fn run_refused(&self, image: &str, words: &[&str]) -> Result<String> {
        self.try_run_on(self.snapshotter.name(), image, words)?.refusal()
    }

    /// Runs `ctr FLAGS... WORDS...` whose process writes to a file. ctr's own pipes are closed when a process ends, what is in
    /// them or not: on a busy machine the output of one short program in forty is lost.
    pub(super) fn logged(&self, flags: &[&str], words: &[&str]) -> Result<Output> {
        let log = self.folder.join(format!("{}.out", self.new_id()));
        let uri = format!("file://{}", log.display());
        let mut done = command::run(&mut self.command(&[flags, &["--log-uri", &uri], words].concat()), LATER)?;
        // It is not there if there was no process.
        done.stdout.extend(fs::read(&log).unwrap_or_default());
        let _ = fs::remove_file(&log);
        Ok(done)
    }

    /// Starts a container that sleeps until it is removed.
    pub fn start_container(&self, image: &str) -> Result<Container<'_>> {
        Container::start(self, image, &["sleep", "infinity"])
    }

    pub(super) fn remove_all_containers(&self) {
        let listed = command::run(&mut self.command(&["containers", "ls", "--quiet"]), SOON);
        let text = listed.map(|output| output.text()).unwrap_or_default();
        for id in text.split_whitespace() {
            let _ = remove_container(self, id);
        }
    }
}

/// Ends a container's process and removes both.
pub(super) fn remove_container(engine: &Containerd, id: &str) -> Result {
    // It tells the exit status of the process by its own, so only the container's removal can be judged.
    let _ = command::run(&mut engine.command(&["tasks", "delete", "--force", id]), SOON)?;
    let mut last = String::new();
    wait::until(&format!("container {id} to be removed"), SOON, || {
        let removed = command::run(&mut engine.command(&["containers", "delete", id]), SOON)?;
        let gone = removed.status.success() || removed.complaint().contains("not found");
        last = removed.to_string();
        Ok(gone.then_some(()))
    })
    .context(last)
}
