//! `mica fsck`, `mica layer verify`, `mica scrub`

use std::path::PathBuf;

use clap::Args;

/// `mica fsck`
#[derive(Debug, Args)]
pub struct Fsck {
    /// Read all contents as well, and compare them with their digests.
    #[arg(long)]
    pub data: bool,
    /// Merge the layers of every chain again, and compare the trees.
    #[arg(long)]
    pub deep: bool,
    /// Put right what leaves no choice; damaged files move to quarantine.
    #[arg(long)]
    pub repair: bool,
    /// Delete what lies in quarantine, before anything else.
    #[arg(long)]
    pub empty_quarantine: bool,
    /// MiB of contents read in a second at most; 0 is no limit.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub rate: u64,
}

/// `mica layer verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// Diff-ids, blob digests or unique prefixes of one.
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "DIGEST")]
    pub digests: Vec<String>,
    /// All layers.
    #[arg(long)]
    pub all: bool,
    /// Take what is damaged out of use, so that the next import or pull writes it anew.
    #[arg(long)]
    pub repair: bool,
    /// Write it anew at once from this OCI layout (folder or tar), `docker save` tar, or other store's folder.
    #[arg(long, value_name = "SOURCE", requires = "repair")]
    pub from: Option<PathBuf>,
    /// MiB of contents read in a second at most; 0 is no limit.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub rate: u64,
}

/// `mica scrub`
#[derive(Debug, Args)]
pub struct Scrub {
    /// MiB of contents read in a second at most; 0 is no limit.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub rate: u64,
    /// Begin anew, wherever the last scrub stopped.
    #[arg(long)]
    pub restart: bool,
}
