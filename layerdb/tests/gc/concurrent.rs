//! Collections while layers come, are used and go.

use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use mica_layerdb::tree::{Content, FileKind, Tree};
use mica_layerdb::{Batch, Digest, Error, Family, GcOptions, Store, Tally};

use super::shop::Shop;

const ROUNDS: usize = 60;

/// Contents of the layers that a worker takes in; all workers have some in common.
fn contents(worker: usize, round: usize) -> Vec<usize> {
    vec![round % 5, 5 + (round + worker) % 7, 12 + worker]
}

/// Reads every file below a directory, as a mount would, and compares it with its name.
fn read_all(store: &Store, tree: &Tree) {
    let mut directories = vec![tree.root()];
    while let Some(nid) = directories.pop() {
        let directory = tree.inode(nid).unwrap();
        for entry in tree.entries(&directory, 0).unwrap() {
            let entry = entry.unwrap();
            let inode = tree.inode(entry.nid).unwrap();
            match entry.kind {
                FileKind::Directory => directories.push(entry.nid),
                FileKind::Regular => {
                    let Content::Object(id) = tree.content(&inode).unwrap() else { continue };
                    let mut file = store.object(id).unwrap().unwrap_or_else(|| panic!("{id} is gone"));
                    let mut bytes = Vec::new();
                    file.read_to_end(&mut bytes).unwrap();
                    assert_eq!(Digest::of(&bytes), id.0);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn collections_among_ingests_images_and_mounts_take_nothing_in_use() {
    let shop = Shop::new();
    let (working, collections) = (&AtomicU64::new(3), &AtomicU64::new(0));
    let store = &shop;
    thread::scope(|scope| {
        for worker in 0..2 {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let files = contents(worker, round);
                    let (layer, hold) = store.ingest_held(&format!("{}", round % 9), &files);
                    let name = format!("image-{worker}-{}", round % 4);
                    store.put_image(&name, &[layer], [files[0], files[1]]);
                    drop(hold);
                    read_all(&store.store, &store.store.chain(&[layer]).unwrap());
                    if round % 3 == 0 {
                        store.store.remove_image(&name).unwrap();
                    }
                }
                working.fetch_sub(1, Ordering::Release);
            });
        }
        scope.spawn(move || {
            for round in 0..ROUNDS * 4 {
                let images = store.store.images().unwrap();
                if images.is_empty() {
                    continue;
                }
                let layers = &images[round % images.len()].layers;
                let hold = match store.store.hold(layers) {
                    Ok(hold) => hold,
                    // Removed and collected since it was listed.
                    Err(Error::NoLayer { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                let owner = format!("mount-{}", round % 3);
                store.pin(&owner, layers);
                drop(hold);
                read_all(&store.store, &store.store.chain(layers).unwrap());
                store.unpin(&owner);
            }
            working.fetch_sub(1, Ordering::Release);
        });
        scope.spawn(move || {
            while working.load(Ordering::Acquire) > 0 {
                let report = store.store.gc(GcOptions::default()).unwrap();
                assert!(report.unreadable.is_empty(), "{report:?}");
                collections.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    assert!(collections.load(Ordering::Relaxed) > 0);
    for image in shop.store.images().unwrap() {
        read_all(&shop.store, &shop.store.chain(&image.layers).unwrap());
        shop.store.remove_image(&image.name).unwrap();
    }
    shop.gc();
    assert_eq!(shop.objects().len(), 0);
    assert_eq!(shop.names("layers/sha256").len() + shop.names("chains/sha256").len() + shop.names("tmp").len(), 0);
    assert_eq!(shop.dry_run().total(), Tally::default());
}

#[test]
fn layer_that_moves_from_pin_to_pin_while_collections_run_is_never_without_one() {
    let shop = Shop::new();
    let layer = shop.ingest("moving", &[1, 2]);
    shop.pin("a", &[layer]);
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        let (shop, done) = (&shop, &done);
        scope.spawn(move || {
            for round in 0..400 {
                let (from, to) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
                let mut batch = Batch::new();
                batch.delete(Family::Pins, from.as_bytes());
                batch.put_json(Family::Pins, to.as_bytes(), &[layer]).unwrap();
                shop.store.db().commit(batch).unwrap();
                assert!(shop.store.layer(layer).unwrap().is_some());
            }
            done.store(1, Ordering::Release);
        });
        scope.spawn(move || {
            while done.load(Ordering::Acquire) == 0 {
                assert_eq!(shop.gc().total(), Tally::default());
            }
        });
    });
}
