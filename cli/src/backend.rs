//! Who does what a command asks: this process, or the daemon that has the store open.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use mica_layerdb::{Limits, Progress, Store, StoreOptions};
use mica_snapshotter::admin::{Admin, Call};
use mica_snapshotter::client::Client;
use mica_snapshotter::server::Record;
use serde::de::DeserializeOwned;

use crate::Failure;

/// How long a store may be locked by somebody who says nothing: another command, or a daemon that starts.
const PATIENCE: Duration = Duration::from_secs(5);

/// One of the two.
pub enum Backend {
    /// Nobody else has the store.
    Open(Box<Admin>),
    /// A daemon has it.
    Daemon(Box<Client>),
}

impl Backend {
    /// The way to an existing store.
    pub fn of(root: &Path) -> Result<Backend, Failure> {
        if !root.join("FORMAT").exists() {
            return Err(Failure::text(format!("there is no store at {}", root.display())));
        }
        Backend::of_any(root, &Limits::default())
    }

    /// The way to a store, which is made if need be. A daemon has limits of its own.
    pub fn of_any(root: &Path, limits: &Limits) -> Result<Backend, Failure> {
        let start = Instant::now();
        loop {
            let options = StoreOptions { limits: limits.clone(), ..StoreOptions::default() };
            match Store::open_with(root, options) {
                Ok(store) => return Ok(Backend::Open(Box::new(Admin::of_store(store)))),
                Err(mica_layerdb::Error::Locked { root }) => {
                    if let Some(client) = daemon(&root)? {
                        return Ok(Backend::Daemon(Box::new(client)));
                    }
                    if start.elapsed() > PATIENCE {
                        return Err(mica_layerdb::Error::Locked { root }.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks, and understands the answer.
    pub fn call<T: DeserializeOwned>(&self, call: Call, progress: &dyn Progress) -> Result<T, Failure> {
        self.stream(call, progress, &mut std::io::sink())
    }

    /// Asks, writes the bytes that were asked for to `out`, and understands the rest of the answer.
    pub fn stream<T: DeserializeOwned>(
        &self,
        call: Call,
        progress: &dyn Progress,
        out: &mut dyn Write,
    ) -> Result<T, Failure> {
        let answer = match self {
            Backend::Open(admin) => admin.stream(call, progress, out)?,
            Backend::Daemon(client) => client.stream(&call, progress, out)?,
        };
        Ok(serde_json::from_value(answer)?)
    }
}

/// The daemon that serves the store at `root`, if one answers.
pub fn daemon(root: &Path) -> Result<Option<Client>, Failure> {
    let Some(socket) = Record::read_live(root).and_then(|record| record.socket()) else { return Ok(None) };
    Ok(Some(Client::at(&socket)?))
}
