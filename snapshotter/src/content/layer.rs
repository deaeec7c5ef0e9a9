//! A layer on its way into the content store: tar bytes in, a compressed blob out, both digests taken on the way.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::write::GzEncoder;
use mica_layerdb::{BlobDigest, DiffId, Digest, Hasher};
use zstd::stream::write::Encoder as ZstdEncoder;

use super::BlobWriter;

/// The label under which containerd finds the diff-id of a compressed layer.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Encoding {
    /// What a layer of this media type is compressed with. `None` for what is no layer, or none that Mica can make.
    pub fn of(media_type: &str) -> Option<Encoding> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                Some(Encoding::Plain)
            }
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Some(Encoding::Gzip)
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                Some(Encoding::Zstd)
            }
            _ => None,
        }
    }
}

/// A layer as the content store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the blob.
    pub digest: BlobDigest,
    /// Length of the blob.
    pub bytes: u64,
    /// Digest of the tar.
    pub diff_id: DiffId,
}

/// Takes the tar of a layer. Dropped without [`LayerWriter::finish`] it leaves nothing in the content store.
pub struct LayerWriter {
    tar: Hasher,
    encoder: Encoder,
}

enum Encoder {
    Plain(Measured),
    Gzip(GzEncoder<Measured>),
    Zstd(ZstdEncoder<'static, Measured>),
}

/// Counts and hashes what goes to the content store.
struct Measured {
    blob: BlobWriter,
    hasher: Hasher,
    bytes: u64,
}

impl std::fmt::Debug for LayerWriter {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("LayerWriter").field("tar", &self.tar).finish_non_exhaustive()
    }
}

impl LayerWriter {
    /// A layer that goes to `blob`.
    pub fn new(blob: BlobWriter, encoding: Encoding) -> io::Result<LayerWriter> {
        let measured = Measured { blob, hasher: Hasher::new(), bytes: 0 };
        let encoder = match encoding {
            Encoding::Plain => Encoder::Plain(measured),
            Encoding::Gzip => Encoder::Gzip(GzEncoder::new(measured, flate2::Compression::default())),
            Encoding::Zstd => Encoder::Zstd(ZstdEncoder::new(measured, zstd::DEFAULT_COMPRESSION_LEVEL)?),
        };
        Ok(LayerWriter { tar: Hasher::new(), encoder })
    }

    /// Ends the layer; it is in the content store then, with these labels and the one that names its diff-id.
    pub fn finish(self, mut labels: HashMap<String, String>) -> io::Result<LayerBlob> {
        let diff_id = DiffId(self.tar.finish());
        let compressed = !matches!(self.encoder, Encoder::Plain(_));
        let Measured { blob, hasher, bytes } = match self.encoder {
            Encoder::Plain(measured) => measured,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        if compressed {
            labels.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
        }
        let digest: Digest = hasher.finish();
        blob.commit(digest, bytes, labels)?;
        Ok(LayerBlob { digest: BlobDigest(digest), bytes, diff_id })
    }
}

impl Write for LayerWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = match &mut self.encoder {
            Encoder::Plain(measured) => measured.write(buffer),
            Encoder::Gzip(encoder) => encoder.write(buffer),
            Encoder::Zstd(encoder) => encoder.write(buffer),
        }?;
        self.tar.update(&buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Measured {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.blob.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_of_every_media_type_that_containerd_may_ask_for() {
        let oci = "application/vnd.oci.image.layer.v1.tar";
        let docker = "application/vnd.docker.image.rootfs.diff.tar";
        assert_eq!(Encoding::of(oci), Some(Encoding::Plain));
        assert_eq!(Encoding::of(docker), Some(Encoding::Plain));
        assert_eq!(Encoding::of(&format!("{oci}+gzip")), Some(Encoding::Gzip));
        assert_eq!(Encoding::of(&format!("{docker}.gzip")), Some(Encoding::Gzip));
        assert_eq!(Encoding::of(&format!("{oci}+zstd")), Some(Encoding::Zstd));
        assert_eq!(Encoding::of(&format!("{docker}.zstd")), Some(Encoding::Zstd));
        assert_eq!(Encoding::of(&format!("{oci}+gzip+encrypted")), None);
        assert_eq!(Encoding::of(""), None);
    }
}
