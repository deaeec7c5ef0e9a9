//! Programs that keep running until they are told to stop.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{line_of, tail};
use crate::failure::{Context as _, Failure, Result};
use crate::{fail, wait};

/// How long a service may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(20);

/// A running program whose output goes to a log. Dropped, it is asked to stop, and killed if it doesn't.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts it; what it writes is added to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Service> {
        let file = File::options().create(true).append(true).open(log).context(log.display())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::from(file.try_clone()?))
            .stderr(Stdio::from(file))
            .spawn()
            .context(format!("start `{}`", line_of(command)))?;
        Ok(Service { name: name.to_owned(), child, log: log.to_path_buf() })
    }

    /// Waits until `check` says that it serves. Fails at once if it ends instead.
    pub fn ready(&mut self, mut check: impl FnMut() -> bool) -> Result {
        let what = format!("{} to serve", self.name);
        let waited = wait::until(&what, wait::SOON, || match self.child.try_wait()? {
            Some(status) => fail!("{} ended at once with {status}", self.name),
            None => Ok(check().then_some(())),
        });
        waited.map_err(|failure| self.explain(&failure))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let waited = wait::until(&what, limit, || Ok(self.child.try_wait()?));
        waited.map_err(|failure| self.explain(&failure))
    }

    /// Asks it to stop (SIGTERM) and waits. Not stopping in time is a failure, and it is killed.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let ended = self.ended(STOP);
        if ended.is_err() {
            self.kill()?;
        }
        ended
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) -> Result {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        tail(&String::from_utf8_lossy(&log), lines)
    }

    fn signal(&self, signal: Signal) -> Result {
        let pid = Pid::from_raw(self.child.id() as i32).context("a process has an id")?;
        Ok(kill_process(pid, signal)?)
    }

    fn explain(&self, failure: &Failure) -> Failure {
        let log = self.log_tail(15).replace('\n', "\n    ");
        Failure::new(format!("{failure}\n  {} said last:\n    {log}", self.name))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.is_running() && self.stop().is_err() {
            let _ = self.kill();
        }
    }
}
