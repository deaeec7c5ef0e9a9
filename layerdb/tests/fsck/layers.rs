//! Trees of layers and of chains.

use std::fs;

use mica_layerdb::fsck::Outcome;
use mica_layerdb::{ChainId, Digest, Family, IngestOptions};
use serde_json::json;

use crate::world::{World, add, flip, replace_by_directory, write_sealed};

#[test]
fn fsck_of_a_missing_tree_marks_the_layer_and_the_next_import_repairs_it() {
    let world = World::new();
    fs::remove_file(world.tree(world.image.layers[0])).unwrap();
    let report = world.repair(&["missing-tree"], &["missing-tree"]);
    assert!(matches!(report.found[0].outcome, Outcome::Contained(_)), "{:?}", report.found);
    assert!(world.store.damaged_layers().unwrap()[0].tree);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_a_tree_with_any_flipped_byte_finds_it() {
    let world = World::new();
    let tree = world.tree(world.image.layers[1]);
    let bytes = fs::metadata(&tree).unwrap().len();
    for at in (0..bytes).step_by(509) {
        flip(&tree, at);
        world.expect(&["corrupt-tree"]);
        flip(&tree, at);
    }
    world.expect_clean();
    flip(&tree, 1200);
    world.repair(&["corrupt-tree"], &["missing-tree"]);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_a_tree_of_another_length_moves_it_to_quarantine() {
    let world = World::new();
    let tree = world.tree(world.image.layers[0]);
    let mut bytes = fs::read(&tree).unwrap();
    bytes.extend([0; 4096]);
    write_sealed(&tree, &bytes);
    world.repair(&["wrong-tree-length"], &["missing-tree"]);
    assert_eq!(world.store.quarantined().unwrap()[0].layers, [world.image.layers[0]]);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_a_tree_that_is_no_file_moves_it_to_quarantine() {
    let world = World::new();
    replace_by_directory(&world.tree(world.image.layers[0]));
    world.repair(&["unreadable-tree"], &["missing-tree"]);
}

#[test]
fn fsck_of_a_tree_that_was_written_wrongly_finds_it_although_its_digest_is_right() {
    let world = World::new();
    let layer = world.image.layers[1];
    let tree = world.tree(layer);
    let good = fs::read(&tree).unwrap();
    // The time of an inode with more than 10^9 nanoseconds, a link count, an inode's kind.
    let mut found = 0;
    let mut last = Vec::new();
    for at in (1152 + 128..good.len() - 64).step_by(32) {
        let mut bytes = good.clone();
        bytes[at + 5] ^= 0x30;
        write_sealed(&tree, &bytes);
        let digest = Digest::of(&bytes);
        world.edit(Family::Layers, layer.hex().as_bytes(), |row| row["tree_digest"] = json!(digest));
        let report = world.check(&mica_layerdb::fsck::FsckOptions::default());
        if !report.found.is_empty() {
            assert_eq!(report.found[0].name, "invalid-tree", "{:?}", report.found);
            found += 1;
            last = bytes;
        }
    }
    assert!(found > 3, "{found}");
    write_sealed(&tree, &last);
    world.edit(Family::Layers, layer.hex().as_bytes(), |row| row["tree_digest"] = json!(Digest::of(&last)));
    world.repair(&["invalid-tree"], &["missing-tree"]);
}

#[test]
fn fsck_of_a_chain_under_another_key_drops_its_row() {
    let world = World::new();
    let row = world.store.db().get(Family::Chains, world.chain().hex().as_bytes()).unwrap().unwrap();
    world.put(Family::Chains, Digest::of(b"another").hex().as_bytes(), &row);
    world.repair(&["misnamed-chain"], &[]);
}

#[test]
fn fsck_of_a_chain_without_tree_drops_it_and_the_next_mount_builds_it_again() {
    let world = World::new();
    let before = fs::read(world.chain_tree()).unwrap();
    fs::remove_file(world.chain_tree()).unwrap();
    world.repair(&["missing-chain-tree"], &[]);
    world.store.chain(&world.image.layers).unwrap();
    assert_eq!(fs::read(world.chain_tree()).unwrap(), before);
    world.expect_clean();
}

#[test]
fn fsck_of_a_corrupt_chain_tree_drops_it_and_the_next_mount_builds_it_again() {
    let world = World::new();
    let before = fs::read(world.chain_tree()).unwrap();
    for at in [0, 1100, 1300, before.len() as u64 - 1] {
        flip(&world.chain_tree(), at);
        world.repair(&["corrupt-chain-tree"], &[]);
        world.store.chain(&world.image.layers).unwrap();
        assert_eq!(fs::read(world.chain_tree()).unwrap(), before);
    }
    world.expect_clean();
}

#[test]
fn fsck_of_a_chain_tree_that_its_layers_do_not_make_finds_it_by_merging_only() {
    let world = World::new();
    let other = [world.image.layers[1]];
    world.store.chain(&other).unwrap();
    let wrong = fs::read(world.path("chains/sha256").join(ChainId::of(&other).unwrap().hex())).unwrap();
    write_sealed(&world.chain_tree(), &wrong);
    world.edit(Family::Chains, world.chain().hex().as_bytes(), |row| {
        row["tree_digest"] = json!(Digest::of(&wrong));
        row["tree_bytes"] = json!(wrong.len());
    });
    assert_eq!(world.check(&mica_layerdb::fsck::FsckOptions::default()).found, []);
    world.repair(&["stale-chain-tree"], &[]);
}

#[test]
fn fsck_of_a_chain_whose_layer_is_gone_drops_it_unless_somebody_uses_it() {
    let world = World::new();
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder, "x", b"x");
    let tar = builder.into_inner().unwrap();
    let layer = world.store.ingest(&mut &tar[..], &IngestOptions::default(), &()).unwrap();
    let used = world.store.chain(&[layer.diff_id]).unwrap();
    world.delete(Family::Layers, layer.diff_id.hex().as_bytes());
    fs::remove_file(world.tree(layer.diff_id)).unwrap();
    let _ = fs::remove_file(world.recipe(layer.diff_id));
    world.expect(&[]);
    drop(used);
    world.repair(&["useless-chain"], &[]);
}

#[test]
fn fsck_of_a_missing_recipe_marks_the_layer_and_the_next_import_writes_it() {
    let world = World::new();
    fs::remove_file(world.recipe(world.image.layers[0])).unwrap();
    let report = world.repair(&["missing-recipe"], &["missing-recipe"]);
    assert!(matches!(report.found[0].outcome, Outcome::Contained(_)), "{:?}", report.found);
    assert!(world.store.damaged_layers().unwrap()[0].recipe);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_a_recipe_with_any_flipped_byte_finds_it() {
    let world = World::new();
    let recipe = world.recipe(world.image.layers[0]);
    for at in (0..fs::metadata(&recipe).unwrap().len()).step_by(31) {
        flip(&recipe, at);
        world.expect(&["corrupt-recipe"]);
        flip(&recipe, at);
    }
    flip(&recipe, 40);
    world.repair(&["corrupt-recipe"], &["missing-recipe"]);
    world.import();
    world.expect_clean();
}

#[test]
fn fsck_of_the_recipe_of_another_layer_finds_it_although_its_digest_is_right() {
    let world = World::new();
    let [one, other] = [world.image.layers[0], world.image.layers[1]];
    let bytes = fs::read(world.recipe(other)).unwrap();
    write_sealed(&world.recipe(one), &bytes);
    world.edit(Family::Layers, one.hex().as_bytes(), |row| {
        row["recipe"]["digest"] = json!(Digest::of(&bytes));
        row["recipe"]["bytes"] = json!(bytes.len());
    });
    world.repair(&["corrupt-recipe"], &["missing-recipe"]);
}

#[test]
fn chain_of_a_corrupt_layer_tree_is_not_built_and_the_tree_goes_out_of_use() {
    let world = World::new();
    let layer = world.image.layers[1];
    // The time of an inode: nothing but the digest tells.
    flip(&world.tree(layer), 1152 + 33);
    let error = world.store.chain(&[layer]).unwrap_err();
    assert!(error.to_string().contains(&layer.hex()), "{error}");
    assert!(!world.tree(layer).exists());
    assert!(world.store.layer_damage(layer).unwrap().unwrap().tree);
    world.import();
    world.store.chain(&[layer]).unwrap();
    world.expect_clean();
}
