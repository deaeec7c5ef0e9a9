//! `mica branch`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `mica branch`
#[derive(Debug, Subcommand)]
pub enum Branch {
    /// List the branches, top first.
    Ls {
        /// The mountpoint.
        mountpoint: PathBuf,
    },
    /// Put a directory in.
    Add(Add),
    /// Take a branch out that nobody uses.
    Rm {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The branch's directory.
        path: PathBuf,
    },
    /// Change what may be done to a branch.
    Mode {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The branch and its new mode: `rw`, `ro` or `ro+wh`.
        #[arg(value_name = "PATH=MODE")]
        branch: OsString,
    },
}

/// `mica branch add`
#[derive(Debug, Args)]
pub struct Add {
    /// How many branches stay above it.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "bottom")]
    pub index: usize,
    /// Put it below all others.
    #[arg(long)]
    pub bottom: bool,
    /// The mountpoint.
    pub mountpoint: PathBuf,
    /// The directory, and what may be done to it: `rw`, `ro` or `ro+wh` [default: ro].
    #[arg(value_name = "PATH[=MODE]")]
    pub branch: OsString,
}
