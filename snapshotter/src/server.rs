//! The daemon: from a configuration to a socket that answers, and back to nothing when it is told to end.

mod notify;
mod record;
mod scrub;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_layerdb::{Store, StoreOptions};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::admin::{self, Admin, Daemon, StatusReport};
use crate::config::{Config, Verify};
use crate::content::ContentStore;
use crate::error::Error;
use crate::grpc::Work;
use crate::mounts::Mounter;
use crate::snapshots::Snapshots;
pub use record::Record;
use socket::Socket;

/// How long requests may take to end once the daemon is told to.
const GRACE: Duration = Duration::from_secs(10);
/// How long answers may take to reach their clients.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long mounts may take to be left.
const FAREWELL: Duration = Duration::from_secs(30);
/// How long a store may be in use by a command that is about to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a daemon can't start, or didn't end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another daemon serves the store.
    #[error("the store at {} is in use: process {pid} serves it at {address}", root.display())]
    SecondDaemon {
        /// The store's folder.
        root: PathBuf,
        /// Its process.
        pid: u32,
        /// Its address.
        address: String,
    },
    /// The socket can't be had.
    #[error("cannot serve at {}: {reason}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] mica_layerdb::Error),
    /// Snapshots can't be served.
    #[error(transparent)]
    Snapshots(#[from] Error),
    /// The system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// Its answer.
        source: std::io::Error,
    },
    /// The transport failed.
    #[error("serving at {} ended: {source}", path.display())]
    Transport {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: tonic::transport::Error,
    },
    /// The daemon could not wait any longer.
    #[error("{what} took longer than {} seconds", FAREWELL.as_secs())]
    Late {
        /// What it waited for.
        what: &'static str,
    },
}

fn io(action: String) -> impl FnOnce(std::io::Error) -> ServeError {
    move |source| ServeError::Io { action, source }
}

/// What makes mounts, once the store is open.
pub type MakeMounter<'a> = &'a dyn Fn(&Config, &Arc<Store>) -> crate::Result<Arc<dyn Mounter>>;

/// Serves until SIGTERM, SIGINT or a call of the administration ends it.
pub fn run(config: &Config, mounter: MakeMounter<'_>) -> Result<(), ServeError> {
    raise_descriptor_limit();
    let store = open_store(config)?;
    make_state(&config.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("mica-grpc")
        .build()
        .map_err(io("start the runtime".to_owned()))?;
    let served = runtime.block_on(serve(config, store, mounter));
    // Calls that can't be stopped end with the process; the store is made for that.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn serve(config: &Config, store: Arc<Store>, mounter: MakeMounter<'_>) -> Result<(), ServeError> {
    // The socket first: a second daemon must not get as far as the mounts.
    let socket = Socket::bind(&config.socket)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io("listen to SIGTERM".to_owned()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("listen to SIGINT".to_owned()))?;
    admin::prune(&store)?;
    let snapshots = tokio::task::block_in_place(|| {
        let mounter = mounter(config, &store)?;
        Snapshots::open(Arc::clone(&store), mounter)
    })?;
    snapshots.limit_cleanup(config.gc_rate);
    let (end, mut ended) = watch::channel(false);
    let record = Record::of(config);
    let daemon = Box::new(Handle { status: record.status(config), verify: config.verify, end });
    let admin = Arc::new(Admin::of_daemon(Arc::clone(&snapshots), daemon));
    let (stop, mut stopped) = watch::channel(false);
    let work = Work::default();
    let content = ContentStore::at(config.containerd.clone());
    let services = crate::grpc::services(Arc::clone(&snapshots), content, admin, stop.subscribe(), &work);
    let listener = UnixListener::from_std(socket.listener()?).map_err(io("listen".to_owned()))?;
    let published = record.publish(store.root())?;
    tracing::info!(root = %store.root().display(), address = %config.address(), "serving");
    let scrubber =
        scrub::Scrubber::start(&store, config.scrub_mib_per_second).map_err(io("start scrubbing".to_owned()))?;
    notify::send("READY=1");
    let watchdog = notify::watchdog().map(|every| tokio::spawn(notify::keep_alive(every)));

    let mut server = tokio::spawn(Server::builder().add_routes(services).serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        },
    ));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = ended.wait_for(|ended| *ended) => {}
        failed = &mut server => return transport(config, failed),
    }
    tracing::info!("ending");
    notify::send("STOPPING=1");
    drop(socket);
    let _ = stop.send(true);
    tokio::select! {
        ended = &mut server => transport(config, ended)?,
        () = quiet(&work) => server.abort(),
    }
    drop(scrubber);
    let farewell = farewell(snapshots).await;
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    drop(published);
    farewell
}

fn transport(
    config: &Config,
    ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>,
) -> Result<(), ServeError> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(ServeError::Transport { path: config.socket.clone(), source }),
        Err(panicked) => Err(io("serve".to_owned())(std::io::Error::other(panicked))),
    }
}

/// Waits for the requests that are under way, but not for clients that keep a connection open and don't listen.
async fn quiet(work: &Work) {
    if tokio::time::timeout(GRACE, work.idle()).await.is_err() {
        tracing::warn!(seconds = GRACE.as_secs(), "requests that have not ended are cut off");
    }
    tokio::time::sleep(LAST_WORDS).await;
}

/// Leaves the mounts.
async fn farewell(snapshots: Arc<Snapshots>) -> Result<(), ServeError> {
    let call = tokio::task::spawn_blocking(move || snapshots.close());
    match tokio::time::timeout(FAREWELL, call).await {
        Ok(Ok(done)) => Ok(done?),
        Ok(Err(panicked)) => Err(io("end".to_owned())(std::io::Error::other(panicked))),
        Err(_) => Err(ServeError::Late { what: "leaving the mounts" }),
    }
}

/// The daemon, as its administration reaches it.
struct Handle {
    status: StatusReport,
    verify: Verify,
    end: watch::Sender<bool>,
}

impl Daemon for Handle {
    fn status(&self) -> StatusReport {
        self.status.clone()
    }

    fn verify(&self) -> Verify {
        self.verify
    }

    fn end(&self) {
        self.end.send_replace(true);
    }
}

/// Opens the store; waits a little for a command that has it, but not for another daemon.
fn open_store(config: &Config) -> Result<Arc<Store>, ServeError> {
    let options =
        StoreOptions { verify_trees: config.verify_trees, limits: config.limits.clone(), ..StoreOptions::default() };
    let start = Instant::now();
    loop {
        match Store::open_with(&config.root, options.clone()) {
            Err(mica_layerdb::Error::Locked { root }) => {
                if let Some(Record { pid, address, .. }) = Record::read_live(&root) {
                    return Err(ServeError::SecondDaemon { root, pid, address });
                }
                if start.elapsed() > PATIENCE {
                    return Err(mica_layerdb::Error::Locked { root }.into());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            opened => return Ok(opened?),
        }
    }
}

/// Makes the folder of sockets and mountpoints, each of which has a mode of its own.
fn make_state(state: &Path) -> Result<(), ServeError> {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o711);
    builder.create(state).map_err(io(format!("create {}", state.display())))
}

/// Each mount takes descriptors; the soft limit is a default for programs that use `select`.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
