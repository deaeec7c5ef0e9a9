//! `mica umount`

use super::Context;
use crate::Failure;
use crate::args::Umount;

/// Unmounts.
pub fn run(_context: &Context, _arguments: &Umount) -> Result<(), Failure> {
    Err(Failure::text("nothing can be unmounted yet"))
}
