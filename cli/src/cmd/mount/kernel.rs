//! `mica mount --image REF --mount kernel`
//!
//! Nobody serves such a mount. The process stays all the same, asleep, since it holds what keeps the image's layers from garbage
//! collection; it ends with the mount.

use std::path::Path;

use mica_fs::Claim;
use mica_fs::fuse::Shown;
use mica_fs::fusermount::unmount;
use mica_fs::kernel::{Departures, Overlay, SOURCE, mount_image};
use mica_fs::mount::union_of_image;
use mica_fs::options::Options;
use mica_snapshotter::config::{Form, Verify};
use rustix::mount::MountAttrFlags;

use super::{Prepared, Signals, Wait, leave_note, ready};
use crate::Failure;
use crate::args::Mount;
use crate::cmd::Context;

/// Mounts if the kernel is to and can; `false` if the mount is to be served by FUSE.
pub(super) fn serve(
    context: &Context,
    arguments: &Mount,
    options: &Options,
    prepared: &Prepared,
    mountpoint: &Path,
    wait: Wait,
) -> Result<bool, Failure> {
    let form = arguments.form.as_deref().and_then(Form::named).unwrap_or_default();
    if form == Form::Fuse {
        return Ok(false);
    }
    if let Some(reason) = lacking(options, prepared, form == Form::Kernel)? {
        tracing::info!(reason, "mounted by FUSE");
        return Ok(false);
    }
    match mount(options, prepared, mountpoint)? {
        Ok(()) => {}
        Err(reason) if form == Form::Auto => {
            tracing::info!(%reason, "mounted by FUSE");
            return Ok(false);
        }
        Err(reason) => return Err(reason.into()),
    }
    tracing::info!("mounted by the kernel");
    let departure = Departures::new()?.of(mountpoint)?;
    let place = mountpoint.to_path_buf();
    Signals::catch()?.end(move |lazy| Ok(unmount(&place, lazy)?))?;
    let note = leave_note(context, mountpoint);
    ready(wait)?;
    departure.wait();
    drop(note);
    Ok(true)
}

/// What keeps the kernel from showing what was asked for. An error if it must.
fn lacking(options: &Options, prepared: &Prepared, must: bool) -> Result<Option<&'static str>, Failure> {
    let reason = if prepared.verify == Verify::FirstUse {
        "the kernel does not compare contents with their digests"
    } else if !options.mount.labels.is_empty() || options.mount.shown != Shown::default() {
        "options that change what is shown are Mica's own"
    } else {
        return Ok(None);
    };
    if must { Err(Failure::text(reason)) } else { Ok(Some(reason)) }
}

/// The outer error has nothing to do with the form.
fn mount(options: &Options, prepared: &Prepared, mountpoint: &Path) -> Result<mica_fs::Result<()>, Failure> {
    let Prepared { found, changes, .. } = prepared;
    if let Some(changes) = changes {
        let how = options.block_copy;
        let union = union_of_image(prepared.tree()?, prepared.objects()?, Some(changes), Claim::Strict, how)?;
        union.begin()?;
        union.hand_over()?;
    }
    let shown = &options.mount;
    let mut attributes = shown.attributes;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, shown.read_only);
    let overlay =
        Overlay { source: SOURCE, tree: mountpoint, objects: &found.objects, writable: changes.as_deref(), attributes };
    Ok(mount_image(&found.tree, &overlay, mountpoint))
}
