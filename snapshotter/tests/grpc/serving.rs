//! A daemon in this process, and clients of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use mica_snapshotter::admin::Call;
use mica_snapshotter::client::Client;
use mica_snapshotter::config::{Config, Flags};
use mica_snapshotter::grpc::proto::containerd::services::diff::v1::diff_client::DiffClient;
use mica_snapshotter::grpc::proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use mica_snapshotter::server::{self, Record, ServeError};
use mica_snapshotter::{Mounter, Result};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::kernel::FakeKernel;

/// A daemon; it is ended when this is dropped.
pub struct Serving {
    pub folder: TempDir,
    pub config: Config,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

/// A configuration of a daemon of its own.
pub fn config(folder: &Path) -> Config {
    let path = |name: &str| Some(folder.join(name).into_os_string().into_string().unwrap());
    let flags = Flags {
        root: path("root").map(PathBuf::from),
        state: path("state").map(PathBuf::from),
        containerd: path("containerd.sock"),
        ..Flags::default()
    };
    Config::load(None, flags).unwrap()
}

/// Serves with a fake kernel.
pub fn run(config: &Config) -> Result<(), ServeError> {
    server::run(config, &|config, _| Ok(Arc::new(FakeKernel::new(&config.state)) as Arc<dyn Mounter>))
}

impl Serving {
    pub fn start() -> Serving {
        Serving::start_in(tempfile::tempdir().unwrap())
    }

    pub fn start_in(folder: TempDir) -> Serving {
        let config = config(folder.path());
        let thread = std::thread::spawn({
            let config = config.clone();
            move || run(&config)
        });
        let start = Instant::now();
        while Record::read_live(&config.root).is_none() {
            assert!(!thread.is_finished(), "{:?}", thread.join());
            assert!(start.elapsed() < Duration::from_secs(20), "the daemon doesn't answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        Serving { folder, config, thread: Some(thread) }
    }

    /// Ends the daemon and gives its folder back.
    pub fn end(mut self, call: &Call) -> (Result<(), ServeError>, TempDir) {
        Client::at(&self.config.socket).unwrap().call(call, &()).unwrap();
        let ended = self.thread.take().unwrap().join().unwrap();
        (ended, std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap()))
    }

    pub fn channel(&self) -> Channel {
        let socket = self.config.socket.clone();
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
    }

    pub fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel())
    }

    pub fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // In a thread of its own: a test's runtime may be running in this one.
            let socket = self.config.socket.clone();
            std::thread::spawn(move || Client::at(&socket).unwrap().call(&Call::Stop, &())).join().unwrap().ok();
            thread.join().ok();
        }
    }
}
