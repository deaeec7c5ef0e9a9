//! The process.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, shutdown, socket_with,
    sockopt::socket_peercred,
};

use super::table::Table;
use super::wire::{Answer, Channel, Request};
use crate::error::{Error, Result};

/// Runs a keeper at `socket` until a client stops it; the body of the `keeper` verb.
///
/// Returns at once when another keeper serves that socket.
pub fn serve(socket: &Path) -> Result<()> {
    // Signals meant for the process group of whoever started this one must not end it.
    let _ = rustix::process::setsid();
    let Some(_lock) = lock(socket)? else { return Ok(()) };
    let listener = Arc::new(listen_at(socket)?);
    let table = Table::default();
    let stopping = Arc::new(AtomicBool::new(false));
    while !stopping.load(Ordering::Acquire) {
        let client = match accept_with(&*listener, SocketFlags::CLOEXEC) {
            Ok(client) => client,
            Err(Errno::INTR | Errno::CONNABORTED | Errno::INVAL) => continue,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
            Err(errno) => return Err(errno.into()),
        };
        let (table, stopping, listener) = (table.clone(), stopping.clone(), listener.clone());
        // A thread of its own, so that a mount that hangs keeps nobody else waiting.
        let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            if converse(&table, client) {
                stopping.store(true, Ordering::Release);
                let _ = shutdown(&*listener, Shutdown::Both);
            }
        });
    }
    std::fs::remove_file(socket)?;
    Ok(())
}

/// Serves one client; true when the keeper is to end.
fn converse(table: &Table, client: OwnedFd) -> bool {
    let ours = socket_peercred(&client).is_ok_and(|peer| peer.uid == rustix::process::getuid() || peer.uid.is_root());
    let channel = Channel::over(client);
    while ours && let Ok(Some((request, _))) = channel.receive::<Request>() {
        let stop = matches!(request, Request::Stop);
        let done = match table.handle(request) {
            Ok((answers, descriptors)) => answer(&channel, &answers, &descriptors),
            Err(error) => {
                let failure = Answer::Failed { reason: error.to_string(), errno: error.errno().raw_os_error() };
                channel.send(&failure, &[]).map(|()| false)
            }
        };
        match done {
            Ok(true) if stop && table.is_empty() => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

fn answer(channel: &Channel, answers: &[Answer], descriptors: &[OwnedFd]) -> Result<bool> {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    for answer in answers {
        channel.send(answer, &descriptors)?;
    }
    channel.send(&Answer::End, &[])?;
    Ok(true)
}

/// At most one keeper per socket; the lock ends with the process.
fn lock(socket: &Path) -> Result<Option<File>> {
    let mut path = PathBuf::from(socket).into_os_string();
    path.push(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn listen_at(path: &Path) -> Result<OwnedFd> {
    let failed = |errno: Errno| Error::Keeper { reason: format!("{}: {errno}", path.display()), errno };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let old = rustix::process::umask(Mode::from_raw_mode(0o077));
    let bound = SocketAddrUnix::new(path).and_then(|address| bind(&socket, &address));
    rustix::process::umask(old);
    bound.and_then(|()| listen(&socket, 128)).map_err(failed)?;
    Ok(socket)
}
