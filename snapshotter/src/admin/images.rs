//! What is asked of images.

use std::io::Write;
use std::path::Path;

use mica_layerdb::image::{Commit, ExportOptions, Exported};
use mica_layerdb::{ChainId, Image, ImportOptions, Progress};

use super::{Admin, CommitOptions};
use crate::error::{Error, Result};

impl Admin {
    pub(super) fn import_image(
        &self,
        source: &Path,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        if !source.is_absolute() {
            let reason = "the path of an image must be absolute".to_owned();
            return Err(Error::Invalid { what: source.display().to_string(), reason });
        }
        Ok(self.store.import_with(source, options, progress)?)
    }

    pub(super) fn export_image(
        &self,
        reference: &str,
        options: ExportOptions,
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<Exported> {
        Ok(self.store.export_image(&self.image(reference)?, &options, out, progress)?)
    }

    pub(super) fn tag_image(&self, reference: &str, name: &str) -> Result<Image> {
        Ok(self.store.tag_image(&self.image(reference)?, name)?)
    }

    pub(super) fn commit_snapshot(&self, key: &str, options: CommitOptions) -> Result<Image> {
        // Whatever is wrong with the request is said before any work.
        mica_layerdb::image::Reference::new_name(&options.name)?;
        let now = self.now(key)?;
        let CommitOptions { name, base, author, message, changes } = options;
        let below = now.layers.len() - now.written;
        let created_by = format!("mica snapshot commit {key}");
        let layers = now.layers.clone();
        // containerd calls the snapshot of an image's layer by the chain of layers that it ends: `NAMESPACE/7/sha256:...`.
        let chain = |name: &String| ChainId::parse(name.rsplit('/').next()?).ok();
        let chains = now.ancestors.iter().filter_map(chain).collect();
        Ok(self.store.commit_image(&Commit {
            name,
            layers,
            below,
            chains,
            base,
            author,
            message,
            created_by,
            changes,
        })?)
    }

    pub(super) fn image(&self, reference: &str) -> Result<Image> {
        let image = self.store.image(reference)?;
        image.ok_or_else(|| Error::Store(mica_layerdb::Error::NoImage { name: reference.to_owned() }))
    }
}
