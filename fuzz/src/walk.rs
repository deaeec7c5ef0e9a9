//! Walking a tree with everything its reader has.

use std::collections::BTreeSet;

use mica_layerdb::tree::{Content, FileKind, Nid, Tree};
use mica_layerdb::{Error, ObjectId};

/// Inodes that are visited at most: hostile directories may share their bytes.
const VISITED: usize = 3000;

/// What was found on a walk.
#[derive(Debug, Default)]
pub struct Found {
    pub inodes: u64,
    pub errors: Vec<Error>,
    pub objects: Vec<(ObjectId, u64)>,
}

/// Visits everything that the root leads to.
pub fn walk(tree: &Tree) -> Found {
    let mut found = Found::default();
    let mut seen = BTreeSet::new();
    let mut pending = vec![tree.root()];
    while let Some(nid) = pending.pop() {
        if seen.len() >= VISITED || !seen.insert(nid) {
            continue;
        }
        found.inodes += 1;
        if let Err(error) = visit(tree, nid, &mut pending, &mut found.objects) {
            found.errors.push(error);
        }
        // These read all of a directory, or of the tree.
        if seen.len() < 100 {
            found.errors.extend(tree.name_of(nid).err());
            found.errors.extend(tree.path_of(nid).err());
            found.errors.extend(tree.links(nid).err());
        }
    }
    found
}

fn visit(tree: &Tree, nid: Nid, pending: &mut Vec<Nid>, objects: &mut Vec<(ObjectId, u64)>) -> Result<(), Error> {
    let inode = tree.inode(nid)?;
    for (name, value) in tree.xattrs(&inode)? {
        // Of an attribute given twice, one is found.
        let one = tree.xattr(&inode, &name)?;
        assert!(one.is_some() || inode.has_no_xattrs() || value.len() < 1 << 16, "a listed attribute is not there");
    }
    tree.parent(&inode)?;
    match inode.kind {
        FileKind::Directory => {
            tree.is_opaque(&inode)?;
            tree.is_implied(&inode)?;
            directory(tree, nid, pending)?;
        }
        FileKind::Symlink => {
            let target = tree.link_target(&inode)?;
            assert!((1..=4095).contains(&target.len()) && !target.contains(&0));
        }
        FileKind::Regular => match tree.content(&inode)? {
            Content::Inline(bytes) => assert_eq!(bytes.len() as u64, inode.size),
            Content::Object(id) => objects.push((id, inode.size)),
        },
        _ => {}
    }
    Ok(())
}

fn directory(tree: &Tree, nid: Nid, pending: &mut Vec<Nid>) -> Result<(), Error> {
    let inode = tree.inode(nid)?;
    let mut cookies = vec![1, 12, 4095, 1 << 40, u64::MAX];
    for entry in tree.entries(&inode, 0)? {
        let entry = entry?;
        assert!((1..=255).contains(&entry.name.len()), "a name of {} bytes", entry.name.len());
        assert!(!entry.name.iter().any(|byte| matches!(byte, b'/' | 0)), "a name that is none");
        assert!(entry.name != b"." && entry.name != b"..");
        // In a directory out of order another entry of the name may be found, or none.
        tree.lookup(&inode, entry.name)?;
        pending.push(entry.nid);
        if cookies.len() < 16 {
            cookies.push(entry.cookie);
        }
    }
    for cookie in cookies {
        for entry in tree.entries(&inode, cookie)?.take(3) {
            entry?;
        }
    }
    for name in [&b""[..], b".", b"a", b"zzzz", &[0xff; 255]] {
        tree.lookup(&inode, name)?;
    }
    Ok(())
}
