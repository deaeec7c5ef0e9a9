//! Images: names for stacks of layers, and where they come from.

mod archive;
mod commit;
mod config;
mod docker;
mod export;
mod folder;
mod history;
mod import;
mod oci;
mod platform;
mod reference;
mod rootfs;
mod source;

use std::path::PathBuf;

pub(crate) use oci::Config;

use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, Digest, ObjectId};
use crate::error::{Error, Result};
use crate::store::{Batch, Family, Store};
pub use commit::Commit;
pub use config::rfc3339;
pub use export::{BlobState, Encoding, ExportForm, ExportOptions, Exported, ExportedLayer};
pub use history::HistoryStep;
pub use import::{ImportFormat, ImportOptions};
pub use platform::Platform;
pub use reference::Reference;

/// Fewest digits that stand for a digest.
const DIGITS_MIN: usize = 4;

/// An image in the store. Its manifest and configuration are kept as objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What the user calls it.
    pub name: String,
    /// Digest of its manifest (OCI image-spec, "Image Manifest"). One that came without a manifest, from
    /// `docker save`, has been given one.
    pub manifest: Digest,
    /// Digest of its configuration (OCI image-spec, "Image Configuration").
    pub config: Digest,
    /// Its layers, bottom first.
    pub layers: Vec<DiffId>,
    /// Operating system, as the configuration has it.
    pub os: String,
    /// Processor architecture in Go's words, as the configuration has it.
    pub architecture: String,
    /// When it was made, as the configuration has it (RFC 3339).
    pub created: Option<String>,
    /// When it was imported, in seconds since the epoch.
    pub imported: u64,
}

impl Image {
    /// The objects it needs beside those of its layers.
    pub(crate) fn objects(&self) -> [ObjectId; 2] {
        [ObjectId(self.manifest), ObjectId(self.config)]
    }
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportSource {
    /// A directory that is an OCI image layout.
    OciDir(PathBuf),
    /// A tar of an OCI image layout.
    OciTar(PathBuf),
    /// What `docker save` writes.
    DockerTar(PathBuf),
    /// Whatever of these it is.
    Detect(PathBuf),
}

impl Store {
    /// The image that a user means: the one of just this name; or of this name with the tag `latest`; or of a name that
    /// is the same in full (see [`Reference`]), with the manifest `NAME@DIGEST` asks for; or with this manifest or
    /// configuration digest, or the only one whose digests begin with these four or more digits. `None` if there
    /// is none.
    pub fn image(&self, name: &str) -> Result<Option<Image>> {
        if let Some(image) = self.image_named(name)? {
            return Ok(Some(image));
        }
        let last = name.rsplit('/').next().unwrap_or(name);
        if !last.contains([':', '@'])
            && let Some(image) = self.image_named(&format!("{name}:latest"))?
        {
            return Ok(Some(image));
        }
        if let Some(image) = self.image_by_full_name(name)? {
            return Ok(Some(image));
        }
        self.image_by_digest(name)
    }

    fn image_by_full_name(&self, name: &str) -> Result<Option<Image>> {
        let Ok(wanted) = Reference::parse(name) else { return Ok(None) };
        let means = |image: &Image| match (Reference::parse(&image.name), wanted.digest) {
            (Err(_), _) => false,
            (Ok(known), None) => known.full_name() == wanted.full_name(),
            (Ok(known), Some(digest)) => {
                image.manifest == digest
                    && known.full_repository() == wanted.full_repository()
                    && (wanted.tag.is_none() || known.tag == wanted.tag)
            }
        };
        let mut found: Vec<Image> = self.images()?.into_iter().filter(means).collect();
        if found.iter().any(|image| image.manifest != found[0].manifest) {
            let matches = found.into_iter().map(|image| image.name).collect();
            return Err(Error::Ambiguous { name: name.into(), matches });
        }
        Ok(if found.is_empty() { None } else { Some(found.swap_remove(0)) })
    }

    fn image_named(&self, name: &str) -> Result<Option<Image>> {
        self.db().get_json(Family::Images, name.as_bytes())
    }

    fn image_by_digest(&self, text: &str) -> Result<Option<Image>> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < DIGITS_MIN || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let matches =
            |image: &Image| [image.manifest, image.config].iter().any(|digest| digest.hex().starts_with(digits));
        let mut found: Vec<Image> = self.images()?.into_iter().filter(matches).collect();
        if found.iter().any(|image| image.manifest != found[0].manifest) {
            let matches = found.into_iter().map(|image| image.name).collect();
            return Err(Error::Ambiguous { name: text.into(), matches });
        }
        Ok(if found.is_empty() { None } else { Some(found.swap_remove(0)) })
    }

    /// All images, by name.
    pub fn images(&self) -> Result<Vec<Image>> {
        Ok(self.db().scan_json(Family::Images, b"")?.into_iter().map(|(_, image)| image).collect())
    }

    /// Takes an image's name away and returns what it named; [`Store::gc`] frees what nothing else needs.
    /// [`Error::NoImage`] if there is none.
    pub fn remove_image(&self, name: &str) -> Result<Image> {
        let image = self.image(name)?.ok_or_else(|| Error::NoImage { name: name.into() })?;
        let mut batch = Batch::new();
        batch.delete(Family::Images, image.name.as_bytes());
        self.db().commit(batch)?;
        Ok(image)
    }

    /// Gives an image one more name; an image that had the name loses it.
    pub fn tag_image(&self, image: &Image, name: &str) -> Result<Image> {
        self.require_writable()?;
        let hold = self.hold(&image.layers)?;
        for id in image.objects() {
            hold.object(id, || self.object(id))?.ok_or(Error::NoObject { id })?;
        }
        let image = Image { name: Reference::new_name(name)?, ..image.clone() };
        let mut batch = Batch::new();
        batch.put_json(Family::Images, image.name.as_bytes(), &image)?;
        self.db().commit(batch)?;
        Ok(image)
    }

    /// An object that must be there.
    pub fn open_object(&self, id: ObjectId) -> Result<std::fs::File> {
        self.object(id)?.ok_or(Error::NoObject { id })
    }

    /// The image's configuration, as it came.
    pub fn image_config(&self, image: &Image) -> Result<Vec<u8>> {
        self.document(image.config)
    }

    /// The image's manifest, as it came.
    pub fn image_manifest(&self, image: &Image) -> Result<Vec<u8>> {
        self.document(image.manifest)
    }

    fn document(&self, digest: Digest) -> Result<Vec<u8>> {
        use std::io::Read as _;
        let id = ObjectId(digest);
        let mut file = self.object(id)?.ok_or(Error::NoObject { id })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io(format!("read object {id}")))?;
        let actual = Digest::of(&bytes);
        if actual != digest {
            return Err(Error::DigestMismatch { what: format!("object {id}"), expected: digest, actual });
        }
        Ok(bytes)
    }
}
