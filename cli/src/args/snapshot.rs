//! `mica snapshot`

use clap::Subcommand;

/// `mica snapshot`
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// List snapshots.
    Ls,
    /// Show one snapshot.
    Show {
        /// The engine's key.
        key: String,
    },
}
