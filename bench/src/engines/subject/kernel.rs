//! Mica whose containers are mounted by the kernel.

use mica_tests::Result;
use mica_tests::scene::Scene;

use super::Subject;
use super::mica::Mica;

/// The same images in the same store.
#[derive(Debug)]
pub struct Kernel;

impl Subject for Kernel {
    fn name(&self) -> &'static str {
        "mica, by the kernel"
    }

    fn flags(&self) -> Vec<&'static str> {
        vec!["--snapshotter", Mica.name(), "--snapshotter-label", "containerd.io/snapshot/mica.mount=kernel"]
    }

    fn settle(&self, scene: &Scene) -> Result {
        Mica.settle(scene)
    }
}
