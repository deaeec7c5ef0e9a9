//! The marks that overlay filesystems leave in their directories.
//!
//! | mark | written by |
//! |---|---|
//! | character device 0:0: the name is deleted | kernel overlayfs, fuse-overlayfs, Mica |
//! | `.wh.NAME`: NAME is deleted in the layers below | aufs, fuse-overlayfs, unpacked OCI layers |
//! | `.wh..wh..opq`: nothing of the layers below shows in this directory | the same |
//! | `{trusted,user}.overlay.opaque` = `y`, `user.fuseoverlayfs.opaque` = `y`: likewise | kernel overlayfs, fuse-overlayfs, Mica |
//! | `{trusted,user}.overlay.opaque` = `x`: the directory may hold deleted names of the next kind | kernel overlayfs |
//! | `{trusted,user}.overlay.whiteout` on an empty file: the name is deleted | kernel overlayfs |
//! | `{trusted,user}.overlay.redirect`: the directory's lower part has another place | kernel overlayfs, Mica |
//! | `{trusted,user}.overlay.metacopy`: the file's contents are further below | kernel overlayfs |
//!
//! The last two are believed in the format's own namespace alone: a user attribute that anybody may have set must not make
//! other files appear.

use std::sync::Arc;

use rustix::fs::Stat;

use super::layer::{Layers, Name, Real, Xattrs, stat_at};
use crate::error::{Error, Result};
use crate::inode::FileKind;
use crate::lower::Format;

/// What the names of marks begin with.
const WHITEOUT: &[u8] = b".wh.";
/// What the names of aufs' own book-keeping begin with.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE_FILE: &[u8] = b".wh..wh..opq";

const OPAQUE: [&[u8]; 3] = [b"trusted.overlay.opaque", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque"];
const WHITEOUT_XATTRS: [&[u8]; 2] = [b"trusted.overlay.whiteout", b"user.overlay.whiteout"];
const DEVICE_XATTRS: [&[u8]; 2] = [b"trusted.mica.device", b"user.mica.device"];

/// Where overlays keep marks; those of overlays on top of them are escaped: `overlay.x` is stored as `overlay.overlay.x`.
const OWN: [(&[u8], &[u8]); 4] =
    [(b"trusted.", b"overlay."), (b"user.", b"overlay."), (b"trusted.", b"mica."), (b"user.", b"mica.")];
/// Where fuse-overlayfs keeps its own; it escapes nothing.
const HIDDEN: &[u8] = b"user.fuseoverlayfs.";

/// What a name in a directory means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// A file of that name.
    Itself,
    /// The name behind the mark is deleted in the layers below.
    Deletes(&'a [u8]),
    /// Nothing to be seen.
    Bookkeeping,
}

/// What a name in a directory means.
pub(super) fn meaning(name: &[u8]) -> Meaning<'_> {
    match name.strip_prefix(WHITEOUT) {
        None => Meaning::Itself,
        Some(hidden) if hidden.is_empty() || name.starts_with(WHITEOUT_META) => Meaning::Bookkeeping,
        Some(hidden) => Meaning::Deletes(hidden),
    }
}

/// The name of the file that deletes `name`.
pub(super) fn deleting(name: &[u8]) -> Vec<u8> {
    [WHITEOUT, name].concat()
}

/// Whether this is a deleted name, as kernel overlayfs marks it.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileKind::from_mode(stat.st_mode) == Some(FileKind::CharDevice) && stat.st_rdev == 0
}

/// What a mark makes of an empty regular file.
pub(super) enum EmptyFile {
    Plain,
    Whiteout,
    /// A character device 0:0 that a user made.
    Device,
}

/// What a mark makes of an empty regular file; deleted names are looked for where the directory says so.
pub(super) fn empty_file(xattrs: &Xattrs, whiteouts: bool) -> Result<EmptyFile> {
    let any = |names: &[&[u8]]| -> Result<bool> {
        for name in names {
            if xattrs.get(name)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if whiteouts && any(&WHITEOUT_XATTRS)? {
        return Ok(EmptyFile::Whiteout);
    }
    Ok(if any(&DEVICE_XATTRS)? { EmptyFile::Device } else { EmptyFile::Plain })
}

/// Where the lower part of a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// Beside it, under this name.
    Name(Name),
    /// On this way from the root.
    Path(Vec<Name>),
}

/// The marks of a directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    /// Nothing of the layers below shows.
    pub(super) opaque: bool,
    /// Empty files in it may be deleted names.
    pub(super) whiteouts: bool,
    /// Where it continues; nowhere if it is opaque.
    pub(super) redirect: Option<Redirect>,
}

impl Marks {
    pub(super) fn read(layers: &Layers, dir: &Arc<Real>, format: Format) -> Result<Marks> {
        let mut marks = Marks::default();
        let xattrs = layers.xattrs_dir(dir)?;
        let names = xattrs.names()?;
        for name in names.iter().filter(|name| OPAQUE.contains(&name.as_slice())) {
            match xattrs.get(name)?.as_deref() {
                Some(b"y") => marks.opaque = true,
                Some(b"x") => marks.whiteouts = true,
                _ => {}
            }
        }
        marks.opaque = marks.opaque || stat_at(&*layers.dir(dir)?, OPAQUE_FILE)?.is_some();
        if !marks.opaque && names.iter().any(|name| name == redirect_xattr(format)) {
            marks.redirect = redirect(&xattrs, format, || layers.damaged(dir, "its redirect names no place"))?;
        }
        Ok(marks)
    }
}

/// The redirect of a file; `bad` is what one is that leads nowhere.
pub(super) fn redirect(xattrs: &Xattrs, format: Format, bad: impl FnOnce() -> Error) -> Result<Option<Redirect>> {
    match xattrs.get(redirect_xattr(format))? {
        Some(value) => parse_redirect(&value).map(Some).ok_or_else(bad),
        None => Ok(None),
    }
}

/// Says that a file's contents are further below.
pub(super) fn metacopy_xattr(format: Format) -> &'static [u8] {
    match format {
        Format::Trusted => b"trusted.overlay.metacopy",
        Format::User => b"user.overlay.metacopy",
    }
}

fn redirect_xattr(format: Format) -> &'static [u8] {
    match format {
        Format::Trusted => b"trusted.overlay.redirect",
        Format::User => b"user.overlay.redirect",
    }
}

fn parse_redirect(value: &[u8]) -> Option<Redirect> {
    let name = |name: &[u8]| -> Option<Name> {
        let bad = name.is_empty() || name == b"." || name == b".." || name.len() > 255;
        (!bad && !name.contains(&0) && !name.contains(&b'/')).then(|| name.into())
    };
    match value.strip_prefix(b"/") {
        None => name(value).map(Redirect::Name),
        Some(path) => path.split(|&byte| byte == b'/').map(name).collect::<Option<_>>().map(Redirect::Path),
    }
}

/// The name under which programs see an attribute of the disk; `None` when they don't.
pub(super) fn visible(stored: Vec<u8>) -> Option<Vec<u8>> {
    for (space, own) in OWN {
        if let Some(rest) = stored.strip_prefix(space).and_then(|rest| rest.strip_prefix(own)) {
            return rest.starts_with(own).then(|| [space, rest].concat());
        }
    }
    (!stored.starts_with(HIDDEN)).then_some(stored)
}

/// The name that the disk has for an attribute of programs; `None` when they can't have such a one.
pub(super) fn stored(visible: &[u8]) -> Option<Vec<u8>> {
    for (space, own) in OWN {
        if let Some(rest) = visible.strip_prefix(space).filter(|rest| rest.starts_with(own)) {
            return Some([space, own, rest].concat());
        }
    }
    (!visible.starts_with(HIDDEN)).then(|| visible.to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_mean_what_aufs_meant() {
        assert_eq!(meaning(b"file"), Meaning::Itself);
        assert_eq!(meaning(b".wh"), Meaning::Itself);
        assert_eq!(meaning(b".wh.file"), Meaning::Deletes(b"file"));
        assert_eq!(meaning(b".wh..hidden"), Meaning::Deletes(b".hidden"));
        for bookkeeping in [&b".wh."[..], b".wh..wh..opq", b".wh..wh.plnk", b".wh..wh.aufs"] {
            assert_eq!(meaning(bookkeeping), Meaning::Bookkeeping);
        }
    }

    #[test]
    fn redirects_that_lead_nowhere_are_refused() {
        let names = |names: &[&str]| names.iter().map(|name| name.as_bytes().into()).collect();
        assert_eq!(parse_redirect(b"old"), Some(Redirect::Name(b"old"[..].into())));
        assert_eq!(parse_redirect(b"/a/old"), Some(Redirect::Path(names(&["a", "old"]))));
        for bad in [&b""[..], b"/", b"a/b", b"..", b"/a//b", b"/a/", b"/a/../b", b"a\0b"] {
            assert_eq!(parse_redirect(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn names_of_nested_overlays_are_escaped_and_own_ones_hidden() {
        for own in
            ["trusted.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.origin", "trusted.mica.origin"]
        {
            assert_eq!(visible(own.into()), None);
        }
        for plain in ["user.mime_type", "trusted.overlay.opaque", "user.overlay.overlay.opaque", "security.capability"]
        {
            assert_eq!(visible(stored(plain.as_bytes()).unwrap()), Some(plain.into()));
        }
        assert_eq!(stored(b"user.fuseoverlayfs.opaque"), None);
        assert_eq!(stored(b"trusted.overlay.x").unwrap(), b"trusted.overlay.overlay.x");
    }
}
