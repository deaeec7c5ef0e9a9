//! A tree file is read: the bytes as they are, and then with everything that guards them made right, so that what
//! follows the superblock is reached.

use std::sync::{Arc, LazyLock};

use mica_layerdb::tree::{Tree, merge};

use super::walk::walk;

const BLOCK: usize = 4096;
const SUPER: usize = 1024;

/// A tree that layers are put above and below of.
static OTHER: LazyLock<Arc<Tree>> = LazyLock::new(|| {
    Arc::new(
        Tree::from_vec(include_bytes!("../../layerdb/tests/golden/v1-upper.tree").to_vec(), "other")
            .expect("it is good"),
    )
});

pub fn run(data: &[u8]) {
    if let Ok(tree) = Tree::from_vec(data.to_vec(), "hostile") {
        exercise(tree);
    }
    let mut bytes = data.to_vec();
    if reseal(&mut bytes)
        && let Ok(tree) = Tree::from_vec(bytes, "hostile")
    {
        exercise(tree);
    }
}

fn exercise(tree: Tree) {
    for error in walk(&tree).errors {
        assert!(error.to_string().contains("tree hostile"), "{error}");
    }
    let tree = Arc::new(tree);
    let (tree, other) = (&tree, &*OTHER);
    for layers in
        [vec![tree.clone()], vec![other.clone(), tree.clone(), other.clone()], vec![tree.clone(), tree.clone()]]
    {
        let mut out = tempfile::tempfile_in(super::store::memory()).expect("a file");
        match merge(&layers, &mut out) {
            Ok(_) => {
                let merged = Tree::open(&out, "merged").expect("what was merged can be opened");
                let found = walk(&merged);
                assert!(found.errors.is_empty(), "{:?}", found.errors);
            }
            Err(error) => assert!(error.to_string().contains("tree"), "{error}"),
        }
    }
}

/// Makes the length, the marks and the checksum right. False if there are no bytes for that.
fn reseal(bytes: &mut Vec<u8>) -> bool {
    if bytes.len() < BLOCK {
        return false;
    }
    bytes.truncate(bytes.len() / BLOCK * BLOCK);
    let blocks = (bytes.len() / BLOCK) as u32;
    let good = include_bytes!("../../layerdb/tests/golden/v1-upper.tree");
    let (inodes, xattr_block) = (SUPER + 16..SUPER + 24, SUPER + 44..SUPER + 48);
    for at in (0..SUPER + 128).filter(|at| !inodes.contains(at) && !xattr_block.contains(at)) {
        bytes[at] = good[at];
    }
    bytes[SUPER + 36..SUPER + 40].copy_from_slice(&blocks.to_le_bytes());
    bytes[SUPER + 4..SUPER + 8].fill(0);
    let sum = !crc32c::crc32c(&bytes[SUPER..BLOCK]);
    bytes[SUPER + 4..SUPER + 8].copy_from_slice(&sum.to_le_bytes());
    true
}
