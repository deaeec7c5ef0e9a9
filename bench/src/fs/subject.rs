//! Who is measured.

use std::path::Path;
use std::process::Command;

use clap::ValueEnum;
use mica_tests::{Result, place as programs};
use serde::Serialize;

use super::place::Place;
use super::tools::Tools;

/// A way to see a stack of directories as one that can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// No union at all: the files, copied into one directory where they are changed.
    Directory,
    /// The kernel's overlayfs as it is mounted by default.
    Overlayfs,
    /// The kernel's overlayfs with `redirect_dir`, `metacopy` and `index`.
    OverlayfsAll,
    /// fuse-overlayfs 2.0, from its crate.
    FuseOverlayfs,
    /// fuse-overlayfs 1, from the distribution's package.
    #[value(name = "fuse-overlayfs-c")]
    FuseOverlayfsC,
    /// `mica mount` over the same directories as the others.
    MicaDirs,
    /// `mica mount` of an image from its store: what Mica is.
    Mica,
    /// The same in its kernel form.
    MicaKernel,
}

/// How a subject is mounted.
pub enum Way {
    /// The files show as they are.
    Bind,
    /// By the kernel, with these options of overlayfs.
    Kernel(&'static [(&'static str, &'static str)]),
    /// By a program that serves in the foreground until it is unmounted.
    Server(Command),
}

impl Subject {
    /// The one that ratios are to.
    pub const BASE: Subject = Subject::Overlayfs;
    /// The peer that has to be beaten in every row.
    pub const RIVAL: Subject = Subject::FuseOverlayfs;

    /// As the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Directory => "directory",
            Subject::Overlayfs => "overlayfs",
            Subject::OverlayfsAll => "overlayfs, all features",
            Subject::FuseOverlayfs => "fuse-overlayfs 2.0",
            Subject::FuseOverlayfsC => "fuse-overlayfs 1",
            Subject::MicaDirs => "mica, directories",
            Subject::Mica => "mica",
            Subject::MicaKernel => "mica, kernel",
        }
    }

    /// Whether it is Mica, and so is to reach the goals.
    pub fn is_mica(self) -> bool {
        matches!(self, Subject::MicaDirs | Subject::Mica | Subject::MicaKernel)
    }

    /// Whether it is mounted from the store instead of from directories.
    pub fn is_from_store(self) -> bool {
        matches!(self, Subject::Mica | Subject::MicaKernel)
    }

    /// How it is mounted at `root` for what `place` holds.
    pub fn way(self, tools: &Tools, place: &Place, root: &Path) -> Result<Way> {
        Ok(match self {
            Subject::Directory => Way::Bind,
            Subject::Overlayfs => Way::Kernel(&[]),
            Subject::OverlayfsAll => Way::Kernel(&[("redirect_dir", "on"), ("metacopy", "on"), ("index", "on")]),
            Subject::FuseOverlayfs => Way::Server(over_directories(&tools.fuse_overlayfs, &[], place, root)),
            Subject::FuseOverlayfsC => Way::Server(over_directories(&tools.fuse_overlayfs_c, &[], place, root)),
            Subject::MicaDirs => Way::Server(over_directories(&programs::mica()?, &["mount"], place, root)),
            Subject::Mica | Subject::MicaKernel => {
                let form = if self == Subject::Mica { "fuse" } else { "kernel" };
                let mut command = tools.store.command();
                command.args(["mount", "-f", "--mount", form, "--image"]).arg(&place.lower().image);
                if let Some(writable) = place.writable() {
                    command.arg("--rw").arg(writable);
                }
                command.arg(root);
                Way::Server(command)
            }
        })
    }
}

/// A program that takes the options of fuse-overlayfs(1).
fn over_directories(program: &Path, words: &[&str], place: &Place, root: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove("MICA_ROOT").env_remove("MICA_STATE").args(words);
    command.args(["-f", "-o"]).arg(place.options()).arg(root);
    command
}
