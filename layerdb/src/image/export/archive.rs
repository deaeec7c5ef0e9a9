//! The tar that an image is written into.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek as _, Write};
use std::sync::Arc;

use super::encode::{Encoder, Encoding};
use crate::digest::{DiffId, Digest};
use crate::error::{Error, Result};
use crate::image::oci;
use crate::ingest::Progress;
use crate::store::Store;
use crate::tar::{Head, Kind, Writer};
use crate::tree::FileKind;

/// Bytes that are copied at once.
const PIECE: usize = 256 << 10;

/// An archive being written. Its bytes depend on the image alone: entries have no times and no owners.
pub(super) struct Archive<'a> {
    store: &'a Arc<Store>,
    tar: Writer<'a>,
    progress: &'a dyn Progress,
    layers: HashMap<(DiffId, Encoding), Blob>,
}

/// A blob as it was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
}

fn writing(error: io::Error) -> Error {
    Error::io("write an archive")(error)
}

fn entry(path: &str, kind: FileKind, mode: u32, size: u64) -> Head<'_> {
    Head { kind: Kind::Inode(kind), mode, size, ..Head::mark(path.as_bytes()) }
}

impl<'a> Archive<'a> {
    pub(super) fn new(store: &'a Arc<Store>, out: &'a mut dyn Write, progress: &'a dyn Progress) -> Archive<'a> {
        Archive { store, tar: Writer::new(out), progress, layers: HashMap::new() }
    }

    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        self.tar.head(&entry(path, FileKind::Directory, 0o755, 0)).map_err(writing)
    }

    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let head = entry(path, FileKind::Regular, 0o644, bytes.len() as u64);
        let written = self.tar.head(&head).and_then(|()| self.tar.write(bytes));
        written.and_then(|()| self.tar.pad(bytes.len() as u64)).map_err(writing)
    }

    pub(super) fn blob(&mut self, digest: Digest, bytes: &[u8]) -> Result<()> {
        self.file(&oci::blob_path(digest), bytes)
    }

    /// A layer's blob, once however often the image has it; under its digest unless it is given a path.
    pub(super) fn layer(&mut self, diff_id: DiffId, encoding: Encoding, path: Option<&str>) -> Result<Blob> {
        if let Some(blob) = self.layers.get(&(diff_id, encoding)) {
            return Ok(*blob);
        }
        let layer = self.store.layer(diff_id)?.ok_or(Error::NoLayer { diff_id })?;
        let name = diff_id.to_string();
        self.progress.begin(&name, Some(layer.tar_bytes));
        let blob = match encoding {
            Encoding::Plain => self.plain(diff_id, layer.tar_bytes, path)?,
            _ => self.compressed(diff_id, encoding, path)?,
        };
        self.progress.end(&name, false);
        self.layers.insert((diff_id, encoding), blob);
        Ok(blob)
    }

    fn plain(&mut self, diff_id: DiffId, bytes: u64, path: Option<&str>) -> Result<Blob> {
        let own = oci::blob_path(diff_id.0);
        self.tar.head(&entry(path.unwrap_or(&own), FileKind::Regular, 0o644, bytes)).map_err(writing)?;
        let name = diff_id.to_string();
        let mut into = Into { tar: &mut self.tar, name: &name, progress: self.progress };
        let written = self.store.export_layer(diff_id, &mut into)?;
        if written != bytes {
            let reason = format!("its layer {diff_id} has {written} bytes instead of {bytes}");
            return Err(Error::BadExport { name, reason });
        }
        self.tar.pad(bytes).map_err(writing)?;
        Ok(Blob { digest: diff_id.0, bytes })
    }

    /// A tar's headers come first, so that the blob has to be known before it is written: it lies in an unnamed file.
    fn compressed(&mut self, diff_id: DiffId, encoding: Encoding, path: Option<&str>) -> Result<Blob> {
        let action = || format!("compress layer {diff_id}");
        let spool = self.store.scratch()?;
        let buffered = BufWriter::with_capacity(PIECE, &spool);
        let encoder = Encoder::new(encoding, buffered).map_err(Error::io(action()))?;
        let Some(mut encoder) = encoder else { return Err(Error::io(action())(io::ErrorKind::InvalidInput.into())) };
        let name = diff_id.to_string();
        let mut told = Told { out: &mut encoder, name: &name, progress: self.progress };
        self.store.export_layer(diff_id, &mut told)?;
        let (digest, bytes) = encoder.finish().map_err(Error::io(action()))?;
        (&spool).rewind().map_err(Error::io(action()))?;
        let own = oci::blob_path(digest);
        self.tar.head(&entry(path.unwrap_or(&own), FileKind::Regular, 0o644, bytes)).map_err(writing)?;
        self.copy(&spool, bytes)?;
        self.tar.pad(bytes).map_err(writing)?;
        Ok(Blob { digest, bytes })
    }

    fn copy(&mut self, mut from: &File, bytes: u64) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        let mut left = bytes;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            from.read_exact(&mut buffer[..wanted]).map_err(Error::io("read a compressed layer"))?;
            self.tar.write(&buffer[..wanted]).map_err(writing)?;
            left -= wanted as u64;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<u64> {
        self.tar.finish().map_err(writing)
    }
}

/// The contents of an entry.
struct Into<'w, 'a> {
    tar: &'w mut Writer<'a>,
    name: &'w str,
    progress: &'w dyn Progress,
}

impl Write for Into<'_, '_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.tar.write(buffer)?;
        self.progress.read(self.name, buffer.len() as u64);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A layer's tar on its way to a compressor.
struct Told<'w, W> {
    out: &'w mut W,
    name: &'w str,
    progress: &'w dyn Progress,
}

impl<W: Write> Write for Told<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.progress.read(self.name, written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
