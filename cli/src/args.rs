//! The command line, as types. What a verb does lives in `cmd/<verb>.rs`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

mod branch;
mod image;
mod integrity;
mod layer;
mod snapshot;

use clap::{Args, Parser, Subcommand};
use mica_layerdb::Rate;

pub use branch::{Add, Branch};
pub use image::{Compression, Export, ExportFormat, Image, Import, ImportFormat};
pub use integrity::{Fsck, Scrub, Verify};
pub use layer::Layer;
pub use snapshot::{Commit, Snapshot};

/// A union filesystem and layer store for containers.
#[derive(Debug, Parser)]
#[command(name = "mica", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Folder of the store [default: /var/lib/mica].
    #[arg(long, global = true, env = "MICA_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Folder of sockets and mountpoints [default: /run/mica].
    #[arg(long, global = true, env = "MICA_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// Log filter, for example `info` or `mica_fs=debug` [default: info for `serve`, else warn].
    #[arg(long, global = true, env = "MICA_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

impl Cli {
    /// What is logged: a daemon's log is read later, a command's is in the way.
    pub fn log_filter(&self) -> String {
        let default = if matches!(self.verb, Verb::Serve(_)) { "info" } else { "warn" };
        self.log.clone().unwrap_or_else(|| default.to_owned())
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve snapshots and diffs to container engines over gRPC.
    Serve(Serve),
    /// Mount a union of directories, or an image of the store.
    Mount(Mount),
    /// List, add, remove and change the branches of a mount.
    #[command(subcommand)]
    Branch(Branch),
    /// Unmount a mount that `mica mount` made, or every mount of a daemon.
    Umount(Umount),
    /// Images of the store.
    #[command(subcommand)]
    Image(Image),
    /// Layers of the store.
    #[command(subcommand)]
    Layer(Layer),
    /// Snapshots of the daemon.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Remove what nothing refers to.
    Gc(Gc),
    /// Check the store, and put right what leaves no choice.
    Fsck(Fsck),
    /// Read all contents from the disk, and take what is damaged out of use.
    Scrub(Scrub),
    /// Bytes: logical, stored, shared, reclaimable.
    Df,
    /// What this kernel, disk and engine offer, and what to do about what is missing.
    Doctor(Doctor),
    /// Print the version.
    Version,
    /// Hold the descriptors of live mounts while the daemon is away.
    #[command(hide = true)]
    Keeper(Keeper),
}

/// `mica serve`
#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration file (TOML); flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Socket to serve on, for example `unix:///run/mica/mica.sock`.
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// Socket of the containerd whose content store layers are read from.
    #[arg(long, value_name = "ADDRESS")]
    pub containerd: Option<String>,
    /// What layers and images may cost, for example `entries=10000000`; may be repeated.
    #[arg(long = "limit", value_name = "NAME=VALUE")]
    pub limits: Vec<String>,
    /// Serve file data from the daemon even where the kernel could pass it through.
    #[arg(long)]
    pub no_passthrough: bool,
    /// Who serves mounts that don't say it themselves: Mica (`fuse`), the kernel, or the kernel where it can (`auto`)
    /// [default: fuse].
    #[arg(long, value_name = "FORM", value_parser = ["fuse", "kernel", "auto"])]
    pub mount: Option<String>,
    /// Whether contents are compared with their digests before they are served for the first time [default: never].
    #[arg(long, value_name = "WHEN", value_parser = ["never", "first-use"])]
    pub verify: Option<String>,
    /// Compare the digest of a tree with the recorded one each time it is opened.
    #[arg(long)]
    pub verify_trees: bool,
    /// Read all contents again and again in the background, so many MiB in a second; 0 is off [default: 0].
    #[arg(long, value_name = "MIB")]
    pub scrub_rate: Option<u64>,
}

/// `mica mount`
#[derive(Debug, Args)]
pub struct Mount {
    /// Options: `lowerdir=A:B[,upperdir=U,workdir=W][,ro]...`; may be repeated.
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<OsString>,
    /// A directory of the union, `PATH=rw`, `PATH=ro` (its whiteouts hide nothing) or `PATH=ro+wh`; the first is on top.
    #[arg(long = "branch", value_name = "PATH=MODE", conflicts_with = "image")]
    pub branches: Vec<OsString>,
    /// Which of the branches that can be written to gets what is new: the topmost that has the directory (`tdp`), the one with
    /// the most free space (`mfs`), or one after the other (`rr`) [default: tdp].
    #[arg(long, value_name = "POLICY", value_parser = ["tdp", "mfs", "rr"], requires = "branches")]
    pub create: Option<String>,
    /// Mount an image of the store instead of directories.
    #[arg(long, value_name = "REF")]
    pub image: Option<String>,
    /// Folder that takes the changes of a writable image mount (`upper` and `work` are made in it).
    #[arg(long, value_name = "DIR", requires = "image")]
    pub rw: Option<PathBuf>,
    /// Whether contents of the image are compared with their digests before they are served for the first time
    /// [default: as the store's daemon does].
    #[arg(long, value_name = "WHEN", value_parser = ["never", "first-use"], requires = "image")]
    pub verify: Option<String>,
    /// Who serves the mount of an image: Mica (`fuse`), the kernel, or the kernel where it can (`auto`) [default: fuse].
    #[arg(long = "mount", value_name = "FORM", value_parser = ["fuse", "kernel", "auto"], requires = "image")]
    pub form: Option<String>,
    /// Stay in the foreground.
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// `[SOURCE] MOUNTPOINT`
    #[arg(required = true, num_args = 1..=2, value_name = "MOUNTPOINT")]
    pub positional: Vec<PathBuf>,
}

impl Mount {
    /// What `findmnt` is to show as source.
    pub fn source(&self) -> Option<&Path> {
        self.positional.split_last().and_then(|(_, before)| before.first()).map(PathBuf::as_path)
    }

    /// Where to mount.
    pub fn mountpoint(&self) -> &Path {
        self.positional.last().map_or(Path::new("."), PathBuf::as_path)
    }
}

/// `mica umount`
#[derive(Debug, Args)]
pub struct Umount {
    /// Detach now, finish when the last user is gone.
    #[arg(short = 'l', long)]
    pub lazy: bool,
    /// Unmount everything that the daemon of `--state` mounted, and end it.
    #[arg(long, conflicts_with = "mountpoint")]
    pub all: bool,
    /// The mountpoint.
    #[arg(required_unless_present = "all")]
    pub mountpoint: Option<PathBuf>,
}

/// `mica gc`
#[derive(Debug, Args)]
pub struct Gc {
    /// Tell what would go, remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Remove no more than this in a second: files (`500`) or bytes (`20M`).
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,
    /// Tell who refers to an object, a layer, a merged tree or an image's document, by its digest or the beginning of it.
    #[arg(long, value_name = "DIGEST", conflicts_with_all = ["dry_run", "rate"])]
    pub explain: Option<String>,
}

/// `mica doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Socket of containerd to look at.
    #[arg(long, value_name = "ADDRESS", default_value = "/run/containerd/containerd.sock")]
    pub containerd: String,
}

/// `mica keeper`
#[derive(Debug, Args)]
pub struct Keeper {
    /// Socket to serve on.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
}
