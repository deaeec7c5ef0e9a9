//! The keeper: a tiny process that mounts, and that keeps connections alive while their server is away.
//!
//! A FUSE connection lives as long as a descriptor of its device does. The keeper holds one of each mount, with
//! what a new server needs to take the connection over: the kernel's INIT message, our answer to it, and the
//! ledger of open handles (a memory file, see `session/ledger.rs`). It never touches what is mounted, serves
//! nothing and writes nothing to a disk, so there is no reason to replace it together with the server.
//!
//! It listens on a `SOCK_SEQPACKET` socket in a folder that belongs to one user. Each request has a connection of
//! its own; descriptors travel with the answers.

mod attach;
mod serve;
mod table;
mod wire;

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::error::{Error, Result};
use table::Table;
use wire::{Answer, Channel, Request};

pub use attach::Attach;
pub(crate) use attach::words;
pub use serve::serve;
pub use wire::Init;

/// How long a new keeper may take until it answers: it is ready at once, but not where the disk is busy.
const START: Duration = Duration::from_secs(60);

/// Where mounts are made and connections are held.
pub struct Keeper {
    place: Place,
}

enum Place {
    /// A process of its own.
    Process { socket: PathBuf, child: Mutex<Option<Child>> },
    /// This process: the mounts end with it.
    Here(Table),
}

/// A connection that a keeper holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The name it was mounted under.
    pub id: String,
    /// Where it was mounted.
    pub mountpoint: PathBuf,
    /// Whether a server has answered the kernel's INIT, so that the connection can be resumed.
    pub ready: bool,
}

/// What a server needs to serve a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) device: OwnedFd,
    pub(crate) ledger: OwnedFd,
    pub(crate) mountpoint: PathBuf,
    pub(crate) init: Option<Init>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Process { socket, .. } => out.debug_struct("Keeper").field("socket", socket).finish(),
            Place::Here(_) => out.debug_struct("Keeper").finish_non_exhaustive(),
        }
    }
}

impl Keeper {
    /// The keeper that listens at `socket`. When none does, `program keeper --socket SOCKET` is started, in a
    /// session of its own, so that no signal meant for this process reaches it.
    pub fn connect_or_start(socket: &Path, program: &Path) -> Result<Keeper> {
        if Channel::connect(socket).is_ok() {
            return Ok(Keeper::at(socket, None));
        }
        let start = || {
            Command::new(program)
                .arg("keeper")
                .arg("--socket")
                .arg(socket)
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| failed(format!("can't start {}: {error}", program.display()), &error))
        };
        let mut child = start()?;
        let deadline = Instant::now() + START;
        loop {
            if let Ok(channel) = Channel::connect(socket) {
                if channel.peer()? == child.id() {
                    return Ok(Keeper::at(socket, Some(child)));
                }
                // Another one was faster. Ours must not take its place later, when that one has been stopped.
                child.kill()?;
                child.wait()?;
                return Ok(Keeper::at(socket, None));
            }
            let ended = child.try_wait().ok().flatten();
            let failure = match ended {
                Some(status) if !status.success() => Some(format!("ended with {status}")),
                _ if Instant::now() > deadline => Some(format!("did not answer for {} seconds", START.as_secs())),
                _ => None,
            };
            if let Some(failure) = failure {
                let reason = format!("{} for {} {failure}", program.display(), socket.display());
                return Err(Error::Keeper { reason, errno: Errno::CONNREFUSED });
            }
            std::thread::sleep(Duration::from_millis(2));
            if ended.is_some() && Channel::connect(socket).is_err() {
                // Another one had the place: one that does not listen yet, or that is ending.
                child = start()?;
            }
        }
    }

    /// A running keeper; none is started.
    pub fn connect(socket: &Path) -> Result<Keeper> {
        Channel::connect(socket)?;
        Ok(Keeper::at(socket, None))
    }

    /// No process: mounts are made by this one and end with it, as those of any FUSE server.
    pub fn in_process() -> Keeper {
        Keeper { place: Place::Here(Table::default()) }
    }

    fn at(socket: &Path, child: Option<Child>) -> Keeper {
        Keeper { place: Place::Process { socket: socket.to_owned(), child: Mutex::new(child) } }
    }

    /// The connections it holds whose mounts still exist.
    pub fn held(&self) -> Result<Vec<Held>> {
        let (answers, _) = self.ask(&Request::List)?;
        let held = answers.into_iter().filter_map(|answer| match answer {
            Answer::Held { id, mountpoint, ready } => Some(Held { id, mountpoint: path(mountpoint), ready }),
            _ => None,
        });
        Ok(held.collect())
    }

    /// Closes its copy of a connection; no error when it has none.
    pub fn forget(&self, id: &str) -> Result<()> {
        self.ask(&Request::Forget { id: id.to_owned() }).map(drop)
    }

    /// Ends the process when it holds nothing, else fails with EBUSY.
    pub fn stop(&self) -> Result<()> {
        self.ask(&Request::Stop)?;
        if let Place::Process { child, .. } = &self.place
            && let Some(mut child) = child.lock().take()
        {
            child.wait()?;
        }
        Ok(())
    }

    /// Mounts at `mountpoint` and holds the connection under the name `id`.
    pub(crate) fn mount(&self, id: &str, mountpoint: &Path, attach: &Attach) -> Result<Connection> {
        let request = Request::Mount {
            id: id.to_owned(),
            mountpoint: mountpoint.as_os_str().as_bytes().to_vec(),
            attach: attach.clone(),
        };
        self.connection(&request)
    }

    /// What is held under the name `id`.
    pub(crate) fn take(&self, id: &str) -> Result<Connection> {
        self.connection(&Request::Take { id: id.to_owned() })
    }

    /// Remembers how the kernel's INIT was answered.
    pub(crate) fn save(&self, id: &str, init: &Init) -> Result<()> {
        self.ask(&Request::Save { id: id.to_owned(), init: init.clone() }).map(drop)
    }

    /// The same keeper, for another thread.
    pub(crate) fn reach(&self) -> Keeper {
        match &self.place {
            Place::Process { socket, .. } => Keeper::at(socket, None),
            Place::Here(table) => Keeper { place: Place::Here(table.clone()) },
        }
    }

    fn connection(&self, request: &Request) -> Result<Connection> {
        let (answers, descriptors) = self.ask(request)?;
        let mut descriptors = descriptors.into_iter();
        match (answers.into_iter().next(), descriptors.next(), descriptors.next()) {
            (Some(Answer::Connection { mountpoint, init }), Some(device), Some(ledger)) => {
                Ok(Connection { device, ledger, mountpoint: path(mountpoint), init })
            }
            _ => Err(Error::Keeper { reason: "unexpected answer".to_owned(), errno: Errno::PROTO }),
        }
    }

    fn ask(&self, request: &Request) -> Result<(Vec<Answer>, Vec<OwnedFd>)> {
        match &self.place {
            Place::Process { socket, .. } => Channel::connect(socket)?.ask(request),
            Place::Here(table) => table.handle(request.clone()),
        }
    }
}

fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn failed(reason: String, error: &std::io::Error) -> Error {
    Error::Keeper { reason, errno: Errno::from_io_error(error).unwrap_or(Errno::IO) }
}
