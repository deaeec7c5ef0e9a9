//! `mica image`

use std::path::PathBuf;

use clap::Subcommand;

/// `mica image`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Import an OCI image layout (folder or tar) or a `docker save` tar.
    Import {
        /// The folder or file.
        source: PathBuf,
        /// Name to give to the image.
        #[arg(long, value_name = "REF")]
        name: Option<String>,
    },
    /// List images.
    Ls,
    /// Show one image.
    Show {
        /// Name, digest or unique prefix of a digest.
        reference: String,
    },
    /// Remove an image's name; `mica gc` gives the space back.
    Rm {
        /// Name, digest or unique prefix of a digest.
        reference: String,
    },
}
