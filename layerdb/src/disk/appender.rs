//! A file as a stream of bytes that pass the disk.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use super::Disk;

/// Appends to a file through a [`Disk`]; or, made from a plain [`File`], without one.
pub struct Appender {
    disk: Option<Arc<dyn Disk>>,
    file: File,
}

impl Appender {
    /// Appends to a file that the disk made.
    pub fn new(disk: Arc<dyn Disk>, file: File) -> Appender {
        Appender { disk: Some(disk), file }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, without the disk.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl From<File> for Appender {
    fn from(file: File) -> Appender {
        Appender { disk: None, file }
    }
}

impl fmt::Debug for Appender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Appender").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.disk {
            Some(disk) => disk.write(&self.file, bytes).map(|()| bytes.len()),
            None => self.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
