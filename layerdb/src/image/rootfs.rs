//! Plain files as an image: one layer, and a configuration made for it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rustix::fs::{CWD, Mode, OFlags};

use super::config::{Document, Step, rfc3339};
use super::folder::write_folder;
use super::import::{Candidate, Wanted};
use super::oci::{Config, RootFs};
use super::{Image, ImportOptions, Platform, Reference};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::ingest::{Compression, IngestOptions, Progress, unix_seconds};
use crate::layer::Layer;
use crate::store::{Hold, Store};

/// Bytes gathered before they go through the pipe.
const GATHERED_BYTES: usize = 256 << 10;

/// Files that are no image yet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Files {
    /// A tar, compressed or not.
    Tar,
    /// A directory.
    Folder,
}

impl Store {
    pub(super) fn import_files(
        self: &Arc<Store>,
        path: &Path,
        files: Files,
        options: &ImportOptions,
        platform: Option<Platform>,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let bad = |reason: &str| Error::BadImage { path: path.to_path_buf(), reason: reason.into() };
        let Some(name) = &options.name else {
            let what = match files {
                Files::Tar => "it is no image but a tar of files",
                Files::Folder => "it is no image layout but a directory of files",
            };
            return Err(bad(&format!("{what}, which has no name of its own: give it one with --name")));
        };
        let name = Reference::new_name(name)?;
        let platform = platform.unwrap_or_else(Platform::host);
        let mut document = Document::new(&platform.os, &platform.architecture, platform.variant.as_deref());
        // Whatever is wrong with the changes is said before any work.
        document.apply(&options.changes)?;
        let (layer, hold) = match files {
            Files::Tar => self.ingest_tar(path, progress)?,
            Files::Folder => self.ingest_folder(path, progress)?,
        };
        let created = rfc3339(unix_seconds());
        document.set_created(&created, None);
        document.set_layers(&[layer.diff_id]);
        document.add_step(&Step {
            created: &created,
            created_by: &format!("mica image import {}", path.file_name().unwrap_or(path.as_os_str()).display()),
            author: None,
            comment: options.message.as_deref(),
            empty_layer: false,
        });
        let config = document.bytes();
        let candidate = Candidate {
            names: vec![name.clone()],
            manifest: None,
            config: (Digest::of(&config), config),
            parsed: Config {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant,
                created: Some(created),
                rootfs: RootFs { diff_ids: vec![layer.diff_id] },
            },
            layers: Vec::new(),
        };
        let mut images = self.name_images(vec![candidate], &[(layer, hold)])?;
        images.pop().ok_or(Error::NoImage { name })
    }

    fn ingest_tar(self: &Arc<Store>, path: &Path, progress: &dyn Progress) -> Result<(Layer, Hold)> {
        let action = || format!("open {}", path.display());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(CWD, path, flags, Mode::empty());
        let file = File::from(file.map_err(|errno| Error::io(action())(errno.into()))?);
        let data = file.metadata().map_err(Error::io(action()))?;
        if !data.is_file() || data.len() == 0 {
            let reason = if data.is_file() { "it is empty" } else { "it is no regular file" };
            return Err(Error::BadImage { path: path.to_path_buf(), reason: reason.into() });
        }
        let name = path.display().to_string();
        progress.begin(&name, Some(data.len()));
        let options = IngestOptions { name, ..IngestOptions::default() };
        self.ingest_held(&mut Wanted { reader: file, progress }, &options, progress)
    }

    /// One thread tells the directory as a tar, this one takes it in.
    fn ingest_folder(self: &Arc<Store>, path: &Path, progress: &dyn Progress) -> Result<(Layer, Hold)> {
        let (reader, writer) = io::pipe().map_err(Error::io("make a pipe"))?;
        let name = path.display().to_string();
        progress.begin(&name, None);
        let options = IngestOptions { compression: Compression::None, name, ..IngestOptions::default() };
        thread::scope(|scope| {
            let told = Arc::new(parking_lot::Mutex::new(None));
            let telling = Arc::clone(&told);
            let writing = scope.spawn(move || {
                let mut out = BufWriter::with_capacity(GATHERED_BYTES, writer);
                let result = write_folder(path, &mut out)
                    .and_then(|told| out.flush().map(|()| told).map_err(Error::io("write into a pipe")));
                let failed = result.err();
                let ended = failed.is_none();
                *telling.lock() = failed;
                // The reader learns of the end after it can learn of the failure.
                drop(out.into_parts());
                ended
            });
            let mut input = Wanted { reader: Piped { reader, told: Arc::clone(&told) }, progress };
            let ingested = self.ingest_held(&mut input, &options, progress);
            // A reader that gave up must be gone, or the writer waits for room in the pipe for ever.
            drop(input);
            let ended = writing.join().unwrap_or(false);
            match (ingested, told.lock().take()) {
                // The writer's own failure says more than the reader's, unless it only found the reader gone.
                (Err(reading), Some(writing)) => Err(if is_broken_pipe(&writing) { reading } else { writing }),
                (Ok(_), Some(writing)) => Err(writing),
                (ingested, None) if ended => ingested,
                (_, None) => Err(Error::io(format!("read {}", path.display()))(io::ErrorKind::Other.into())),
            }
        })
    }
}

/// The reading end. A writer that failed is an error, not an end.
struct Piped {
    reader: io::PipeReader,
    told: Arc<parking_lot::Mutex<Option<Error>>>,
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        if read == 0 && self.told.lock().is_some() {
            return Err(io::Error::other("the directory could not be read"));
        }
        Ok(read)
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}
