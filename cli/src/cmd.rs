//! The verbs.

mod branch;
mod df;
mod diff;
mod doctor;
mod fsck;
mod gc;
pub mod helper;
mod image;
mod keeper;
mod layer;
mod mount;
mod serve;
mod snapshot;
mod umount;
mod version;

use std::path::{Path, PathBuf};

use mica_snapshotter::config::{DEFAULT_ROOT, DEFAULT_STATE, socket_path};

use crate::Failure;
use crate::args::{Cli, Verb};

/// What holds for every verb.
pub struct Context {
    root: Option<PathBuf>,
    state: Option<PathBuf>,
    json: bool,
}

impl Context {
    /// That of a mount helper, which has no options for it.
    fn of_environment() -> Context {
        let folder = |name| std::env::var_os(name).map(PathBuf::from);
        Context { root: folder("MICA_ROOT"), state: folder("MICA_STATE"), json: false }
    }

    /// The store's folder, absolute.
    fn root(&self) -> PathBuf {
        absolute(self.root.as_deref().unwrap_or(Path::new(DEFAULT_ROOT)))
    }

    /// The folder of sockets and mountpoints, as the kernel lists mounts in it.
    fn state(&self) -> PathBuf {
        let state = self.state.clone().or_else(users_state);
        let state = absolute(state.as_deref().unwrap_or(Path::new(DEFAULT_STATE)));
        std::fs::canonicalize(&state).unwrap_or(state)
    }
}

/// The folder that a user without privilege has for what lasts no longer than his session.
fn users_state() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    folder.filter(|_| !rustix::process::geteuid().is_root()).map(|folder| Path::new(&folder).join("mica"))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let context = Context { root: cli.root, state: cli.state, json: cli.json };
    match cli.verb {
        Verb::Serve(arguments) => serve::run(context, arguments),
        Verb::Mount(arguments) => mount::run(&context, &arguments),
        Verb::Branch(arguments) => branch::run(&context, arguments),
        Verb::Umount(arguments) => umount::run(&context, &arguments),
        Verb::Image(arguments) => image::run(&context, arguments),
        Verb::Layer(arguments) => layer::run(&context, arguments),
        Verb::Snapshot(arguments) => snapshot::run(&context, arguments),
        Verb::Fsck(arguments) => fsck::run(&context, &arguments),
        Verb::Scrub(arguments) => fsck::scrub(&context, &arguments),
        Verb::Gc(arguments) => gc::run(&context, &arguments),
        Verb::Df => df::run(&context),
        Verb::Doctor(arguments) => {
            let containerd = socket_path("containerd's address", &arguments.containerd)?;
            let sound = doctor::run(&context.root(), &containerd, context.json)?;
            if sound { Ok(()) } else { Err(Failure::Said) }
        }
        Verb::Version => version::run(&context),
        Verb::Keeper(arguments) => keeper::run(&arguments),
    }
}
