//! Checks of a store that is in use.

use std::sync::atomic::{AtomicBool, Ordering};

use mica_layerdb::fsck::FsckOptions;
use mica_layerdb::{GcOptions, IngestOptions};

use crate::world::{World, add};

#[test]
fn fsck_during_ingests_collections_and_chain_builds_reports_nothing() {
    let world = World::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..30_u8 {
                let mut builder = tar::Builder::new(Vec::new());
                for file in 0..20_u8 {
                    add(&mut builder, &format!("{file}"), &vec![round ^ file; 5_000 + usize::from(file)]);
                }
                let tar = builder.into_inner().unwrap();
                let layer = world.store.ingest(&mut &tar[..], &IngestOptions::default(), &()).unwrap();
                // It may be collected before.
                let _ = world.store.chain(&[layer.diff_id]);
                if round % 3 == 0 {
                    world.store.gc(GcOptions::default()).unwrap();
                }
            }
            done.store(true, Ordering::Release);
        });
        let mut checks = 0;
        while !done.load(Ordering::Acquire) || checks == 0 {
            let options = FsckOptions { data: true, deep: true, repair: checks % 2 == 1, ..FsckOptions::default() };
            let report = world.check(&options);
            assert_eq!(report.found, [], "check {checks}");
            checks += 1;
        }
    });
    world.expect_clean();
}
