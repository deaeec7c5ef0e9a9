//! Reading a blob.

use std::fs::File;
use std::io::{self, Read};

use mica_layerdb::BlobDigest;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::{Caller, ContentStore, STALL, Watch};
use crate::grpc::proto::containerd::services::content::v1::ReadContentRequest;

/// Messages between the content store and the reader; each has at most 4 MiB, in practice 1 MiB.
const MESSAGES_AHEAD: usize = 4;

/// A blob of the content store, from its first byte to its last. To be read on a thread that may block.
#[derive(Debug)]
pub struct BlobReader {
    store: ContentStore,
    caller: Caller,
    interest: Watch,
    digest: String,
    runtime: Handle,
    source: Option<Source>,
    missing_bytes: u64,
}

/// Where the bytes come from.
#[derive(Debug)]
enum Source {
    /// The content store's own file.
    File(File),
    /// Its answers.
    Stream { chunks: mpsc::Receiver<Result<Vec<u8>, Status>>, chunk: Vec<u8>, at: usize },
}

impl BlobReader {
    pub(super) fn new(store: ContentStore, caller: Caller, interest: Watch, digest: String, bytes: u64) -> BlobReader {
        let runtime = Handle::current();
        BlobReader { store, caller, interest, digest, runtime, source: None, missing_bytes: bytes }
    }

    fn open(&self) -> Source {
        if let Ok(digest) = BlobDigest::parse(&self.digest)
            && let Some(file) = self.runtime.block_on(self.store.file(digest, self.missing_bytes))
        {
            return Source::File(file);
        }
        let (sender, chunks) = mpsc::channel(MESSAGES_AHEAD);
        let pump = pump(self.store.clone(), self.caller.clone(), self.digest.clone(), sender.clone());
        let interest = self.interest.clone();
        self.runtime.spawn(async move {
            if let Err(status) = interest.during(pump).await {
                // The reader may have given up first.
                let _ = sender.send(Err(status)).await;
            }
        });
        Source::Stream { chunks, chunk: Vec::new(), at: 0 }
    }

    fn failed(&self, status: &Status) -> io::Error {
        let kind = match status.code() {
            Code::NotFound => io::ErrorKind::NotFound,
            Code::DeadlineExceeded => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self.store.explain(&format!("read blob {}", self.digest), status))
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut source = self.source.take().unwrap_or_else(|| self.open());
        let read = match &mut source {
            Source::File(_) if self.interest.is_over() => Err(self.failed(&Status::cancelled("nobody waits for it"))),
            Source::File(file) => file.read(buffer),
            Source::Stream { chunks, chunk, at } => loop {
                let rest = &chunk[*at..];
                if !rest.is_empty() {
                    let taken = rest.len().min(buffer.len());
                    buffer[..taken].copy_from_slice(&rest[..taken]);
                    *at += taken;
                    break Ok(taken);
                }
                match chunks.blocking_recv() {
                    Some(Ok(next)) => (*chunk, *at) = (next, 0),
                    Some(Err(status)) => break Err(self.failed(&status)),
                    None => break Ok(0),
                }
            },
        };
        self.source = Some(source);
        let read = read?;
        if read == 0 && self.missing_bytes > 0 {
            let text = format!("blob {} ends {} bytes too early", self.digest, self.missing_bytes);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.missing_bytes = self.missing_bytes.saturating_sub(read as u64);
        Ok(read)
    }
}

/// Moves the blob into the channel; ends early when the reader is gone.
async fn pump(
    store: ContentStore,
    caller: Caller,
    digest: String,
    chunks: mpsc::Sender<Result<Vec<u8>, Status>>,
) -> Result<(), Status> {
    let stalled = |_| Status::deadline_exceeded(format!("no data for {} seconds", STALL.as_secs()));
    let request = caller.request(ReadContentRequest { digest, offset: 0, size: 0 });
    let mut client = store.client.clone();
    let mut stream = timeout(STALL, client.read(request)).await.map_err(stalled)??.into_inner();
    while let Some(message) = timeout(STALL, stream.message()).await.map_err(stalled)?? {
        if chunks.send(Ok(message.data)).await.is_err() {
            break;
        }
    }
    Ok(())
}
