//! What a snapshot has changed in its parent, as a layer.

use std::io::Write;

use mica_layerdb::DiffId;

use super::core::Core;
use super::{Kind, Mount, upper};
use crate::error::{Error, Result};
use crate::store::Record;

/// The end of a tar, and all of an empty one.
const EMPTY_TAR: [u8; 1024] = [0; 1024];

impl Core {
    /// From the upper or the layer alone, if `lower` shows just what lies below.
    pub(super) fn diff(&self, lower: &[Mount], upper: &[Mount], out: &mut dyn Write) -> Result<Option<()>> {
        self.require_open()?;
        let Some((_, changed)) = self.snapshot_of(upper)? else { return Ok(None) };
        let Some(base) = self.shown_by(lower)? else { return Ok(None) };
        if changed.kind == Kind::View {
            return self.diff_of_committed(&base, &changed.parent, out);
        }
        if base != changed.parent {
            return Ok(None);
        }
        if changed.own.is_empty() {
            return self.diff_of_upper(&changed, out).map(Some);
        }
        if upper::has_changes(&self.folder(changed.number), &changed)? {
            return Ok(None);
        }
        self.tell_layers(&changed.own, out)
    }

    /// The committed snapshot that mounts show and nothing else, empty for nothing at all; `None` if they show more.
    fn shown_by(&self, mounts: &[Mount]) -> Result<Option<String>> {
        if mounts.is_empty() {
            return Ok(Some(String::new()));
        }
        let Some((_, record)) = self.snapshot_of(mounts)? else { return Ok(None) };
        let pristine = record.kind == Kind::View
            || record.own.is_empty() && !upper::has_changes(&self.folder(record.number), &record)?;
        Ok(pristine.then_some(record.parent))
    }

    fn diff_of_upper(&self, changed: &Record, out: &mut dyn Write) -> Result<()> {
        let below = self.store.chain(&self.stack_of(&changed.parent)?)?;
        self.live.mounter().write_changes(below, &self.folder(changed.number), out).map(drop)
    }

    /// What a committed snapshot has and `base` doesn't; waits for it to settle.
    fn diff_of_committed(&self, base: &str, name: &str, out: &mut dyn Write) -> Result<Option<()>> {
        if base == name {
            return self.tell_layers(&[], out);
        }
        self.stack_of(name)?;
        let committed = self.record(name)?;
        if base == committed.parent { self.tell_layers(&committed.own, out) } else { Ok(None) }
    }

    /// Several layers in one would have to be merged first.
    fn tell_layers(&self, layers: &[DiffId], out: &mut dyn Write) -> Result<Option<()>> {
        match layers {
            [] => out.write_all(&EMPTY_TAR).map_err(Error::io("write a layer"))?,
            [layer] => self.live.mounter().write_layer(self.store.layer_tree(*layer)?, out)?,
            _ => return Ok(None),
        }
        Ok(Some(()))
    }
}
