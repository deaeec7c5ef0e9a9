//! podman and buildah whose mount program is Mica, with a storage of their own; as root, or as a user without privilege.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{self, Output};
use crate::failure::{Context as _, Result};
use crate::leftovers;
use crate::place::{self, Folders};
use crate::wait::LATER;

/// The user of [`Podman::of_user`]. No machine's own: its account exists in the namespace of its commands alone.
const USER: u32 = 12_345;
/// The first of the ids that it may use.
const SUBIDS: u32 = 200_000;

/// What a user's command needs of the machine, in a mount namespace of its own: accounts, a device, programs and a home
/// where it may look. `$1` is the folder of all that; engine, runtime, Mica and home follow, then the command.
const AS_USER: &str = r#"
set -e
mount -t overlay -o "lowerdir=$1/etc:/etc" overlay /etc
mount --bind "$1/fuse" /dev/fuse
mount --bind "$2" "$1/engine"
mount --bind "$3" "$1/runc"
mount --bind "$4" "$1/fuse-overlayfs"
mount --bind "$5" "$1/home"
shift 5
exec setpriv --reuid 12345 --regid 12345 --clear-groups "$@"
"#;

/// One storage and who uses it. Dropped, its containers are removed.
#[derive(Debug)]
pub struct Podman {
    rootless: bool,
    /// Whether files on the disk have the user's own id alone, and an attribute tells whose they are meant to be.
    told: bool,
    /// Accounts, configuration and programs: everybody may read it.
    run: PathBuf,
    /// Of the user: storage and files, as this process sees it.
    home: PathBuf,
    engine: PathBuf,
    runc: PathBuf,
    mica: PathBuf,
    /// What its cgroups are in.
    cgroup: String,
}

impl Podman {
    /// root's.
    pub fn of_root(folders: &Folders) -> Result<Podman> {
        Podman::new(folders, false, false)
    }

    /// That of a user with a range of subordinate ids and no privilege.
    pub fn of_user(folders: &Folders) -> Result<Podman> {
        Podman::new(folders, true, false)
    }

    /// The same with `force_mask`: images are unpacked without owners and modes, which an attribute tells.
    pub fn of_user_with_told_owners(folders: &Folders) -> Result<Podman> {
        Podman::new(folders, true, true)
    }

    fn new(folders: &Folders, rootless: bool, told: bool) -> Result<Podman> {
        let run = folders.run().join("podman");
        let home = folders.disk().join("home");
        fs::DirBuilder::new().mode(0o755).create(&run)?;
        fs::DirBuilder::new().mode(0o755).create(&home)?;
        let podman = Podman {
            rootless,
            told,
            run,
            home,
            engine: place::engine("podman")?,
            runc: place::engine("tools")?.join("sbin/runc"),
            mica: place::mica()?,
            cgroup: place::unique_name(),
        };
        podman.configure()?;
        if rootless {
            podman.make_user(folders)?;
        } else {
            symlink(&podman.mica, podman.run.join("fuse-overlayfs"))?;
            symlink(&podman.runc, podman.run.join("runc"))?;
        }
        Ok(podman)
    }

    /// Where the engine's programs are for its commands.
    fn programs(&self) -> PathBuf {
        if self.rootless { self.run.join("engine") } else { self.engine.clone() }
    }

    /// Where the home is for its commands.
    pub fn home_inside(&self) -> PathBuf {
        if self.rootless { self.run.join("home") } else { self.home.clone() }
    }

    fn configure(&self) -> Result {
        let (programs, home) = (self.programs(), self.home_inside());
        let (programs, run, home) = (programs.display(), self.run.display(), home.display());
        let containers = format!(
            "[containers]\nnetns = \"none\"\ndefault_sysctls = []\nlog_driver = \"k8s-file\"\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n\
             tmp_dir = \"{run}/state/tmp\"\nlock_type = \"file\"\n\
             conmon_path = [\"{programs}/bin/conmon\"]\nhelper_binaries_dir = [\"{programs}/lib/podman\"]\n\
             [engine.runtimes]\nrunc = [\"{run}/runc\"]\n[network]\nnetwork_backend = \"netavark\"\n"
        );
        let mask = if self.told { "force_mask = \"700\"\n" } else { "" };
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{home}/graph\"\nrunroot = \"{run}/state\"\n\
             [storage.options.overlay]\nmount_program = \"{run}/fuse-overlayfs\"\n{mask}"
        );
        fs::write(self.run.join("containers.conf"), containers)?;
        fs::write(self.run.join("storage.conf"), storage)?;
        fs::write(self.run.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        Ok(())
    }

    fn make_user(&self, folders: &Folders) -> Result {
        // Only root's own processes look into a test's folders; this one has a user of its own.
        fs::set_permissions(folders.run(), fs::Permissions::from_mode(0o711))?;
        let etc = self.run.join("etc");
        for folder in [etc.clone(), self.run.join("engine"), self.run.join("home")] {
            fs::create_dir(folder)?;
        }
        let account = |file: &str, line: String| -> Result {
            let mut text = fs::read_to_string(Path::new("/etc").join(file))?;
            text.push_str(&line);
            Ok(fs::write(etc.join(file), text)?)
        };
        let home = self.home_inside();
        account("passwd", format!("mica-user:x:{USER}:{USER}::{}:/bin/sh\n", home.display()))?;
        account("group", format!("mica-user:x:{USER}:\n"))?;
        for file in ["subuid", "subgid"] {
            fs::write(etc.join(file), format!("mica-user:{SUBIDS}:65536\n"))?;
        }
        for program in ["fuse-overlayfs", "runc"] {
            fs::write(self.run.join(program), "")?;
        }
        let device = rustix::fs::makedev(10, 229);
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
        let node = self.run.join("fuse");
        rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, device)?;
        fs::set_permissions(&node, fs::Permissions::from_mode(0o666))?;
        for folder in [self.run.join("xdg"), self.run.join("state")] {
            fs::DirBuilder::new().mode(0o700).create(&folder)?;
            chown(&folder, Some(USER), Some(USER))?;
        }
        Ok(chown(&self.home, Some(USER), Some(USER))?)
    }

    /// The home, for files that commands read and write.
    pub fn home(&self) -> &Path {
        &self.home
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Result<Command> {
        let programs = self.programs();
        let mut command = if self.rootless {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", AS_USER, "sh"]);
            command.arg(&self.run).arg(&self.engine).arg(&self.runc).arg(&self.mica).arg(&self.home);
            command.arg(programs.join("bin").join(program));
            command
        } else {
            Command::new(programs.join("bin").join(program))
        };
        let paths = [programs.join("bin"), programs.join("sbin")];
        let system = std::env::var_os("PATH").unwrap_or_default();
        let paths = paths.into_iter().chain(std::env::split_paths(&system));
        command
            .args(arguments)
            .current_dir("/")
            .env("PATH", std::env::join_paths(paths)?)
            .env("HOME", self.home_inside())
            .env("TMPDIR", self.home_inside())
            .env("XDG_RUNTIME_DIR", self.run.join("xdg"))
            .env("CONTAINERS_CONF", self.run.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.run.join("storage.conf"));
        Ok(command)
    }

    /// Runs podman, which must succeed; returns its standard output.
    pub fn podman(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.try_podman(arguments)?.success()?.text())
    }

    /// Runs podman.
    pub fn try_podman(&self, arguments: &[&str]) -> Result<Output> {
        command::run(&mut self.command("podman", arguments)?, LATER)
    }

    /// Runs a container to its end; returns what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let parent = format!("/{}", self.cgroup);
        // Without privilege there are no cgroups of version 1.
        let parent: &[&str] = if self.rootless { &[] } else { &["--cgroup-parent", &parent] };
        self.podman(&[&["run"], parent, arguments].concat())
    }

    /// Runs buildah, which must succeed; returns its standard output.
    pub fn buildah(&self, arguments: &[&str]) -> Result<String> {
        Ok(command::run(&mut self.command("buildah", arguments)?, LATER)?.success()?.text())
    }

    /// The file of the trust policy, which some commands want named.
    pub fn policy(&self) -> String {
        self.run.join("policy.json").display().to_string()
    }

    /// Removes all containers and images, and ends what keeps the user's namespace.
    pub fn finish(&self) -> Result {
        self.podman(&["rm", "--all", "--force", "--time", "0"])?;
        self.podman(&["rmi", "--all", "--force"])?;
        self.end();
        Ok(())
    }

    fn end(&self) {
        for noted in ["state/tmp/pause.pid", "xdg/libpod/tmp/pause.pid"] {
            let noted = fs::read_to_string(self.run.join(noted)).ok();
            if let Some(pid) = noted.and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        leftovers::remove_cgroups(&self.cgroup);
        // root's podman makes its storage a mount, and leaves it.
        let storage = self.home.join("graph/overlay");
        while rustix::mount::unmount(&storage, UnmountFlags::DETACH).is_ok() {}
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.try_podman(&["rm", "--all", "--force", "--time", "0"]);
        self.end();
    }
}

/// Why podman can't run on this machine, if it can't.
pub fn reason_to_skip() -> Option<String> {
    place::reason_to_skip()
        .or_else(|| place::engine("podman").context("podman").err().map(|failure| failure.to_string()))
}
