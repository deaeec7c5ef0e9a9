//! `mica image`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `mica image`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Import images: an OCI image layout (folder or tar), a `docker save` tar, a tar of files, or a folder of files.
    Import(Import),
    /// Export an image: an OCI image layout, an archive for other engines, or its files.
    Export(Export),
    /// List images.
    Ls,
    /// Show one image: its configuration and its layers.
    Show {
        /// Name, digest or unique prefix of a digest.
        reference: String,
    },
    /// Remove an image's name; `mica gc` gives the space back.
    Rm {
        /// Name, digest or unique prefix of a digest.
        reference: String,
    },
    /// Give an image one more name.
    Tag {
        /// Name, digest or unique prefix of a digest.
        reference: String,
        /// The new name; without a tag it gets `latest`.
        new: String,
    },
    /// Tell who made an image's layers, when, and what each added, changed and removed.
    History {
        /// Name, digest or unique prefix of a digest.
        reference: String,
        /// List every file.
        #[arg(long)]
        files: bool,
    },
    /// Tell how two images, snapshots or layers differ.
    Diff {
        /// An image, the key of a snapshot, or the digest of a layer.
        before: String,
        /// The same.
        after: String,
        /// Count a time of modification as a difference.
        #[arg(long)]
        times: bool,
    },
}

/// `mica image import`
#[derive(Debug, Args)]
pub struct Import {
    /// The folder or file.
    pub source: PathBuf,
    /// Name to give to the image; files that are no image need one.
    #[arg(long, value_name = "REF")]
    pub name: Option<String>,
    /// What the image's layers may cost, for example `entries=10000000`; may be repeated. A daemon has its own limits.
    #[arg(long = "limit", value_name = "NAME=VALUE")]
    pub limits: Vec<String>,
    /// What the source is, if that is not to be found out.
    #[arg(long, value_enum)]
    pub format: Option<ImportFormat>,
    /// Which of several images, and what files that are no image are for [default: this machine's].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// For files that are no image: an instruction of a Dockerfile for the configuration, such as `USER app`; may be
    /// repeated.
    #[arg(long = "change", value_name = "INSTRUCTION")]
    pub changes: Vec<String>,
    /// For files that are no image: a comment for the history.
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
}

/// What can be imported.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ImportFormat {
    /// An OCI image layout, a folder or a tar of one.
    Oci,
    /// What `docker save` writes.
    Docker,
    /// A tar of files, compressed or not.
    Tar,
    /// A folder of files.
    Dir,
}

/// `mica image export`
#[derive(Debug, Args)]
pub struct Export {
    /// Name, digest or unique prefix of a digest.
    pub reference: String,
    /// A file, or a new folder; `-` is standard output.
    pub destination: PathBuf,
    /// The form [default: oci-archive for `-` and what ends in `.tar`, else oci].
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,
    /// How the blobs of layers are compressed [default: as the image has them].
    #[arg(long, value_enum)]
    pub compression: Option<Compression>,
}

/// What can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// An OCI image layout: a folder.
    Oci,
    /// An OCI image layout in a tar, which `docker load` takes too.
    OciArchive,
    /// What `docker save` wrote before it knew OCI.
    DockerArchive,
    /// All files of the image in one tar.
    Tar,
    /// All files of the image in a folder.
    Dir,
}

/// How blobs can be compressed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}
