//! `mica snapshot`

use clap::{Args, Subcommand};

/// `mica snapshot`
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// List snapshots.
    Ls,
    /// Show one snapshot.
    Show {
        /// The engine's key, or the end of it after a slash: for containerd the name of the container.
        key: String,
    },
    /// Tell what a snapshot has changed in what it builds upon.
    Diff {
        /// The engine's key, or the end of it after a slash: for containerd the name of the container.
        key: String,
        /// Count a time of modification as a difference.
        #[arg(long)]
        times: bool,
    },
    /// Make an image of a snapshot, which stays as it is.
    Commit(Commit),
}

/// `mica snapshot commit`
#[derive(Debug, Args)]
pub struct Commit {
    /// The engine's key, or the end of it after a slash: for containerd the name of the container.
    pub key: String,
    /// Name of the image; without a tag it gets `latest`.
    #[arg(long, value_name = "REF")]
    pub name: String,
    /// The image whose configuration it is to have [default: the one with the layers that the snapshot builds upon].
    #[arg(long, value_name = "REF")]
    pub base: Option<String>,
    /// Who makes it.
    #[arg(long, value_name = "TEXT")]
    pub author: Option<String>,
    /// A comment for the history.
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub message: Option<String>,
    /// An instruction of a Dockerfile that changes the configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL,
    /// USER, VOLUME or WORKDIR; may be repeated.
    #[arg(long = "change", short = 'c', value_name = "INSTRUCTION")]
    pub changes: Vec<String>,
}
