//! A synthetic store of any size, and how long Mica takes for it. `scripts/scale` runs all of it.
//!
//! ```text
//! scale generate DIR PERCENT     make or enlarge the store: 100 % are 1,000 images x 20 layers, 10 million entries
//!                                and 2 million objects
//! scale trim DIR                 remove every tenth image
//! scale measure DIR WHAT         open | lookup | df | fsck | gc-dry-run | gc: one line of JSON
//! ```
//!
//! The store is real in all that is measured (rows, trees by the real builder, one file per object), and false in two
//! respects: objects are holes of the right length, so contents don't match their digests (which a check without `--data` doesn't look at); and layers have no tars, so
//! there are no recipes and diff-ids are made up. It must never be served. A directory that this program
//! didn't make is refused.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, missing_docs)]

use std::fs;
use std::hint::black_box;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mica_layerdb::fsck::FsckOptions;
use mica_layerdb::tree::{Attributes, Body, Builder, Timestamp};
use mica_layerdb::{Batch, DiffId, Digest, Family, GcOptions, Image, Layer, ObjectId, Store};

const IMAGES: u64 = 1000;
const LAYERS_PER_IMAGE: u64 = 20;
/// The lowest layers of this many images are the same.
const FAMILY: u64 = 20;
const BASE_LAYERS: u64 = 4;
const DISTINCT_LAYERS: u64 = IMAGES / FAMILY * BASE_LAYERS + IMAGES * (LAYERS_PER_IMAGE - BASE_LAYERS);
const ENTRIES: u64 = 10_000_000;
const OBJECTS: u64 = 2_000_000;
/// One in so many objects is named by layers here and there, the others by one layer each.
const POOLED: u64 = 10;
const ENTRIES_PER_LAYER: u64 = ENTRIES / DISTINCT_LAYERS + 1;
const DIRECTORIES_PER_LAYER: u64 = 40;
const SMALL_PER_LAYER: u64 = 120;
const OWN_PER_LAYER: u64 = (OBJECTS - OBJECTS / POOLED).div_ceil(DISTINCT_LAYERS);
const THREADS: u64 = 2;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["generate", root, percent] => generate(Path::new(root), percent.parse().expect("a percentage")),
        ["trim", root] => trim(Path::new(root)),
        ["measure", root, what] => measure(Path::new(root), what),
        _ => panic!("scale generate DIR PERCENT | trim DIR | measure DIR open|lookup|df|fsck|gc-dry-run|gc"),
    }
}

/// The file beside a store that says that this program made it.
fn mark(root: &Path) -> PathBuf {
    root.with_extension("synthetic")
}

/// Opens a store that this program made; with `make`, an empty directory becomes one.
fn open(root: &Path, make: bool) -> Arc<Store> {
    let is_ours = mark(root).exists();
    let is_empty = fs::read_dir(root).map_or(true, |mut entries| entries.next().is_none());
    assert!(is_ours || (make && is_empty), "{} is no synthetic store: nothing is done", root.display());
    let store = Store::open(root).unwrap();
    fs::write(mark(root), "made by layerdb/examples/scale.rs; contents are holes\n").unwrap();
    store
}

fn digest(kind: &str, number: u64) -> Digest {
    Digest::of(format!("{kind} {number}").as_bytes())
}

fn object(number: u64) -> ObjectId {
    ObjectId(digest("object", number))
}

/// 4 KiB to 64 KiB.
fn object_bytes(number: u64) -> u64 {
    4097 + number.wrapping_mul(2_654_435_761) % (60 << 10)
}

/// The layer's place among all distinct ones; those of one image lie close together.
fn layer_number(image: u64, at: u64) -> u64 {
    let family = image / FAMILY;
    let per_family = BASE_LAYERS + FAMILY * (LAYERS_PER_IMAGE - BASE_LAYERS);
    let own = BASE_LAYERS + image % FAMILY * (LAYERS_PER_IMAGE - BASE_LAYERS);
    family * per_family + if at < BASE_LAYERS { at } else { own + at - BASE_LAYERS }
}

fn diff_id(layer: u64) -> DiffId {
    DiffId(digest("layer", layer))
}

fn diff_ids(image: u64) -> Vec<DiffId> {
    (0..LAYERS_PER_IMAGE).map(|at| diff_id(layer_number(image, at))).collect()
}

fn generate(root: &Path, percent: u64) {
    let store = open(root, true);
    let images = IMAGES * percent / 100;
    let layers = (0..images).flat_map(|image| (0..LAYERS_PER_IMAGE).map(move |at| layer_number(image, at)));
    let layers = layers.max().map_or(0, |last| last + 1);
    let begun = Instant::now();
    for shard in 0..=255 {
        let _ = fs::DirBuilder::new().mode(0o700).create(store.objects_path().join(format!("{shard:02x}")));
    }
    let entries = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, entries) = (&store, &entries);
            scope.spawn(move || {
                let mut batch = Batch::new();
                for layer in (thread..layers).step_by(THREADS as usize) {
                    entries.fetch_add(ENTRIES_PER_LAYER, Ordering::Relaxed);
                    if store.layer(diff_id(layer)).unwrap().is_some() {
                        continue;
                    }
                    let record = make_layer(store, layer, layers);
                    batch.put_json(Family::Layers, record.diff_id.hex().as_bytes(), &record).unwrap();
                    if (layer / THREADS).is_multiple_of(250) {
                        store.db().commit(std::mem::take(&mut batch)).unwrap();
                    }
                }
                store.db().commit(batch).unwrap();
            });
        }
    });
    let mut batch = Batch::new();
    for image in 0..images {
        let name = format!("registry.example/team-{}/app-{image}:1", image / FAMILY);
        // Read and compared by every check: these are what they are named after.
        let documents = ["manifest", "config"].map(|kind| {
            let layers = serde_json::json!({ "type": "layers", "diff_ids": diff_ids(image) });
            let document = serde_json::json!({ "synthetic": kind, "image": image, "rootfs": layers });
            let bytes = document.to_string();
            let id = ObjectId(Digest::of(bytes.as_bytes()));
            if let Some(mut file) = make_object(&store, id, 0) {
                file.write_all(bytes.as_bytes()).unwrap();
            }
            id.0
        });
        let row = Image {
            manifest: documents[0],
            config: documents[1],
            layers: diff_ids(image),
            os: "linux".into(),
            architecture: "amd64".into(),
            created: None,
            imported: 0,
            ..image_row(&name)
        };
        batch.put_json(Family::Images, name.as_bytes(), &row).unwrap();
    }
    store.db().commit(batch).unwrap();
    for image in (0..images).step_by(50) {
        store.chain(&diff_ids(image)).unwrap();
    }
    println!(
        "{{\"images\": {images}, \"layers\": {layers}, \"entries\": {}, \"seconds\": {:.1}}}",
        entries.into_inner(),
        begun.elapsed().as_secs_f64()
    );
}

fn image_row(name: &str) -> Image {
    let nothing = digest("nothing", 0);
    Image {
        name: name.to_owned(),
        manifest: nothing,
        config: nothing,
        layers: Vec::new(),
        os: String::new(),
        architecture: String::new(),
        created: None,
        imported: 0,
    }
}

/// A new object that is a hole; `None` if the store has it.
fn make_object(store: &Store, id: ObjectId, bytes: u64) -> Option<fs::File> {
    let path = store.objects_path().join(id.relative_path());
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(path) {
        Ok(file) => {
            file.set_len(bytes).unwrap();
            Some(file)
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
            None
        }
    }
}

fn attributes(mode: u32) -> Attributes {
    Attributes { mode, uid: 0, gid: 0, mtime: Timestamp::default(), rdev: 0, xattrs: Vec::new() }
}

/// A layer among `layers`: some small files, some files of its own, and the rest from the pool.
fn make_layer(store: &Store, layer: u64, layers: u64) -> Layer {
    let scratch = tempfile::tempfile_in(store.root().join("tmp")).unwrap();
    let mut builder = Builder::new(scratch).unwrap();
    let root = builder.root();
    let directories: Vec<_> = (0..DIRECTORIES_PER_LAYER)
        .map(|at| {
            // Layers of an image have most directories in common.
            let name = format!("directory-{:03}", at + layer % 7);
            builder.insert(root, name.as_bytes(), attributes(0o40_755), Body::None).unwrap()
        })
        .collect();
    let pool = (OBJECTS / POOLED * layers / DISTINCT_LAYERS).max(1);
    let mut content_bytes = 0;
    for at in 0..ENTRIES_PER_LAYER - DIRECTORIES_PER_LAYER {
        let directory = directories[(at % DIRECTORIES_PER_LAYER) as usize];
        let name = format!("file-{:05}-of-layer-{:02}", at, layer % 16);
        let body = if at < SMALL_PER_LAYER {
            content_bytes += 64;
            Body::Inline(vec![at as u8; 64])
        } else {
            let own = at - SMALL_PER_LAYER < OWN_PER_LAYER;
            let number = if own {
                OBJECTS / POOLED + layer * OWN_PER_LAYER + at - SMALL_PER_LAYER
            } else {
                (layer * 1_000_003 + at).wrapping_mul(0x9E37_79B9_7F4A_7C15) % pool
            };
            let (id, size) = (object(number), object_bytes(number));
            make_object(store, id, size);
            content_bytes += size;
            Body::Object { id, size }
        };
        builder.insert(directory, name.as_bytes(), attributes(0o100_644), body).unwrap();
    }
    let path = store.root().join("layers/sha256").join(diff_id(layer).hex());
    let _ = fs::remove_file(&path);
    let mut file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o400).open(path).unwrap();
    let written = builder.write(&mut file).unwrap();
    Layer {
        diff_id: diff_id(layer),
        tar_bytes: content_bytes + 1024 * ENTRIES_PER_LAYER,
        blob: None,
        blob_bytes: content_bytes / 2,
        entries: ENTRIES_PER_LAYER,
        content_bytes,
        new_bytes: 0,
        tree_bytes: written.bytes,
        tree_digest: written.digest,
        blob_compression: None,
        recipe: None,
        created: 0,
    }
}

fn trim(root: &Path) {
    let store = open(root, false);
    let mut batch = Batch::new();
    for image in store.images().unwrap().iter().step_by(10) {
        batch.delete(Family::Images, image.name.as_bytes());
    }
    store.db().commit(batch).unwrap();
}

fn measure(root: &Path, what: &str) {
    assert!(mark(root).exists(), "{} is no synthetic store: nothing is done", root.display());
    let begun = Instant::now();
    let store = Store::open(root).unwrap();
    let opened = begun.elapsed();
    let begun = Instant::now();
    let (mut count, mut per) = (0, None);
    match what {
        "open" => {}
        "lookup" => per = Some(lookups(&store)),
        "df" => count = store.df().unwrap().kinds.objects.count,
        "fsck" => {
            let report = store.fsck(&FsckOptions::default(), &[], &()).unwrap();
            let mut names: Vec<&str> = report.found.iter().map(|found| found.name.as_str()).collect();
            names.dedup();
            assert!(report.is_sound(), "{} issues: {names:?}: {:?}", report.found.len(), report.found.last());
            count = report.layers + report.chains + report.objects;
        }
        "gc-dry-run" => count = store.gc(GcOptions { dry_run: true, ..GcOptions::default() }).unwrap().total().count,
        "gc" => count = store.gc(GcOptions::default()).unwrap().total().count,
        _ => panic!("nothing is called {what}"),
    }
    let seconds = if what == "open" { opened } else { begun.elapsed() }.as_secs_f64();
    let seconds = per.unwrap_or(seconds);
    println!("{{\"what\": \"{what}\", \"seconds\": {seconds:.9}, \"count\": {count}, \"peak_kib\": {}}}", peak_kib());
}

/// Seconds for one lookup of a name in a directory of a chain tree.
fn lookups(store: &Arc<Store>) -> f64 {
    const MANY: u64 = 1_000_000;
    let tree = store.chain(&diff_ids(0)).unwrap();
    let root = tree.inode(tree.root()).unwrap();
    let begun = Instant::now();
    let mut found = 0;
    for at in 0..MANY {
        let directory = format!("directory-{:03}", at * 31 % 46);
        let name = format!("file-{:05}-of-layer-{:02}", at * 7919 % 600, at % 16);
        let entry = tree.lookup(&root, directory.as_bytes()).unwrap().unwrap();
        let directory = tree.inode(entry.nid).unwrap();
        found += u64::from(black_box(tree.lookup(&directory, name.as_bytes()).unwrap()).is_some());
    }
    assert!(found > 0);
    begun.elapsed().as_secs_f64() / (2 * MANY) as f64
}

/// The most memory this process had, pages of mapped files included.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
