//! Collections of stores that are damaged, or hold what is not theirs.

use mica_layerdb::{Damaged, Finding, Tally};

use super::shop::{Shop, object};

#[test]
fn layer_that_cannot_be_read_keeps_all_objects_and_is_named_and_the_rest_goes() {
    let shop = Shop::new();
    let kept = shop.ingest("kept", &[1, 2]);
    let gone = shop.ingest("gone", &[3]);
    shop.put_image("app", &[kept], [1, 2]);
    shop.put_image("app:2", &[kept], [1, 2]);
    shop.store.chain(&[gone]).unwrap();
    shop.store.quarantine(Damaged::Tree(kept), &Finding::default()).unwrap().unwrap();
    let expected = shop.dry_run();
    let report = shop.gc();
    assert_eq!(report, expected);
    assert_eq!(report.objects, Tally::default());
    assert_eq!((report.layer_trees.count, report.chain_trees.count), (1, 1));
    assert_eq!(report.unreadable.len(), 1);
    assert_eq!(report.unreadable[0].diff_id, kept);
    assert_eq!(report.unreadable[0].images, ["app", "app:2"]);
    assert!(!report.unreadable[0].reason.is_empty());
    assert!(shop.objects().contains(&object(3)));
    assert_eq!(shop.names("quarantine").len(), 2, "quarantine is not touched");
    let df = shop.store.df().unwrap();
    assert_eq!(df.unreadable.len(), 1);
    assert_eq!(df.reclaimable, Tally::default());
    // Taken in again it is whole, and the garbage goes.
    shop.ingest("kept", &[1, 2]);
    let report = shop.gc();
    assert_eq!((report.unreadable.len(), report.objects.count), (0, 1));
    assert_eq!(shop.objects(), [object(1), object(2)].into());
}

#[test]
fn damaged_layer_that_nothing_needs_goes_with_its_marks() {
    let shop = Shop::new();
    let gone = shop.ingest("gone", &[3]);
    shop.store.quarantine(Damaged::Object(object(3)), &Finding::default()).unwrap().unwrap();
    shop.store.quarantine(Damaged::Tree(gone), &Finding::default()).unwrap().unwrap();
    assert!(shop.store.has_damage().unwrap());
    let report = shop.gc();
    assert_eq!((report.layer_trees.count, report.unreadable.len()), (1, 0));
    assert_eq!(shop.store.damaged_layers().unwrap(), []);
    assert_eq!(shop.store.damaged_objects().unwrap(), []);
    assert!(!shop.names("quarantine").is_empty());
}

#[test]
fn damaged_object_that_a_layer_needs_keeps_its_mark() {
    let shop = Shop::new();
    let kept = shop.ingest("kept", &[3]);
    shop.pin("pin", &[kept]);
    shop.store.quarantine(Damaged::Object(object(3)), &Finding::default()).unwrap().unwrap();
    shop.gc();
    assert_eq!(shop.store.damaged_objects().unwrap().len(), 1);
    assert_eq!(shop.store.damaged_layers().unwrap().len(), 1);
}

#[test]
fn gc_leaves_what_is_none_of_micas() {
    let shop = Shop::new();
    shop.ingest("gone", &[1]);
    let root = shop.directory.path();
    let foreign =
        ["objects/readme", "objects/ab/readme", "layers/sha256/readme", "layers/readme", "chains/sha256/readme"];
    std::fs::create_dir_all(root.join("objects/ab")).unwrap();
    for path in foreign {
        std::fs::write(root.join(path), "mine").unwrap();
    }
    let report = shop.gc();
    assert_eq!((report.objects.count, report.layer_trees.count), (1, 1));
    assert!(foreign.iter().all(|path| root.join(path).exists()));
}
