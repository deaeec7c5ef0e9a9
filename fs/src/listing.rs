//! A directory as it was when somebody began to read it: who goes on reading sees each name that was there all the time
//! exactly once, as POSIX' readdir() wants it, whatever is made or removed meanwhile.

use std::sync::Arc;

use crate::error::Result;
use crate::inode::{Attr, DirEntry, FileKind, Ino};

/// Cookies of "." and "..".
const DOT: u64 = 1;
pub(crate) const DOT_DOT: u64 = 2;

/// A name.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
}

/// The names of a directory but "." and "..".
pub(crate) type Listing = Arc<Vec<Listed>>;

/// Takes an entry; false ends reading.
pub(crate) type Each<'a> = &'a mut dyn FnMut(DirEntry<'_>) -> bool;

/// Finds what is behind a name now, and counts a reference.
pub(crate) type Look<'a> = &'a dyn Fn(&[u8]) -> Result<Option<Attr>>;

/// Hands "." and ".." to `each`, as far as they are behind `after`; false if it has enough. `up` finds the number of the
/// directory above.
pub(crate) fn read_dots(ino: Ino, up: impl Fn() -> Result<Ino>, after: u64, each: Each<'_>) -> Result<bool> {
    for (cookie, name) in [(DOT, &b"."[..]), (DOT_DOT, b"..")] {
        if after < cookie {
            // Nothing reads the number of ".." but programs that walk up by it; they get it by stat(2).
            let ino = if cookie == DOT { ino } else { up()? };
            if !each(DirEntry { ino, kind: FileKind::Directory, name, cookie, attr: None }) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Hands the names behind `after` to `each`. With `look` they have their attributes, and what `each` does not take is given
/// back by `forget`.
pub(crate) fn read_listing(
    listing: &[Listed],
    after: u64,
    look: Option<Look<'_>>,
    forget: &dyn Fn(Ino),
    each: Each<'_>,
) {
    let start = usize::try_from(after.saturating_sub(DOT_DOT)).unwrap_or(usize::MAX);
    for (at, entry) in listing.iter().enumerate().skip(start) {
        let mut attr = None;
        if let Some(look) = look {
            match look(&entry.name) {
                // Gone since the listing.
                Ok(None) => continue,
                Ok(found) => attr = found,
                // One that can't be used doesn't hide the others; who asks for it is told why.
                Err(error) => tracing::debug!(%error, name = %entry.name.escape_ascii(), "listed without attributes"),
            }
        }
        let (ino, kind) = attr.map_or((entry.ino, entry.kind), |attr| (attr.ino, attr.kind));
        let cookie = at as u64 + 1 + DOT_DOT;
        if !each(DirEntry { ino, kind, name: &entry.name, cookie, attr }) {
            if attr.is_some() {
                forget(ino);
            }
            break;
        }
    }
}
