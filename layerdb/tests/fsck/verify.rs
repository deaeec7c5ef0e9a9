//! Layers verified one by one, and repaired from other copies.

use std::fs;
use std::path::PathBuf;

use mica_layerdb::verify::{LayerCheck, RepairSource, VerifyOptions};
use mica_layerdb::{Damaged, Store};

use crate::world::{World, flip, import, layout, object_of, tars};

fn verify(world: &World, from: Option<PathBuf>, repair: bool) -> Vec<LayerCheck> {
    let options = VerifyOptions { repair, from: from.map(RepairSource::detect), bytes_per_second: 0 };
    world.store.verify_layers(&world.image.layers, &options, &()).unwrap()
}

fn names(check: &LayerCheck) -> Vec<&str> {
    check.found.iter().map(|found| found.name.as_str()).collect()
}

/// Damages an object of both layers, one of the lower, and the upper's tree.
fn damage(world: &World) {
    flip(&world.object(object_of(9, 20_000)), 77);
    fs::remove_file(world.object(object_of(1, 10_000))).unwrap();
    flip(&world.tree(world.image.layers[1]), 2000);
}

#[test]
fn verify_of_whole_layers_finds_nothing() {
    let checks = verify(&World::new(), None, false);
    assert!(checks.iter().all(|check| check.whole && check.found.is_empty()), "{checks:?}");
    assert_eq!(checks.iter().map(|check| check.objects).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(checks[0].object_bytes, 30_000);
    assert!(checks.iter().all(|check| check.tar == Some(true)));
}

#[test]
fn verify_without_repair_says_what_is_wrong_and_changes_nothing() {
    let world = World::new();
    damage(&world);
    for _ in 0..2 {
        let checks = verify(&world, None, false);
        let mut lower = names(&checks[0]);
        lower.sort_unstable();
        assert_eq!(lower, ["corrupt-object", "missing-object"]);
        assert_eq!(names(&checks[1]), ["corrupt-tree"]);
        assert!(checks.iter().all(|check| !check.whole));
    }
    assert!(!world.store.has_damage().unwrap());
}

#[test]
fn verify_with_repair_takes_damage_out_of_use_so_that_an_import_undoes_it() {
    let world = World::new();
    damage(&world);
    let checks = verify(&world, None, true);
    assert!(checks.iter().all(|check| !check.whole && check.repaired.is_empty()), "{checks:?}");
    assert_eq!(world.store.quarantined().unwrap().len(), 2);
    world.import();
    assert!(verify(&world, None, false).iter().all(|check| check.whole));
    world.expect_clean();
}

fn assert_repairs_from(world: &World, from: PathBuf) {
    let checks = verify(world, Some(from), true);
    assert!(checks.iter().all(|check| check.whole), "{checks:#?}");
    let mut lower: Vec<Damaged> = checks[0].repaired.iter().map(|repaired| repaired.what).collect();
    lower.sort_unstable();
    let mut expected = vec![Damaged::Object(object_of(1, 10_000)), Damaged::Object(object_of(9, 20_000))];
    expected.sort_unstable();
    assert_eq!(lower, expected);
    assert_eq!(checks[1].repaired[0].what, Damaged::Tree(world.image.layers[1]));
    assert!(!world.store.has_damage().unwrap());
    world.expect_clean();
}

#[test]
fn verify_repairs_from_a_layout() {
    let world = World::new();
    damage(&world);
    assert_repairs_from(&world, world.directory.path().join("layout"));
}

#[test]
fn verify_repairs_from_an_archive_of_a_layout() {
    let world = World::new();
    damage(&world);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", world.directory.path().join("layout")).unwrap();
    let archive = world.directory.path().join("layout.tar");
    fs::write(&archive, builder.into_inner().unwrap()).unwrap();
    assert_repairs_from(&world, archive);
}

#[test]
fn verify_repairs_from_an_archive_of_docker() {
    let world = World::new();
    damage(&world);
    let layout = world.directory.path().join("layout");
    let mut builder = tar::Builder::new(Vec::new());
    let config = fs::read(layout.join("blobs/sha256").join(world.image.config.hex())).unwrap();
    crate::world::add(&mut builder, "config.json", &config);
    for (at, tar) in tars().iter().enumerate() {
        crate::world::add(&mut builder, &format!("{at}/layer.tar"), tar);
    }
    let manifest = r#"[{"Config":"config.json","RepoTags":["app:1"],"Layers":["0/layer.tar","1/layer.tar"]}]"#;
    crate::world::add(&mut builder, "manifest.json", manifest.as_bytes());
    let archive = world.directory.path().join("docker.tar");
    fs::write(&archive, builder.into_inner().unwrap()).unwrap();
    assert_repairs_from(&world, archive);
}

#[test]
fn verify_repairs_from_another_store_file_by_file() {
    let world = World::new();
    let root = world.directory.path().join("other");
    import(&Store::open(&root).unwrap(), &world.directory.path().join("layout"));
    damage(&world);
    assert_repairs_from(&world, root);
}

#[test]
fn verify_says_of_each_part_why_another_store_did_not_help() {
    let world = World::new();
    let root = world.directory.path().join("other");
    {
        let other = Store::open(&root).unwrap();
        import(&other, &world.directory.path().join("layout"));
        let path = |id: mica_layerdb::ObjectId| other.objects_path().join(id.relative_path());
        fs::remove_file(path(object_of(1, 10_000))).unwrap();
        flip(&path(object_of(9, 20_000)), 5);
    }
    damage(&world);
    let checks = verify(&world, Some(root), true);
    assert!(!checks[0].whole && !checks[1].whole);
    assert_eq!(names(&checks[1]), ["corrupt-tree", "missing-object"], "its tree tells that it needs an object, too");
    let failure = |what: Damaged| {
        let repaired = checks[0].repaired.iter().find(|repaired| repaired.what == what).unwrap();
        repaired.failure.clone().unwrap()
    };
    assert!(failure(Damaged::Object(object_of(1, 10_000))).contains("doesn't have it"));
    assert!(failure(Damaged::Object(object_of(9, 20_000))).contains("damaged in the other store"));
    let tree = checks[1].repaired.iter().find(|repaired| matches!(repaired.what, Damaged::Tree(_))).unwrap();
    assert_eq!(tree.failure, None);
}

#[test]
fn verify_from_an_image_without_the_layer_says_so() {
    let world = World::new();
    damage(&world);
    let elsewhere = world.directory.path().join("elsewhere");
    let mut builder = tar::Builder::new(Vec::new());
    crate::world::add(&mut builder, "x", b"x");
    layout(&elsewhere, &[builder.into_inner().unwrap()]);
    let checks = verify(&world, Some(elsewhere), true);
    assert!(checks.iter().all(|check| !check.whole));
    assert!(checks[0].repaired[0].failure.as_ref().unwrap().contains("doesn't have the layer"));
}

#[test]
fn verify_of_a_layer_whose_whole_parts_make_another_tar_says_so() {
    let world = World::new();
    let layer = world.image.layers[1];
    // The same files with other times make a tree of the same shape; its objects and recipe still fit.
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in [("bin/two", vec![2; 30_000]), ("opt/shared", vec![9; 20_000]), ("etc/.wh.small", vec![])] {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(1);
        builder.append_data(&mut header, name, &contents[..]).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let other = world.store.ingest(&mut &tar[..], &mica_layerdb::IngestOptions::default(), &()).unwrap();
    let recipe = fs::read(world.recipe(other.diff_id)).unwrap();
    let renamed = rename_recipe(&recipe, other.diff_id, layer);
    crate::world::write_sealed(&world.recipe(layer), &renamed);
    world.edit(mica_layerdb::Family::Layers, layer.hex().as_bytes(), |row| {
        row["recipe"]["digest"] = serde_json::json!(mica_layerdb::Digest::of(&renamed));
        row["recipe"]["bytes"] = serde_json::json!(renamed.len());
    });
    let checks = verify(&world, None, true);
    assert_eq!(names(&checks[1]), ["wrong-tar"]);
    assert!(!checks[1].whole && checks[1].tar == Some(false));
}

/// The recipe of one layer as if it were another's.
fn rename_recipe(recipe: &[u8], from: mica_layerdb::DiffId, to: mica_layerdb::DiffId) -> Vec<u8> {
    let at = recipe.windows(32).position(|window| window == from.as_bytes()).unwrap();
    let mut renamed = recipe.to_vec();
    renamed[at..at + 32].copy_from_slice(to.as_bytes());
    renamed
}
