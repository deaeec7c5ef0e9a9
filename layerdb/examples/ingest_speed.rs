//! Measures ingest on this machine: `ingest_speed STORE BLOB...` takes layers into a new store, two at once, and
//! prints time, processor time, peak memory, the sizes of what was made, and what looking at it costs.
//!
//! `docs/design/0001-small-contents.md` has what it printed.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mica_layerdb::tree::{Content, FileKind, Tree};
use mica_layerdb::{BlobDigest, Digest, IngestOptions, Store};

/// User and system time of this process, in clock ticks of a hundredth of a second.
fn ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse().unwrap(), fields[12].parse().unwrap())
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Visits every inode; reads the contents of files of up to `most` bytes. Number of inodes, objects and bytes read.
fn walk(store: &Store, tree: &Tree, most: u64) -> (u64, u64, u64) {
    let (mut inodes, mut objects, mut bytes) = (0, 0, 0);
    let mut pending = vec![tree.root()];
    let mut buffer = Vec::new();
    while let Some(dir) = pending.pop() {
        let dir = tree.inode(dir).unwrap();
        for entry in tree.entries(&dir, 0).unwrap() {
            let entry = entry.unwrap();
            let inode = tree.inode(entry.nid).unwrap();
            inodes += 1;
            match inode.kind {
                FileKind::Directory => pending.push(entry.nid),
                FileKind::Regular => match tree.content(&inode).unwrap() {
                    Content::Inline(inline) if inode.size <= most => {
                        buffer.clear();
                        buffer.extend_from_slice(inline);
                        bytes += buffer.len() as u64;
                    }
                    Content::Object(id) => {
                        objects += 1;
                        if inode.size <= most {
                            buffer.clear();
                            bytes += store.object(id).unwrap().unwrap().read_to_end(&mut buffer).unwrap() as u64;
                        }
                    }
                    Content::Inline(_) => {}
                },
                _ => {}
            }
        }
    }
    (inodes, objects, bytes)
}

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (root, blobs) = arguments.split_first().unwrap();
    let start = Instant::now();
    let store = Store::open(Path::new(root)).unwrap();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let digest = Path::new(blob).file_name().and_then(|name| Digest::from_hex(name.as_encoded_bytes()));
            let options = IngestOptions { expect_blob: digest.map(BlobDigest), ..IngestOptions::default() };
            store.ingest(&mut File::open(blob).unwrap(), &options, &()).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let (wall, (user, system), peak) = (start.elapsed(), ticks(), peak_kib());
    let layers = store.layers().unwrap();
    let sum = |of: fn(&mica_layerdb::Layer) -> u64| layers.iter().map(of).sum::<u64>() >> 10;
    println!(
        "in {:.2} s, user {user} system {system} ticks, peak {peak} KiB, tar {} KiB, trees {} KiB, recipes {} KiB",
        wall.as_secs_f64(),
        sum(|layer| layer.tar_bytes),
        sum(|layer| layer.tree_bytes),
        sum(|layer| layer.recipe.as_ref().map_or(0, |recipe| recipe.bytes)),
    );
    let trees: Vec<_> = layers.iter().map(|layer| store.layer_tree(layer.diff_id).unwrap()).collect();
    for (what, most) in [("walk", 0), ("walk and read files of up to 64 KiB", 64 << 10)] {
        for _ in 0..3 {
            let start = Instant::now();
            let found = trees.iter().map(|tree| walk(&store, tree, most));
            let (inodes, objects, bytes) = found.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
            println!(
                "{what}: {:?}, {inodes} inodes, {objects} name objects, {} KiB read",
                start.elapsed(),
                bytes >> 10
            );
        }
    }
}
