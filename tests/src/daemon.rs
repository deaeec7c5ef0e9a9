//! `mica serve` on a root, a state folder and a socket of its own, and the command line against it.

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::command::{self, Output};
use crate::failure::{Context as _, Result};
use crate::service::Service;
use crate::wait::{LATER, SOON};
use crate::{ensure, leftovers, place};

/// A daemon. Dropped, it unmounts everything, ends, and its keeper with it.
#[derive(Debug)]
pub struct Daemon {
    root: PathBuf,
    state: PathBuf,
    log: PathBuf,
    flags: Vec<String>,
    service: Option<Service>,
}

impl Daemon {
    /// Starts one whose store is `root` and whose sockets and mountpoints are in `state`; `flags` are further flags
    /// of `mica serve`.
    pub fn start(root: &Path, state: &Path, flags: &[String]) -> Result<Daemon> {
        let log = state.with_extension("log");
        let flags = flags.to_vec();
        let mut daemon = Daemon { root: root.to_path_buf(), state: state.to_path_buf(), log, flags, service: None };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Starts it after it has ended, with the same flags.
    pub fn start_again(&mut self) -> Result {
        ensure!(!self.is_running(), "the daemon runs already");
        let mut command = self.command(["serve", "--address", &self.address()]);
        command.args(&self.flags).env("MICA_LOG", std::env::var("MICA_LOG").unwrap_or_else(|_| "info".to_owned()));
        let mut service = Service::start("mica serve", &mut command, &self.log)?;
        let socket = self.socket();
        service.ready(|| UnixStream::connect(&socket).is_ok())?;
        self.service = Some(service);
        Ok(())
    }

    /// Flags for the next start, beside those of the first.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of sockets and mountpoints.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The socket it serves on.
    pub fn socket(&self) -> PathBuf {
        self.state.join("mica.sock")
    }

    /// The socket as a gRPC address.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.service.as_mut().is_some_and(Service::is_running)
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.service.as_ref().map(Service::pid)
    }

    /// Stops it gracefully (SIGTERM). Its mounts stay with the keeper.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.service.take().context("the daemon does not run")?.stop()
    }

    /// Kills it (SIGKILL). Its mounts stay with the keeper.
    pub fn kill(&mut self) -> Result {
        self.service.take().context("the daemon does not run")?.kill()
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        command::tail(&String::from_utf8_lossy(&log), lines)
    }

    /// `mica WORDS...` on this store, ready to run.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(place::mica().unwrap_or_else(|_| PathBuf::from("mica")));
        command.env_remove("MICA_ROOT").env_remove("MICA_STATE");
        command.arg("--root").arg(&self.root).arg("--state").arg(&self.state).args(words);
        command
    }

    /// Runs `mica WORDS...`, whatever comes of it.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        command::run(&mut self.command(words), LATER)
    }

    /// What `mica WORDS...` prints; it must succeed.
    pub fn mica(&self, words: &[&str]) -> Result<String> {
        Ok(self.run(words)?.success()?.text())
    }

    /// What `mica --json WORDS...` prints.
    pub fn json(&self, words: &[&str]) -> Result<serde_json::Value> {
        let text = self.mica(&[&["--json"], words].concat())?;
        serde_json::from_str(&text).context(format!("`mica --json {}` printed {text:?}", words.join(" ")))
    }

    /// Unmounts everything, which ends daemon and keeper, and checks that nothing of them is left.
    pub fn finish(mut self) -> Result {
        self.unmount_all()?;
        if let Some(mut service) = self.service.take() {
            let status = service.ended(SOON)?;
            ensure!(status.success(), "the daemon ended with {status}:\n{}", self.log_tail(15));
        }
        let mounts = leftovers::mounts_below(&self.state)?;
        ensure!(mounts.is_empty(), "mounts are left: {mounts:?}");
        let state = self.state.display().to_string();
        let gone = crate::wait::until("the keeper to end", SOON, || {
            Ok(leftovers::processes_with(&state)?.is_empty().then_some(()))
        });
        gone.context(format!("{:?}", leftovers::processes_with(&state)?))
    }

    fn unmount_all(&self) -> Result {
        self.run(&["umount", "--all"])?.success().map(|_| ())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.unmount_all();
        self.service = None;
        for mount in leftovers::mounts_below(&self.state).unwrap_or_default() {
            let _ = command::run(Command::new("umount").arg("--lazy").arg(mount), SOON);
        }
        // A keeper that does not end by itself would hold its connections for ever.
        let state = self.state.display().to_string();
        for (pid, _) in leftovers::processes_with(&format!("keeper --socket {state}")).unwrap_or_default() {
            let _ = rustix::process::Pid::from_raw(pid as i32)
                .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }
}
