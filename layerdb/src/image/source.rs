//! The files of an image that is imported: in a directory, or in a tar that is never unpacked.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::archive::Archive;
use crate::error::{Error, Result};
use crate::limits::{Limits, over, shortened, undecodable};
use crate::store::Store;

/// A place with files.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    place: Place,
    limits: Limits,
    /// Documents read so far, and their bytes.
    documents: AtomicU64,
    documents_bytes: AtomicU64,
}

#[derive(Debug)]
enum Place {
    Directory(OwnedFd),
    Archive(Archive),
}

/// A file in a source.
pub(super) struct Blob {
    pub(super) reader: Box<dyn Read + Send>,
    pub(super) bytes: u64,
}

impl Source {
    /// Opens a directory, or a tar, which may be compressed.
    pub(super) fn open(store: &Store, path: &Path) -> Result<Source> {
        let limits = store.options().limits.clone();
        let action = || format!("open {}", path.display());
        let opened = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io(action())(error.into()))?;
        let stat = rustix::fs::fstat(&opened).map_err(|error| Error::io(action())(error.into()))?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let place = if kind.is_dir() {
            Place::Directory(opened)
        } else {
            let file = plain(store, File::from(opened), path)?;
            Place::Archive(Archive::index(file, &limits).map_err(|error| error.at(path))?)
        };
        let (documents, documents_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Source { path: path.to_path_buf(), place, limits, documents, documents_bytes })
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.place, Place::Directory(_))
    }

    pub(super) fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadImage { path: self.path.clone(), reason: reason.into() }
    }

    /// Opens a file by its name in the source. `None` if there is none.
    pub(super) fn blob(&self, name: &str) -> Result<Option<Blob>> {
        match &self.place {
            Place::Directory(directory) => self.file(directory, name),
            Place::Archive(archive) => {
                Ok(archive.find(name).map(|slice| Blob { bytes: slice.len(), reader: Box::new(slice) }))
            }
        }
    }

    fn file(&self, directory: &OwnedFd, name: &str) -> Result<Option<Blob>> {
        let action = || format!("open {}", self.path.join(name).display());
        // Links within the layout are the user's; one out of it would import somebody else's file.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat2(directory, name, flags, Mode::empty(), ResolveFlags::BENEATH) {
            Ok(file) => {
                let file = File::from(file);
                let metadata = file.metadata().map_err(Error::io(action()))?;
                if !metadata.is_file() {
                    return Err(self.bad(format!("{name} is not a regular file")));
                }
                Ok(Some(Blob { bytes: metadata.len(), reader: Box::new(file) }))
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Error::io(action())(error.into())),
        }
    }

    /// Reads a small file. `None` if there is none.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.blob(name)? else { return Ok(None) };
        let limits = &self.limits;
        let refused = |limit: String| self.bad(format!("{} has {} bytes: {limit}", shortened(name.into()), blob.bytes));
        if blob.bytes > limits.document_bytes {
            return Err(refused(over("document_bytes", limits.document_bytes, "bytes of a document")));
        }
        // What they say is kept: a few documents that name each other a million times must not be read as often.
        if self.documents.fetch_add(1, Ordering::Relaxed) >= limits.documents {
            return Err(refused(over("documents", limits.documents, "documents")));
        }
        if self.documents_bytes.fetch_add(blob.bytes, Ordering::Relaxed) + blob.bytes > limits.documents_bytes {
            return Err(refused(over("documents_bytes", limits.documents_bytes, "bytes of all documents")));
        }
        let mut bytes = Vec::new();
        let mut reader = blob.reader.take(limits.document_bytes);
        reader.read_to_end(&mut bytes).map_err(Error::io(format!("read {name} in {}", self.path.display())))?;
        Ok(Some(bytes))
    }
}

impl Source {
    /// Refuses an image of too many layers.
    pub(super) fn require_layers(&self, count: usize) -> Result<()> {
        if count as u64 > self.limits.layers {
            return Err(
                self.bad(format!("an image has {count} layers, {}", over("layers", self.limits.layers, "layers")))
            );
        }
        Ok(())
    }
}

/// The file itself, or what it decompresses to in an unnamed file: a tar is read at any offset.
fn plain(store: &Store, mut file: File, path: &Path) -> Result<File> {
    let action = || format!("read {}", path.display());
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic).map_err(Error::io(action()))?;
    file.seek(SeekFrom::Start(0)).map_err(Error::io(action()))?;
    let limits = &store.options().limits;
    let packed_bytes = file.metadata().map_err(Error::io(action()))?.len();
    let (format, mut decoder): (&str, Box<dyn Read>) = match magic.as_slice() {
        [0x1f, 0x8b, ..] => ("gzip", Box::new(flate2::read::MultiGzDecoder::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::new(file).map_err(Error::io(action()))?;
            decoder.window_log_max(limits.zstd_window_log).map_err(Error::io(action()))?;
            ("zstd", Box::new(decoder))
        }
        _ => return Ok(file),
    };
    let bad = |reason: String| Error::BadImage { path: path.to_path_buf(), reason };
    let mut plain = store.appender(store.scratch()?);
    let mut buffer = vec![0; 256 << 10];
    let mut written = 0;
    loop {
        let some = match decoder.read(&mut buffer) {
            Ok(0) => return Ok(plain.into_file()),
            Ok(some) => some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The system's errors have numbers, the decoder's have none.
            Err(error) if error.raw_os_error().is_none() => {
                return Err(bad(format!("it can't be decompressed: {}", undecodable(format, &error, limits))));
            }
            Err(error) => return Err(Error::io(action())(error)),
        };
        written += some as u64;
        limits.check_expansion(packed_bytes, written).map_err(bad)?;
        plain.write_all(&buffer[..some]).map_err(Error::io(format!("decompress {}", path.display())))?;
    }
}

/// A part of a file, read from its own position.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Slice {
    pub(super) fn new(file: &Arc<File>, at: u64, bytes: u64) -> Slice {
        Slice { file: Arc::clone(file), at, end: at + bytes }
    }

    fn len(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (buffer.len() as u64).min(self.len()) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}
