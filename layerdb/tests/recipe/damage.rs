//! What is damaged is named, and nothing wrong is ever called right.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::Scene;
use super::forge::Forge;
use super::forms::noise;
use mica_layerdb::recipe::{Reader, Step};
use mica_layerdb::{DiffId, Error, Family, Kind, Layer, ObjectId};

fn some_tar() -> Vec<u8> {
    let mut forge = Forge::new();
    forge.file("large", &noise(1, 50_000)).file("small", &noise(2, 50)).file("large", &noise(3, 60_000));
    forge.gnu_sparse("sparse", &[(5000, noise(4, 5000)), (20_000, noise(5, 100))], 40_000).end()
}

fn recipe_of(scene: &Scene, diff_id: DiffId) -> PathBuf {
    scene.directory.path().join("layers/sha256").join(format!("{}.recipe", diff_id.hex()))
}

fn object_of(scene: &Scene, id: ObjectId) -> PathBuf {
    scene.store().objects_path().join(id.relative_path())
}

/// Changes a file that is never changed.
fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn refusal(scene: &Scene, diff_id: DiffId) -> Error {
    scene.store().export_layer(diff_id, &mut std::io::sink()).unwrap_err()
}

fn objects(scene: &Scene, layer: &Layer) -> Vec<ObjectId> {
    let mut objects = Vec::new();
    scene.store().each_layer_object(layer, |id, _| objects.push(id)).unwrap();
    objects
}

#[test]
fn export_with_a_missing_object_names_it() {
    let tar = some_tar();
    for number in 0..3 {
        let scene = Scene::new();
        let layer = scene.ingest(&tar);
        let id = objects(&scene, &layer)[number];
        fs::remove_file(object_of(&scene, id)).unwrap();
        let error = refusal(&scene, layer.diff_id);
        assert!(matches!(error, Error::NoObject { id: named } if named == id), "{error}");
    }
}

#[test]
fn export_with_a_changed_object_names_it_and_taking_the_layer_in_again_repairs_it() {
    let tar = some_tar();
    for number in 0..3 {
        let scene = Scene::new();
        let layer = scene.ingest(&tar);
        let id = objects(&scene, &layer)[number];
        // Not in the hole of the sparse file: that isn't in the tar.
        change(&object_of(&scene, id), |bytes| bytes[6000] ^= 1);
        let error = refusal(&scene, layer.diff_id);
        assert!(matches!(error, Error::CorruptObject { id: named, .. } if named == id), "{error}");
        assert_eq!(error.kind(), Kind::Corrupt);
        scene.returns(&tar);
    }
}

#[test]
fn export_with_an_object_of_another_length_names_it() {
    let scene = Scene::new();
    let layer = scene.ingest(&some_tar());
    let id = objects(&scene, &layer)[0];
    change(&object_of(&scene, id), |bytes| bytes.truncate(1000));
    let error = refusal(&scene, layer.diff_id);
    assert!(matches!(&error, Error::CorruptObject { id: named, .. } if *named == id), "{error}");
}

#[test]
fn export_with_a_missing_or_shortened_recipe_names_the_layer_and_taking_it_in_again_repairs_it() {
    let tar = some_tar();
    let scene = Scene::new();
    let layer = scene.ingest(&tar);
    fs::remove_file(recipe_of(&scene, layer.diff_id)).unwrap();
    let error = refusal(&scene, layer.diff_id);
    assert!(matches!(error, Error::CorruptRecipe { diff_id, .. } if diff_id == layer.diff_id), "{error}");
    scene.returns(&tar);
    change(&recipe_of(&scene, layer.diff_id), |bytes| bytes.truncate(100));
    let error = refusal(&scene, layer.diff_id);
    assert!(matches!(error, Error::CorruptRecipe { .. }), "{error}");
    scene.returns(&tar);
}

/// Any changed byte of a recipe is noticed, and none does more harm than an error.
#[test]
fn export_with_any_changed_byte_of_the_recipe_fails_and_says_so() {
    let scene = Scene::new();
    let tar = some_tar();
    let layer = scene.ingest(&tar);
    let path = recipe_of(&scene, layer.diff_id);
    let original = fs::read(&path).unwrap();
    for at in (0..original.len()).step_by(original.len() / 200 + 1) {
        // The damaged one was moved away.
        let mut bytes = original.clone();
        bytes[at] ^= 1 << (at % 8);
        drop(fs::remove_file(&path));
        fs::write(&path, bytes).unwrap();
        let mut out = Vec::new();
        match scene.store().export_layer(layer.diff_id, &mut out) {
            Err(Error::CorruptRecipe { diff_id, .. }) => assert_eq!(diff_id, layer.diff_id),
            // The format has bits without a meaning, such as those of zstd's headers.
            Ok(_) => super::same(&out, &tar),
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn reader_of_a_recipe_cut_anywhere_gives_an_error_or_fewer_steps_and_ends() {
    let scene = Scene::new();
    let layer = scene.ingest(&some_tar());
    let original = fs::read(recipe_of(&scene, layer.diff_id)).unwrap();
    for length in 0..original.len() {
        let Ok(mut reader) = Reader::new(&original[..length], layer.diff_id) else { continue };
        while let Ok(Some(_)) = reader.step() {}
    }
}

#[test]
fn reader_of_a_recipe_gives_what_the_tar_has() {
    let scene = Scene::new();
    let layer = scene.ingest(&some_tar());
    let bytes = fs::read(recipe_of(&scene, layer.diff_id)).unwrap();
    let mut reader = Reader::new(&bytes[..], layer.diff_id).unwrap();
    assert_eq!((reader.diff_id(), reader.tar_bytes(), reader.objects()), (layer.diff_id, layer.tar_bytes, 1));
    let mut seen = String::new();
    while let Some(step) = reader.step().unwrap() {
        seen.push(match step {
            Step::Bytes(_) => 'b',
            Step::Zeros(_) => 'z',
            Step::File(_) => 'f',
            Step::FilePart { .. } => 'p',
            Step::Object { .. } => 'o',
            Step::ObjectPart { .. } => 'q',
        });
    }
    assert_eq!(seen, "bozbfzbfzbppz");
}

/// A row as a program without recipes wrote it.
fn forget_recipe(scene: &Scene, diff_id: DiffId) {
    let key = diff_id.hex();
    let mut row: serde_json::Value = scene.store().db().get_json(Family::Layers, key.as_bytes()).unwrap().unwrap();
    row.as_object_mut().unwrap().remove("recipe").unwrap();
    row.as_object_mut().unwrap().remove("blob_compression").unwrap();
    let mut batch = mica_layerdb::Batch::new();
    batch.put_json(Family::Layers, key.as_bytes(), &row).unwrap();
    scene.store().db().commit(batch).unwrap();
    fs::remove_file(recipe_of(scene, diff_id)).unwrap();
}

#[test]
fn layer_of_an_older_store_has_no_recipe_until_it_is_taken_in_again() {
    let mut scene = Scene::new();
    let tar = some_tar();
    let layer = scene.ingest(&tar);
    forget_recipe(&scene, layer.diff_id);
    let format = scene.directory.path().join("FORMAT");
    let text = fs::read_to_string(&format).unwrap().replace("\"layer-recipes\"", "");
    fs::remove_file(&format).unwrap();
    fs::write(&format, text).unwrap();
    scene.reopen();
    assert!(fs::read_to_string(&format).unwrap().contains("layer-recipes"));
    let error = refusal(&scene, layer.diff_id);
    assert!(matches!(error, Error::NoRecipe { diff_id } if diff_id == layer.diff_id));
    assert_eq!(scene.store().layer(layer.diff_id).unwrap().unwrap().blob_origin(), mica_layerdb::BlobOrigin::Fetched);
    let options = mica_layerdb::IngestOptions {
        expect_diff_id: Some(layer.diff_id),
        pin: Some(b"test".to_vec()),
        ..Default::default()
    };
    scene.store().ingest(&mut &tar[..], &options, &()).unwrap();
    super::same(&scene.export(layer.diff_id), &tar);
    assert_eq!(scene.store().layer(layer.diff_id).unwrap().unwrap().blob_origin(), mica_layerdb::BlobOrigin::Exact);
}

#[test]
fn export_of_what_the_store_does_not_have_says_so() {
    let scene = Scene::new();
    let diff_id = DiffId(mica_layerdb::Digest::of(b"nothing"));
    assert!(matches!(refusal(&scene, diff_id), Error::NoLayer { .. }));
}
