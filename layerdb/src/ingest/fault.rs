//! What stops an ingest.

use crate::error::Error;
use crate::limits::shortened;

/// Why an ingest can't go on.
#[derive(Debug)]
pub(super) enum Fault {
    /// The layer's bytes are to blame.
    Bad {
        /// The name in the entry concerned; empty before the first and behind the last one.
        entry: Vec<u8>,
        /// Where in the uncompressed tar its header begins, or where the stream broke.
        offset: u64,
        reason: String,
    },
    /// Something else is.
    Store(Error),
}

pub(super) type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    pub(super) fn bad(entry: &[u8], offset: u64, reason: impl Into<String>) -> Fault {
        Fault::Bad { entry: entry.to_vec(), offset, reason: reason.into() }
    }

    /// Names the entry, if the one who noticed didn't know it.
    pub(super) fn within(self, name: &[u8]) -> Fault {
        match self {
            Fault::Bad { entry, offset, reason } if entry.is_empty() => {
                Fault::Bad { entry: name.to_vec(), offset, reason }
            }
            other => other,
        }
    }

    /// The error as callers see it.
    pub(super) fn into_error(self, layer: &str) -> Error {
        match self {
            Fault::Bad { entry, offset, reason } => {
                Error::BadLayer { layer: layer.to_owned(), entry: shown(&entry), offset, reason: shortened(reason) }
            }
            Fault::Store(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Store(error)
    }
}

/// A name for a message: readable, on one line, of bounded length.
pub(super) fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 512;
    let mut text = String::new();
    for piece in name[..name.len().min(LONGEST)].utf8_chunks() {
        text.extend(piece.valid().chars().flat_map(|c| {
            let escaped = if c.is_control() { Some(c.escape_default()) } else { None };
            let plain = if c.is_control() { None } else { Some(c) };
            escaped.into_iter().flatten().chain(plain)
        }));
        text.push_str(&piece.invalid().escape_ascii().to_string());
    }
    if name.len() > LONGEST {
        text.push('…');
    }
    text
}
