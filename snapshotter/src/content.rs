//! containerd's content store, seen as blocking readers and writers of blobs.
//!
//! Domain code reads and writes on threads of its own; a task per blob moves the bytes. What is between the two is
//! bounded, so a slow side slows the other one down.

mod layer;
mod read;
mod write;

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::grpc::proto::containerd::services::content::v1::content_client::ContentClient;

pub use layer::{Encoding, LayerBlob, LayerWriter};
pub use read::BlobReader;
pub use write::BlobWriter;

/// Longest wait for one answer of the content store.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// On whose behalf blobs are read and written: what containerd's requests carry in their metadata.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    values: Vec<(&'static str, MetadataValue<Ascii>)>,
}

impl Caller {
    const KEYS: [&'static str; 2] = ["containerd-namespace", "containerd-lease"];

    /// The caller of a request.
    pub fn of(metadata: &MetadataMap) -> Caller {
        let values = Caller::KEYS.iter().filter_map(|key| Some((*key, metadata.get(*key)?.clone()))).collect();
        Caller { values }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (key, value) in &self.values {
            request.metadata_mut().insert(*key, value.clone());
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

    fn watch(&self) -> Watch {
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
struct Watch {
    held: watch::Receiver<()>,
}

impl Watch {
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
    socket: PathBuf,
}

impl ContentStore {
    /// The content store of the containerd that listens on this socket. Needs a tokio runtime.
    pub fn at(socket: PathBuf) -> ContentStore {
        ContentStore { client: ContentClient::new(channel(socket.clone())), socket }
    }

    /// A blob to be read. Nothing is asked before its first byte is wanted.
    pub fn read(&self, caller: &Caller, interest: &Interest, digest: &str, bytes: u64) -> BlobReader {
        BlobReader::new(self.clone(), caller.clone(), interest.watch(), digest.to_owned(), bytes)
    }

    /// A blob to be written under the name `reference`. Nothing is sent before its first byte is there.
    pub fn write(&self, caller: &Caller, interest: &Interest, reference: &str) -> BlobWriter {
        BlobWriter::new(self.clone(), caller.clone(), interest.watch(), reference.to_owned())
    }

    fn explain(&self, action: &str, status: &Status) -> String {
        format!("{action} at {}: {} ({:?})", self.socket.display(), status.message(), status.code())
    }
}

/// A connection to a unix socket, made when it is needed.
pub(crate) fn channel(socket: PathBuf) -> Channel {
    // The name is only what HTTP/2 demands; the connector decides.
    Endpoint::from_static("http://localhost").connect_timeout(Duration::from_secs(10)).connect_with_connector_lazy(
        tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }),
    )
}
