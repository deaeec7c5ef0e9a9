//! What processes have used, as the kernel counts it.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mica_tests::command::line_of;
use mica_tests::{Context as _, Result, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// Processor time, bytes handed to the disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// Bytes that it made the kernel write (`write_bytes` of proc(5)), page cache included.
    pub written_bytes: u64,
}

impl Used {
    /// What the process `pid` has used so far; also of one that has ended and was not waited for.
    pub fn of(pid: u32) -> Result<Used> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold blanks; utime and stime are the 14th and 15th field (proc(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).context("/proc/PID/stat");
        let ticks = ticks(11)? + ticks(12)?;
        let hertz = rustix::param::clock_ticks_per_second();
        let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Ok(Used {
            cpu: Duration::from_millis(ticks * 1000 / hertz),
            written_bytes: written.and_then(|bytes| bytes.parse().ok()).context("/proc/PID/io")?,
        })
    }

    /// Of several processes.
    pub fn of_all(pids: &[u32]) -> Result<Used> {
        pids.iter().try_fold(Used::default(), |sum, &pid| {
            let used = Used::of(pid)?;
            Ok(Used { cpu: sum.cpu + used.cpu, written_bytes: sum.written_bytes + used.written_bytes })
        })
    }

    /// What came on top of `earlier`.
    #[must_use]
    pub fn since(self, earlier: Used) -> Used {
        Used { cpu: self.cpu.saturating_sub(earlier.cpu), written_bytes: self.written_bytes - earlier.written_bytes }
    }
}

/// A program that ran to its end.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// From its start to its end.
    pub took: Duration,
    /// What it used.
    pub used: Used,
    /// The most memory it had at once (`VmHWM`), as last seen before its end.
    pub peak_bytes: u64,
}

/// Runs a program, which must succeed.
pub fn run(command: &mut Command) -> Result<Ran> {
    let line = line_of(command);
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context(line.clone())?;
    let pid = Pid::from_child(&child);
    let mut peak_bytes = 0;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    // The peak only grows, and can be read only before the end.
    while waitid(WaitId::Pid(pid), options | WaitIdOptions::NOHANG)?.is_none() {
        peak_bytes = peak(child.id()).unwrap_or(peak_bytes);
        thread::sleep(Duration::from_millis(2));
    }
    let took = start.elapsed();
    let used = Used::of(child.id())?;
    let status = child.wait()?;
    ensure!(status.success(), "`{line}` ended with {status}");
    Ok(Ran { took, used, peak_bytes })
}

fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
