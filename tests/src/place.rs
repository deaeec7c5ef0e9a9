//! Where programs and images are, and folders that go away.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::failure::{Context as _, Result};
use crate::{command, fail, wait};

/// Two temporary folders: one on the disk for bulk, one with a short path for sockets and mountpoints.
#[derive(Debug)]
pub struct Folders {
    run: TempDir,
    disk: TempDir,
}

impl Folders {
    /// New, empty ones.
    pub fn new() -> Result<Folders> {
        let run = tempfile::Builder::new().prefix("mica-").tempdir_in("/run").context("make a folder in /run")?;
        let disk = tempfile::Builder::new().prefix("mica-").tempdir().context("make a temporary folder")?;
        Ok(Folders { run, disk })
    }

    /// For sockets: a path that leaves room in `sun_path`. In memory on most machines.
    pub fn run(&self) -> &Path {
        self.run.path()
    }

    /// For bulk.
    pub fn disk(&self) -> &Path {
        self.disk.path()
    }
}

/// `$MICA_CACHE`, as the scripts have it.
pub fn cache() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    absolute("MICA_CACHE")
        .or_else(|| absolute("XDG_CACHE_HOME").map(|cache| cache.join("mica")))
        .or_else(|| absolute("HOME").map(|home| home.join(".cache/mica")))
        .context("neither MICA_CACHE nor HOME is set")
}

/// A folder of unpacked engines: `containerd-1.6`, `containerd-1.7` or `tools`.
pub fn engine(name: &str) -> Result<PathBuf> {
    let folder = cache()?.join("engines").join(name).join("usr");
    if folder.is_dir() { Ok(folder) } else { fail!("{} is missing: run scripts/setup", folder.display()) }
}

/// `PATH` with the programs of `engine` and of the tools (runc, the registry) first.
pub fn path_with(engine_name: &str) -> Result<std::ffi::OsString> {
    let (own, tools) = (engine(engine_name)?, engine("tools")?);
    let system = env::var_os("PATH").unwrap_or_default();
    let folders = [own.join("bin"), own.join("sbin"), tools.join("bin"), tools.join("sbin")];
    Ok(env::join_paths(folders.into_iter().chain(env::split_paths(&system)))?)
}

/// The program under test: `$MICA`, or the one that cargo built beside this program.
pub fn mica() -> Result<PathBuf> {
    if let Some(named) = env::var_os("MICA") {
        return Ok(PathBuf::from(named));
    }
    let own = env::current_exe()?;
    let built = own.ancestors().skip(1).take(2).map(|folder| folder.join("mica")).find(|program| program.is_file());
    built.context(format!("no mica program beside {}: run `make build`, or set MICA", own.display()))
}

/// The OCI layout of test images: `base`, `station` and `ledger`. Built by `scripts/images` if they are not yet.
pub fn images() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/images");
    let printed = command::succeed(&mut Command::new(script), 10 * wait::LATER)?;
    Ok(PathBuf::from(printed.text().trim_end()))
}

/// The OCI layout of the images that benchmarks take in: `workshop` and `annex`. Built by `scripts/bench-images` if
/// they are not yet.
pub fn bench_images() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/bench-images");
    let printed = command::succeed(&mut Command::new(script), 20 * wait::LATER)?;
    Ok(PathBuf::from(printed.text().trim_end()))
}

/// A name that no other session and no other scene uses, for engines' namespaces and what is named after them.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let session = env::var("MICA_SESSION").unwrap_or_else(|_| std::process::id().to_string());
    format!("mica-{session}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Why engines can't run on this machine, if they can't. Inside `scripts/contained` everything must be there, and
/// the answer is always `None`: what is missing shows as a failure.
pub fn reason_to_skip() -> Option<String> {
    if env::var_os("MICA_SESSION").is_some() {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: it mounts and runs containers".to_owned());
    }
    let missing = [engine("containerd-1.6"), engine("containerd-1.7"), engine("tools"), mica()];
    missing.into_iter().find_map(|found| found.err().map(|failure| failure.to_string()))
}

/// Tells on standard error, also of captured tests, why `test` did not run.
pub fn tell_skipped(test: &str, reason: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{test} not run: {reason}");
}
