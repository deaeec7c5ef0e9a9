//! A compressed layer is taken in: gzip, zstd or whatever the bytes begin like.

use mica_layerdb::{BlobDigest, Digest, IngestOptions};

use super::store::limits;
use super::tar::{check, refused, world};

pub fn run(data: &[u8]) {
    let mut world = world();
    let options = IngestOptions {
        name: "hostile".into(),
        limits: Some(limits()),
        expect_blob: Some(BlobDigest(Digest::of(data))),
        ..IngestOptions::default()
    };
    match world.store.ingest(&mut &*data, &options, &()) {
        Ok(layer) => {
            assert_eq!(layer.blob_bytes, data.len() as u64);
            assert!(layer.tar_bytes <= limits().tar_bytes);
            check(&world, &layer);
            let bytes = world.store.export_layer(layer.diff_id, &mut std::io::sink()).expect("its tar comes out");
            assert_eq!(bytes, layer.tar_bytes);
            world.grown();
        }
        Err(error) => refused(&error),
    }
    world.require_no_leftovers();
}
