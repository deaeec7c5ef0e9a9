//! Who is measured.

mod kernel;
mod mica;
mod overlayfs;

use mica_tests::Result;
use mica_tests::scene::Scene;

/// A snapshotter of the scene's containerd.
pub trait Subject {
    /// How containerd and the report call it.
    fn name(&self) -> &'static str;

    /// How `ctr run` is told to use it.
    fn flags(&self) -> Vec<&'static str> {
        vec!["--snapshotter", self.name()]
    }

    /// Waits until it has nothing to do any more, so that the next measurement is not charged with the last one.
    fn settle(&self, scene: &Scene) -> Result;
}

/// All of them; the first is the one that others are compared with.
pub fn all() -> Vec<Box<dyn Subject>> {
    vec![Box::new(overlayfs::Overlayfs), Box::new(mica::Mica)]
}

/// Those that differ in how containers are mounted as well.
pub fn all_forms() -> Vec<Box<dyn Subject>> {
    vec![Box::new(overlayfs::Overlayfs), Box::new(mica::Mica), Box::new(kernel::Kernel)]
}

/// Dirty pages of one measurement must not be written during the next.
fn sync() {
    rustix::fs::sync();
}
