//! `<root>/daemon.json`: who serves the store, for commands that find it locked.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ServeError, io};
use crate::admin::StatusReport;
use crate::config::{Config, socket_path};

/// Who serves a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Address of its socket.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// Its folder of mountpoints.
    pub state: PathBuf,
}

impl Record {
    /// The file's name below the root.
    pub const NAME: &'static str = "daemon.json";

    pub(super) fn of(config: &Config) -> Record {
        Record { address: config.address(), pid: std::process::id(), state: config.state.clone() }
    }

    pub(super) fn status(&self, config: &Config) -> StatusReport {
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.pid,
            root: config.root.clone(),
            state: self.state.clone(),
            address: self.address.clone(),
        }
    }

    /// What the store at `root` says of its daemon; a daemon that was killed is still named.
    pub fn read(root: &Path) -> Option<Record> {
        serde_json::from_slice(&fs::read(root.join(Record::NAME)).ok()?).ok()
    }

    /// The same, of a daemon whose socket answers.
    pub fn read_live(root: &Path) -> Option<Record> {
        Record::read(root).filter(|record| record.socket().is_some_and(|path| UnixStream::connect(path).is_ok()))
    }

    /// The path of its socket.
    pub fn socket(&self) -> Option<PathBuf> {
        socket_path("the daemon's address", &self.address).ok()
    }

    /// Writes the record in one step. It goes when the result is dropped.
    pub(super) fn publish(self, root: &Path) -> Result<Published, ServeError> {
        let path = root.join(Record::NAME);
        let new = root.join(format!(".{}.{}", Record::NAME, self.pid));
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
            serde_json::to_writer(&mut file, &self)?;
            file.write_all(b"\n")?;
            fs::rename(&new, &path)
        };
        write().map_err(io(format!("write {}", path.display())))?;
        Ok(Published { path, record: self, root: root.to_path_buf() })
    }
}

/// A record on the disk.
#[derive(Debug)]
pub(super) struct Published {
    path: PathBuf,
    record: Record,
    root: PathBuf,
}

impl Drop for Published {
    fn drop(&mut self) {
        // The store is still locked, so the record can't be anybody else's, but a copied store could bring one.
        if Record::read(&self.root).as_ref() == Some(&self.record)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the daemon's record stays");
        }
    }
}
