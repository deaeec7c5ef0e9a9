//! How `mica branch` speaks with the process that serves a mount: by a socket beside the note of the mount.
//!
//! One line of JSON asks, one answers. Who asks must be root or the user who mounted (`SO_PEERCRED`). Paths are bytes.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mica_fs::Branches;
use mica_fs::branches::{BranchMode, BranchSpec};
use mica_fs::session::Session;
use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};

use crate::Failure;

/// The longest question: a path has 4096 bytes at most, each a number of up to three digits and a comma.
const LONGEST: u64 = 64 << 10;
/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The branches.
    List,
    /// A branch more, below the first `index`.
    Add {
        /// Its directory.
        path: Vec<u8>,
        /// The word for what may be done to it.
        mode: String,
        /// How many stay above.
        index: usize,
    },
    /// A branch less.
    Remove {
        /// Its directory.
        path: Vec<u8>,
    },
    /// Another mode.
    Mode {
        /// The branch's directory.
        path: Vec<u8>,
        /// The word for what may be done to it.
        mode: String,
    },
}

/// A branch.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its directory.
    pub path: Vec<u8>,
    /// The word for what may be done to it.
    pub mode: String,
    /// What its disk has left.
    pub free_bytes: u64,
}

/// What is answered: the branches as they are now, or why they are as they were.
type Answer = Result<Vec<Row>, String>;

/// The socket of a mount. The file goes with it.
#[derive(Debug)]
pub struct Control(PathBuf);

impl Drop for Control {
    fn drop(&mut self) {
        // A socket that nobody serves is harmless.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Control {
    /// Where the socket of a mount is that has this note.
    pub fn beside(note: &Path) -> PathBuf {
        note.with_extension("sock")
    }

    /// Answers for a mount, in a thread of its own.
    pub fn serve(note: &Path, branches: Arc<Branches>, session: Arc<Session>) -> io::Result<Control> {
        let socket = Control::beside(note);
        let listener = in_folder(&socket, UnixListener::bind)?;
        let control = Control(socket);
        std::thread::Builder::new().name("mica-control".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                if let Err(error) = stream.and_then(|stream| converse(&stream, &branches, &session)) {
                    tracing::warn!(%error, "a question about branches");
                }
            }
        })?;
        Ok(control)
    }
}

/// Asks the mount that has this note.
pub fn ask(note: &Path, question: &Question) -> Result<Vec<Row>, Failure> {
    let stream = in_folder(&Control::beside(note), UnixStream::connect)
        .map_err(|error| Failure::text(format!("this mount has no branches, or can't be asked: {error}")))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut asked = serde_json::to_vec(question)?;
    asked.push(b'\n');
    (&stream).write_all(&asked)?;
    let mut line = Vec::new();
    BufReader::new(&stream).read_until(b'\n', &mut line)?;
    let answer: Answer = serde_json::from_slice(&line)?;
    answer.map_err(Failure::text)
}

/// Addresses of sockets are short, paths need not be: the folder is named by a descriptor.
fn in_folder<T>(socket: &Path, call: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    call(Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

fn converse(stream: &UnixStream, branches: &Branches, session: &Session) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let asker = socket_peercred(stream)?.uid;
    let mut line = Vec::new();
    let answer: Answer = if asker.is_root() || asker == rustix::process::geteuid() {
        BufReader::new(stream.take(LONGEST)).read_until(b'\n', &mut line)?;
        match serde_json::from_slice(&line) {
            Ok(question) => answer(&question, branches, session),
            Err(error) => Err(error.to_string()),
        }
    } else {
        Err("only root and the user who mounted it may ask".to_owned())
    };
    let mut said = serde_json::to_vec(&answer)?;
    said.push(b'\n');
    let mut stream = stream;
    stream.write_all(&said)
}

fn answer(question: &Question, branches: &Branches, session: &Session) -> Answer {
    let mode = |word: &str| BranchMode::named(word).ok_or_else(|| format!("{word} is none of rw, ro and ro+wh"));
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let done = match question {
        Question::List => Ok(()),
        Question::Add { path: dir, mode: word, index } => {
            branches.add(&BranchSpec { path: path(dir), mode: mode(word)?, work: None }, *index)
        }
        Question::Remove { path: dir } => {
            branches.remove(&path(dir), &|parent, name| session.forget_name(parent, name))
        }
        Question::Mode { path: dir, mode: word } => branches.set_mode(&path(dir), mode(word)?),
    };
    done.map_err(|error| error.to_string())?;
    let row = |state: mica_fs::branches::BranchState| Row {
        path: state.path.as_os_str().as_bytes().to_vec(),
        mode: state.mode.to_string(),
        free_bytes: state.free_bytes,
    };
    Ok(branches.list().into_iter().map(row).collect())
}
