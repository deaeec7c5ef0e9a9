//! `mica layer`

use std::path::PathBuf;

use clap::Subcommand;

/// `mica layer`
#[derive(Debug, Subcommand)]
pub enum Layer {
    /// List layers.
    Ls,
    /// Show one layer: its record, what it holds, who needs it.
    Show {
        /// Diff-id, blob digest or unique prefix of one.
        digest: String,
    },
    /// Write a layer's uncompressed tar, byte for byte as it came.
    Export {
        /// Diff-id, blob digest or unique prefix of one.
        digest: String,
        /// File to write instead of standard output; `-` is standard output.
        #[arg(short = 'o', long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Read layers as a whole: trees, contents, recipes, and the tars made of them.
    Verify(super::Verify),
}
