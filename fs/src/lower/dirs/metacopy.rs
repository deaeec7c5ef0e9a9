//! Files whose contents are in a layer further below (kernel overlayfs' "metadata only copy up").
//!
//! Such a file carries `overlay.metacopy`; its contents are those of the file of the same name below, or of the one that its
//! redirect names. As with redirects, the format's own namespace alone is believed.

use std::fs::File;
use std::sync::Arc;

use super::layer::{Layers, Name, Real};
use super::marks::{self, Redirect};
use super::merge::walk;
use super::resolve::Part;
use crate::error::Result;
use crate::inode::FileKind;
use crate::lower::Format;

/// Opens the contents of the regular file `name` in `home`. `beside` gives the parts of the directory that shows it.
pub(super) fn open(
    layers: &Layers,
    format: Format,
    home: &Arc<Real>,
    name: &Name,
    beside: impl FnOnce() -> Result<Arc<[Part]>>,
) -> Result<File> {
    let file = layers.file(home, name)?;
    let Some(mut place) = elsewhere(layers, format, home, name)? else { return Ok(file) };
    let beside = beside()?;
    let missing = || layers.damaged(home, &format!("the contents of {} are in no layer below", name.escape_ascii()));
    for layer in home.layer + 1..layers.count_with_data() {
        if layer == layers.count() && matches!(place, Redirect::Name(_)) {
            // A path alone leads to what has contents alone.
            break;
        }
        let (base, names) = match &place {
            Redirect::Name(name) => {
                let Some(part) = beside.iter().find(|part| part.real.layer == layer) else { continue };
                (part.real.clone(), std::slice::from_ref(name))
            }
            Redirect::Path(path) => (layers.root(layer).clone(), &path[..]),
        };
        let Some((last, parents)) = names.split_last() else { break };
        let step = walk(layers, &base, parents, format)?;
        let last = last.clone();
        let mut stop = step.stop;
        let mut next = None;
        if let Some(dir) = step.found {
            stop |= layers.stat(&dir.real, &marks::deleting(&last))?.is_some();
            if let Some(stat) = layers.stat(&dir.real, &last)? {
                if FileKind::from_mode(stat.st_mode) != Some(FileKind::Regular) {
                    break;
                }
                next = elsewhere(layers, format, &dir.real, &last)?;
                if next.is_none() {
                    return layers.file(&dir.real, &last);
                }
            }
        }
        if stop {
            break;
        }
        place = match (place, next) {
            (_, Some(Redirect::Path(path))) => Redirect::Path(path),
            (Redirect::Name(_), next) => next.unwrap_or(Redirect::Name(last)),
            (Redirect::Path(_), next) => {
                let last = if let Some(Redirect::Name(name)) = next { name } else { last };
                Redirect::Path([&step.below[..], &[last]].concat())
            }
        };
    }
    Err(missing())
}

/// Where a file's contents are if not in itself.
fn elsewhere(layers: &Layers, format: Format, dir: &Arc<Real>, name: &Name) -> Result<Option<Redirect>> {
    let xattrs = layers.xattrs(dir, name)?;
    if xattrs.get(marks::metacopy_xattr(format))?.is_none() {
        return Ok(None);
    }
    let redirect = marks::redirect(&xattrs, format, || layers.damaged(dir, "a redirect in it names no place"))?;
    Ok(Some(redirect.unwrap_or_else(|| Redirect::Name(name.clone()))))
}
