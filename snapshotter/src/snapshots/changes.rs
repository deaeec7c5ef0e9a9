//! What a snapshot has changed in its parent, as a layer.

use std::io::Write;

use super::core::Core;
use super::{Kind, Mount, upper};
use crate::error::Result;

impl Core {
    /// From the upper alone, if `lower` shows just what lies below it.
    pub(super) fn diff(&self, lower: &[Mount], upper: &[Mount], out: &mut dyn Write) -> Result<Option<()>> {
        self.require_open()?;
        let Some((_, changed)) = self.snapshot_of(upper)? else { return Ok(None) };
        if changed.kind != Kind::Active || !changed.own.is_empty() {
            return Ok(None);
        }
        if lower.is_empty() {
            if !changed.parent.is_empty() {
                return Ok(None);
            }
        } else {
            let Some((_, base)) = self.snapshot_of(lower)? else { return Ok(None) };
            let pristine = match base.kind {
                Kind::View => true,
                Kind::Active => base.own.is_empty() && !upper::has_changes(&self.folder(base.number), &base)?,
                Kind::Committed => false,
            };
            if !pristine || base.parent != changed.parent {
                return Ok(None);
            }
        }
        let below = self.store.chain(&self.stack_of(&changed.parent)?)?;
        self.live.mounter().write_changes(below, &self.folder(changed.number), out)?;
        Ok(Some(()))
    }
}
