//! Measures how long stacks of layers take to be merged: `chain_speed FOLDER [REPETITIONS]`.
//!
//! A new store in the folder takes in 20 layers with 30,000 files together, as images have them: two of three are small enough
//! to be in the tree, every layer replaces and removes some of what is below. Then the stack is merged, published and opened, and
//! so is that stack with a layer of ten files on top. The store stays for other tools.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_layerdb::tree::{Tree, merge};
use mica_layerdb::{DiffId, IngestOptions, Store};

const LAYERS: u64 = 20;
const FILES: u64 = 30_000;
/// Files in one directory.
const TOGETHER: u64 = 50;

fn layer(number: u64, files: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, contents: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000 + number);
        header.set_cksum();
        tar.append_data(&mut header, name, contents).unwrap();
    };
    for at in 0..files {
        // Every tenth takes the place of one of the layer below.
        let (of, at) = if at % 10 == 0 && number > 0 { (number - 1, at + 1) } else { (number, at) };
        let name = format!("usr/share/part-{of}/directory-{}/file-{at}", at / TOGETHER);
        let size = if at % 3 == 0 { 5000 + at % 100 } else { 200 + at * 37 % 3500 };
        let mut contents = format!("{number} {name} ").into_bytes();
        contents.resize(size as usize, b'x');
        // Large contents repeat from layer to layer: there are fewer objects to be made.
        let contents = if at % 3 == 0 { vec![b'y'; size as usize] } else { contents };
        add(&name, &contents);
        if at % 100 == 99 && number > 0 {
            add(&format!("usr/share/part-{}/directory-{}/.wh.file-{}", number - 1, at / TOGETHER, at - 1), b"");
        }
    }
    tar.into_inner().unwrap()
}

fn ingest(store: &Arc<Store>, number: u64, files: u64) -> DiffId {
    let tar = layer(number, files);
    store.ingest(&mut &tar[..], &IngestOptions::default(), &()).unwrap().diff_id
}

/// Merges, publishes and opens; the store has opened none of the trees before.
fn chain(root: &Path, layers: &[DiffId]) -> (Duration, u64) {
    let store = Store::open(root).unwrap();
    let chains = root.join("chains/sha256");
    for entry in std::fs::read_dir(&chains).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let start = Instant::now();
    let tree = store.chain(layers).unwrap();
    (start.elapsed(), tree.len_bytes())
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    format!("{:?} ({:?}-{:?})", times[times.len() / 2], times[0], times[times.len() - 1])
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().expect("chain_speed FOLDER [REPETITIONS]");
    let root = Path::new(&root);
    let repetitions: usize = arguments.next().map_or(10, |text| text.parse().unwrap());
    let mut layers = Vec::new();
    {
        let store = Store::open(root).unwrap();
        for number in 0..LAYERS {
            layers.push(ingest(&store, number, FILES / LAYERS));
        }
        layers.push(ingest(&store, LAYERS, 10));
        let trees: Vec<Arc<Tree>> = layers.iter().map(|layer| store.layer_tree(*layer).unwrap()).collect();
        let part = |what: &str, work: &dyn Fn()| {
            let times = (0..repetitions).map(|_| {
                let start = Instant::now();
                work();
                start.elapsed()
            });
            println!("{what}: {}", median(times.collect()));
        };
        part("digests of the layers' trees", &|| {
            for tree in &trees {
                std::hint::black_box(tree.digest());
            }
        });
        part("merge into memory", &|| {
            std::hint::black_box(merge(&trees[..20], &mut Vec::new()).unwrap());
        });
    }
    for (what, stack) in [("20 layers, 30,000 files", &layers[..20]), ("the same and a layer of 10 files", &layers[..])]
    {
        let found: Vec<_> = (0..repetitions).map(|_| chain(root, stack)).collect();
        println!("{what}: {}; {} bytes", median(found.iter().map(|(took, _)| *took).collect()), found[0].1);
    }
}
