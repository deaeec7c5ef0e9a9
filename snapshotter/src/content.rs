//! containerd's content store, seen as blocking readers and writers of blobs.
//!
//! Domain code reads and writes on threads of its own; a task per blob moves the bytes. What is between the two is
//! bounded, so a slow side slows the other one down.

mod early;
mod image;
mod layer;
mod read;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use mica_layerdb::BlobDigest;
use rustix::fs::{CWD, Mode, OFlags};
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, watch};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::grpc::proto::containerd::services::content::v1::content_client::ContentClient;
use crate::grpc::proto::containerd::services::introspection::v1::PluginsRequest;
use crate::grpc::proto::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use crate::grpc::proto::containerd::services::leases::v1::CreateRequest;
use crate::grpc::proto::containerd::services::leases::v1::leases_client::LeasesClient;

pub use early::{Applying, Early};
pub use layer::{Encoding, LayerBlob, LayerWriter};
pub use read::BlobReader;
pub use write::BlobWriter;

/// What the content store may send before it has to wait for us to have read: less makes the two processes take turns.
const WINDOW_BYTES: u32 = 4 << 20;

/// How long a lease of our own lasts.
const LEASE: Duration = Duration::from_secs(3600);

/// Longest wait for one answer of the content store.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// On whose behalf blobs are read and written: what containerd's requests carry in their metadata.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    namespace: Option<MetadataValue<Ascii>>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Caller {
    const NAMESPACE: &'static str = "containerd-namespace";
    const LEASE: &'static str = "containerd-lease";

    /// The caller of a request.
    pub fn of(metadata: &MetadataMap) -> Caller {
        let get = |name: &str| metadata.get(name).cloned();
        Caller { namespace: get(Caller::NAMESPACE), lease: get(Caller::LEASE) }
    }

    /// The same, with the namespace of a snapshot if the request had none: containerd leaves it out when it asks a
    /// differ (its issue 12328), but begins the keys of snapshots with it: `<namespace>/<number>/<key>`.
    #[must_use]
    pub fn or_of_snapshot(mut self, key: &str) -> Caller {
        if self.namespace.is_none()
            && let [namespace, number, _] = key.splitn(3, '/').collect::<Vec<_>>()[..]
            && number.parse::<u64>().is_ok()
        {
            self.namespace = namespace.parse().ok();
        }
        self
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in [(Caller::NAMESPACE, &self.namespace), (Caller::LEASE, &self.lease)] {
            if let Some(value) = value {
                request.metadata_mut().insert(name, value.clone());
            }
        }
        request
    }
}

/// Somebody waits for the result. When this is dropped, reading and writing end with an error, and so does the domain's
/// work on a thread that nothing else can stop.
#[derive(Debug)]
pub struct Interest {
    held: watch::Sender<()>,
}

impl Interest {
    /// Interest, until it is dropped.
    pub fn new() -> Interest {
        Interest { held: watch::Sender::new(()) }
    }

    /// The other end.
    pub fn watch(&self) -> Watch {
        Watch { held: self.held.subscribe() }
    }
}

impl Default for Interest {
    fn default() -> Interest {
        Interest::new()
    }
}

/// The other end of an [`Interest`].
#[derive(Clone, Debug)]
pub struct Watch {
    held: watch::Receiver<()>,
}

impl Watch {
    /// Nobody waits for the result any more.
    fn is_over(&self) -> bool {
        self.held.has_changed().is_err()
    }

    /// Does the work, or what has been done of it when nobody waits any more.
    async fn during<T>(mut self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        tokio::select! {
            done = work => done,
            () = async { while self.held.changed().await.is_ok() {} } => Err(Status::cancelled("nobody waits for it")),
        }
    }
}

/// A client of the content store. Cheap to clone; connects on first use, and again when the connection is lost.
#[derive(Clone, Debug)]
pub struct ContentStore {
    client: ContentClient<Channel>,
    leases: LeasesClient<Channel>,
    introspection: IntrospectionClient<Channel>,
    /// The folder of its files, once it has told.
    root: Arc<OnceCell<Option<PathBuf>>>,
    socket: PathBuf,
}

impl ContentStore {
    /// The content store of the containerd that listens on this socket. Needs a tokio runtime.
    pub fn at(socket: PathBuf) -> ContentStore {
        let channel = channel(socket.clone());
        ContentStore {
            client: ContentClient::new(channel.clone()),
            leases: LeasesClient::new(channel.clone()),
            introspection: IntrospectionClient::new(channel),
            root: Arc::default(),
            socket,
        }
    }

    /// A blob to be read. Nothing is asked before its first byte is wanted.
    pub fn read(&self, caller: Caller, interest: Watch, digest: String, bytes: u64) -> BlobReader {
        BlobReader::new(self.clone(), caller, interest, digest, bytes)
    }

    /// The blob's file, if the content store tells where its files are and they are in reach: reading it costs neither
    /// process what sending it through a socket does. Whoever reads it compares the digest.
    async fn file(&self, digest: BlobDigest, bytes: u64) -> Option<File> {
        let root = self.root.get_or_try_init(|| self.ask_root()).await;
        let root =
            root.inspect_err(|status| tracing::debug!(%status, "the content store's folder is not known")).ok()?;
        let path = root.as_ref()?.join("blobs/sha256").join(digest.hex());
        let file = open_file(&path)
            .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "no such file"))
            .ok()?;
        (file.metadata().ok()?.len() == bytes).then_some(file)
    }

    async fn ask_root(&self) -> Result<Option<PathBuf>, Status> {
        let filters = vec!["type==io.containerd.content.v1".to_owned()];
        let mut client = self.introspection.clone();
        let asked = tokio::time::timeout(STALL, client.plugins(PluginsRequest { filters })).await;
        let mut plugins = asked.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner().plugins;
        let root = plugins.iter_mut().find_map(|plugin| plugin.exports.remove("root")).map(PathBuf::from);
        tracing::debug!(root = %root.as_deref().unwrap_or(Path::new("unknown")).display(), "content store");
        Ok(root.filter(|root| root.is_absolute()))
    }

    /// A blob to be written under the name `reference`. Nothing is sent before its first byte is there.
    pub fn write(&self, caller: Caller, interest: Watch, reference: String) -> BlobWriter {
        BlobWriter::new(self.clone(), caller, interest, reference)
    }

    /// The caller with a lease, which keeps what is written from containerd's collections until somebody refers to it.
    /// One of our own, for a while, if the request had none: containerd leaves its caller's out as well.
    async fn leased(&self, mut caller: Caller) -> Caller {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if caller.lease.is_some() {
            return caller;
        }
        let now = SystemTime::now();
        let nanos = now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos());
        let id = format!("mica-{nanos}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let expires = prost_types::Timestamp::from(now + LEASE).to_string();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]);
        let request = caller.request(CreateRequest { id: id.clone(), labels });
        match tokio::time::timeout(STALL, self.leases.clone().create(request)).await {
            Ok(Ok(_)) => caller.lease = id.parse().ok(),
            Ok(Err(status)) => tracing::warn!(%status, "there is no lease on what is written"),
            Err(_) => tracing::warn!("there is no lease on what is written: no answer"),
        }
        caller
    }

    fn explain(&self, action: &str, status: &Status) -> String {
        format!("{action} at {}: {} ({:?})", self.socket.display(), status.message(), status.code())
    }
}

fn open_file(path: &Path) -> std::io::Result<File> {
    Ok(File::from(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?))
}

/// A connection to a unix socket, made when it is needed.
pub(crate) fn channel(socket: PathBuf) -> Channel {
    // The name is only what HTTP/2 demands; the connector decides.
    let endpoint = Endpoint::from_static("http://localhost")
        .connect_timeout(Duration::from_secs(10))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn namespace(caller: &Caller) -> Option<&str> {
        caller.namespace.as_ref().map(|value| value.to_str().unwrap())
    }

    #[test]
    fn namespace_comes_from_the_request_or_else_from_the_key() {
        let key = "k8s.io/42/extract-1 sha256:ab/cd";
        assert_eq!(namespace(&Caller::default().or_of_snapshot(key)), Some("k8s.io"));
        let mut metadata = MetadataMap::new();
        metadata.insert(Caller::NAMESPACE, "mine".parse().unwrap());
        assert_eq!(namespace(&Caller::of(&metadata).or_of_snapshot(key)), Some("mine"));
        for key in ["", "key", "a/b", "a/b/c", "buildkit/key/1"] {
            assert_eq!(namespace(&Caller::default().or_of_snapshot(key)), None, "{key}");
        }
    }
}
