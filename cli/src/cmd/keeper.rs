//! `mica keeper`

use crate::Failure;
use crate::args::Keeper;

/// Holds connections until it is told to end.
pub fn run(arguments: &Keeper) -> Result<(), Failure> {
    Ok(mica_fs::keeper::serve(&arguments.socket)?)
}
