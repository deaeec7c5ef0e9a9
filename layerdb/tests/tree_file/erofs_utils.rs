//! erofs-utils as the oracle.

use std::process::Command;

use crate::sample::{self, everything};

/// What `fsck.erofs` says of a tree, and whether it is content; `None` (with the reason printed) only where it
/// is not installed.
#[allow(clippy::print_stderr)]
fn fsck(bytes: &[u8]) -> Option<(bool, String)> {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("tree");
    std::fs::write(&image, bytes).unwrap();
    match Command::new("fsck.erofs").arg("--extract").arg(&image).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat().escape_ascii().to_string();
            // Not every complaint shows in the exit status.
            Some((output.status.success() && !text.contains("<E>"), text))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: fsck.erofs (erofs-utils) is not installed");
            None
        }
        Err(error) => panic!("fsck.erofs: {error}"),
    }
}

pub fn assert_sound(bytes: &[u8]) {
    if let Some((content, text)) = fsck(bytes) {
        assert!(content, "fsck.erofs: {text}");
    }
}

#[test]
fn fsck_of_a_tree_with_everything_finds_nothing() {
    assert_sound(&sample::bytes_of(&everything()));
}

#[test]
fn fsck_of_an_empty_tree_finds_nothing() {
    assert_sound(&sample::bytes_of(&[]));
}

#[test]
fn fsck_of_a_damaged_first_block_complains() {
    let mut bytes = sample::bytes_of(&[]);
    bytes[2000] ^= 1;
    if let Some((content, text)) = fsck(&bytes) {
        assert!(!content, "the oracle does not check the checksum: {text}");
    }
}
