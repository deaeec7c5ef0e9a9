//! Files and directories of the store, and rows.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use mica_layerdb::fsck::{Outcome, Severity};
use mica_layerdb::{DiffId, Digest, Family, Store};
use serde_json::json;

use crate::world::{World, flip, write_sealed};

#[test]
fn fsck_of_another_format_file_is_fatal() {
    let world = World::new();
    write_sealed(&world.path("FORMAT"), br#"{"version":1,"uuid":"another"}"#);
    let report = world.expect(&["damaged-format"]);
    assert_eq!(report.found[0].severity, Severity::Fatal);
    assert!(!report.is_sound());
    fs::remove_file(world.path("FORMAT")).unwrap();
    world.left(&["damaged-format"]);
}

#[test]
fn fsck_of_a_damaged_file_of_the_database_is_fatal_or_the_store_refuses_to_open() {
    let World { directory, store, .. } = World::new();
    let root = store.root().to_path_buf();
    drop(store);
    // What was in the log becomes a table when the store is opened.
    drop(Store::open(&root).unwrap());
    let mut damaged = 0;
    for entry in fs::read_dir(root.join("meta")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            flip(&path, 10);
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    match Store::open(&root) {
        Err(error) => assert!(error.to_string().contains("meta"), "{error}"),
        Ok(store) => {
            let report = store.fsck(&mica_layerdb::fsck::FsckOptions::default(), &[], &()).unwrap();
            assert!(report.fatals > 0, "{report:?}");
            assert!(report.found.iter().any(|found| found.name == "unreadable-metadata"), "{report:?}");
        }
    }
    drop(directory);
}

#[test]
fn fsck_of_a_damaged_row_names_it_and_drops_it_only_if_it_is_derived() {
    let world = World::new();
    for family in [Family::Layers, Family::Images, Family::Pins] {
        world.put(family, b"nonsense", b"{");
        let report = world.expect(&["damaged-row"]);
        assert_eq!(report.found[0].severity, Severity::Fatal);
        assert!(report.found[0].text.contains("nonsense"), "{}", report.found[0].text);
        world.left(&["damaged-row"]);
        world.delete(family, b"nonsense");
    }
    world.put(Family::Chains, b"nonsense", b"{");
    world.repair(&["damaged-row"], &[]);
}

#[test]
fn fsck_of_a_row_with_a_flipped_byte_finds_it() {
    let world = World::new();
    let key = world.image.layers[0].hex();
    let good = world.store.db().get(Family::Layers, key.as_bytes()).unwrap().unwrap();
    let mut silent = Vec::new();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        world.put(Family::Layers, key.as_bytes(), &bad);
        if world.check(&mica_layerdb::fsck::FsckOptions::default()).found.is_empty() {
            silent.push(at);
        }
    }
    // What no file depends on can't be noticed: counts, times, and the names of optional members.
    let text = String::from_utf8(good.clone()).unwrap();
    for member in ["diff_id", "tree_bytes", "tree_digest"] {
        let start = text.find(&format!("\"{member}\":")).unwrap();
        let end = start + text[start..].find(',').unwrap();
        let missed: Vec<_> = silent.iter().filter(|at| (start..end).contains(at)).collect();
        assert!(missed.is_empty(), "bytes {missed:?} of {text}");
    }
    world.put(Family::Layers, key.as_bytes(), &good);
    world.expect_clean();
}

#[test]
fn fsck_of_a_row_that_nobody_writes_warns() {
    let world = World::new();
    world.put(Family::System, b"what/ever", b"1");
    world.left(&["unknown-row"]);
    assert!(world.expect(&["unknown-row"]).is_sound());
}

#[test]
fn fsck_of_a_missing_directory_makes_it() {
    let world = World::new();
    fs::remove_dir(world.path("quarantine")).unwrap();
    world.repair(&["missing-directory"], &[]);
    assert!(world.path("quarantine").is_dir());
}

#[test]
fn fsck_of_a_foreign_file_leaves_it_in_the_root_and_moves_it_out_of_the_sealed_directories() {
    let world = World::new();
    for path in ["mine", "snapshots/mine", "tmp/mine"] {
        fs::write(world.path(path), "mine").unwrap();
        world.left(&["foreign-file"]);
        fs::remove_file(world.path(path)).unwrap();
    }
    fs::create_dir(world.path("objects/zz")).unwrap();
    for path in ["objects/zz", "objects/mine", "layers/mine", "layers/sha256/mine", "chains/sha256/mine"] {
        if path != "objects/zz" {
            fs::write(world.path(path), "mine").unwrap();
        }
        world.repair(&["foreign-file"], &[]);
        assert!(!world.path(path).exists());
    }
    assert_eq!(world.store.quarantined().unwrap().len(), 5);
    // An object in another object's directory is none.
    let id = crate::world::object_of(1, 10_000);
    let shard = if id.hex().starts_with("00") { "01" } else { "00" };
    fs::create_dir_all(world.path("objects").join(shard)).unwrap();
    fs::set_permissions(world.path("objects").join(shard), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(world.path("objects").join(shard).join(&id.hex()[3..]), "x").unwrap();
    world.repair(&["foreign-file"], &[]);
}

#[test]
fn fsck_of_wrong_permissions_sets_them() {
    let world = World::new();
    let object = world.object(crate::world::object_of(1, 10_000));
    for (path, mode) in [(object, 0o644), (world.tree(world.image.layers[0]), 0o600), (world.path("objects"), 0o755)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        world.repair(&["wrong-mode"], &[]);
        assert_ne!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[test]
fn fsck_of_a_sealed_file_with_another_name_warns() {
    let world = World::new();
    let outside = world.directory.path().join("outside");
    fs::hard_link(world.object(crate::world::object_of(1, 10_000)), &outside).unwrap();
    world.left(&["linked-file"]);
    fs::remove_file(outside).unwrap();
    world.expect_clean();
}

#[test]
fn fsck_of_trees_and_recipes_without_rows_removes_them() {
    let world = World::new();
    let nothing = Digest::of(b"nothing").hex();
    for path in [
        format!("layers/sha256/{nothing}"),
        format!("layers/sha256/{nothing}.recipe"),
        format!("chains/sha256/{nothing}"),
    ] {
        write_sealed(&world.path(&path), b"x");
        world.repair(&["stray-tree"], &[]);
        assert!(!world.path(&path).exists());
    }
}

#[test]
fn fsck_of_a_layers_row_under_another_key_is_fatal() {
    let world = World::new();
    let row = world.store.db().get(Family::Layers, world.image.layers[0].hex().as_bytes()).unwrap().unwrap();
    world.put(Family::Layers, Digest::of(b"another").hex().as_bytes(), &row);
    world.left(&["misnamed-layer"]);
}

#[test]
fn fsck_of_an_images_row_under_another_key_is_an_error() {
    let world = World::new();
    let row = world.store.db().get(Family::Images, b"app:1").unwrap().unwrap();
    world.put(Family::Images, b"another", &row);
    world.left(&["misnamed-image"]);
}

#[test]
fn fsck_of_an_image_or_pin_without_its_layer_is_an_error() {
    let world = World::new();
    let gone = DiffId(Digest::of(b"gone"));
    world.put(Family::Pins, b"test/2", json!([gone]).to_string().as_bytes());
    world.left(&["missing-pinned-layer"]);
    world.delete(Family::Pins, b"test/2");
    world.edit(Family::Images, b"app:1", |row| row["layers"] = json!([world.image.layers[0], gone]));
    let report = world.expect(&["missing-image-layer"]);
    assert!(report.found[0].text.contains(&gone.hex()), "{}", report.found[0].text);
    world.left(&["missing-image-layer"]);
}

#[test]
fn fsck_of_an_image_whose_configuration_has_other_layers_is_an_error() {
    let world = World::new();
    world.edit(Family::Images, b"app:1", |row| row["layers"] = json!([world.image.layers[0]]));
    world.left(&["wrong-config"]);
}

#[test]
fn fsck_of_missing_and_corrupt_documents_names_the_image_and_another_import_repairs_it() {
    let world = World::new();
    let config = mica_layerdb::ObjectId(world.image.config);
    fs::remove_file(world.object(config)).unwrap();
    world.left(&["missing-document"]);
    world.import();
    world.expect_clean();
    flip(&world.object(config), 20);
    let report = world.repair(&["corrupt-document"], &["missing-document"]);
    assert!(matches!(report.found[0].outcome, Outcome::Contained(_)), "{:?}", report.found);
    assert_eq!(report.quarantined.len(), 1);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_quarantine_finds_files_without_notes_and_notes_without_files() {
    let world = World::new();
    fs::write(world.path("quarantine/object-x"), "x").unwrap();
    world.left(&["missing-note"]);
    fs::rename(world.path("quarantine/object-x"), world.path("quarantine/object-x.json")).unwrap();
    world.repair(&["stray-note"], &[]);
}
