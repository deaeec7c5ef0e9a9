//! Damaged and hostile bytes: errors that say what and where, and nothing worse.

use std::collections::BTreeSet;
use std::sync::Arc;

use mica_layerdb::diff::{Contents, DiffOptions, Stack, diff};
use mica_layerdb::tar::write_tree;
use mica_layerdb::tree::{FileKind, Form, Nid, Tree, merge};
use mica_layerdb::{Batch, Error, Family, IngestOptions, Store};
use proptest::prelude::*;

use crate::merge::reseal;
use crate::sample::{Item, What, bytes_of, dir, everything, file, link, object, symlink, tree_of, with_xattrs};

/// A tree with some of everything, small enough to be damaged often.
fn small() -> Vec<Item> {
    let mut items = vec![
        dir("/"),
        with_xattrs(dir("d"), &[(b"user.shared", b"value"), (b"user.own", b"1")]),
        with_xattrs(file("d/f", vec![b'x'; 700]), &[(b"user.shared", b"value"), (b"trusted.overlay.x", b"2")]),
        file("d/block", vec![b'y'; 4096]),
        file("empty", ""),
        object("d/object", "one", 5000),
        object("other", "two", 1 << 44),
        object("third", "two", 1 << 44),
        symlink("link", "d/f"),
        link("again", "d/f"),
        link("d/again", "other"),
        Item { path: vec![b"gone".to_vec()], what: What::Whiteout },
        Item { path: vec![b"opaque".to_vec()], what: What::Opaque },
        file("implied/child/grandchild", "g"),
    ];
    for number in 0..180 {
        items.push(file(format!("many/a-name-of-some-length-{number}"), ""));
    }
    items
}

/// Calls everything the reader has on everything it leads to. Errors are fine; each must name the tree.
fn exercise(tree: &Tree) -> usize {
    let mut errors = 0;
    let mut seen = BTreeSet::new();
    let mut pending = vec![tree.root()];
    while let Some(nid) = pending.pop() {
        if !seen.insert(nid) || seen.len() > 2000 {
            continue;
        }
        if let Err(error) = visit(tree, nid, &mut pending) {
            assert!(error.to_string().contains("tree hostile"), "{error}");
            errors += 1;
        }
        let others = [tree.name_of(nid).err(), tree.path_of(nid).err(), tree.links(nid).err()];
        errors += others.iter().flatten().count();
    }
    errors
}

fn visit(tree: &Tree, nid: Nid, pending: &mut Vec<Nid>) -> Result<(), Error> {
    let inode = tree.inode(nid)?;
    let attributes = tree.xattrs(&inode).map(|all| all.len());
    let one = tree.xattr(&inode, b"user.shared").map(|value| value.is_some());
    let parent = tree.parent(&inode).map(|_| ());
    match inode.kind {
        FileKind::Directory => {
            for name in [&b"f"[..], b"many", b"a-name-of-some-length-99", b"zzzz"] {
                let found = tree.lookup(&inode, name)?;
                assert!(found.is_none_or(|entry| entry.name == name));
            }
            for entry in tree.entries(&inode, 0)? {
                let entry = entry?;
                assert!(!entry.name.is_empty() && entry.name.len() <= 255 && !entry.name.contains(&b'/'));
                pending.push(entry.nid);
            }
            let _ = (tree.is_opaque(&inode)?, tree.is_implied(&inode)?);
        }
        FileKind::Symlink => assert!(!tree.link_target(&inode)?.is_empty()),
        FileKind::Regular => {
            tree.content(&inode)?;
        }
        _ => {}
    }
    attributes.and(one.map(|_| 0)).and(parent.map(|()| 0)).map(|_| ())
}

#[test]
fn intact_tree_has_no_errors() {
    assert_eq!(exercise(&Tree::from_vec(bytes_of(&small()), "hostile").unwrap()), 0);
    assert_eq!(exercise(&Tree::from_vec(bytes_of(&everything()), "hostile").unwrap()), 0);
}

/// Some bytes at some place, kept apart from the fields that the checks at opening compare with the file.
fn damage() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..=8),
        Just(vec![0xff; 4]),
        Just(vec![0; 8]),
        Just(vec![0xff; 8]),
        (0..300_u64).prop_map(|nid| nid.to_le_bytes().to_vec()),
        (0..64_u8).prop_map(|bit| (1_u64 << bit).to_le_bytes().to_vec()),
    ];
    prop::collection::vec((1152..40_000_usize, bytes), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_tree_is_an_error_at_worst(damages in damage()) {
        let mut bytes = SMALL.clone();
        for (at, damage) in damages {
            let at = 1152 + (at - 1152) % (bytes.len() - 1152 - damage.len());
            bytes[at..at + damage.len()].copy_from_slice(&damage);
        }
        reseal(&mut bytes);
        if let Ok(tree) = Tree::from_vec(bytes, "hostile") {
            exercise(&tree);
            let tree = Arc::new(tree);
            let layers = [Arc::clone(&SMALL_TREE), tree, Arc::clone(&SMALL_TREE)];
            let mut out = tempfile::tempfile().unwrap();
            match merge(&layers, &mut out) {
                Ok(_) => prop_assert_eq!(exercise(&Tree::open(&out, "merged").unwrap()), 0),
                Err(error) => prop_assert!(error.to_string().contains("tree hostile"), "{}", error),
            }
        }
    }

    #[test]
    fn noise_behind_a_good_superblock_is_an_error_at_worst(noise in prop::collection::vec(any::<u8>(), 3 * 4096 - 1152)) {
        let mut bytes = bytes_of(&[])[..1152].to_vec();
        bytes.extend(noise);
        bytes[1024 + 36..1024 + 40].copy_from_slice(&3_u32.to_le_bytes());
        // A root directory in the first block, so that there is something to follow.
        bytes[1152..1168].copy_from_slice(&SMALL[1152..1168]);
        reseal(&mut bytes);
        if let Ok(tree) = Tree::from_vec(bytes, "hostile") {
            exercise(&tree);
        }
    }
}

static SMALL: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| bytes_of(&small()));
static SMALL_TREE: std::sync::LazyLock<Arc<Tree>> = std::sync::LazyLock::new(|| Arc::new(tree_of(&small())));

#[test]
fn tree_cut_short_or_too_long_is_refused_with_both_lengths() {
    let bytes = bytes_of(&everything());
    for length in (4096..bytes.len()).step_by(4096).chain([bytes.len() / 2, bytes.len() - 1]) {
        let error = Tree::from_vec(bytes[..length].to_vec(), "half").unwrap_err();
        let Error::TreeLength { expected_bytes, actual_bytes, .. } = error else { panic!("{error}") };
        assert_eq!((expected_bytes, actual_bytes), (bytes.len() as u64, length as u64));
    }
    let longer = [bytes.as_slice(), &[0; 4096]].concat();
    assert!(matches!(Tree::from_vec(longer, "long"), Err(Error::TreeLength { .. })));
    for length in [0, 1, 1024, 1152, 4095] {
        let error = Tree::from_vec(bytes[..length].to_vec(), "stub").unwrap_err();
        assert!(error.to_string().contains("tree stub"), "{error}");
    }
}

#[test]
fn tree_cut_in_half_on_the_disk_is_refused() {
    let (file, written) = crate::sample::written(crate::sample::build(&everything()));
    file.set_len(written.bytes / 2).unwrap();
    let error = Tree::open(&file, "sha256:half").unwrap_err().to_string();
    assert!(error.contains("sha256:half") && error.contains(&written.bytes.to_string()), "{error}");
}

#[test]
fn tree_of_a_newer_version_is_refused_by_number() {
    let mut bytes = bytes_of(&[]);
    bytes[8] = 2;
    let error = Tree::from_vec(bytes, "new").unwrap_err();
    assert!(matches!(error, Error::TreeVersion { found: 2, supported: 1, .. }), "{error}");
}

#[test]
fn superblock_that_is_not_ours_is_refused() {
    let cases: [(&str, usize, u8); 8] = [
        ("Mica's mark", 0, b'M'),
        ("magic", 1024, 0),
        ("checksum", 1028, 0),
        ("compatible feature", 1032, 0xff),
        ("block size", 1036, 9),
        ("root", 1038, 40),
        ("incompatible feature", 1104, 0xff),
        ("directory block size", 1114, 1),
    ];
    for (what, at, value) in cases {
        let mut bytes = bytes_of(&[]);
        bytes[at] = value;
        if what != "checksum" {
            reseal(&mut bytes);
        }
        let error = Tree::from_vec(bytes, "odd").unwrap_err();
        assert!(matches!(error, Error::CorruptTreeFile { .. }), "{what}: {error}");
    }
    let mut bytes = bytes_of(&[]);
    bytes[1040] = 200;
    reseal(&mut bytes);
    assert!(Tree::from_vec(bytes, "crowded").unwrap_err().to_string().contains("more inodes"));
}

#[test]
fn parents_in_a_circle_are_an_error() {
    let mut bytes = bytes_of(&[dir("a"), dir("a/b"), dir("a/b/c")]);
    let tree = Tree::from_vec(bytes.clone(), "hostile").unwrap();
    let mut inode = tree.inode(tree.root()).unwrap();
    let mut nids = Vec::new();
    for name in [b"a", b"b", b"c"] {
        inode = tree.inode(tree.lookup(&inode, name).unwrap().unwrap().nid).unwrap();
        nids.push(inode.nid);
    }
    // `a` claims `c` for its parent, and `c` an entry that leads to `a`.
    let parent = nids[0].0 as usize * 32 + 20;
    bytes[parent..parent + 4].copy_from_slice(&(nids[2].0 as u32).to_le_bytes());
    let own = nids[2].0.to_le_bytes();
    let entries = nids[2].0 as usize * 32 + 64;
    let at = entries + bytes[entries..].windows(8).position(|window| window == own).unwrap();
    bytes[at..at + 8].copy_from_slice(&nids[0].0.to_le_bytes());
    // The entry is `.`, which listings leave out: give it a name.
    let name = entries + bytes[entries..].windows(3).position(|window| window == b"...").unwrap();
    bytes[name] = b'!';
    reseal(&mut bytes);
    let tree = Tree::from_vec(bytes, "hostile").unwrap();
    let error = tree.path_of(nids[1]).unwrap_err();
    assert!(error.to_string().contains("circle"), "{error}");
}

#[test]
fn name_with_a_slash_is_an_error() {
    let mut bytes = bytes_of(&[file("evil", "")]);
    let at = bytes.windows(4).position(|window| window == b"evil").unwrap();
    bytes[at + 1] = b'/';
    reseal(&mut bytes);
    let tree = Tree::from_vec(bytes, "hostile").unwrap();
    let root = tree.inode(tree.root()).unwrap();
    assert!(tree.entries(&root, 0).unwrap().next().unwrap().is_err());
}

/// A tree one of whose directories is its own child.
fn circular() -> Vec<u8> {
    let twice = [file("twice", ""), link("again", "twice")];
    let mut bytes = bytes_of(&[&twice[..], &[dir("outer"), dir("outer/inner"), file("outer/inner/file", "")]].concat());
    let tree = Tree::from_vec(bytes.clone(), "hostile").unwrap();
    let root = tree.inode(tree.root()).unwrap();
    let outer = tree.lookup(&root, b"outer").unwrap().unwrap().nid;
    let inner = tree.lookup(&tree.inode(outer).unwrap(), b"inner").unwrap().unwrap().nid;
    let entries = outer.0 as usize * 32 + 64;
    let at = entries + bytes[entries..].windows(8).position(|window| window == inner.0.to_le_bytes()).unwrap();
    bytes[at..at + 8].copy_from_slice(&outer.0.to_le_bytes());
    reseal(&mut bytes);
    bytes
}

/// A tree with a hundred directories that all have the names of another one.
fn sharing() -> Vec<u8> {
    let mut items = vec![file("twice", ""), link("again", "twice"), dir("many")];
    items.extend((0..180).map(|number| file(format!("many/a-name-of-some-length-{number}"), "")));
    items.extend((0..100).map(|number| dir(format!("victims/{number}"))));
    let mut bytes = bytes_of(&items);
    let tree = Tree::from_vec(bytes.clone(), "hostile").unwrap();
    let root = tree.inode(tree.root()).unwrap();
    let find = |name: &[u8]| tree.inode(tree.lookup(&root, name).unwrap().unwrap().nid).unwrap();
    let many = find(b"many").nid.0 as usize * 32;
    for entry in tree.entries(&find(b"victims"), 0).unwrap() {
        let victim = entry.unwrap().nid.0 as usize * 32;
        // One whole block of the other's, and nothing inline.
        bytes.copy_within(many..many + 2, victim);
        bytes[victim] &= !0b1110;
        bytes[victim + 8..victim + 16].copy_from_slice(&4096_u64.to_le_bytes());
        bytes.copy_within(many + 16..many + 20, victim + 16);
    }
    reseal(&mut bytes);
    bytes
}

#[test]
fn directories_in_a_circle_or_of_the_same_bytes_end_every_walk_over_a_tree() {
    for (bytes, told) in [(circular(), "more than one name"), (sharing(), "same bytes")] {
        let tree = Arc::new(Tree::from_vec(bytes, "hostile").unwrap());
        let twice = tree.lookup(&tree.inode(tree.root()).unwrap(), b"twice").unwrap().unwrap().nid;
        let empty = Arc::new(tree_of(&[]));
        let compared = |before: &Arc<Tree>, after: &Arc<Tree>| {
            let stack = |tree: &Arc<Tree>| Stack::merged(vec![Arc::clone(tree)]);
            diff(&stack(before), &stack(after), DiffOptions::default(), &mut |_| Ok(())).map(drop)
        };
        let ends = [
            ("merge", merge(&[Arc::clone(&tree)], &mut std::io::sink()).map(drop)),
            ("merge with others", {
                let layers = [Arc::clone(&SMALL_TREE), Arc::clone(&tree), Arc::clone(&SMALL_TREE)];
                merge(&layers, &mut std::io::sink()).map(drop)
            }),
            ("examine", tree.examine(Form::Layer, |_, _| ())),
            ("names", tree.links(twice).map(drop)),
            ("count", Contents::of(&tree).map(drop)),
            ("tell as tar", write_tree(&tree, &|_| unreachable!("it has no objects"), &mut std::io::sink()).map(drop)),
            ("compare before", compared(&tree, &empty)),
            ("compare after", compared(&empty, &tree)),
        ];
        for (walk, end) in ends {
            let error = end.expect_err(walk).to_string();
            assert!(error.contains("tree hostile"), "{walk}: {error}");
            // A thorough look finds more that is wrong with such a tree, and finds it first.
            assert!(walk == "examine" || error.contains(told), "{walk}: {error}");
        }
    }
}

#[test]
fn directories_in_a_circle_end_the_walk_for_the_objects_of_a_layer() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let tar = tar::Builder::new(Vec::new()).into_inner().unwrap();
    let layer = store.ingest(&mut &tar[..], &IngestOptions::default(), &()).unwrap();
    drop(store);
    for (bytes, told) in [(circular(), "more than one name"), (sharing(), "same bytes")] {
        let path = directory.path().join("layers/sha256").join(layer.diff_id.hex());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let store = Store::open(directory.path()).unwrap();
        let damaged = mica_layerdb::Layer { tree_bytes: bytes.len() as u64, ..layer.clone() };
        let mut batch = Batch::new();
        batch.put_json(Family::Layers, layer.diff_id.hex().as_bytes(), &damaged).unwrap();
        store.db().commit(batch).unwrap();
        let error = store.each_layer_object(&damaged, |_, _| ()).unwrap_err();
        assert_eq!(error.kind(), mica_layerdb::Kind::Corrupt);
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {source}").contains(told), "{error}: {source}");
    }
}
