//! Layers taken in from real tars.
#![allow(clippy::unwrap_used, missing_docs)]

use mica_layerdb::tree::Content;
use mica_layerdb::{DiffId, Digest, Family, IngestOptions, Store};
use std::collections::BTreeSet;
use std::io::Write as _;

#[test]
fn ingest_of_a_tar_and_of_its_gzip_stores_each_content_once_and_leaves_nothing_temporary() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all("usr/include", "/usr/include/linux").unwrap();
    let tar = builder.into_inner().unwrap();
    let layer = store.ingest(&mut &tar[..], &IngestOptions { name: "one".into(), ..Default::default() }, &()).unwrap();
    assert_eq!(layer.diff_id, DiffId(Digest::of(&tar)));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar).unwrap();
    let gz = gz.finish().unwrap();
    let again = store.ingest(&mut &gz[..], &IngestOptions::default(), &()).unwrap();
    assert_eq!(again.new_bytes, 0);
    let tree = store.chain(&[layer.diff_id]).unwrap();
    let root = tree.inode(tree.root()).unwrap();
    let usr = tree.lookup(&root, b"usr").unwrap().unwrap();
    let usr = tree.inode(usr.nid).unwrap();
    let include = tree.lookup(&usr, b"include").unwrap().unwrap();
    let include = tree.inode(include.nid).unwrap();
    let kvm = tree.lookup(&include, b"kvm.h").unwrap().unwrap();
    let kvm = tree.inode(kvm.nid).unwrap();
    let Content::Object(id) = tree.content(&kvm).unwrap() else { panic!() };
    let bytes = std::fs::read(store.objects_path().join(id.relative_path())).unwrap();
    assert_eq!(bytes, std::fs::read("/usr/include/linux/kvm.h").unwrap());
    assert_eq!(std::fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn ingests_at_once_under_one_pin_are_all_in_its_row() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let tar = |number: u32| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        builder.append_data(&mut header, "number", &number.to_be_bytes()[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let ingest = &|number: u32| {
        let options = IngestOptions { pin: Some(b"keep/all".to_vec()), ..IngestOptions::default() };
        store.ingest(&mut &tar(number)[..], &options, &()).unwrap().diff_id
    };
    let all: BTreeSet<DiffId> = std::thread::scope(|scope| {
        // New layers and layers that are known by their second ingest.
        let threads: Vec<_> = (0..16).map(|number| scope.spawn(move || ingest(number % 12))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let row: Vec<DiffId> = store.db().get_json(Family::Pins, b"keep/all").unwrap().unwrap();
    assert_eq!((row.len(), row.into_iter().collect::<BTreeSet<_>>()), (12, all));
}
