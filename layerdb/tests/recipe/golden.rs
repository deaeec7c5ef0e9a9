//! The bytes of recipes: a recipe of format 1 is read as it was written then, and what is written now says the same.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use super::Scene;
use super::forge::{Dialect, Forge, Head};
use super::forms::noise;

/// A tar that needs steps of every kind.
fn tar() -> Vec<u8> {
    let mut forge = Forge::new();
    forge.directory("d/").file("d/small", b"inline").file("d/large", &noise(1, 5000)).file("d/empty", b"");
    forge.gnu_sparse("d/sparse", &[(0, noise(2, 600)), (9000, noise(3, 512))], 20_000);
    forge.gnu_sparse("d/gone", &[(512, noise(4, 600)), (9000, noise(5, 512))], 20_000);
    forge.gnu_sparse("d/gone", &[(512, noise(6, 600))], 4000).file("d/gone", &noise(7, 9000)).file("d/gone", b"there");
    forge.head(&Head { mode: 0o755, ..Head::new(b'2', "d/link").link("small").dialect(Dialect::Gnu) }, 0);
    forge.file(".wh.removed", b"what a whiteout says");
    [&forge.end(), &b"behind the end"[..], &[0; 3000]].concat()
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Header and list, literals, steps.
fn parts(recipe: &[u8]) -> [Vec<u8>; 3] {
    let number = |at: usize| u64::from_le_bytes(recipe[at..at + 8].try_into().unwrap()) as usize;
    let literals = 72 + 40 * number(56);
    let steps = literals + number(64);
    let unpacked = |bytes: &[u8]| {
        let mut out = Vec::new();
        zstd::Decoder::new(bytes).unwrap().read_to_end(&mut out).unwrap();
        out
    };
    // How long the literals became is the compressor's business.
    let head = [&recipe[..64], &recipe[72..literals]].concat();
    [head, unpacked(&recipe[literals..steps]), unpacked(&recipe[steps..])]
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// Run with `MICA_WRITE_GOLDEN=1` to write the file anew: that is a new format, and needs a new name.
#[test]
fn recipe_says_what_version_1_says() {
    let scene = Scene::new();
    let tar = tar();
    let layer = scene.returns(&tar);
    let file = scene.directory.path().join("layers/sha256").join(format!("{}.recipe", layer.diff_id.hex()));
    let written = fs::read(file).unwrap();
    if std::env::var_os("MICA_WRITE_GOLDEN").is_some() {
        fs::write(golden("v1.recipe"), &written).unwrap();
        fs::write(golden("v1-recipe.steps"), hex(&parts(&written)[2]) + "\n").unwrap();
    }
    let pinned = parts(&fs::read(golden("v1.recipe")).unwrap());
    assert_eq!(parts(&written), pinned);
    assert_eq!(hex(&pinned[2]), fs::read_to_string(golden("v1-recipe.steps")).unwrap().trim());
}

/// The recipe of long ago gives the tar back, whatever today's compressor would make of it.
#[test]
fn recipe_of_version_1_still_gives_its_tar() {
    let scene = Scene::new();
    let tar = tar();
    let layer = scene.ingest(&tar);
    let pinned = fs::read(golden("v1.recipe")).unwrap();
    let key = layer.diff_id.hex();
    let file = scene.directory.path().join("layers/sha256").join(format!("{key}.recipe"));
    fs::remove_file(&file).unwrap();
    fs::write(&file, &pinned).unwrap();
    let mut row = layer.clone();
    let recipe = row.recipe.as_mut().unwrap();
    (recipe.bytes, recipe.digest) = (pinned.len() as u64, mica_layerdb::Digest::of(&pinned));
    let mut batch = mica_layerdb::Batch::new();
    batch.put_json(mica_layerdb::Family::Layers, key.as_bytes(), &row).unwrap();
    scene.store().db().commit(batch).unwrap();
    super::same(&scene.export(layer.diff_id), &tar);
}
