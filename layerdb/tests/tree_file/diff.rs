//! Comparisons of stacks, against comparisons of merged trees by a map of paths.

use std::collections::BTreeMap;
use std::sync::Arc;

use mica_layerdb::diff::{Change, ChangeKind, Contents, DiffOptions, Name, NodeKind, Property, Stack, Summary, diff};
use mica_layerdb::tree::{Body, FileKind, Timestamp, Tree};
use proptest::prelude::*;
use rustix::fs::makedev;

use crate::merge::{apply, listing_of, merged, operations};
use crate::sample::{
    Item, What, attributes, dir, everything, file, item, link, object, object_of, pattern, split, symlink, tree_of,
    with, with_xattrs,
};

fn compared(before: &Stack, after: &Stack, options: DiffOptions) -> (Vec<Change>, Summary) {
    let mut changes = Vec::new();
    let summary = diff(before, after, options, &mut |change| {
        changes.push(change);
        Ok(())
    });
    (changes, summary.unwrap())
}

fn stack(layers: &[&Arc<Tree>]) -> Stack {
    Stack::merged(layers.iter().map(|layer| Arc::clone(layer)).collect())
}

fn layer(items: &[Item]) -> Arc<Tree> {
    Arc::new(tree_of(items))
}

/// `changed /etc/issue content mode`, one for each change.
fn lines(changes: &[Change]) -> Vec<String> {
    let line = |change: &Change| {
        let what: Vec<&str> = change.what.iter().map(|property| property.name()).collect();
        format!("{:?} {} {}", change.change, change.path, what.join(" ")).trim_end().to_owned()
    };
    changes.iter().map(line).collect()
}

fn told(before: &[&Arc<Tree>], after: &[&Arc<Tree>]) -> Vec<String> {
    lines(&compared(&stack(before), &stack(after), DiffOptions::default()).0)
}

/// What a comparison of two merged trees by their paths tells.
fn expected(before: &[Arc<Tree>], after: &[Arc<Tree>]) -> BTreeMap<String, ChangeKind> {
    let listing = |layers: &[Arc<Tree>]| {
        // A stack of nothing has a root that nobody made.
        let mut listing = if layers.is_empty() { BTreeMap::new() } else { listing_of(&merged(layers).0) };
        let root = listing.remove(&Vec::new());
        (listing, root)
    };
    let ((before, old_root), (after, new_root)) = (listing(before), listing(after));
    let shown = |path: &Vec<Vec<u8>>| Name([b"/".as_slice(), &path.join(&b'/')].concat()).to_string();
    let mut changes = BTreeMap::new();
    if let (Some(old), Some(new)) = (old_root, new_root)
        && old.0 != new.0
    {
        changes.insert("/".to_owned(), ChangeKind::Changed);
    }
    for (path, old) in &before {
        match after.get(path) {
            None => drop(changes.insert(shown(path), ChangeKind::Removed)),
            Some(new) if (old.0, &old.2) != (new.0, &new.2) => drop(changes.insert(shown(path), ChangeKind::Changed)),
            Some(_) => {}
        }
    }
    for path in after.keys().filter(|path| !before.contains_key(*path)) {
        changes.insert(shown(path), ChangeKind::Added);
    }
    changes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn diff_of_stacks_is_that_of_their_merged_trees(one in operations(), other in operations(), cut in 0..5_usize) {
        let trees = |layers: &[_]| apply(layers).1.into_iter().map(|(tree, _)| tree).collect::<Vec<Arc<Tree>>>();
        let (one, other) = (trees(&one), trees(&other));
        let base = &one[..cut.min(one.len())];
        // With a common base, with nothing in common, and with itself.
        for (before, after) in [(base, &one[..]), (&one, base), (&one, &other), (&one, &one)] {
            let (changes, summary) = compared(
                &Stack::merged(before.to_vec()), &Stack::merged(after.to_vec()), DiffOptions::default());
            let found: BTreeMap<String, ChangeKind> = changes
                .iter()
                .filter(|change| change.what != [Property::Links])
                .map(|change| (change.path.to_string(), change.change))
                .collect();
            prop_assert_eq!(&found, &expected(before, after));
            // In order, each path once, and counted.
            let keys: Vec<_> = changes.iter().map(|change| components(&change.path)).collect();
            prop_assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", lines(&changes));
            let counted = summary.added.paths() + summary.changed.paths() + summary.removed.paths();
            prop_assert_eq!(counted, changes.len() as u64);
        }
    }
}

fn components(path: &Name) -> Vec<Vec<u8>> {
    split(&path.0)
}

#[test]
fn diff_names_every_property_that_differs() {
    let device = |minor| {
        with(item("device", attributes(FileKind::CharDevice, 0o600), Body::None), |it| it.rdev = makedev(7, minor))
    };
    let before = layer(&[
        file("bytes", "one"),
        object("large", "one", 9000),
        object("same", "same", 9000),
        file("type", "x"),
        symlink("target", "here"),
        device(1),
        dir("mode"),
        file("owner", "x"),
        with_xattrs(file("xattr", "x"), &[(b"user.gone", b"1"), (b"user.kept", b"1"), (b"user.new", b"1")]),
        file("time", "x"),
        file("links", "x"),
        link("other", "links"),
    ]);
    let after = layer(&[
        file("bytes", "two"),
        object("large", "two", 9000),
        object("same", "same", 9000),
        dir("type"),
        file("type/inside", ""),
        symlink("target", "there"),
        device(2),
        with(dir("mode"), |it| it.mode |= 0o1000),
        with(file("owner", "x"), |it| it.gid = 7),
        with_xattrs(file("xattr", "x"), &[(b"user.kept", b"1"), (b"user.new", b"2")]),
        with(file("time", "x"), |it| it.mtime = Timestamp { secs: 1, nanos: 2 }),
        file("links", "x"),
        file("other", "x"),
    ]);
    let (changes, summary) = compared(&stack(&[&before]), &stack(&[&after]), DiffOptions::default());
    let expected = [
        "Changed /bytes content",
        "Changed /device device",
        "Changed /large content",
        "Changed /links links",
        "Changed /mode mode",
        "Changed /other links",
        "Changed /owner owner",
        "Changed /target target",
        "Changed /type type",
        "Added /type/inside",
        "Changed /xattr xattr",
    ];
    assert_eq!(lines(&changes), expected);
    let xattr = &changes[10];
    assert_eq!(xattr.xattrs, [Name(b"user.gone".to_vec()), Name(b"user.new".to_vec())]);
    assert_eq!(changes[1].before.as_ref().unwrap().device.as_deref(), Some("7:1"));
    assert_eq!(changes[7].after.as_ref().unwrap().target, Some(Name(b"there".to_vec())));
    assert_eq!((summary.added.files, summary.changed.files, summary.changed.directories), (1, 6, 2));
    // Both names of what was one file: its byte is counted once before.
    assert_eq!(
        (summary.changed.bytes_before, summary.changed.bytes_after),
        (3 + 9000 + 1 + 1 + 1 + 1, 3 + 9000 + 1 + 1 + 1 + 1)
    );
    let (changes, _) = compared(&stack(&[&before]), &stack(&[&after]), DiffOptions { times: true });
    assert!(lines(&changes).contains(&"Changed /time time".to_owned()));
}

#[test]
fn diff_of_equal_contents_in_and_out_of_the_tree_finds_none() {
    let before = layer(&[file("f", pattern(100))]);
    let after = layer(&[object_of("f", &pattern(100))]);
    assert_eq!(told(&[&before], &[&after]), [""; 0]);
}

#[test]
fn diff_of_a_removed_folder_tells_all_that_was_in_it() {
    let base = layer(&[dir("d"), file("d/one", "1"), dir("d/e"), file("d/e/two", "22"), file("kept", "x")]);
    let top = layer(&[Item { path: split("d"), what: What::Whiteout }]);
    let (changes, summary) = compared(&stack(&[&base]), &stack(&[&base, &top]), DiffOptions::default());
    assert_eq!(lines(&changes), ["Removed /d", "Removed /d/e", "Removed /d/e/two", "Removed /d/one"]);
    assert_eq!((summary.removed.files, summary.removed.directories, summary.removed.bytes_before), (2, 2, 3));
    // One name of two goes: what is left is the same file.
    let base = layer(&[file("a", "x"), link("b", "a")]);
    let top = layer(&[Item { path: split("a"), what: What::Whiteout }]);
    assert_eq!(told(&[&base], &[&base, &top]), ["Removed /a"]);
}

#[test]
fn diff_tells_files_apart_that_swap_their_names() {
    let before = layer(&[file("a", "x"), link("b", "a"), file("c", "x"), link("d", "c")]);
    let after = layer(&[file("a", "x"), link("c", "a"), file("b", "x"), link("d", "b")]);
    assert_eq!(told(&[&before], &[&after]), ["Changed /b links", "Changed /c links", "Changed /d links"]);
    assert_eq!(told(&[&before], &[&layer(&[file("a", "x"), link("b", "a"), file("c", "x"), link("d", "c")])]), [""; 0]);
}

#[test]
fn diff_of_single_layers_shows_what_they_hide() {
    let whiteout = |path| Item { path: split(path), what: What::Whiteout };
    let opaque = |path| Item { path: split(path), what: What::Opaque };
    let one = layer(&[dir("d"), file("e/f", "x"), whiteout("gone"), whiteout("back")]);
    let other = layer(&[dir("d"), opaque("d"), dir("e"), file("e/f", "x"), whiteout("gone"), file("back", "")]);
    let single = |tree: &Arc<Tree>| Stack::single(Arc::clone(tree));
    let (changes, _) = compared(&single(&one), &single(&other), DiffOptions::default());
    assert_eq!(lines(&changes), ["Changed /back type", "Changed /d opaque", "Changed /e implied"]);
    assert_eq!(changes[0].before.as_ref().unwrap().kind, NodeKind::Whiteout);
    let nothing = layer(&[]);
    let (changes, _) = compared(&single(&nothing), &single(&one), DiffOptions::default());
    assert_eq!(lines(&changes), ["Added /back", "Added /d", "Added /e", "Added /e/f", "Added /gone"]);
}

#[test]
fn diff_of_every_kind_of_inode_against_nothing_and_itself() {
    let all = layer(&everything());
    let again = layer(&everything());
    assert_eq!(told(&[&all], &[&again]), [""; 0]);
    let (changes, summary) = compared(&stack(&[]), &stack(&[&all]), DiffOptions::default());
    assert!(changes.iter().all(|change| change.change == ChangeKind::Added && change.before.is_none()));
    assert_eq!(summary.added.paths(), changes.len() as u64);
    for change in &changes {
        let text = serde_json::to_string(change).unwrap();
        assert_eq!(&serde_json::from_str::<Change>(&text).unwrap(), change);
    }
    let (removed, _) = compared(&stack(&[&all]), &stack(&[]), DiffOptions::default());
    assert_eq!(removed.len(), changes.len());
}

#[test]
fn diff_ends_when_its_visitor_fails() {
    let all = layer(&everything());
    let mut seen = 0;
    let stopped = diff(&stack(&[]), &stack(&[&all]), DiffOptions::default(), &mut |_| {
        seen += 1;
        Err(mica_layerdb::Error::io("stop")(std::io::ErrorKind::BrokenPipe.into()))
    });
    assert!(stopped.is_err() && seen == 1);
}

#[test]
fn contents_of_a_layer_are_counted_by_kind() {
    let whiteout = |path| Item { path: split(path), what: What::Whiteout };
    let tree = tree_of(&[
        file("d/f", "12345"),
        link("g", "d/f"),
        object("o", "o", 9000),
        symlink("s", "t"),
        whiteout("gone"),
        Item { path: split("d"), what: What::Opaque },
        item("pipe", attributes(FileKind::Fifo, 0o600), Body::None),
    ]);
    let expected = Contents {
        directories: 2,
        implied: 2,
        opaque: 1,
        files: 2,
        file_bytes: 9005,
        hard_links: 1,
        symlinks: 1,
        special: 1,
        whiteouts: 1,
    };
    assert_eq!(Contents::of(&tree).unwrap(), expected);
}
