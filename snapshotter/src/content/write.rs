//! Writing a blob.

use std::collections::HashMap;
use std::io::{self, Write};

use mica_layerdb::Digest;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{Caller, ContentStore, STALL, Watch};
use crate::grpc::proto::containerd::services::content::v1::{
    AbortRequest, Info, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};

/// Bytes sent in one message.
const CHUNK: usize = 1 << 20;
/// Messages between the writer and the content store.
const MESSAGES_AHEAD: usize = 2;

/// A blob on its way into the content store. To be written on a thread that may block. Dropped without
/// [`BlobWriter::commit`] it leaves nothing there.
#[derive(Debug)]
pub struct BlobWriter {
    store: ContentStore,
    caller: Caller,
    interest: Watch,
    reference: String,
    runtime: Handle,
    upload: Option<Upload>,
    chunk: Vec<u8>,
}

/// The task that sends, as its writer sees it.
#[derive(Debug)]
struct Upload {
    orders: mpsc::Sender<Order>,
    /// What became of it.
    outcome: oneshot::Receiver<Result<(), Status>>,
}

#[derive(Debug)]
enum Order {
    Data(Vec<u8>),
    Commit(Commit),
}

/// What a finished blob must be.
#[derive(Debug)]
struct Commit {
    digest: Digest,
    bytes: u64,
    labels: HashMap<String, String>,
}

impl BlobWriter {
    pub(super) fn new(store: ContentStore, caller: Caller, interest: Watch, reference: String) -> BlobWriter {
        BlobWriter { store, caller, interest, reference, runtime: Handle::current(), upload: None, chunk: Vec::new() }
    }

    /// Ends the blob and makes it part of the content store, with these labels. A blob of the same digest that is
    /// there already is as good, and gets the labels too.
    pub fn commit(mut self, digest: Digest, bytes: u64, labels: HashMap<String, String>) -> io::Result<()> {
        self.send_chunk()?;
        self.order(Order::Commit(Commit { digest, bytes, labels }))?;
        match self.upload.take() {
            Some(upload) => self.outcome(upload),
            None => Ok(()),
        }
    }

    fn send_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.order(Order::Data(chunk))
    }

    fn order(&mut self, order: Order) -> io::Result<()> {
        let upload = self.upload.get_or_insert_with(|| {
            let (orders, received) = mpsc::channel(MESSAGES_AHEAD);
            let (tell, outcome) = oneshot::channel();
            let (store, caller, interest) = (self.store.clone(), self.caller.clone(), self.interest.clone());
            let task = run(store, caller, interest, self.reference.clone(), received, tell);
            self.runtime.spawn(task);
            Upload { orders, outcome }
        });
        if upload.orders.blocking_send(order).is_ok() {
            return Ok(());
        }
        match self.upload.take() {
            Some(upload) => self.outcome(upload),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for the end of the task.
    fn outcome(&self, upload: Upload) -> io::Result<()> {
        let Upload { orders, outcome } = upload;
        drop(orders);
        let status = match outcome.blocking_recv() {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(status)) => status,
            Err(_) => Status::cancelled("the daemon stops"),
        };
        Err(io::Error::other(self.store.explain(&format!("write blob {}", self.reference), &status)))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let taken = buffer.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&buffer[..taken]);
        if self.chunk.len() == CHUNK {
            self.send_chunk()?;
        }
        Ok(taken)
    }

    /// Bytes go out when there are enough of them, or with the commit.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Carries out the orders; takes back what was sent if the last one is no commit.
async fn run(
    store: ContentStore,
    caller: Caller,
    interest: Watch,
    reference: String,
    orders: mpsc::Receiver<Order>,
    tell: oneshot::Sender<Result<(), Status>>,
) {
    let caller = store.leased(caller).await;
    let outcome = match Exchange::begin(&store, &caller, &reference).await {
        Ok(exchange) => interest.during(send(&store, &caller, exchange, orders)).await,
        Err(status) => {
            // The reference may be somebody else's: nothing is taken back.
            let _ = tell.send(Err(status));
            return;
        }
    };
    if !matches!(outcome, Ok(Sent::Committed)) {
        let abort = store.client.clone().abort(caller.request(AbortRequest { r#ref: reference.clone() })).await;
        if let Err(status) = abort
            && status.code() != Code::NotFound
        {
            tracing::warn!(%reference, %status, "a blob that was given up may stay in the content store's ingests");
        }
    }
    // A writer that was dropped doesn't want to know.
    let _ = tell.send(outcome.map(|_| ()));
}

enum Sent {
    Committed,
    /// The blob had been there before.
    Known,
    Abandoned,
}

async fn send(
    store: &ContentStore,
    caller: &Caller,
    mut exchange: Exchange,
    mut orders: mpsc::Receiver<Order>,
) -> Result<Sent, Status> {
    let mut offset = 0;
    loop {
        match orders.recv().await {
            Some(Order::Data(data)) => {
                let length = data.len() as i64;
                exchange
                    .ask(WriteContentRequest {
                        action: WriteAction::Write.into(),
                        offset,
                        data,
                        ..WriteContentRequest::default()
                    })
                    .await?;
                offset += length;
            }
            Some(Order::Commit(commit)) => return finish(store, caller, exchange, commit, offset).await,
            None => return Ok(Sent::Abandoned),
        }
    }
}

async fn finish(
    store: &ContentStore,
    caller: &Caller,
    mut exchange: Exchange,
    commit: Commit,
    offset: i64,
) -> Result<Sent, Status> {
    let digest = commit.digest.to_string();
    let committed = exchange
        .ask(WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: commit.bytes as i64,
            expected: digest.clone(),
            offset,
            labels: commit.labels.clone(),
            ..WriteContentRequest::default()
        })
        .await;
    match committed {
        Ok(answer) if answer.digest == digest || answer.digest.is_empty() => Ok(Sent::Committed),
        Ok(answer) => Err(Status::data_loss(format!("sent {digest}, the content store has {}", answer.digest))),
        Err(status) if status.code() == Code::AlreadyExists => {
            drop(exchange);
            label(store, caller, digest, commit.labels).await?;
            Ok(Sent::Known)
        }
        Err(status) => Err(status),
    }
}

/// Adds labels to a blob.
async fn label(
    store: &ContentStore,
    caller: &Caller,
    digest: String,
    labels: HashMap<String, String>,
) -> Result<(), Status> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|label| format!("labels.{label}")).collect();
    let info = Info { digest, labels, ..Info::default() };
    let request = UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
    store.client.clone().update(caller.request(request)).await.map(|_| ())
}

/// The stream of a write: each request is answered.
struct Exchange {
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Exchange {
    /// Takes the reference. What an earlier attempt left under it is overwritten, since we begin at offset 0.
    async fn begin(store: &ContentStore, caller: &Caller, reference: &str) -> Result<Exchange, Status> {
        let (requests, received) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            ..WriteContentRequest::default()
        };
        requests.send(first).await.map_err(|_| Status::internal("an open channel is closed"))?;
        let mut client = store.client.clone();
        let opened = client.write(caller.request(ReceiverStream::new(received)));
        let answers = timeout(STALL, opened).await.map_err(stalled)??.into_inner();
        let mut exchange = Exchange { requests, answers };
        exchange.answer().await?;
        Ok(exchange)
    }

    async fn ask(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        // Fails if the other side has ended the stream; its answer says why.
        let _ = self.requests.send(request).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<WriteContentResponse, Status> {
        let answer = timeout(STALL, self.answers.message()).await.map_err(stalled)??;
        answer.ok_or_else(|| Status::unavailable("the content store has ended the write"))
    }
}

fn stalled(_: tokio::time::error::Elapsed) -> Status {
    Status::deadline_exceeded(format!("no answer for {} seconds", STALL.as_secs()))
}
