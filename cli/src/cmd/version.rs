//! `mica version`

use serde::Serialize;

use super::Context;
use crate::{Failure, output};

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// Prints it.
pub fn run(context: &Context) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if context.json {
        return Ok(output::json(&Version { version })?);
    }
    Ok(output::line(&format!("mica {version}"))?)
}
