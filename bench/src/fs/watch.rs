//! No call into a mount waits for ever: when a workload takes too long, its servers are killed, and calls get errors.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use mica_tests::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// The servers that run.
#[derive(Debug, Default)]
pub struct Watch {
    servers: Mutex<Vec<u32>>,
}

impl Watch {
    /// Adds a server.
    pub fn add(&self, pid: u32) {
        self.servers().push(pid);
    }

    /// The server has ended, and was waited for.
    pub fn forget(&self, pid: u32) {
        self.servers().retain(|&server| server != pid);
    }

    /// Runs an action, and kills all servers if it takes longer.
    pub fn within(&self, limit: Duration, action: impl FnOnce() -> Result) -> Result {
        let (ended, end) = channel::<()>();
        thread::scope(|scope| {
            let watcher = scope.spawn(move || {
                let late = end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
                if late {
                    self.kill();
                }
                late
            });
            let done = action();
            drop(ended);
            ensure!(!watcher.join().unwrap_or(true), "took over {} s", limit.as_secs());
            done
        })
    }

    fn kill(&self) {
        for pid in self.servers().iter() {
            let _ = Pid::from_raw(*pid as i32).map(|pid| kill_process(pid, Signal::KILL));
        }
    }

    fn servers(&self) -> MutexGuard<'_, Vec<u32>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
