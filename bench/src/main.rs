//! Side-by-side figures: every workload on every subject, interleaved, in one run on one machine.
//!
//! | room | what is compared |
//! |---|---|
//! | [`fs`] | Mica's mounts with plain directories, the kernel's overlayfs and fuse-overlayfs |
//! | [`engines`] | Mica in containerd with containerd's overlayfs snapshotter: images in, containers up |
//!
//! [`machine`] is what a run ran on, [`spread`] what several samples come to.

mod engines;
mod fs;
mod machine;
mod spread;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Mica beside its peers.
#[derive(Debug, Parser)]
#[command(name = "mica-bench")]
struct Cli {
    #[command(subcommand)]
    room: Room,
}

#[derive(Debug, Subcommand)]
enum Room {
    /// Mounts: data, names, layers, copy-up, real programs.
    Fs(fs::Arguments),
    /// Snapshotters of containerd: images in, containers up.
    Engines(engines::Arguments),
    /// Read through a mapping of a file.
    #[command(hide = true)]
    Touch(fs::mapping::Touch),
}

fn main() -> ExitCode {
    let done = match Cli::parse().room {
        Room::Fs(arguments) => fs::measure(&arguments),
        Room::Engines(arguments) => engines::measure(&arguments),
        Room::Touch(touch) => touch.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&format!("mica-bench: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Says how it goes.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
