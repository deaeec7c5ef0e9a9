//! SHA-256 digests and the typed names made of them.
//!
//! The textual form is the one of the OCI image specification ("descriptor", section *Digests*):
//! `sha256:` and 64 lower-case hexadecimal digits.

mod hasher;
mod pair;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

pub use hasher::Hasher;

const PREFIX: &str = "sha256:";
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The SHA-256 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Takes a digest computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            text.push(char::from(HEX_DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(HEX_DIGITS[usize::from(byte & 15)]));
        }
        text
    }

    /// Reads `sha256:<64 lower-case hexadecimal digits>`.
    pub fn parse(text: &str) -> Result<Self> {
        text.strip_prefix(PREFIX)
            .and_then(|hex| Self::from_hex(hex.as_bytes()))
            .ok_or_else(|| Error::InvalidDigest { text: text.to_owned() })
    }

    /// Reads 64 lower-case hexadecimal digits; `None` when they are anything else.
    pub fn from_hex(hex: &[u8]) -> Option<Self> {
        let mut bytes = [0; 32];
        if hex.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self(bytes))
    }
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl $name {
            /// Reads `sha256:<64 lower-case hexadecimal digits>`.
            pub fn parse(text: &str) -> Result<Self> {
                Digest::parse(text).map(Self)
            }

            /// 64 lower-case hexadecimal digits.
            pub fn hex(&self) -> String {
                self.0.hex()
            }

            /// The 32 raw bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, out)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, out)
            }
        }
    };
}

digest_newtype! {
    /// Names the content of a regular file in the object store: the digest of its bytes.
    ObjectId
}
digest_newtype! {
    /// Names a layer: the digest of its uncompressed tar (OCI image-spec, *Layer DiffID*).
    DiffId
}
digest_newtype! {
    /// Names a stack of layers (OCI image-spec, *Layer ChainID*).
    ChainId
}
digest_newtype! {
    /// Names a blob as a registry stores it, that is a layer while it is still compressed.
    BlobDigest
}

impl ObjectId {
    /// Where the object lies below the object directory: `ab/cdef...`.
    pub fn relative_path(&self) -> String {
        let mut path = self.hex();
        path.insert(2, '/');
        path
    }
}

impl ChainId {
    /// The chain of `layers`, bottom first; `None` when there are none.
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        Self::prefixes(layers).last()
    }

    /// The chains of the first layer, of the first two, and so on.
    pub fn prefixes(layers: &[DiffId]) -> impl Iterator<Item = Self> + '_ {
        layers.iter().scan(None, |below: &mut Option<Self>, layer| {
            let chain = match below {
                None => Self(layer.0),
                Some(below) => Self(Digest::of(format!("{below} {layer}").as_bytes())),
            };
            *below = Some(chain);
            Some(chain)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing_is_the_published_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Hasher::new().finish(), Digest::of(b""));
    }

    #[test]
    fn hasher_fed_in_pieces_agrees_with_one_call() {
        let mut hasher = Hasher::new();
        hasher.update(b"ab");
        hasher.update(b"c");
        assert_eq!(hasher.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn parse_of_display_gives_the_same_digest() {
        assert_eq!(Digest::parse(EMPTY).unwrap(), Digest::of(b""));
        let json = serde_json::to_string(&ObjectId(Digest::of(b""))).unwrap();
        assert_eq!(json, format!("\"{EMPTY}\""));
        assert_eq!(serde_json::from_str::<ObjectId>(&json).unwrap().0, Digest::of(b""));
    }

    #[test]
    fn parse_of_anything_else_names_it() {
        for text in ["", "sha256:", "sha512:00", &EMPTY[7..], &EMPTY[..70], &EMPTY.to_uppercase(), &format!("{EMPTY}0")]
        {
            let error = Digest::parse(text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn relative_path_splits_after_the_first_byte() {
        let path = ObjectId(Digest::of(b"")).relative_path();
        assert_eq!(path, "e3/b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn chain_of_one_layer_is_that_layer_and_of_two_hashes_both() {
        let layers = [DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b"))];
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&layers[..1]), Some(ChainId(layers[0].0)));
        let text = format!("{} {}", layers[0], layers[1]);
        assert_eq!(ChainId::of(&layers), Some(ChainId(Digest::of(text.as_bytes()))));
    }
}
