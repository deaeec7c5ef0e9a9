//! Plays a scenario on an engine.

use mica_tests::engines::Version;
use mica_tests::place;
use mica_tests::scene::Scene;
use mica_tests::{Failure, Result};

/// Sets the scene, plays, and checks that nothing is left. A failure shows what daemon and engine said last.
pub fn play(name: &str, version: Version, scenario: fn(&mut Scene) -> Result) -> Result {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped(name, &reason);
        return Ok(());
    }
    let mut scene = Scene::new(version)?;
    match scenario(&mut scene) {
        Ok(()) => scene.finish(),
        Err(failure) => {
            let daemon = scene.daemon.log_tail(25).replace('\n', "\n    ");
            let engine = scene.containerd.log_tail(10).replace('\n', "\n    ");
            Err(Failure::new(format!("{failure}\n  mica serve:\n    {daemon}\n  {}:\n    {engine}", version.name())))
        }
    }
}

/// Makes a test of each scenario for each engine.
macro_rules! on_both_engines {
    ($($scenario:ident),* $(,)?) => {
        mod containerd_1_6 {
            $(#[test]
            fn $scenario() -> mica_tests::Result {
                crate::stage::play(stringify!($scenario), mica_tests::engines::Version::V1_6, super::$scenario)
            })*
        }
        mod containerd_1_7 {
            $(#[test]
            fn $scenario() -> mica_tests::Result {
                crate::stage::play(stringify!($scenario), mica_tests::engines::Version::V1_7, super::$scenario)
            })*
        }
    };
}
pub(crate) use on_both_engines;
