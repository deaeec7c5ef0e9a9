//! Mica beside kernel overlayfs, which is the oracle: the same steps on both, and each on what the other wrote.
//!
//! Needs root. `PROPTEST_CASES=1000 scripts/contained cargo test --release -p mica-fs --test oracle` looks longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, missing_docs, dead_code)]

#[path = "../model/base.rs"]
mod base;
mod differences;
mod mounts;
mod posix;
#[path = "../model/reference.rs"]
mod reference;
#[path = "../model/steps.rs"]
mod steps;
#[path = "../model/world.rs"]
mod world;

use proptest::prelude::*;
use proptest::test_runner::Config;
use tempfile::TempDir;

use mounts::{Kernel, Mica, Place};
use posix::{Mount, Posix};
use reference::Model;
use steps::{Abilities, Step, action, steps};
use world::World;

/// A lower, made by steps of its own, and a place beside it.
fn place(steps: &[Step], can: Abilities) -> (Place, Model) {
    let mut model = Model::default();
    for step in steps {
        if let Some(action) = action(step, &model, can) {
            // What is refused is no step.
            let _ = model.apply(&action);
        }
    }
    let dir = TempDir::new().unwrap();
    base::lay_out(&mut model, &dir.path().join("base"));
    (Place::new(dir), model)
}

const PLAIN: Abilities = Abilities { zero_devices: false, xattrs: mounts::PLAIN, sockets: true, long_paths: false };

/// Whether the process may mount. Without, there is nothing to be tested here; `model` tests the union itself.
fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        eprintln!("not root: mounts are not tested");
    }
    // Modes are what the steps say.
    rustix::process::umask(rustix::fs::Mode::empty());
    may
}

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40);
    Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() }
}

/// Without hard links. overlayfs keeps those of a lower file in an index of its own in the work directory, and copies
/// one name up alone; who doesn't read that index finds two files.
fn without_links(steps: &[Step]) -> Vec<Step> {
    steps.iter().filter(|step| !matches!(step, Step::Link(..))).cloned().collect()
}

/// In one stack of layers. Without the index of one upper, as a layer among others, overlayfs finds two files again.
fn without_commits(steps: &[Step]) -> Vec<Step> {
    steps.iter().filter(|step| !matches!(step, Step::Commit)).cloned().collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn mounted_mica_is_the_model(below in steps(30), above in steps(40)) {
        if may_mount() {
            let (place, model) = place(&below, PLAIN);
            let mut world = World::new(Posix::new(Mica::new(place)), model);
            world.run(&above);
            world.subject.mount.end();
        }
    }

    #[test]
    fn kernel_overlayfs_is_the_model(below in steps(30), above in steps(40)) {
        if may_mount() {
            let (place, model) = place(&below, PLAIN);
            let mut world = World::new(Posix::new(Kernel::new(place)), model).without_numbers();
            world.run(&without_commits(&above));
            world.subject.mount.end();
        }
    }

    /// Rule 26: The kernel's overlayfs and Mica show the same when they mount each other's upper.
    #[test]
    fn kernel_reads_what_mica_wrote(below in steps(30), above in steps(40)) {
        if may_mount() {
            let (place, model) = place(&below, PLAIN);
            let mica = Posix::new(Alike(Mica::new(place)));
            let mut world = World::new(mica, model);
            world.run(&above);
            let (mica, model) = world.end();
            let kernel = Kernel::new(mica.mount.0.end());
            let mut world = World::new(Posix::new(kernel), model).without_numbers();
            world.run(&[]);
            world.subject.mount.end();
        }
    }

    /// Rule 27: Contents that Mica left in the lower are found by overlayfs with `metacopy=on`; without, it refuses
    /// the file (EPERM).
    #[test]
    fn kernel_reads_what_mica_left_in_the_lower(below in steps(30), above in steps(40)) {
        if may_mount() {
            let (place, model) = place(&below, PLAIN);
            let mica = Posix::new(Alike(Mica::with(place, true)));
            let mut world = World::new(mica, model);
            world.run(&above);
            let (mica, model) = world.end();
            let kernel = Kernel::with(mica.mount.0.end(), "metacopy=on,");
            let mut world = World::new(Posix::new(kernel), model).without_numbers();
            world.run(&[]);
            world.subject.mount.end();
        }
    }

    /// Rule 26: The kernel's overlayfs and Mica show the same when they mount each other's upper.
    #[test]
    fn mica_reads_what_the_kernel_wrote(below in steps(30), above in steps(40)) {
        if may_mount() {
            let (place, model) = place(&without_links(&below), PLAIN);
            let mut world = World::new(Posix::new(Kernel::new(place)), model).without_numbers();
            world.run(&without_links(&above));
            let (kernel, model) = world.end();
            let mica = Mica::new(kernel.mount.end());
            let mut world = World::new(Posix::new(mica), model).without_numbers();
            world.run(&[]);
            world.subject.mount.end();
        }
    }
}

/// Mica with what the kernel's overlayfs can do, too.
struct Alike(Mica);

impl Mount for Alike {
    fn abilities(&self) -> Abilities {
        Abilities { zero_devices: false, xattrs: &["user.one", "trusted.overlay.x"], sockets: true, long_paths: false }
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.root()
    }

    fn remount(&mut self) {
        self.0.remount();
    }

    fn commit(&mut self) {
        self.0.commit();
    }
}
