//! Programs that run to their end, within a limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::failure::{Context as _, Failure, Result};
use crate::wait;

/// What a program left when it ended.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Standard output as text, whatever bytes it holds.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The output of a program that should have succeeded.
    pub fn success(self) -> Result<Output> {
        if self.status.success() {
            return Ok(self);
        }
        Err(Failure::new(format!("{self}")))
    }

    /// What a program that should have failed said, both streams.
    pub fn refusal(self) -> Result<String> {
        if self.status.success() {
            return Err(Failure::new(format!("should have failed: {self}")));
        }
        Ok(format!("{}{}", self.complaint(), self.text()))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "`{}` ended with {}", self.line, self.status)?;
        // Where there is a complaint, the rest is mostly progress.
        let lines = if self.stderr.is_empty() { 20 } else { 3 };
        for (stream, bytes, lines) in [("output", &self.stdout, lines), ("error output", &self.stderr, 20)] {
            let text = String::from_utf8_lossy(bytes);
            if !text.trim().is_empty() {
                write!(to, "\n  {stream}: {}", tail(text.trim(), lines).replace('\n', "\n    "))?;
            }
        }
        Ok(())
    }
}

/// Runs to the end; an error only if it can't start or does not end within `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    run_with_input(command, &[], limit)
}

/// [`run`], and it must succeed.
pub fn succeed(command: &mut Command, limit: Duration) -> Result<Output> {
    run(command, limit)?.success()
}

/// Runs for so long at most, then kills it (SIGKILL). `None` if it was killed.
pub fn run_for(command: &mut Command, limit: Duration) -> Result<Option<Output>> {
    let output = tempfile::tempfile().context("make a file for output")?;
    let line = line_of(command);
    let start = Instant::now();
    let both = [Stdio::from(output.try_clone()?), Stdio::from(output.try_clone()?)];
    let [stdout, stderr] = both;
    let mut child =
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().context(format!("start `{line}`"))?;
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            child.kill()?;
            // It may have come to its end before.
            break Some(child.wait()?).filter(|status| status.code().is_some());
        }
        std::thread::sleep(left.min(Duration::from_millis(1)));
    };
    let took = start.elapsed();
    let Some(status) = ended else { return Ok(None) };
    Ok(Some(Output { line, status, stdout: contents(output)?, stderr: Vec::new(), took }))
}

/// [`run`] with `input` on standard input.
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    // Files, not pipes: a daemon that the program leaves behind may keep them open.
    let mut stdin = tempfile::tempfile().context("make a file for input")?;
    stdin.write_all(input)?;
    stdin.rewind()?;
    let stdout = tempfile::tempfile().context("make a file for output")?;
    let stderr = tempfile::tempfile().context("make a file for output")?;
    let line = line_of(command);
    let start = Instant::now();
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::from(stdout.try_clone()?))
        .stderr(Stdio::from(stderr.try_clone()?))
        .process_group(0)
        .spawn()
        .context(format!("start `{line}`"))?;
    let ended = wait::until(&line, limit, || Ok(child.try_wait()?));
    let took = start.elapsed();
    let (stdout, stderr) = (contents(stdout)?, contents(stderr)?);
    match ended {
        Ok(status) => Ok(Output { line, status, stdout, stderr, took }),
        Err(failure) => {
            let _ = Pid::from_raw(child.id() as i32).map(|group| kill_process_group(group, Signal::KILL));
            let _ = child.wait();
            let said = [stdout, stderr].concat();
            Err(Failure::new(format!("{failure}; it said: {}", tail(&String::from_utf8_lossy(&said), 20))))
        }
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A command line as a person would type it.
pub fn line_of(command: &Command) -> String {
    let words: Vec<String> = [command.get_program()].into_iter().chain(command.get_args()).map(quote).collect();
    words.join(" ")
}

fn quote(word: &OsStr) -> String {
    let text = word.display().to_string();
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_./:=,@%+".contains(char);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn contents(mut file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_of_a_program_that_hangs_is_ended_and_tells_what_it_said() {
        let failure = run(Command::new("sh").args(["-c", "echo so far; sleep 60"]), Duration::from_millis(300));
        let reason = failure.err().map(|failure| failure.reason().to_owned()).unwrap_or_default();
        assert!(reason.contains("so far") && reason.contains("sh -c"), "{reason}");
    }

    #[test]
    fn run_of_a_program_that_leaves_a_daemon_returns_at_once() -> Result {
        let output = run(Command::new("sh").args(["-c", "sleep 3 & echo here"]), wait::SOON)?;
        assert_eq!(output.text(), "here\n");
        assert!(output.took < Duration::from_secs(2), "{:?}", output.took);
        Ok(())
    }

    #[test]
    fn success_of_a_failed_program_shows_both_streams() {
        let output = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), wait::SOON);
        let reason = output.and_then(Output::success).err().map(|failure| failure.to_string()).unwrap_or_default();
        assert!(reason.contains("out") && reason.contains("err") && reason.contains('3'), "{reason}");
    }
}
