//! The store as a whole: opening, locking, layout, snapshot directories.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use mica_layerdb::{Error, Kind, Store};

#[test]
fn open_of_a_missing_directory_makes_a_store_that_keeps_its_identity() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("a/b");
    let uuid = Store::open(&root).unwrap().uuid().to_owned();
    assert_eq!(uuid.len(), 36);
    assert_eq!(Store::open(&root).unwrap().uuid(), uuid);
    for part in ["FORMAT", "meta", "objects", "layers/sha256", "chains/sha256", "snapshots", "quarantine", "tmp"] {
        assert!(root.join(part).exists(), "{part}");
    }
    let mode = fs::metadata(root.join("objects")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn open_of_an_open_store_is_locked_and_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
    drop(store);
    Store::open(directory.path()).unwrap();
}

#[test]
fn open_of_a_newer_format_touches_nothing() {
    let newer = [
        r#"{"version":2,"uuid":"u"}"#,
        r#"{"version":1,"uuid":"u","incompat":["erofs-trees","from-the-future"]}"#,
        r#"{"version":1,"uuid":"u","ro_compat":["from-the-future"]}"#,
    ];
    for format in newer {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("FORMAT"), format).unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        fs::write(directory.path().join("tmp/precious"), "x").unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, Error::NewerFormat { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&directory.path().display().to_string()), "{text}");
        assert!(text.contains("version 1"), "{text}");
        assert!(text.contains("version 2") || text.contains("from-the-future"), "{text}");
        let mut names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["FORMAT", "tmp"]);
        assert!(directory.path().join("tmp/precious").exists());
    }
}

#[test]
fn open_with_an_unknown_compatible_feature_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("FORMAT"), r#"{"version":1,"uuid":"u","compat":["nice"],"more":1}"#).unwrap();
    assert_eq!(Store::open(directory.path()).unwrap().uuid(), "u");
}

#[test]
fn open_of_something_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.tex"), "x").unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

    fs::remove_file(directory.path().join("thesis.tex")).unwrap();
    fs::write(directory.path().join("FORMAT"), "not json").unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::NotAStore { .. }), "{error}");
}

#[test]
fn open_after_a_crash_empties_tmp_but_leaves_removed_snapshots_to_gc() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let made = store.new_snapshot_dir(7).unwrap();
    fs::write(made.join("upper/file"), "x").unwrap();
    store.remove_snapshot_dir(7).unwrap();
    drop(store);
    fs::create_dir_all(directory.path().join("tmp/3/deep/er")).unwrap();
    fs::write(directory.path().join("tmp/3/deep/file"), "x").unwrap();
    std::os::unix::fs::symlink("/etc", directory.path().join("tmp/3/etc")).unwrap();
    Store::open(directory.path()).unwrap();
    let names: Vec<_> =
        fs::read_dir(directory.path().join("tmp")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["removed-7"]);
    assert!(fs::metadata("/etc").unwrap().is_dir());
}

#[test]
fn snapshot_dir_is_made_once_and_gone_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let made = store.new_snapshot_dir(1).unwrap();
    assert_eq!(made, store.snapshot_dir(1));
    assert_eq!(fs::metadata(made.join("upper")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(made.join("work").is_dir());
    assert_eq!(store.new_snapshot_dir(1).unwrap_err().kind(), Kind::Exists);
    assert_eq!(store.snapshot_dirs().unwrap(), [1]);
    for _ in 0..3 {
        store.remove_snapshot_dir(1).unwrap();
        assert!(!made.exists());
        store.new_snapshot_dir(1).unwrap();
    }
    store.remove_snapshot_dir(1).unwrap();
    store.remove_snapshot_dir(1).unwrap();
    assert_eq!(store.snapshot_dirs().unwrap(), [0_u64; 0]);
}
