//! `mica mount`

use super::Context;
use crate::Failure;
use crate::args::Mount;

/// Mounts.
pub fn run(_context: &Context, _arguments: &Mount) -> Result<(), Failure> {
    Err(Failure::text("nothing can be mounted yet"))
}
