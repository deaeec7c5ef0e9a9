//! `mica serve`

use std::path::Path;
use std::sync::Arc;

use mica_layerdb::Store;
use mica_snapshotter::config::{Config, Flags};
use mica_snapshotter::{FormMounter, FuseMounter, Mounter, server};

use super::Context;
use crate::Failure;
use crate::args::Serve;

/// Serves until it is told to end.
pub fn run(context: Context, arguments: Serve) -> Result<(), Failure> {
    let flags = Flags {
        root: context.root,
        state: context.state,
        address: arguments.address,
        containerd: arguments.containerd,
        no_passthrough: arguments.no_passthrough,
        mount: arguments.mount,
        limits: arguments.limits,
        verify: arguments.verify,
        verify_trees: arguments.verify_trees,
        scrub_mib_per_second: arguments.scrub_rate,
    };
    let config = Config::load(arguments.config.as_deref(), flags)?;
    // Files of containers get the modes that containers ask for.
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(server::run(&config, &mounter)?)
}

/// This program is the keeper as well; the running file is started even after it was replaced on the disk.
fn mounter(config: &Config, store: &Arc<Store>) -> mica_snapshotter::Result<Arc<dyn Mounter>> {
    let program = Path::new("/proc/self/exe");
    let fuse = FuseMounter::new(&config.state, store, program)?;
    let fuse = fuse.with_passthrough(config.passthrough).with_verification(config.verify);
    Ok(Arc::new(FormMounter::new(&config.state, store, fuse, config.mount)?))
}
