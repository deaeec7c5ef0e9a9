//! What takes space: against `du`, and against what collections give back.

use std::path::Path;
use std::process::Command;

use mica_layerdb::df::Df;
use mica_layerdb::{Damaged, Finding, Tally};

use super::shop::{Shop, object};

/// What `du` counts.
fn du(path: &Path) -> u64 {
    let out = Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

/// A store with something of every kind, closed and opened again so that RocksDB is at rest.
fn furnished(shop: Shop) -> Shop {
    let base = shop.ingest("base", &[0, 1, 2]);
    let one = shop.ingest("one", &[2, 3]);
    let two = shop.ingest("two", &[4, 5]);
    let kept = shop.ingest("kept", &[6]);
    shop.ingest("garbage", &[7, 0]);
    shop.put_image("one", &[base, one], [3, 8]);
    shop.put_image("one-again", &[base, one], [3, 8]);
    shop.put_image("two", &[base, two, base], [4, 2]);
    shop.pin("snapshot/1", &[two, kept]);
    shop.store.chain(&[base, one]).unwrap();
    shop.store.chain(&[base, two, base]).unwrap();
    shop.store.chain(&[two]).unwrap();
    for number in [1, 2] {
        let upper = shop.store.new_snapshot_dir(number).unwrap().join("upper");
        std::fs::create_dir_all(upper.join("a/b")).unwrap();
        std::fs::write(upper.join("a/file"), vec![1; 10_000]).unwrap();
        std::fs::hard_link(upper.join("a/file"), upper.join("a/b/link")).unwrap();
        let sparse = std::fs::File::create(upper.join("sparse")).unwrap();
        sparse.set_len(50 << 20).unwrap();
    }
    shop.store.remove_snapshot_dir(2).unwrap();
    shop.ingest("hurt", &[30]);
    shop.store.quarantine(Damaged::Object(object(30)), &Finding::default()).unwrap().unwrap();
    let root = shop.directory.path().to_path_buf();
    std::fs::create_dir(root.join("mounts")).unwrap();
    std::fs::write(root.join("mounts/1-1"), "").unwrap();
    std::fs::write(root.join("layers/sha256/readme"), "not Mica's").unwrap();
    let shop = shop.reopen();
    rustix::fs::sync();
    shop
}

/// The sum of the kinds, and `du`, at a moment when RocksDB does nothing in the background.
fn df_and_du(shop: &Shop) -> (Df, u64) {
    for _ in 0..20 {
        let before = du(shop.directory.path());
        let df = shop.store.df().unwrap();
        if du(shop.directory.path()) == before {
            return (df, before);
        }
    }
    panic!("the store does not come to rest");
}

#[test]
fn df_adds_up_to_what_du_counts() {
    for shop in [Shop::on_disk(), Shop::new()] {
        let shop = furnished(shop);
        let (df, counted) = df_and_du(&shop);
        assert_eq!(df.total.disk_bytes, counted, "{df:#?}");
        assert_eq!(df.total, df.kinds.each().into_iter().map(|(_, tally)| tally).sum());
        let kinds = df.kinds;
        assert_eq!(kinds.objects.count, 8);
        assert_eq!((kinds.layer_trees.count, kinds.chain_trees.count, df.layers), (6, 3, 6));
        assert_eq!((kinds.quarantine.count, kinds.temporary.count), (2, 0));
        assert!(kinds.metadata.count > 3 && kinds.other.count >= 4, "{kinds:?}");
        assert_eq!(df.snapshots.len(), 1);
        // upper, a, b, file (of two names), sparse, work and the snapshot's own directory.
        assert_eq!((df.snapshots[0].number, df.snapshots[0].files.count), (1, 7));
        assert_eq!(df.snapshots[0].files.bytes, 10_000 + (50 << 20));
        assert!(df.snapshots[0].files.disk_bytes < 1 << 20);
        assert_eq!(kinds.removed_snapshots.bytes, 10_000 + (50 << 20));
    }
}

#[test]
fn df_says_of_reclaimable_and_exclusive_what_collections_then_free() {
    let shop = furnished(Shop::on_disk());
    let size = |df: &Df, name: &str| df.images.iter().find(|image| image.name == name).unwrap().clone();
    let before = shop.store.df().unwrap();
    let collected = shop.gc();
    assert_eq!(collected.total(), before.reclaimable);
    assert!(before.reclaimable.count >= 4);
    let (clean, counted) = df_and_du(&shop);
    assert_eq!(clean.reclaimable, Tally::default());
    assert_eq!(clean.images, before.images);
    assert_eq!(
        clean.stored.count + collected.total().count - 1,
        before.stored.count,
        "a snapshot is no file of a layer"
    );
    // Two names of the same: neither frees anything alone.
    assert_eq!(size(&clean, "one").exclusive, Tally::default());
    for name in ["one", "one-again", "two"] {
        let df = shop.store.df().unwrap();
        let image = size(&df, name);
        let parts: Tally = [image.shared, image.exclusive].into_iter().sum();
        assert_eq!(parts, image.stored);
        shop.store.remove_image(name).unwrap();
        assert_eq!(shop.dry_run().total(), image.exclusive, "{name}");
        assert_eq!(shop.gc().total(), image.exclusive, "{name}");
    }
    let (bare, counted_after) = df_and_du(&shop);
    assert!(counted_after < counted);
    // The pin keeps two layers, with three objects, and the chain of the lower.
    assert_eq!(bare.stored.count - bare.kinds.recipes.count, 2 + 3 + 1);
    assert_eq!((bare.shared, bare.logical_bytes), (Tally::default(), 0));
}

#[test]
fn df_counts_shared_things_once_and_logical_ones_each_time() {
    let shop = furnished(Shop::new());
    let df = shop.store.df().unwrap();
    let bytes = |numbers: &[u64]| numbers.iter().map(|number| 5000 + number * 1000).sum::<u64>();
    let small = |names: &[&str]| names.iter().map(|_| "small".len() as u64).sum::<u64>();
    let one = bytes(&[0, 1, 2]) + bytes(&[2, 3]) + small(&["base", "one"]);
    let two = 2 * bytes(&[0, 1, 2]) + bytes(&[4, 5]) + small(&["base", "two", "base"]);
    let logical: Vec<u64> = df.images.iter().map(|image| image.logical_bytes).collect();
    assert_eq!(logical, [one, one, two]);
    assert_eq!(df.logical_bytes, one + one + two);
    let stored: Tally = df.images.iter().map(|image| image.stored).sum();
    let once = Tally {
        count: stored.count - df.shared.count,
        bytes: stored.bytes - df.shared.bytes,
        disk_bytes: stored.disk_bytes - df.shared.disk_bytes,
    };
    // All that is stored, less what images don't have: garbage, a pin's own layer with its object, and a chain of it.
    assert_eq!(once.count + 3 + 2 + 1, df.stored.count - df.kinds.recipes.count + recipes_of_images(&df));
    assert!(df.shared.bytes > 0);
}

/// Each layer has a recipe, or none does.
fn recipes_of_images(df: &Df) -> u64 {
    if df.kinds.recipes.count == 0 { 0 } else { 3 }
}
