//! Settling: making layers of what was written into snapshots before they were committed.
//!
//! A job per committed snapshot whose stack is not complete. It runs when its parent has none; a failed one runs again after
//! a while. The jobs themselves are on the disk: they are the rows of `ops` in the state `settling`.

mod queue;

use std::io::{self, BufWriter, Read, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use mica_layerdb::tree::Tree;
use mica_layerdb::{Batch, Compression, DiffId, Hold, IngestOptions};

use super::core::Core;
use super::upper;
use crate::error::{Error, Kind, Result};
use crate::store::{Record, Rows, Settling};
pub(super) use queue::Queue;

/// How long programs that still have the mount of a committed snapshot may go on with it.
const LETTING_GO: Duration = Duration::from_secs(5);
/// Changes gathered before they go through the pipe.
const GATHERED_BYTES: usize = 1 << 18;

/// A layer made of changes, which garbage collection spares until the hold is dropped; `None` if nothing had changed.
pub(super) type Made = Option<(DiffId, Hold)>;

impl Core {
    /// A thread that settles.
    pub(super) fn settle_queued(&self) {
        while let Some((name, number)) = self.queue.next() {
            // A panic must not take the job with it: children would wait for ever.
            let settled = catch_unwind(AssertUnwindSafe(|| self.settle(&name, number)));
            let broken = |_| Err(Error::Unavailable { reason: "a fault in the program; see its log".into() });
            match settled.unwrap_or_else(broken) {
                Ok(()) => self.queue.done(&name, number),
                Err(_) if self.is_closed() => {}
                Err(error) => {
                    tracing::error!(name, %error, "the changes of a snapshot are not a layer yet");
                    self.queue.failed(&name, number, &error);
                }
            }
        }
    }

    fn settle(&self, name: &str, number: u64) -> Result<()> {
        let Some(record) = self.unsettled(name, number)? else { return Ok(()) };
        let Some(settling) = &record.settling else { return Ok(()) };
        let made = match self.make_layer(name, &record, settling) {
            // It was removed while it was read.
            Err(_) if self.unsettled(name, number)?.is_none() => return Ok(()),
            made => made?,
        };
        self.attach(name, number, made.as_ref().map(|(diff_id, _)| *diff_id))?;
        self.remove_folder(number);
        self.counts.forget(number);
        self.ahead.add(name, number);
        Ok(())
    }

    fn unsettled(&self, name: &str, number: u64) -> Result<Option<Record>> {
        let record = self.rows.get(name)?;
        Ok(record.filter(|record| record.number == number && record.settling.is_some()))
    }

    fn make_layer(&self, name: &str, record: &Record, settling: &Settling) -> Result<Made> {
        if !settling.changes {
            return Ok(None);
        }
        let at_rest = self.live.wait_ended(record.number, LETTING_GO);
        self.require_whole(name, record, settling)?;
        let mut below = if settling.rebased { Vec::new() } else { self.stack_of(&record.parent)? };
        below.extend(&record.own);
        let lower = self.store.chain(&below)?;
        if at_rest {
            self.live.mounter().finish(Arc::clone(&lower), &self.folder(record.number))?;
        } else {
            tracing::warn!(name, "a program still uses the mount of a snapshot that was committed");
        }
        self.ingest_changes(name, record.number, lower)
    }

    /// Changes are whole if they were synced, or if the machine has not been down since.
    fn require_whole(&self, name: &str, record: &Record, settling: &Settling) -> Result<()> {
        if settling.synced {
            return Ok(());
        }
        if settling.boot != self.boot {
            let reason = "the machine went down before all of it was on the disk".to_owned();
            return Err(Error::Lost { key: name.into(), reason });
        }
        upper::sync(&self.folder(record.number))?;
        let _turn = self.keys.lock(name)?;
        let Some(mut record) = self.unsettled(name, record.number)? else { return Ok(()) };
        if let Some(settling) = &mut record.settling {
            settling.synced = true;
        }
        let mut batch = Batch::new();
        self.rows.put(&mut batch, name, &record)?;
        self.rows.commit(batch)
    }

    /// One thread writes the layer's tar into a pipe, this one takes it in.
    pub(super) fn ingest_changes(&self, name: &str, number: u64, lower: Arc<Tree>) -> Result<Made> {
        let (reader, writer) = io::pipe().map_err(Error::io("make a pipe"))?;
        let outcome = Arc::new(OnceLock::new());
        let written = Arc::clone(&outcome);
        let mut input = Piped { reader, written: Arc::clone(&outcome), core: self };
        let folder = self.folder(number);
        let mounter = self.live.mounter();
        let options = IngestOptions {
            compression: Compression::None,
            name: format!("of snapshot {name}"),
            ..IngestOptions::default()
        };
        let ingested = thread::scope(|scope| {
            scope.spawn(move || {
                let mut out = BufWriter::with_capacity(GATHERED_BYTES, writer);
                let result = mounter.write_changes(lower, &folder, &mut out).and_then(|entries| {
                    out.flush().map_err(Error::io("write into a pipe"))?;
                    Ok(entries)
                });
                // Known before the reader sees the end.
                drop(written.set(result));
                drop(out.into_parts());
            });
            let ingested = self.store.ingest_held(&mut input, &options, &());
            // A reader that gave up must be gone, or the writer waits for room in the pipe for ever.
            drop(input);
            ingested
        });
        let written = Arc::into_inner(outcome).and_then(OnceLock::into_inner);
        match (written, ingested) {
            // The writer's own failure says more than the reader's, unless it only found the reader gone.
            (Some(Err(error)), Err(reading)) => Err(if is_broken_pipe(&error) { reading.into() } else { error }),
            (Some(Err(error)), Ok(_)) => Err(error),
            (_, Err(error)) => Err(error.into()),
            (Some(Ok(0)), Ok(_)) => Ok(None),
            (_, Ok((layer, hold))) => Ok(Some((layer.diff_id, hold))),
        }
    }

    /// Completes the stack of a committed snapshot.
    fn attach(&self, name: &str, number: u64, layer: Option<DiffId>) -> Result<()> {
        let _turn = self.keys.lock(name)?;
        let Some(mut record) = self.unsettled(name, number)? else { return Ok(()) };
        record.own.extend(layer);
        record.settling = None;
        let mut stack = self.stack_of(&record.parent)?;
        stack.extend(&record.own);
        let mut batch = Batch::new();
        Rows::delete(&mut batch, name, &record);
        self.rows.put(&mut batch, name, &record)?;
        Rows::pin(&mut batch, number, &stack)?;
        Rows::put_usage(&mut batch, number, self.usage_of_layers(&record.own)?)?;
        self.rows.commit(batch)
    }

    /// Waits until a committed snapshot's stack is complete, or could not be completed.
    pub(super) fn wait_settled(&self, name: &str) -> Result<()> {
        self.record(name)?;
        self.stack_of(name).map(drop)
    }
}

/// The reading end. A writer that failed is an error, not an end.
struct Piped<'a> {
    reader: io::PipeReader,
    written: Arc<OnceLock<Result<u64>>>,
    core: &'a Core,
}

impl Read for Piped<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.core.is_closed() {
            return Err(io::Error::other("the daemon is stopping"));
        }
        let read = self.reader.read(buffer)?;
        if read == 0 && !matches!(self.written.get(), Some(Ok(_))) {
            return Err(io::Error::other("its changes could not be read"));
        }
        Ok(read)
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() == io::ErrorKind::BrokenPipe,
        Error::Fs { source, .. } => source.errno() == rustix::io::Errno::PIPE,
        _ => false,
    }
}

/// What callers are told of a failed job.
#[derive(Clone, Debug)]
struct Failure {
    kind: Kind,
    reason: String,
    /// Trying again will not help.
    lost: bool,
}

impl Failure {
    fn of(error: &Error) -> Failure {
        match error {
            Error::Lost { reason, .. } => Failure { kind: Kind::DataLoss, reason: reason.clone(), lost: true },
            // Of what the caller did nothing is wrong.
            error => {
                let kind = match error.kind() {
                    kind @ (Kind::ResourceExhausted | Kind::DataLoss) => kind,
                    _ => Kind::Unavailable,
                };
                Failure { kind, reason: error.to_string(), lost: false }
            }
        }
    }

    fn error(&self, key: &str) -> Error {
        let (key, reason) = (key.to_owned(), self.reason.clone());
        if self.lost { Error::Lost { key, reason } } else { Error::Settling { key, reason, kind: self.kind } }
    }
}
