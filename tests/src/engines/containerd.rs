//! A containerd with root, state, sockets and namespace of its own.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicU32;

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::Result;
use crate::service::Service;
use crate::{leftovers, place};

/// Plugins that this machine can't run or that nobody asks for; each costs time at every start.
const DISABLED: [&str; 8] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
];

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Debian bookworm's: knows no diff plugins, unpacks through the mount.
    V1_6,
    /// Debian trixie's: snapshot and diff plugins.
    V1_7,
}

impl Version {
    /// Its folder among the engines.
    pub fn name(self) -> &'static str {
        match self {
            Version::V1_6 => "containerd-1.6",
            Version::V1_7 => "containerd-1.7",
        }
    }

    /// Whether layers can be handed to Mica as they come from the registry.
    pub fn has_diff_plugins(self) -> bool {
        self == Version::V1_7
    }
}

/// What keeps the file systems of containers.
#[derive(Clone, Debug)]
pub enum Snapshotter {
    /// containerd's own, on the kernel's overlayfs.
    Overlayfs,
    /// Mica, over gRPC.
    Mica {
        /// Its socket.
        socket: PathBuf,
        /// Its store.
        root: PathBuf,
    },
}

impl Snapshotter {
    /// How containerd calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "overlayfs",
            Snapshotter::Mica { .. } => "mica",
        }
    }
}

/// A running containerd. Dropped, it removes its containers and ends.
#[derive(Debug)]
pub struct Containerd {
    pub(super) version: Version,
    pub(super) snapshotter: Snapshotter,
    pub(super) namespace: String,
    pub(super) folder: PathBuf,
    pub(super) next_id: AtomicU32,
    root: PathBuf,
    service: Service,
}

impl Containerd {
    /// Where a containerd in `folder` serves. Known before it is started, because Mica is told first.
    pub fn socket_in(folder: &Path) -> PathBuf {
        folder.join("containerd.sock")
    }

    /// Starts it: sockets and state in `folder` (its path must be short), contents in `root`.
    pub fn start(version: Version, snapshotter: Snapshotter, folder: &Path, root: &Path) -> Result<Containerd> {
        fs::create_dir_all(folder)?;
        fs::create_dir_all(root)?;
        let config = folder.join("config.toml");
        fs::write(&config, configuration(version, &snapshotter, folder, root))?;
        let program = place::engine(version.name())?.join("bin/containerd");
        let mut command = Command::new(program);
        command.arg("--config").arg(&config).env("PATH", place::path_with(version.name())?);
        let mut service = Service::start(version.name(), &mut command, &folder.join("containerd.log"))?;
        let socket = Containerd::socket_in(folder);
        service.ready(|| UnixStream::connect(&socket).is_ok())?;
        let (folder, root) = (folder.to_path_buf(), root.to_path_buf());
        let namespace = place::unique_name();
        Ok(Containerd { version, snapshotter, namespace, folder, next_id: AtomicU32::new(0), root, service })
    }

    /// Which one it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        Containerd::socket_in(&self.folder)
    }

    /// The namespace that all of its containers are in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The file of a blob in its content store.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        self.root.join("io.containerd.content.v1.content/blobs/sha256").join(hex)
    }

    /// The folder that holds everything it stores.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.service.log_tail(lines)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.service.is_running() {
            self.remove_all_containers();
            let _ = self.service.stop();
        }
        // Shims outlive their containerd by design.
        let socket = format!("-address {}", self.socket().display());
        for (pid, _) in leftovers::processes_with(&socket).unwrap_or_default() {
            let _ = Pid::from_raw(pid as i32).map(|pid| kill_process(pid, Signal::KILL));
        }
        leftovers::remove_cgroups(&self.namespace);
    }
}

fn configuration(version: Version, snapshotter: &Snapshotter, folder: &Path, root: &Path) -> String {
    let disabled: Vec<String> = DISABLED.iter().map(|plugin| format!("\"{plugin}\"")).collect();
    let mut text = format!(
        "version = 2\nroot = \"{root}\"\nstate = \"{folder}/state\"\ndisabled_plugins = [{disabled}]\n\
         [grpc]\n  address = \"{folder}/containerd.sock\"\n[ttrpc]\n  address = \"{folder}/containerd.ttrpc\"\n\
         [debug]\n  level = \"warn\"\n",
        root = root.display(),
        folder = folder.display(),
        disabled = disabled.join(", "),
    );
    if let Snapshotter::Mica { socket, root } = snapshotter {
        let _ = write!(
            text,
            "[proxy_plugins.mica]\n  type = \"snapshot\"\n  address = \"{socket}\"\n\
             [proxy_plugins.mica.exports]\n  root = \"{root}\"\n",
            socket = socket.display(),
            root = root.display(),
        );
        if version.has_diff_plugins() {
            let _ = write!(
                text,
                "[proxy_plugins.mica-diff]\n  type = \"diff\"\n  address = \"{}\"\n\
                 [plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"mica-diff\", \"walking\"]\n",
                socket.display()
            );
        }
    }
    text
}
