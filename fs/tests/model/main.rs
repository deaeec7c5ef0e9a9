//! The union against a model: every operation, over directories and over trees, with remounts and commits in between.
//!
//! `PROPTEST_CASES=10000 cargo test --release -p mica-fs --test model` looks longer.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod base;
mod direct;
mod reference;
mod steps;
mod world;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::Config;
use tempfile::TempDir;

use direct::Direct;
use mica_fs::Format;
use mica_fs::branches::CreatePolicy;
use reference::Model;
use steps::{Abilities, Step, action, steps};
use world::World;

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(1 << 20);

/// A lower, made by steps of its own.
fn base(steps: &[Step]) -> (TempDir, Model) {
    let mut model = Model::default();
    let can = Abilities { zero_devices: false, xattrs: steps::XATTRS, sockets: false, long_paths: true };
    for step in steps {
        if let Some(action) = action(step, &model, can) {
            // What is refused is no step.
            let _ = model.apply(&action);
        }
    }
    let dir = TempDir::new().unwrap();
    base::lay_out(&mut model, &dir.path().join("base"));
    (dir, model)
}

fn config() -> Config {
    // The length of a run in CI; more by PROPTEST_CASES.
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100);
    Config { cases, failure_persistence: None, max_shrink_iters: 3000, ..Config::default() }
}

/// Rule 4: Reading a directory gives each name that is there all the time exactly once, whatever is made or removed
/// meanwhile; positions can be gone back to.
/// Rule 6: `d_ino` and `d_type` are those of stat(2), in merged directories too.
#[test]
fn union_over_directories_is_the_model() {
    proptest!(config(), |(below in steps(40), above in steps(60))| {
        let (dir, model) = base(&below);
        World::new(Direct::over_dirs(dir, Format::detect()), model).run(&above);
    });
}

#[test]
fn union_over_directories_that_copies_whole_files_is_the_model() {
    proptest!(config(), |(below in steps(40), above in steps(60))| {
        let (dir, model) = base(&below);
        World::new(Direct::over_dirs(dir, Format::detect()).without_metacopy(), model).run(&above);
    });
}

/// Rule 99: Of a large lower file that is changed, only the blocks that change are copied at first and the rest in the
/// background, where the disk can't share blocks and keeps the order of changes over a crash.
#[test]
fn union_over_directories_that_copies_by_blocks_is_the_model() {
    for wait in [Duration::ZERO, NEVER] {
        proptest!(config(), |(below in steps(40), above in steps(60))| {
            let (dir, model) = base(&below);
            World::new(Direct::over_dirs(dir, Format::detect()).by_blocks(wait), model).run(&above);
        });
    }
}

/// Rule 99: Of a large lower file that is changed, only the blocks that change are copied at first and the rest in the
/// background, where the disk can't share blocks and keeps the order of changes over a crash.
#[test]
fn union_over_trees_that_copies_by_blocks_is_the_model() {
    let _store = direct::shared();
    for wait in [Duration::ZERO, NEVER] {
        proptest!(config(), |(below in steps(40), above in steps(60))| {
            let (dir, model) = base(&below);
            World::new(Direct::over_trees(dir, Format::detect()).by_blocks(wait), model).run(&above);
        });
    }
}

/// Rule 4: Reading a directory gives each name that is there all the time exactly once, whatever is made or removed
/// meanwhile; positions can be gone back to.
/// Rule 6: `d_ino` and `d_type` are those of stat(2), in merged directories too.
/// Rule 63: Names, contents, owners, modes, times to the nanosecond, devices, hard links and extended attributes
/// survive: the layer on top of its lower shows what the union showed.
#[test]
fn union_over_trees_is_the_model() {
    let _store = direct::shared();
    proptest!(config(), |(below in steps(40), above in steps(60))| {
        let (dir, model) = base(&below);
        World::new(Direct::over_trees(dir, Format::detect()), model).run(&above);
    });
}

/// Rule 40: With `userxattr`, `trusted.*` and `security.*` of lower files are not copied up, and symbolic links and
/// devices get another number at the remount after a copy-up: such files can't carry marks.
#[test]
fn union_over_directories_with_user_marks_is_the_model() {
    proptest!(config(), |(below in steps(40), above in steps(60))| {
        let (dir, model) = base(&below);
        World::new(Direct::over_dirs(dir, Format::User), model).with_marks_on_files_alone().run(&above);
    });
}

#[test]
fn union_over_trees_with_user_marks_is_the_model() {
    let _store = direct::shared();
    proptest!(config(), |(below in steps(40), above in steps(60))| {
        let (dir, model) = base(&below);
        World::new(Direct::over_trees(dir, Format::User), model).with_marks_on_files_alone().run(&above);
    });
}

fn branches_are_the_model(policy: CreatePolicy) {
    proptest!(config(), |(below in steps(40), above in steps(60))| {
        let (dir, model) = base(&below);
        World::new(Direct::among_branches(dir, Format::detect(), policy), model).run(&above);
    });
}

/// Rule 82: Whatever is done to several branches that can be written to, under each policy, with branches that come
/// and change in between: what shows is what one directory would show.
#[test]
fn branches_written_from_the_top_are_the_model() {
    branches_are_the_model(CreatePolicy::TopDownParent);
}

/// Rule 82: Whatever is done to several branches that can be written to, under each policy, with branches that come
/// and change in between: what shows is what one directory would show.
#[test]
fn branches_written_in_turns_are_the_model() {
    branches_are_the_model(CreatePolicy::RoundRobin);
}

/// Rule 82: Whatever is done to several branches that can be written to, under each policy, with branches that come
/// and change in between: what shows is what one directory would show.
#[test]
fn branches_written_where_there_is_room_are_the_model() {
    branches_are_the_model(CreatePolicy::MostFreeSpace);
}
