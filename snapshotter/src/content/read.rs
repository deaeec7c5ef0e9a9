//! Reading a blob.

use std::io::{self, Read};

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
    chunks: Option<mpsc::Receiver<Result<Vec<u8>, Status>>>,
    chunk: Vec<u8>,
    at: usize,
    missing_bytes: u64,
}

impl BlobReader {
    pub(super) fn new(store: ContentStore, caller: Caller, interest: Watch, digest: String, bytes: u64) -> BlobReader {
        BlobReader {
            store,
            caller,
            interest,
            digest,
            runtime: Handle::current(),
            chunks: None,
            chunk: Vec::new(),
            at: 0,
            missing_bytes: bytes,
        }
    }

    /// False when the blob has ended.
    fn fill(&mut self) -> io::Result<bool> {
        while self.at == self.chunk.len() {
            let chunks = match &mut self.chunks {
                Some(chunks) => chunks,
                none => {
                    let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
                    let pump = pump(self.store.clone(), self.caller.clone(), self.digest.clone(), sender.clone());
                    let interest = self.interest.clone();
                    self.runtime.spawn(async move {
                        if let Err(status) = interest.during(pump).await {
                            // The reader may have given up first.
                            let _ = sender.send(Err(status)).await;
                        }
                    });
                    none.insert(receiver)
                }
            };
            match chunks.blocking_recv() {
                Some(Ok(chunk)) => {
                    self.missing_bytes = self.missing_bytes.saturating_sub(chunk.len() as u64);
                    self.chunk = chunk;
                    self.at = 0;
                }
                Some(Err(status)) => return Err(self.failed(&status)),
                None if self.missing_bytes > 0 => {
                    let text = format!("blob {} ends {} bytes too early", self.digest, self.missing_bytes);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                None => return Ok(false),
            }
        }
        Ok(true)
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
        if buffer.is_empty() || !self.fill()? {
            return Ok(0);
        }
        let rest = &self.chunk[self.at..];
        let taken = rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&rest[..taken]);
        self.at += taken;
        Ok(taken)
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
