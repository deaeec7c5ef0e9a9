//! The socket the daemon listens on.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::ServeError;

/// Only root may ask: who can mount has the machine anyway.
const MODE: u32 = 0o600;
const BACKLOG: i32 = 1024;

/// A bound socket; its file goes when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode of the file, which may have been replaced meanwhile.
    identity: (u64, u64),
    listener: UnixListener,
}

impl Socket {
    /// Binds and listens. A socket file that nobody listens on is replaced.
    pub(super) fn bind(path: &Path) -> Result<Socket, ServeError> {
        let refused = |reason: String| ServeError::Socket { path: path.to_path_buf(), reason };
        clear(path).map_err(refused)?;
        let listener = listen(path).map_err(|error| refused(error.to_string()))?;
        let file = fs::symlink_metadata(path).map_err(|error| refused(error.to_string()))?;
        Ok(Socket { path: path.to_path_buf(), identity: (file.dev(), file.ino()), listener })
    }

    /// The socket, to be listened on without blocking.
    pub(super) fn listener(&self) -> Result<UnixListener, ServeError> {
        let listen = || {
            let listener = self.listener.try_clone()?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        listen().map_err(super::io(format!("listen at {}", self.path.display())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays");
        }
    }
}

/// Makes way, unless somebody is there.
fn clear(path: &Path) -> Result<(), String> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return make_folder(path),
        Err(error) => return Err(error.to_string()),
    };
    if !file.file_type().is_socket() {
        return Err("it is a file of another kind".to_owned());
    }
    match UnixStream::connect(path) {
        Ok(_) => Err("another process serves there".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| format!("remove what a daemon left there: {error}"))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn make_folder(path: &Path) -> Result<(), String> {
    let Some(folder) = path.parent() else { return Ok(()) };
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o711);
    builder.create(folder).map_err(|error| format!("create {}: {error}", folder.display()))
}

/// The file has its mode from the beginning: the kernel takes it from the socket's own when it is bound.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn bind_gives_the_file_its_mode_and_drop_removes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/s");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn bind_replaces_a_stale_socket_but_not_a_live_one_nor_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let live = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves there") && error.contains("/s"), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(live);
        fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("of another kind"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
