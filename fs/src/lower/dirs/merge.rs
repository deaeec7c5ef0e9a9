//! Merging the names of one directory over the layers that have it.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::Stat;

use super::layer::{Layers, Name, Real, each_name, stat_at};
use super::marks::{self, EmptyFile, Meaning, Redirect};
use super::resolve::Part;
use crate::error::Result;
use crate::inode::FileKind;
use crate::lower::Format;

/// A name that shows in a merged directory.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) name: Name,
    pub(super) kind: FileKind,
    /// Which part has it: the topmost.
    pub(super) part: usize,
    /// Device and number there.
    pub(super) host: (u64, u64),
    /// Whether the disk has more names of it.
    pub(super) linked: bool,
    /// Whether it is a character device 0:0 that a user made.
    pub(super) device_mark: bool,
    /// Of a directory: the parts that have it, top first, unless it redirects.
    pub(super) parts: Vec<usize>,
}

/// What is known of a name while layers are read from the top.
struct Slot {
    /// The file that shows; none if the name is deleted.
    file: Option<Merged>,
    /// Whether layers further below have no say.
    closed: bool,
}

/// The names of a directory in the order of their bytes.
pub(super) fn merge(layers: &Layers, parts: &[Part]) -> Result<Vec<Merged>> {
    let mut slots: HashMap<Name, Slot> = HashMap::new();
    for (at, part) in parts.iter().enumerate() {
        merge_part(layers, part, at, &mut slots)?;
    }
    let mut merged: Vec<_> = slots.into_values().filter_map(|slot| slot.file).collect();
    merged.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(merged)
}

fn merge_part(layers: &Layers, part: &Part, at: usize, slots: &mut HashMap<Name, Slot>) -> Result<()> {
    let dir = layers.dir(&part.real)?;
    let mut deleted: Vec<Name> = Vec::new();
    each_name(dir.as_fd(), |name| {
        match marks::meaning(name) {
            Meaning::Bookkeeping => return Ok(()),
            Meaning::Deletes(hidden) => {
                deleted.push(hidden.into());
                return Ok(());
            }
            Meaning::Itself => {}
        }
        let known = slots.get_mut(name);
        if known.as_ref().is_some_and(|slot| slot.closed) {
            return Ok(());
        }
        let Some(stat) = stat_at(&*dir, name)? else { return Ok(()) };
        let found = classify(layers, part, name, &stat)?;
        match (known, found) {
            // Another part of a directory that shows already.
            (Some(Slot { file: Some(file), .. }), Some((FileKind::Directory, _))) => file.parts.push(at),
            (Some(slot), _) => slot.closed = true,
            (None, None) => drop(slots.insert(name.into(), Slot { file: None, closed: true })),
            (None, Some((kind, device_mark))) => {
                let name: Name = name.into();
                let is_dir = kind == FileKind::Directory;
                let file = Merged {
                    name: name.clone(),
                    kind,
                    part: at,
                    host: (stat.st_dev, stat.st_ino),
                    linked: !is_dir && stat.st_nlink > 1,
                    device_mark,
                    parts: if is_dir { vec![at] } else { Vec::new() },
                };
                slots.insert(name, Slot { file: Some(file), closed: !is_dir });
            }
        }
        Ok(())
    })?;
    // Such a mark says nothing about its own layer.
    for name in deleted {
        slots.entry(name).or_insert(Slot { file: None, closed: true }).closed = true;
    }
    Ok(())
}

/// What a name is, and whether a mark makes it a device; `None` if it is deleted.
fn classify(layers: &Layers, part: &Part, name: &[u8], stat: &Stat) -> Result<Option<(FileKind, bool)>> {
    let Some(mut kind) = FileKind::from_mode(stat.st_mode) else {
        return Err(layers.damaged(&part.real, &format!("{} has no type", name.escape_ascii())));
    };
    if marks::is_whiteout(stat) {
        return Ok(None);
    }
    let meant = layers.owner(|| layers.xattrs(&part.real, name))?;
    if let (FileKind::Regular, Some(owner)) = (kind, meant) {
        let mut stat = *stat;
        owner.apply(&mut stat);
        kind = FileKind::from_mode(stat.st_mode).unwrap_or(kind);
    }
    if kind == FileKind::Regular && stat.st_size == 0 {
        let xattrs = layers.xattrs(&part.real, name)?;
        return Ok(match marks::empty_file(&xattrs, part.whiteouts)? {
            EmptyFile::Plain => Some((kind, false)),
            EmptyFile::Whiteout => None,
            EmptyFile::Device => Some((FileKind::CharDevice, true)),
        });
    }
    Ok(Some((kind, false)))
}

/// Where a name lies in one layer, and what that says about the layers below.
pub(super) struct Step {
    /// The directory of that name.
    pub(super) found: Option<Part>,
    /// Whether layers further below have no say.
    pub(super) stop: bool,
    /// Where to look in the layers below, if they have a say: from the same base,
    pub(super) below: Vec<Name>,
    /// or from the root.
    pub(super) absolute: bool,
}

/// Walks from `base` along `names` within one layer, in search of a directory.
///
/// A redirect of a directory on the way says where the layers below have it; one from the root also lifts the effect of an
/// opaque directory above it (as kernel overlayfs looks up absolute redirects).
pub(super) fn walk(layers: &Layers, base: &Arc<Real>, names: &[Name], format: Format) -> Result<Step> {
    let mut at = base.clone();
    let mut whiteouts = false;
    let mut stop = false;
    let mut below: Vec<Name> = Vec::new();
    let mut absolute = false;
    for (depth, name) in names.iter().enumerate() {
        let hides = layers.stat(&at, &marks::deleting(name))?.is_some();
        let next = layers.stat(&at, name)?;
        let is_dir = next.is_some_and(|stat| FileKind::from_mode(stat.st_mode) == Some(FileKind::Directory));
        stop |= hides || (next.is_some() && !is_dir);
        if !is_dir {
            below.extend_from_slice(&names[depth..]);
            return Ok(Step { found: None, stop, below, absolute });
        }
        at = layers.child(&at, name.clone());
        let marks = marks::Marks::read(layers, &at, format)?;
        whiteouts = marks.whiteouts;
        stop |= marks.opaque;
        match marks.redirect {
            None => below.push(name.clone()),
            Some(Redirect::Name(other)) => below.push(other),
            Some(Redirect::Path(path)) => (below, absolute, stop) = (path, true, false),
        }
    }
    Ok(Step { found: Some(Part { real: at, whiteouts }), stop, below, absolute })
}
