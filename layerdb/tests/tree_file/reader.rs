//! The reader against what went into the builder.

use std::collections::BTreeSet;

use mica_layerdb::tree::{Body, Content, FileKind, INLINE_MAX, Inode, Nid, ROOT_NID, Tree};

use crate::sample::{Item, What, bytes_of, everything, file, split, tree_of};

fn find(tree: &Tree, path: &[Vec<u8>]) -> Option<Inode> {
    let mut inode = tree.inode(tree.root()).unwrap();
    for name in path {
        let entry = tree.lookup(&inode, name).unwrap()?;
        inode = tree.inode(entry.nid).unwrap();
    }
    Some(inode)
}

#[test]
fn tree_with_everything_gives_back_what_was_put_in() {
    let items = everything();
    let tree = tree_of(&items);
    for Item { path, what } in &items {
        let inode = find(&tree, path).unwrap_or_else(|| panic!("{path:?} is missing"));
        let What::Inode(attributes, body) = what else { continue };
        assert_eq!(inode.mode, attributes.mode);
        assert_eq!((inode.uid, inode.gid, inode.mtime), (attributes.uid, attributes.gid, attributes.mtime));
        assert_eq!(inode.rdev, attributes.rdev);
        let mut xattrs: Vec<_> =
            tree.xattrs(&inode).unwrap().into_iter().map(|(name, value)| (name, value.to_vec())).collect();
        let mut given = attributes.xattrs.clone();
        xattrs.sort();
        given.sort();
        assert_eq!(xattrs, given, "{path:?}");
        match body {
            Body::None => {}
            Body::Symlink(target) => assert_eq!(&*tree.link_target(&inode).unwrap(), target),
            Body::Inline(bytes) => {
                assert_eq!(inode.size, bytes.len() as u64);
                assert_eq!(tree.content(&inode).unwrap(), Content::Inline(bytes));
            }
            Body::Object { id, size } => {
                assert_eq!(inode.size, *size);
                assert_eq!(tree.content(&inode).unwrap(), Content::Object(*id));
            }
        }
    }
}

#[test]
fn links_of_every_inode_lead_back_to_it() {
    let tree = tree_of(&everything());
    let mut names = 0;
    let mut pending = vec![tree.root()];
    let mut inodes = BTreeSet::from([tree.root()]);
    while let Some(dir) = pending.pop() {
        let dir = tree.inode(dir).unwrap();
        for entry in tree.entries(&dir, 0).unwrap() {
            let entry = entry.unwrap();
            let inode = tree.inode(entry.nid).unwrap();
            let links = tree.links(entry.nid).unwrap();
            assert!(links.contains(&(dir.nid, entry.name.to_vec())));
            if entry.kind == FileKind::Directory {
                assert_eq!(tree.parent(&inode).unwrap(), dir.nid);
                pending.push(entry.nid);
            } else {
                assert_eq!(links.len() as u32, inode.nlink);
            }
            assert_eq!(find(&tree, &tree.path_of(entry.nid).unwrap()).unwrap().nid, entry.nid);
            inodes.insert(entry.nid);
            names += 1;
        }
    }
    assert!(names > inodes.len());
    assert_eq!(inodes.len() as u64, tree.inode_count());
    assert_eq!(tree.path_of(ROOT_NID).unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(tree.links(ROOT_NID).unwrap(), vec![]);
    let root = tree.inode(tree.root()).unwrap();
    assert_eq!(tree.parent(&root).unwrap(), ROOT_NID);
}

#[test]
fn hard_linked_inode_calls_the_first_of_its_names_by_level_its_own() {
    let tree = tree_of(&everything());
    let inode = find(&tree, &split("special/second-name")).unwrap();
    assert_eq!(inode.nlink, 3);
    assert_eq!(tree.path_of(inode.nid).unwrap(), split("a-name-that-comes-first"));
}

#[test]
fn directory_counts_its_subdirectories() {
    let tree = tree_of(&everything());
    assert_eq!(find(&tree, &split("empty")).unwrap().nlink, 2);
    assert_eq!(find(&tree, &split("names")).unwrap().nlink, 3);
}

#[test]
fn listing_continues_behind_every_cookie() {
    let tree = tree_of(&everything());
    for path in ["many", "names", "edge-233", "empty", "/"] {
        let dir = find(&tree, &split(path)).unwrap();
        let all: Vec<_> = tree.entries(&dir, 0).unwrap().map(Result::unwrap).collect();
        for (at, entry) in all.iter().enumerate() {
            assert!(entry.cookie > 0);
            let rest: Vec<_> = tree.entries(&dir, entry.cookie).unwrap().take(3).map(Result::unwrap).collect();
            assert_eq!(rest, all[at + 1..].iter().take(3).copied().collect::<Vec<_>>());
        }
        assert_eq!(tree.entries(&dir, u64::MAX).unwrap().count(), 0);
    }
}

#[test]
fn lookup_of_absent_names_finds_nothing() {
    let tree = tree_of(&everything());
    for path in ["many", "names", "empty", "/"] {
        let dir = find(&tree, &split(path)).unwrap();
        for name in
            [&b""[..], b".", b"..", b"\x00", b"\xff\xff\xff", b"entry-", b"entry-0000x", b"many/x", &[b'n'; 300]]
        {
            assert_eq!(tree.lookup(&dir, name).unwrap(), None, "{name:?}");
        }
    }
}

#[test]
fn reader_used_on_the_wrong_kind_says_so() {
    let tree = tree_of(&everything());
    let (file, dir) = (find(&tree, &split("contents/inline-1")).unwrap(), find(&tree, &split("empty")).unwrap());
    for error in [
        tree.lookup(&file, b"x").unwrap_err(),
        tree.entries(&file, 0).unwrap_err(),
        tree.link_target(&file).unwrap_err(),
        tree.content(&dir).unwrap_err(),
    ] {
        assert!(error.to_string().contains("is not a"), "{error}");
    }
}

#[test]
fn any_order_of_insertion_gives_the_same_bytes() {
    let items = everything();
    let bytes = bytes_of(&items);
    let (links, mut inodes): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| matches!(item.what, What::Link(_)));
    for shift in [1, 77, 4321] {
        let count = inodes.len();
        inodes.rotate_left(shift % count);
        inodes.reverse();
        let shuffled: Vec<_> = inodes.iter().chain(links.iter().rev()).cloned().collect();
        assert!(bytes_of(&shuffled) == bytes, "the order of insertion shows");
    }
}

#[test]
fn contents_up_to_the_limit_are_inline() {
    let tree = tree_of(&[file("f", vec![7; INLINE_MAX as usize])]);
    let inode = find(&tree, &split("f")).unwrap();
    assert_eq!(tree.content(&inode).unwrap(), Content::Inline(&[7; INLINE_MAX as usize]));
    assert!(tree.inode(Nid(1 << 60)).unwrap_err().to_string().contains("nid"));
}
