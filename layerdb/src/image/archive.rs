//! The index of a tar whose entries are read where they lie.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::source::Slice;
use crate::error::Error;
use crate::ingest::header::Header;
use crate::ingest::pax::Extensions;
use crate::limits::{Limits, over, shortened};

const BLOCK: u64 = 512;

/// Links followed to find a file.
const LINKS_MAX: usize = 8;

/// Memory counted for an entry beside its names.
const ENTRY_BYTES: u64 = 96;

/// A tar, and where the contents of its entries lie.
#[derive(Debug)]
pub(super) struct Archive {
    file: Arc<File>,
    entries: HashMap<Vec<u8>, Located>,
}

#[derive(Debug)]
enum Located {
    File {
        at: u64,
        bytes: u64,
    },
    /// To a name from the archive's root.
    Link(Vec<u8>),
}

/// Why a file can't be indexed.
pub(super) enum Unreadable {
    Io(io::Error),
    Bad { offset: u64, reason: String },
}

impl Unreadable {
    pub(super) fn at(self, path: &Path) -> Error {
        match self {
            Unreadable::Io(error) => Error::io(format!("read {}", path.display()))(error),
            Unreadable::Bad { offset, reason } => Error::BadImage {
                path: path.to_path_buf(),
                reason: format!("it is no tar that can be read: at offset {offset}: {}", shortened(reason)),
            },
        }
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Unreadable {
        Unreadable::Io(error)
    }
}

impl Archive {
    /// Reads all headers.
    pub(super) fn index(file: File, limits: &Limits) -> Result<Archive, Unreadable> {
        let bytes = file.metadata()?.len();
        let mut scan = Scan { file: &file, limits, bytes, at: 0, entries: HashMap::new(), metadata_bytes: 0 };
        while scan.next()? {}
        let entries = scan.entries;
        Ok(Archive { file: Arc::new(file), entries })
    }

    /// The contents of an entry, through links. `None` if there is none.
    pub(super) fn find(&self, name: &str) -> Option<Slice> {
        let mut name = normal(name.as_bytes());
        for _ in 0..LINKS_MAX {
            match self.entries.get(&name)? {
                Located::File { at, bytes } => return Some(Slice::new(&self.file, *at, *bytes)),
                Located::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

struct Scan<'a> {
    file: &'a File,
    limits: &'a Limits,
    bytes: u64,
    at: u64,
    entries: HashMap<Vec<u8>, Located>,
    /// Memory that these take, about.
    metadata_bytes: u64,
}

impl Scan<'_> {
    /// Takes in the next entry. False at the end.
    fn next(&mut self) -> Result<bool, Unreadable> {
        let mut extensions = Extensions::default();
        let mut long = (None, None);
        let mut extended = 0;
        loop {
            if self.at == self.bytes {
                return Ok(false);
            }
            let offset = self.at;
            let bad = |reason: String| Unreadable::Bad { offset, reason };
            let mut block = [0; BLOCK as usize];
            self.read(&mut block)?;
            if block == [0; BLOCK as usize] {
                return Ok(false);
            }
            let header = Header::parse(&block).map_err(bad)?;
            let own = u64::try_from(header.size().map_err(bad)?).map_err(|_| bad("a negative size".into()))?;
            if matches!(header.kind(), b'x' | b'X' | b'L' | b'K' | b'g') {
                extended = own.saturating_add(extended);
                if extended > self.limits.extension_bytes {
                    let limit = over("extension_bytes", self.limits.extension_bytes, "bytes of extended headers");
                    return Err(bad(format!("an extended header of {own} bytes: {limit}")));
                }
            }
            match header.kind() {
                b'x' | b'X' => extensions.read(&self.extension(own)?, self.limits).map_err(bad)?,
                b'L' => long.0 = Some(until_nul(self.extension(own)?)),
                b'K' => long.1 = Some(until_nul(self.extension(own)?)),
                b'g' => drop(self.extension(own)?),
                kind => {
                    let size = extensions.size.unwrap_or(own);
                    let path = normal(&extensions.path.or(long.0).unwrap_or_else(|| header.path()));
                    let link = extensions.link.or(long.1).unwrap_or_else(|| header.link().to_vec());
                    let located = match kind {
                        b'0' | 0 | b'7' if !extensions.sparse.is_sparse() => {
                            Some(Located::File { at: self.at, bytes: size })
                        }
                        b'1' => Some(Located::Link(normal(&link))),
                        b'2' => Some(Located::Link(beside(&path, &link))),
                        _ => None,
                    };
                    self.skip(if matches!(kind, b'0' | 0 | b'7' | b'S') { size } else { 0 })?;
                    if path.len() as u64 > self.limits.name_bytes || link.len() as u64 > self.limits.name_bytes {
                        return Err(bad(over("name_bytes", self.limits.name_bytes, "bytes of a name")));
                    }
                    self.metadata_bytes += (path.len() + link.len()) as u64 + ENTRY_BYTES;
                    if self.metadata_bytes > self.limits.metadata_bytes {
                        return Err(bad(over("metadata_bytes", self.limits.metadata_bytes, "bytes of names")));
                    }
                    self.entries.extend(located.map(|located| (path, located)));
                    if self.entries.len() as u64 > self.limits.archive_entries {
                        return Err(bad(over("archive_entries", self.limits.archive_entries, "entries")));
                    }
                    return Ok(true);
                }
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let offset = self.at;
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Unreadable::Bad { offset, reason: "it is truncated".into() },
            _ => Unreadable::Io(error),
        })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// The caller has bounded `bytes`.
    fn extension(&mut self, bytes: u64) -> Result<Vec<u8>, Unreadable> {
        let mut extension = vec![0; bytes as usize];
        self.read(&mut extension)?;
        self.skip_padding(bytes);
        Ok(extension)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Unreadable> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.bytes);
        let truncated = || Unreadable::Bad { offset: self.at, reason: "it is truncated".into() };
        self.at = end.ok_or_else(truncated)?;
        self.skip_padding(bytes);
        Ok(())
    }

    fn skip_padding(&mut self, bytes: u64) {
        let padding = bytes.next_multiple_of(BLOCK) - bytes;
        self.at = (self.at + padding).min(self.bytes);
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

/// A name without `.`, `..` and empty components. It is only a key: nothing is opened by it.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// What a symbolic link at `path` stands for.
fn beside(path: &[u8], target: &[u8]) -> Vec<u8> {
    if target.first() == Some(&b'/') {
        return normal(target);
    }
    let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &path[..slash]);
    normal(&[parent, b"/", target].concat())
}
