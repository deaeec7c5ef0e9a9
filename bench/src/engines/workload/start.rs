//! Starting containers of an image that is unpacked and in the page cache.

use std::time::{Duration, Instant};

use mica_tests::scene::Scene;
use mica_tests::{Failure, Result};

use super::Workload;
use crate::engines::subject::{self, Subject};

/// `ctr run --rm`, from its start to its end: one that does nothing, one that computes, ten at once.
#[derive(Debug)]
pub struct Start;

impl Workload for Start {
    fn name(&self) -> &'static str {
        "start"
    }

    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subject::all_forms()
    }

    fn prepare(&self, scene: &Scene, image: &str, subjects: &[Box<dyn Subject>]) -> Result {
        for subject in subjects {
            let [flag, snapshotter, ..] = subject.flags()[..] else { continue };
            scene.containerd.ctr(&["image", "pull", "--plain-http", flag, snapshotter, image])?;
            subject.settle(scene)?;
            // The first container finds cold caches on every subject; it is not counted.
            scene.containerd.try_run_with(&subject.flags(), image, &[])?.success()?;
        }
        Ok(())
    }

    fn measure(&self, scene: &Scene, image: &str, subject: &dyn Subject) -> Result<Vec<(&'static str, Duration)>> {
        let flags = &subject.flags();
        let run = |words: &[&str]| -> Result<Duration> {
            Ok(scene.containerd.try_run_with(flags, image, words)?.success()?.took)
        };
        let nothing = run(&["true"])?;
        let computing = run(&[])?;
        let start = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..10).map(|_| scope.spawn(|| run(&["true"]))).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(ended) => ended.map(|_| ()),
                Err(_) => Err(Failure::new("a thread panicked")),
            })
        })?;
        let ten = start.elapsed();
        Ok(vec![("run true", nothing), ("run python3 with numpy", computing), ("run true, ten at once", ten)])
    }

    fn clean_up(&self, scene: &Scene, image: &str, subjects: &[Box<dyn Subject>]) -> Result {
        scene.containerd.remove_image(image)?;
        subjects.iter().try_for_each(|subject| subject.settle(scene))
    }
}
