//! What is asked of images.

use std::path::PathBuf;

use mica_layerdb::{Image, ImportSource, Progress};

use super::Admin;
use crate::error::{Error, Result};

impl Admin {
    pub(super) fn import_image(
        &self,
        source: PathBuf,
        name: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        if !source.is_absolute() {
            let reason = "the path of an image must be absolute".to_owned();
            return Err(Error::Invalid { what: source.display().to_string(), reason });
        }
        Ok(self.store.import(&ImportSource::Detect(source), name, progress)?)
    }

    pub(super) fn image(&self, reference: &str) -> Result<Image> {
        let image = self.store.image(reference)?;
        image.ok_or_else(|| Error::Store(mica_layerdb::Error::NoImage { name: reference.to_owned() }))
    }
}
