//! How blobs are compressed: by fixed settings, so that the same tar becomes the same blob.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use zstd::stream::write::Encoder as ZstdEncoder;

use crate::digest::{Digest, Hasher};

const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Not at all.
    #[serde(rename = "none")]
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Encoding {
    /// What the blob of a layer of this media type is compressed with.
    pub(super) fn of(media_type: &str) -> Encoding {
        if media_type.ends_with("gzip") {
            Encoding::Gzip
        } else if media_type.ends_with("zstd") {
            Encoding::Zstd
        } else {
            Encoding::Plain
        }
    }

    /// The media type of such a layer (OCI image-spec, "Image Layer Filesystem Changeset").
    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Encoding::Plain => "application/vnd.oci.image.layer.v1.tar",
            Encoding::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Encoding::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Compresses what is written to it, and takes the digest of what comes out.
pub(super) enum Encoder<W: Write> {
    Gzip(GzEncoder<Measured<W>>),
    Zstd(ZstdEncoder<'static, Measured<W>>),
}

impl<W: Write> Encoder<W> {
    /// `None` for what is not compressed.
    pub(super) fn new(encoding: Encoding, out: W) -> io::Result<Option<Encoder<W>>> {
        let measured = Measured { out, hasher: Hasher::new(), bytes: 0 };
        Ok(match encoding {
            Encoding::Plain => None,
            Encoding::Gzip => Some(Encoder::Gzip(GzEncoder::new(measured, flate2::Compression::new(GZIP_LEVEL)))),
            Encoding::Zstd => Some(Encoder::Zstd(ZstdEncoder::new(measured, ZSTD_LEVEL)?)),
        })
    }

    /// Ends the blob; returns its digest and length.
    pub(super) fn finish(self) -> io::Result<(Digest, u64)> {
        let Measured { mut out, hasher, bytes } = match self {
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        out.flush()?;
        Ok((hasher.finish(), bytes))
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::Gzip(encoder) => encoder.write(buffer),
            Encoder::Zstd(encoder) => encoder.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) struct Measured<W> {
    out: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn blob_of_one_tar_is_the_same_however_it_is_written() {
        let tar: Vec<u8> = (0..300_000_u32).map(|at| (at / 11) as u8).collect();
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let blob = |pieces: usize| {
                let mut out = Vec::new();
                let mut encoder = Encoder::new(encoding, &mut out).unwrap().unwrap();
                for piece in tar.chunks(pieces) {
                    encoder.write_all(piece).unwrap();
                }
                let (digest, bytes) = encoder.finish().unwrap();
                assert_eq!((digest, bytes), (Digest::of(&out), out.len() as u64));
                out
            };
            assert!(blob(1000) == blob(1000) && !blob(1000).is_empty());
        }
        assert!(Encoder::new(Encoding::Plain, Vec::new()).unwrap().is_none());
    }
}
