//! Mica as containerd's snapshotter, and as its differ where containerd knows differs.

use mica_tests::Result;
use mica_tests::leftovers::disk_bytes;
use mica_tests::scene::Scene;
use mica_tests::wait::{self, LATER};

use super::Subject;

/// The project's own.
#[derive(Debug)]
pub struct Mica;

impl Subject for Mica {
    fn name(&self) -> &'static str {
        "mica"
    }

    fn settle(&self, scene: &Scene) -> Result {
        // Chains are merged, and layers made of untarred uppers, after the answer; garbage goes in the clean-up.
        let root = scene.daemon.root();
        let quiet = wait::quiet("mica to finish what it does in the background", LATER, || {
            ["objects", "layers", "chains", "snapshots"].iter().map(|part| disk_bytes(&root.join(part))).sum()
        });
        super::sync();
        quiet
    }
}
