//! The keeper's messages: one JSON value per packet, descriptors beside it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
    sockopt::socket_peercred,
};
use serde::{Deserialize, Serialize};

use super::attach::Attach;
use crate::error::{Error, Result};

/// A packet's limit. The largest holds an INIT and its answer, some hundred bytes written as numbers.
const PACKET: usize = 64 << 10;

/// The kernel's INIT message and our answer, both with their headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// The kernel's.
    pub request: Vec<u8>,
    /// Ours.
    pub reply: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Mount { id: String, mountpoint: Vec<u8>, attach: Attach },
    Take { id: String },
    Save { id: String, init: Init },
    List,
    Forget { id: String },
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// With two descriptors: device and ledger.
    Connection {
        mountpoint: Vec<u8>,
        init: Option<Init>,
    },
    Held {
        id: String,
        mountpoint: Vec<u8>,
        ready: bool,
    },
    /// Nothing follows.
    End,
    Failed {
        reason: String,
        errno: i32,
    },
}

/// One end of a connection between a keeper and a client.
pub(super) struct Channel(OwnedFd);

impl Channel {
    pub(super) fn over(socket: OwnedFd) -> Channel {
        Channel(socket)
    }

    pub(super) fn connect(path: &Path) -> Result<Channel> {
        let refused = |errno: Errno| Error::Keeper { reason: format!("{}: {errno}", path.display()), errno };
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let address = SocketAddrUnix::new(path).map_err(refused)?;
        connect(&socket, &address).map_err(refused)?;
        Ok(Channel(socket))
    }

    /// The process at the other end.
    pub(super) fn peer(&self) -> Result<u32> {
        Ok(socket_peercred(&self.0)?.pid.as_raw_pid() as u32)
    }

    /// Sends a request and gathers the answers up to the last.
    pub(super) fn ask(&self, request: &Request) -> Result<(Vec<Answer>, Vec<OwnedFd>)> {
        self.send(request, &[])?;
        let (mut answers, mut descriptors) = (Vec::new(), Vec::new());
        loop {
            let Some((answer, mut more)) = self.receive::<Answer>()? else {
                return Err(Error::Keeper { reason: "ended before it answered".to_owned(), errno: Errno::CONNRESET });
            };
            descriptors.append(&mut more);
            match answer {
                Answer::End => return Ok((answers, descriptors)),
                Answer::Failed { reason, errno } => {
                    // Whoever answers, there is no error without a number, nor beyond the kernel's.
                    let errno = if (1..4096).contains(&errno) { Errno::from_raw_os_error(errno) } else { Errno::PROTO };
                    return Err(Error::Keeper { reason, errno });
                }
                answer => answers.push(answer),
            }
        }
    }

    pub(super) fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(message)
            .map_err(|error| Error::Keeper { reason: error.to_string(), errno: Errno::INVAL })?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::INVAL.into());
        }
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message; `None` when the other end is closed.
    pub(super) fn receive<T: for<'de> Deserialize<'de>>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let length = loop {
            match recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                received => break received?.bytes,
            }
        };
        let descriptors = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                _ => None,
            })
            .flatten()
            .collect();
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&bytes[..length])
            .map_err(|error| Error::Keeper { reason: error.to_string(), errno: Errno::PROTO })?;
        Ok(Some((message, descriptors)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
