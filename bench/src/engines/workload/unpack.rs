//! Unpacking an image whose blobs are in the engine's content store already.

use std::time::{Duration, Instant};

use mica_tests::Result;
use mica_tests::scene::Scene;

use super::Workload;
use crate::engines::subject::Subject;

/// `ctr image pull` with nothing to download. The second time includes bringing it all to the disk: Mica does so
/// before it answers, overlayfs leaves it to the kernel.
#[derive(Debug)]
pub struct Unpack;

impl Workload for Unpack {
    fn name(&self) -> &'static str {
        "unpack"
    }

    fn prepare(&self, _scene: &Scene, _image: &str, _subjects: &[Box<dyn Subject>]) -> Result {
        Ok(())
    }

    fn measure(&self, scene: &Scene, image: &str, subject: &dyn Subject) -> Result<Vec<(&'static str, Duration)>> {
        scene.containerd.fetch(image)?;
        subject.settle(scene)?;
        let start = Instant::now();
        scene.containerd.ctr(&["image", "pull", "--plain-http", "--snapshotter", subject.name(), image])?;
        let answered = start.elapsed();
        rustix::fs::sync();
        let on_disk = start.elapsed();
        scene.containerd.remove_image(image)?;
        subject.settle(scene)?;
        Ok(vec![("unpack", answered), ("unpack and sync", on_disk)])
    }

    fn clean_up(&self, _scene: &Scene, _image: &str, _subjects: &[Box<dyn Subject>]) -> Result {
        Ok(())
    }
}
