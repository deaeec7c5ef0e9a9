//! Measures trees of a directory on this machine: `tree_speed DIR [REPETITIONS]`.
//!
//! Small files go in with their contents, larger ones as objects named by their path. The directory is built
//! as one layer, then dealt out to eight layers and merged; then every name is looked up and every directory
//! listed.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mica_layerdb::tree::{Attributes, Body, Builder, INLINE_MAX, NodeId, Timestamp, Tree, merge};
use mica_layerdb::{Digest, ObjectId};

fn attributes(metadata: &Metadata) -> Attributes {
    Attributes {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: Timestamp { secs: metadata.mtime(), nanos: metadata.mtime_nsec() as u32 },
        rdev: metadata.rdev(),
        xattrs: Vec::new(),
    }
}

fn body(path: &Path, metadata: &Metadata) -> Body {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        Body::Symlink(std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
    } else if kind.is_file() && metadata.size() <= INLINE_MAX {
        Body::Inline(std::fs::read(path).unwrap())
    } else if kind.is_file() {
        Body::Object { id: ObjectId(Digest::of(path.as_os_str().as_bytes())), size: metadata.size() }
    } else {
        assert!(kind.is_dir() || kind.is_socket() || kind.is_fifo() || kind.is_char_device() || kind.is_block_device());
        Body::None
    }
}

/// Adds what is in `dir` to the builder that `deal` picks for each entry.
fn add(builders: &mut [Builder], dir: &Path, nodes: &[NodeId], counter: &mut usize) {
    let mut names: Vec<OsString> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        let name = name.into_vec();
        if metadata.is_dir() {
            let made: Vec<NodeId> = builders
                .iter_mut()
                .zip(nodes)
                .map(|(builder, node)| builder.insert(*node, &name, attributes(&metadata), Body::None).unwrap())
                .collect();
            add(builders, &path, &made, counter);
        } else {
            *counter += 1;
            let at = *counter % builders.len();
            builders[at].insert(nodes[at], &name, attributes(&metadata), body(&path, &metadata)).unwrap();
        }
    }
}

fn build(dir: &Path, count: usize) -> Vec<Builder> {
    let mut builders: Vec<_> = (0..count).map(|_| Builder::new(tempfile::tempfile().unwrap()).unwrap()).collect();
    let roots: Vec<_> = builders.iter().map(Builder::root).collect();
    add(&mut builders, dir, &roots, &mut 0);
    builders
}

fn write(builder: Builder) -> Tree {
    let mut file = tempfile::tempfile().unwrap();
    let start = Instant::now();
    let written = builder.write(&mut file).unwrap();
    println!("write: {:?}, {} bytes, {} inodes", start.elapsed(), written.bytes, written.inodes);
    Tree::open(&file, "speed").unwrap()
}

/// Number of names, bytes of inline contents and of names below the root.
fn walk(tree: &Tree) -> (usize, u64) {
    let (mut names, mut bytes) = (0, 0);
    let mut pending = vec![tree.root()];
    while let Some(dir) = pending.pop() {
        let dir = tree.inode(dir).unwrap();
        for entry in tree.entries(&dir, 0).unwrap() {
            let entry = entry.unwrap();
            let inode = tree.inode(entry.nid).unwrap();
            names += 1;
            bytes += entry.name.len() as u64 + 12 + 64;
            match inode.kind {
                mica_layerdb::tree::FileKind::Directory => pending.push(entry.nid),
                _ if inode.size <= INLINE_MAX => bytes += inode.size,
                _ => bytes += 108,
            }
        }
    }
    (names, bytes)
}

fn look_up_all(tree: &Tree) -> usize {
    let mut names: Vec<(mica_layerdb::tree::Inode, Vec<u8>)> = Vec::new();
    let mut pending = vec![tree.root()];
    while let Some(dir) = pending.pop() {
        let dir = tree.inode(dir).unwrap();
        for entry in tree.entries(&dir, 0).unwrap() {
            let entry = entry.unwrap();
            names.push((dir, entry.name.to_vec()));
            if entry.kind == mica_layerdb::tree::FileKind::Directory {
                pending.push(entry.nid);
            }
        }
    }
    let mut at = 0;
    let start = Instant::now();
    for _ in 0..names.len() {
        at = (at + 7919) % names.len();
        let (dir, name) = &names[at];
        let found = tree.lookup(dir, name).unwrap().unwrap();
        assert!(tree.inode(found.nid).unwrap().nlink > 0);
    }
    println!("lookup and inode: {:?} each", start.elapsed() / names.len() as u32);
    names.len()
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let dir = arguments.next().unwrap_or_else(|| "/usr".into());
    let repetitions = arguments.next().map_or(3, |text| text.to_str().unwrap().parse().unwrap());
    let whole = build(Path::new(&dir), 1).pop().map(write).unwrap();
    let layers: Vec<_> = build(Path::new(&dir), 8).into_iter().map(|builder| Arc::new(write(builder))).collect();
    for _ in 0..repetitions {
        let mut out = tempfile::tempfile().unwrap();
        let start = Instant::now();
        let merged = merge(&layers, &mut out).unwrap();
        println!("merge of 8: {:?}, {} inodes", start.elapsed(), merged.inodes);
        assert_eq!(merged.inodes, whole.inode_count());
        let start = Instant::now();
        let (names, bytes) = walk(&whole);
        println!("walk: {:?} for {names} names; {} of {bytes} bytes net", start.elapsed(), whole.len_bytes());
        look_up_all(&whole);
    }
}
