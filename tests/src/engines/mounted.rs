//! Snapshots and images mounted for a look, as the engine would mount them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::containerd::Containerd;
use crate::command::{self, succeed};
use crate::failure::{Context as _, Result};
use crate::oci::digest_of;
use crate::wait::{self, SOON};

/// A mounted snapshot. Dropped, it is unmounted; the view that was made for it is removed.
#[derive(Debug)]
pub struct Mounted<'a> {
    engine: &'a Containerd,
    snapshotter: String,
    view: Option<String>,
    target: PathBuf,
}

impl Mounted<'_> {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// The kernel's name of the filesystem that is mounted.
    pub fn filesystem(&self) -> Result<String> {
        let mut findmnt = Command::new("findmnt");
        let found = succeed(findmnt.args(["-rno", "FSTYPE", "--mountpoint"]).arg(&self.target), SOON)?;
        Ok(found.text().trim().to_owned())
    }
}

impl Containerd {
    /// Mounts an active or view snapshot of this scene's snapshotter.
    pub fn mount_snapshot(&self, key: &str) -> Result<Mounted<'_>> {
        self.mount(self.snapshotter.name(), key, None)
    }

    /// Mounts an unpacked image, read-only, by one of the engine's snapshotters.
    pub fn mount_image(&self, reference: &str, snapshotter: &str) -> Result<Mounted<'_>> {
        let view = format!("view-{}", self.new_id());
        let chain = chain_id(&self.diff_ids(reference)?).context("an image has layers")?;
        // A view has no owner until it is labelled: a collection of garbage in between takes it away again.
        wait::until(&format!("a view of {reference}"), SOON, || {
            self.ctr(&["snapshots", "--snapshotter", snapshotter, "view", &view, &chain])?;
            let label = ["snapshots", "--snapshotter", snapshotter, "label", &view, "containerd.io/gc.root=now"];
            let labelled = command::run(&mut self.command(&label), SOON)?;
            crate::ensure!(labelled.status.success() || labelled.complaint().contains("not found"), "{labelled}");
            Ok(labelled.status.success().then_some(()))
        })?;
        self.mount(snapshotter, &view.clone(), Some(view))
    }

    fn mount(&self, snapshotter: &str, key: &str, view: Option<String>) -> Result<Mounted<'_>> {
        let target = self.folder.join(format!("mounted-{}", self.new_id()));
        fs::create_dir(&target)?;
        let shown = target.display().to_string();
        let line = self.ctr(&["snapshots", "--snapshotter", snapshotter, "mounts", &shown, key])?.text();
        // Dropped if the mount fails: the view goes all the same.
        let mounted = Mounted { engine: self, snapshotter: snapshotter.to_owned(), view, target };
        crate::ensure!(line.starts_with("mount -t "), "`ctr snapshots mounts` printed {line:?}");
        succeed(Command::new("sh").args(["-c", line.trim()]), SOON)?;
        Ok(mounted)
    }
}

/// The name of a stack of layers (OCI image-spec, "Layer ChainID").
fn chain_id(diff_ids: &[String]) -> Option<String> {
    diff_ids.iter().cloned().reduce(|below, layer| digest_of(format!("{below} {layer}").as_bytes()))
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let unmounted = command::run(Command::new("umount").arg(&self.target), SOON);
        if !unmounted.is_ok_and(|output| output.status.success()) {
            let _ = command::run(Command::new("umount").arg("--lazy").arg(&self.target), SOON);
        }
        if let Some(view) = &self.view {
            let remove = ["snapshots", "--snapshotter", &self.snapshotter, "rm", view];
            let _ = command::run(&mut self.engine.command(&remove), SOON);
        }
    }
}
