//! The process.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    let Some(post) = Post::take(socket)? else { return Ok(()) };
    let post = Arc::new(post);
    let table = Table::default();
    let (stopped, is_stopped) = std::sync::mpsc::channel();
    loop {
        let client = match accept_with(&post.listener, SocketFlags::CLOEXEC) {
            Ok(client) => client,
            // What is said of a listener that was shut down.
            Err(Errno::INVAL) if table.is_closed() => break,
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
            Err(errno) => return Err(errno.into()),
        };
        let (table, post, stopped) = (table.clone(), post.clone(), stopped.clone());
        // A thread of its own, so that a mount that hangs keeps nobody else waiting.
        let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            if converse(&table, &post, client) {
                let _ = stopped.send(());
            }
        });
    }
    // Whoever stopped it is told so first.
    let _ = is_stopped.recv();
    Ok(())
}

/// Serves one client; true when it has stopped the keeper.
fn converse(table: &Table, post: &Post, client: OwnedFd) -> bool {
    let ours = socket_peercred(&client).is_ok_and(|peer| peer.uid == rustix::process::getuid() || peer.uid.is_root());
    let channel = Channel::over(client);
    while ours && let Ok(Some((request, _))) = channel.receive::<Request>() {
        let stop = matches!(request, Request::Stop);
        let done = match table.handle(request) {
            Ok((answers, descriptors)) => {
                if stop {
                    // Before the answer: whoever has it may start another keeper at once.
                    post.leave();
                }
                answer(&channel, &answers, &descriptors).map(|()| stop)
            }
            Err(error) => {
                let failure = Answer::Failed { reason: error.to_string(), errno: error.errno().raw_os_error() };
                channel.send(&failure, &[]).map(|()| false)
            }
        };
        match done {
            Ok(false) => {}
            Ok(true) => return true,
            Err(_) => return stop && table.is_closed(),
        }
    }
    false
}

fn answer(channel: &Channel, answers: &[Answer], descriptors: &[OwnedFd]) -> Result<()> {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    for answer in answers {
        channel.send(answer, &descriptors)?;
    }
    channel.send(&Answer::End, &[])
}

/// Where a keeper is found.
struct Post {
    socket: PathBuf,
    listener: OwnedFd,
    /// At most one keeper per socket; the lock ends with the process at the latest.
    lock: File,
}

impl Post {
    /// `None` when another keeper has it.
    fn take(socket: &Path) -> Result<Option<Post>> {
        let mut path = PathBuf::from(socket).into_os_string();
        path.push(".lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Post { socket: socket.to_owned(), listener: listen_at(socket)?, lock })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// No client finds it any more, and another keeper can take its place. A socket that can't be removed refuses its
    /// clients, and the next keeper removes it.
    fn leave(&self) {
        let _ = std::fs::remove_file(&self.socket);
        let _ = shutdown(&self.listener, Shutdown::Both);
        let _ = flock(&self.lock, FlockOperation::Unlock);
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
