//! Who is measured.

mod mica;
mod overlayfs;

use mica_tests::Result;
use mica_tests::scene::Scene;

/// A snapshotter of the scene's containerd.
pub trait Subject {
    /// How containerd and the report call it.
    fn name(&self) -> &'static str;

    /// Waits until it has nothing to do any more, so that the next measurement is not charged with the last one.
    fn settle(&self, scene: &Scene) -> Result;
}

/// All of them; the first is the one that others are compared with.
pub fn all() -> Vec<Box<dyn Subject>> {
    vec![Box::new(overlayfs::Overlayfs), Box::new(mica::Mica)]
}

/// Dirty pages of one measurement must not be written during the next.
fn sync() {
    rustix::fs::sync();
}
