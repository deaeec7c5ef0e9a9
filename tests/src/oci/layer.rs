//! One layer: a tar, packed, and what an image says of it.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

use super::digest_of;
use crate::failure::Result;

/// A tar whose entries may have any name, `../x` too.
#[derive(Debug, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// An empty one.
    pub fn new() -> Tar {
        Tar::default()
    }

    /// Adds a directory.
    #[must_use]
    pub fn directory(self, name: &str) -> Tar {
        self.entry(EntryType::Directory, name, "", &[])
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, name: &str, contents: &[u8]) -> Tar {
        self.entry(EntryType::Regular, name, "", contents)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Tar {
        self.entry(EntryType::Symlink, name, target, &[])
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Tar {
        self.entry(EntryType::Link, name, target, &[])
    }

    /// The finished tar.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    fn entry(mut self, kind: EntryType, name: &str, target: &str, contents: &[u8]) -> Tar {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(contents.len() as u64);
        // Not by the crate's setters: they refuse the names that tests are about.
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }
}

/// A packed layer and what is claimed of it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The bytes as stored.
    pub blob: Vec<u8>,
    /// How they are packed.
    pub media_type: &'static str,
    /// The digest by which a manifest names them.
    pub digest: String,
    /// The digest of the unpacked tar by which a configuration names them.
    pub diff_id: String,
}

impl Layer {
    /// A layer packed with gzip, and honest.
    pub fn gzip(tar: &[u8]) -> Result<Layer> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(tar)?;
        let blob = encoder.finish()?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Ok(Layer { digest: digest_of(&blob), diff_id: digest_of(tar), blob, media_type })
    }

    /// A layer packed with zstd, and honest.
    pub fn zstd(tar: &[u8]) -> Result<Layer> {
        let blob = zstd::stream::encode_all(tar, 3)?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        Ok(Layer { digest: digest_of(&blob), diff_id: digest_of(tar), blob, media_type })
    }

    /// A layer of bytes that are packed with gzip already.
    pub fn of_gzip(blob: Vec<u8>) -> Result<Layer> {
        let mut tar = Vec::new();
        GzDecoder::new(blob.as_slice()).read_to_end(&mut tar)?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Ok(Layer { digest: digest_of(&blob), diff_id: digest_of(&tar), blob, media_type })
    }

    /// The same, cut in half; the digest is that of what is left.
    #[must_use]
    pub fn truncated(mut self) -> Layer {
        self.blob.truncate(self.blob.len() / 2);
        self.digest = digest_of(&self.blob);
        self
    }

    /// The same with one byte changed in the middle and the digest of before.
    #[must_use]
    pub fn corrupted(mut self) -> Layer {
        let middle = self.blob.len() / 2;
        self.blob[middle] ^= 0xff;
        self
    }

    /// The same, said to be the layer of another tar.
    #[must_use]
    pub fn with_wrong_diff_id(mut self) -> Layer {
        self.diff_id = digest_of(b"some other tar");
        self
    }
}
