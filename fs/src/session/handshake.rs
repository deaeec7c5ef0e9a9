//! The start of a connection, the first and every later one.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::notify;
use crate::error::{Error, Result};
use crate::fuse::Adapter;
use crate::keeper::Init;
use crate::sys;

/// The least that the kernel allows for a read of its device.
const READ: usize = 8192;

/// A message of up to this many bytes goes through the socket.
const MESSAGE: usize = 4096;

/// Gets `fuser` to serve the connection of `device`.
///
/// `saved` is what an earlier server has left with the keeper; without, the kernel's INIT is waiting at the device and
/// `save` is given what is to be left.
pub(super) fn establish(
    device: &OwnedFd,
    adapter: Adapter,
    saved: Option<Init>,
    threads: usize,
    save: &dyn Fn(&Init) -> Result<()>,
) -> Result<fuser::Session<Adapter>> {
    let request = match &saved {
        Some(init) => init.request.clone(),
        None => read_init(device)?,
    };
    let (session, reply) = play(adapter, &request, threads)?;
    let init = if let Some(init) = saved {
        agree(&init.reply, &reply)?;
        init
    } else {
        let init = Init { request, reply };
        save(&init)?;
        init
    };
    // A server killed between saving and answering has left the kernel waiting; one that was not makes this ENOENT.
    match rustix::io::write(device, &init.reply) {
        Ok(_) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    sys::replace_descriptor(session.as_fd(), device)?;
    notify::resend(device)?;
    Ok(session)
}

fn read_init(device: &OwnedFd) -> Result<Vec<u8>> {
    // The kernel queues it while it mounts. If it is not there, somebody has read it and is gone.
    let mut ready = [PollFd::new(device, PollFlags::IN)];
    if poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 }))? == 0 {
        notify::resend(device)?;
    }
    let mut message = vec![0; READ];
    loop {
        match rustix::io::read(device, &mut message) {
            Ok(length) => {
                message.truncate(length);
                return Ok(message);
            }
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Plays INIT to `fuser` and listens to its answer.
fn play(adapter: Adapter, request: &[u8], threads: usize) -> Result<(fuser::Session<Adapter>, Vec<u8>)> {
    sys::map_large_buffers();
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&ours, request)?;
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(threads);
    config.clone_fd = false;
    // Reads and answers before it returns; the socket holds both messages, so no second thread is needed.
    let session = fuser::Session::from_fd(adapter, theirs, fuser::SessionACL::All, config)?;
    let mut reply = vec![0; MESSAGE];
    let length = rustix::io::read(&ours, &mut reply)?;
    reply.truncate(length);
    Ok((session, reply))
}

/// What was negotiated can't be changed later: a server that would negotiate something else can't take over.
fn agree(saved: &[u8], now: &[u8]) -> Result<()> {
    if saved == now {
        return Ok(());
    }
    let reason = "the connection was negotiated in a way that this version does not serve".to_owned();
    Err(Error::Mount { path: "fuse".to_owned(), reason, errno: Errno::PROTO })
}
