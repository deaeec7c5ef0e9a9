//! Layers and images made by hand: good ones, and those that a careless or hostile author would make.

mod layer;
mod layout;

pub use layer::{Layer, Tar};
pub use layout::Layout;

use sha2::{Digest as _, Sha256};

/// `sha256:...` of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
