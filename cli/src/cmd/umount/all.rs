//! `mica umount --all`: nothing of a state folder is mounted afterwards, and nothing of it runs.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mica_fs::keeper::Keeper;
use mica_fs::mountinfo::listed;
use mica_snapshotter::admin::{Call, StatusReport};
use mica_snapshotter::client::Client;
use mica_snapshotter::server::Record;
use serde::Serialize;

use super::super::Context;
use super::{detach, forget, wait_until};
use crate::backend::daemon;
use crate::mounts::{Note, is_running, mounted};
use crate::{Failure, output};

/// How long a daemon may take to end its mounts and itself.
const DAEMON: Duration = Duration::from_secs(60);

/// What was ended.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The daemon's process.
    daemon: Option<u32>,
    /// Mounts, the daemon's left out.
    mounts: Vec<PathBuf>,
    /// Whether there was a keeper besides.
    keeper: bool,
}

/// Ends everything.
pub fn run(context: &Context) -> Result<(), Failure> {
    let state = context.state();
    let mut report = Report { daemon: end_daemon(context)?, ..Report::default() };
    report.keeper = end_keeper(&state)?;
    for (_, note) in Note::all(&state) {
        end_mount(&note, &mut report)?;
    }
    for mountpoint in mounted()?.into_iter().rev().filter(|place| place.starts_with(&state)) {
        gently(&mountpoint)?;
        report.mounts.push(mountpoint);
    }
    let trees = state.join("trees");
    for tree in listed()?.into_iter().filter(|mount| mount.place.parent() == Some(&trees)) {
        gently(&tree.place)?;
    }
    tidy(&context.root(), &state);
    if context.json {
        return Ok(output::json(&report)?);
    }
    if let Some(pid) = report.daemon {
        output::line(&format!("daemon {pid} has ended with its mounts"))?;
    }
    for mountpoint in report.mounts {
        output::line(&format!("unmounted {}", mountpoint.display()))?;
    }
    Ok(())
}

/// The daemon ends its mounts itself, and lets go of its keeper.
fn end_daemon(context: &Context) -> Result<Option<u32>, Failure> {
    let socket = context.state().join("mica.sock");
    let client = match daemon(&context.root())? {
        Some(client) => client,
        // It may have another root.
        None if UnixStream::connect(&socket).is_ok() => Client::at(&socket)?,
        None => return Ok(None),
    };
    let status: StatusReport = serde_json::from_value(client.call(&Call::Status, &())?)?;
    if let Err(error) = client.call(&Call::UmountAll, &()) {
        // It ends all the same; what it leaves is ended below.
        output::complain(&format!("mica: {error}"));
    }
    let socket = client.socket().to_path_buf();
    // Nobody drives its connection while we wait, and the daemon's graceful stop waits for open ones.
    drop(client);
    let gone = || !socket.exists() && !is_running(status.pid);
    if !wait_until(DAEMON, gone) {
        return Err(Failure::text(format!("daemon {} has not ended yet", status.pid)));
    }
    Ok(Some(status.pid))
}

/// Closes the connections of a daemon that is gone. Whoever uses them gets an error instead of waiting for ever.
fn end_keeper(state: &Path) -> Result<bool, Failure> {
    let socket = state.join("keeper.sock");
    let Ok(keeper) = Keeper::connect(&socket) else { return Ok(false) };
    for held in keeper.held()? {
        keeper.forget(&held.id)?;
    }
    keeper.stop()?;
    wait_until(super::END, || !socket.exists());
    Ok(true)
}

fn end_mount(note: &Note, report: &mut Report) -> Result<(), Failure> {
    if !mounted()?.contains(&note.mountpoint) {
        return Ok(());
    }
    gently(&note.mountpoint)?;
    // One that is in use lives on until its last user is gone.
    wait_until(super::END, || !note.is_served());
    report.mounts.push(note.mountpoint.clone());
    Ok(())
}

/// At once if nobody uses it, else out of sight.
fn gently(mountpoint: &Path) -> Result<(), Failure> {
    detach(mountpoint, false).or_else(|_| detach(mountpoint, true))
}

/// Removes empty folders and files of processes that are gone. What is left does no harm.
fn tidy(root: &Path, state: &Path) {
    if let Some(record) = Record::read(root).filter(|record| !is_running(record.pid)) {
        let _ = std::fs::remove_file(root.join(Record::NAME));
        if let Some(socket) = record.socket().filter(|socket| UnixStream::connect(socket).is_err()) {
            let _ = std::fs::remove_file(socket);
        }
    }
    forget(&Note::all(state));
    for folder in ["mnt", "trees"].map(|name| state.join(name)) {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    let _ = std::fs::remove_dir(state.join("trees"));
    let _ = std::fs::remove_file(state.join("keeper.sock.lock"));
}
