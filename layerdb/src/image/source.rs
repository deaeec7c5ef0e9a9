//! The files of an image that is imported: in a directory, or in a tar that is never unpacked.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::archive::Archive;
use crate::error::{Error, Result};
use crate::store::Store;

/// Longest manifest, index or configuration.
const DOCUMENT_MAX: u64 = 8 << 20;

/// A place with files.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    place: Place,
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
        let action = || format!("open {}", path.display());
        let opened = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io(action())(error.into()))?;
        let stat = rustix::fs::fstat(&opened).map_err(|error| Error::io(action())(error.into()))?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let place = if kind.is_dir() {
            Place::Directory(opened)
        } else {
            let file = plain(store, File::from(opened), path)?;
            Place::Archive(Archive::index(file).map_err(|error| error.at(path))?)
        };
        Ok(Source { path: path.to_path_buf(), place })
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
        if blob.bytes > DOCUMENT_MAX {
            return Err(self.bad(format!("{name} has {} bytes, over {DOCUMENT_MAX}", blob.bytes)));
        }
        let mut bytes = Vec::new();
        let mut reader = blob.reader.take(DOCUMENT_MAX);
        reader.read_to_end(&mut bytes).map_err(Error::io(format!("read {name} in {}", self.path.display())))?;
        Ok(Some(bytes))
    }
}

/// The file itself, or what it decompresses to in an unnamed file: a tar is read at any offset.
fn plain(store: &Store, mut file: File, path: &Path) -> Result<File> {
    let action = || format!("read {}", path.display());
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(Error::io(action()))?;
    file.seek(SeekFrom::Start(0)).map_err(Error::io(action()))?;
    let mut decoder: Box<dyn Read> = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(file).map_err(Error::io(action()))?),
        _ => return Ok(file),
    };
    let mut plain = store.appender(store.scratch()?);
    io::copy(&mut decoder, &mut plain).map_err(Error::io(format!("decompress {}", path.display())))?;
    Ok(plain.into_file())
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
