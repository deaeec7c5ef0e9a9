//! containerd's own snapshotter on the kernel's overlayfs.

use mica_tests::Result;
use mica_tests::leftovers::disk_bytes;
use mica_tests::scene::Scene;
use mica_tests::wait::{self, LATER};

use super::Subject;

/// The peer.
#[derive(Debug)]
pub struct Overlayfs;

impl Subject for Overlayfs {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn settle(&self, scene: &Scene) -> Result {
        // Folders of removed snapshots are deleted after the answer.
        let folder = scene.containerd.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
        let quiet = wait::quiet("overlayfs to delete what was removed", LATER, || disk_bytes(&folder));
        super::sync();
        quiet
    }
}
