//! Bytes of format version 1. They change with a new version only: inode numbers are in snapshots' uppers.
//!
//! `MICA_WRITE_GOLDEN=1` writes the files anew; a difference in a commit is a difference in the format.

use std::fmt::Write;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::sync::Arc;

use mica_layerdb::Digest;
use mica_layerdb::tree::{Tree, merge};

use crate::sample::{
    Item, What, acl, bytes_of, dir, everything, file, link, object, split, symlink, tree_of, with, with_xattrs,
};

fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("MICA_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap();
    let first = expected.iter().zip(bytes).position(|(one, other)| one != other);
    let lengths = (expected.len(), bytes.len());
    assert!(expected == bytes, "{name} differs first at byte {first:?}; lengths {lengths:?}");
}

fn lower() -> Vec<Item> {
    vec![
        with(dir("/"), |root| root.mode = 0o40_755),
        dir("etc"),
        with_xattrs(file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"), &[(b"user.mime_type", b"text/plain")]),
        with_xattrs(file("etc/group", "root:x:0:\n"), &[(b"user.mime_type", b"text/plain")]),
        with_xattrs(dir("srv"), &[(b"system.posix_acl_default", &acl(1000)), (b"user.note", b"n")]),
        dir("bin"),
        object("bin/sh", "a shell", 150_000),
        link("bin/dash", "bin/sh"),
        symlink("bin/awk", "/etc/alternatives/awk"),
        file("bin/removed", "old"),
    ]
}

fn upper() -> Vec<Item> {
    vec![
        file("etc/hostname", "mica\n"),
        Item { path: split("bin/removed"), what: What::Whiteout },
        Item { path: split("srv"), what: What::Opaque },
        object("bin/python", "a snake", 6_000_000),
    ]
}

#[test]
fn layers_have_the_bytes_of_version_1() {
    golden("v1-lower.tree", &bytes_of(&lower()));
    golden("v1-upper.tree", &bytes_of(&upper()));
}

#[test]
fn chain_has_the_bytes_of_version_1() {
    let mut out = tempfile::tempfile().unwrap();
    merge(&[Arc::new(tree_of(&lower())), Arc::new(tree_of(&upper()))], &mut out).unwrap();
    let mut bytes = Vec::new();
    out.rewind().unwrap();
    out.read_to_end(&mut bytes).unwrap();
    golden("v1-chain.tree", &bytes);
}

#[test]
fn tree_with_everything_has_the_digest_of_version_1() {
    let digest = format!("{}\n", Digest::of(&bytes_of(&everything())));
    golden("v1-everything.digest", digest.as_bytes());
}

#[test]
fn inode_numbers_are_those_of_version_1() {
    let tree = tree_of(&lower());
    let mut numbers = String::new();
    let mut pending = vec![tree.root()];
    while let Some(dir) = pending.pop() {
        for entry in tree.entries(&tree.inode(dir).unwrap(), 0).unwrap() {
            let entry = entry.unwrap();
            writeln!(numbers, "{} {}/{}", entry.nid.0, dir.0, entry.name.escape_ascii()).unwrap();
            if entry.kind == mica_layerdb::tree::FileKind::Directory {
                pending.push(entry.nid);
            }
        }
    }
    golden("v1-lower.numbers", numbers.as_bytes());
}

#[test]
fn golden_file_is_read_as_it_was_written() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1-chain.tree");
    let tree = Tree::open(&std::fs::File::open(path).unwrap(), "golden").unwrap();
    let find = |path: &str| {
        split(path).iter().try_fold(tree.inode(tree.root()).unwrap(), |dir, name| {
            tree.lookup(&dir, name).unwrap().map(|entry| tree.inode(entry.nid).unwrap())
        })
    };
    assert!(find("bin/removed").is_none());
    assert_eq!(find("bin/dash").unwrap().nlink, 2);
    assert_eq!(&*tree.link_target(&find("bin/awk").unwrap()).unwrap(), b"/etc/alternatives/awk");
    assert_eq!(tree.xattr(&find("etc/group").unwrap(), b"user.mime_type").unwrap(), Some(&b"text/plain"[..]));
}
