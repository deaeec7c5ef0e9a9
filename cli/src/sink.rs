//! Where bytes go that were asked for: standard output, or a file that is there when it is whole.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::Failure;

/// Standard output, or a file.
#[derive(Debug)]
pub enum Sink {
    /// Standard output, which is no terminal.
    Stdout(io::Stdout),
    /// A file that has no name yet.
    File(Pending),
}

/// A file that gets its name when it is whole.
#[derive(Debug)]
pub struct Pending {
    file: File,
    path: PathBuf,
    /// Its name so far, on a filesystem whose files can't be without.
    temporary: Option<PathBuf>,
}

impl Sink {
    /// Standard output if `path` is `-` or nothing, else that file. A terminal is refused: `what` is not to be read there.
    pub fn open(path: Option<&Path>, what: &str) -> Result<Sink, Failure> {
        match path.filter(|path| *path != Path::new("-")) {
            Some(path) => Ok(Sink::File(Pending::new(path)?)),
            None if io::stdout().is_terminal() => Err(Failure::Usage(format!(
                "standard output is a terminal, and {what} is not to be read there; name a file, or send it into a pipe"
            ))),
            None => Ok(Sink::Stdout(io::stdout())),
        }
    }

    /// Gives a file its name.
    pub fn finish(self) -> Result<(), Failure> {
        match self {
            Sink::Stdout(mut out) => Ok(out.flush()?),
            Sink::File(pending) => {
                let path = pending.path.clone();
                pending.finish().map_err(|error| Failure::text(format!("write {}: {error}", path.display())))
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Stdout(out) => out.write(buffer),
            Sink::File(pending) => pending.file.write(buffer).map_err(|error| pending.named(&error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Stdout(out) => out.flush(),
            Sink::File(_) => Ok(()),
        }
    }
}

impl Pending {
    fn new(path: &Path) -> Result<Pending, Failure> {
        let wrong = |error: io::Error| Failure::text(format!("cannot write {}: {error}", path.display()));
        match std::fs::symlink_metadata(path) {
            Ok(data) if data.is_dir() => return Err(wrong(io::ErrorKind::IsADirectory.into())),
            _ => {}
        }
        let mode = Mode::from_raw_mode(0o666);
        let folder = folder_of(path);
        match rustix::fs::openat(CWD, &folder, OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
            Ok(file) => Ok(Pending { file: file.into(), path: path.to_path_buf(), temporary: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let temporary = beside(path);
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(CWD, &temporary, flags, mode).map_err(|errno| wrong(errno.into()))?;
                Ok(Pending { file: file.into(), path: path.to_path_buf(), temporary: Some(temporary) })
            }
            Err(errno) => Err(wrong(errno.into())),
        }
    }

    /// An error of the file, told apart from one of a pipe.
    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::other(format!("write {}: {error}", self.path.display()))
    }

    fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.temporary.is_none() {
            use std::os::fd::AsRawFd as _;
            let temporary = beside(&self.path);
            let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::linkat(CWD, unnamed, CWD, &temporary, AtFlags::SYMLINK_FOLLOW)?;
            self.temporary = Some(temporary);
        }
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, &self.path)?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // Whatever went wrong has been said.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// A name in the same folder that nothing has.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".mica-{}", std::process::id()));
    folder_of(path).join(temporary)
}
