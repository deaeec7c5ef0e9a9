//! The uncompressed tar as a stream of chunks, in memory bounded by their number.
//!
//! Whatever is taken from it goes into the layer's digest. It goes into the layer's recipe as it is, but for
//! [`Stream::contents`]: who takes these tells the recipe where they went.

use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::fault::{Fault, Result};
use crate::digest::{DiffId, Hasher};
use crate::recipe::Recorder;

/// Bytes of a chunk: small enough for the next thread to find it in the cache.
pub(super) const CHUNK: usize = 256 << 10;

/// Chunks between two threads. With the ones being filled and read, about 9 MiB for each ingest.
pub(super) const CHUNKS_QUEUED: usize = 16;

/// Bytes of a tar block.
pub(super) const BLOCK: usize = 512;

/// A part of the stream, or why there are no more.
pub(super) type Item = Result<Vec<u8>, Broken>;

/// Why a stream ended before its end.
#[derive(Debug)]
pub(super) enum Broken {
    /// The compressed bytes are to blame.
    Bad(String),
    /// The input couldn't be read.
    Input(io::Error),
}

/// A part of a chunk, which it shares.
#[derive(Clone, Debug)]
pub(super) struct Span {
    chunk: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Span {
    /// Done with it. The memory of a chunk that nobody needs any more is given back.
    pub(super) fn recycle(self, spare: &Sender<Vec<u8>>) {
        recycle(self.chunk, spare);
    }
}

impl Deref for Span {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.chunk[self.range.clone()]
    }
}

fn recycle(chunk: Arc<Vec<u8>>, spare: &Sender<Vec<u8>>) {
    if let Some(buffer) = Arc::into_inner(chunk) {
        // A full channel or no receiver means that nobody needs its memory.
        drop(spare.try_send(buffer));
    }
}

/// Reads the stream block by block.
pub(super) struct Stream {
    input: Receiver<Item>,
    spare: Sender<Vec<u8>>,
    chunk: Arc<Vec<u8>>,
    at: usize,
    offset: u64,
    hasher: Hasher,
    recorder: Recorder,
}

impl Stream {
    pub(super) fn new(input: Receiver<Item>, spare: Sender<Vec<u8>>, recorder: Recorder) -> Stream {
        Stream { input, spare, chunk: Arc::default(), at: 0, offset: 0, hasher: Hasher::new(), recorder }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The recipe, to say where contents went.
    pub(super) fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    /// The recipe and the digest of all that was taken.
    pub(super) fn finish(self) -> (Recorder, DiffId) {
        (self.recorder, DiffId(self.hasher.finish()))
    }

    /// The next bytes: at most `most`, and at least one unless the stream is at its end.
    fn next(&mut self, most: u64) -> Result<Range<usize>> {
        while self.at == self.chunk.len() {
            match self.input.recv() {
                Ok(Ok(chunk)) => {
                    recycle(std::mem::replace(&mut self.chunk, Arc::new(chunk)), &self.spare);
                    self.at = 0;
                }
                Ok(Err(Broken::Bad(reason))) => return Err(Fault::bad(b"", self.offset, reason)),
                Ok(Err(Broken::Input(error))) => {
                    return Err(Fault::Store(crate::error::Error::io("read the layer")(error)));
                }
                Err(_) => return Ok(self.at..self.at),
            }
        }
        let bytes = most.min((self.chunk.len() - self.at) as u64) as usize;
        let start = self.at;
        self.at += bytes;
        self.offset += bytes as u64;
        Ok(start..self.at)
    }

    /// Fills the buffer as far as the stream goes; returns how far.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let span = self.next((buffer.len() - filled) as u64)?;
            if span.is_empty() {
                break;
            }
            let next = &self.chunk[span];
            buffer[filled..filled + next.len()].copy_from_slice(next);
            filled += next.len();
        }
        self.hasher.update(&buffer[..filled]);
        self.recorder.literal(&buffer[..filled])?;
        Ok(filled)
    }

    /// The next block. `None` at the end of the stream.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let start = self.offset;
        let mut block = [0; BLOCK];
        match self.fill(&mut block)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            some => Err(Fault::bad(b"", start, format!("the tar is truncated: {some} bytes of a 512-byte header"))),
        }
    }

    /// The span of the chunk goes into the digest and the recipe.
    fn keep(&mut self, span: Range<usize>) -> Result<()> {
        self.hasher.update(&self.chunk[span.clone()]);
        self.recorder.literal(&self.chunk[span])?;
        Ok(())
    }

    /// Hands the next `bytes` bytes, which are a file's contents, to `sink`, piece by piece, and to `digest`.
    pub(super) fn contents(
        &mut self,
        bytes: u64,
        mut digest: Option<&mut Hasher>,
        mut sink: impl FnMut(Span) -> Result<()>,
    ) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let span = self.next(left)?;
            if span.is_empty() {
                return Err(self.truncated(left, bytes));
            }
            left -= span.len() as u64;
            match &mut digest {
                Some(digest) => self.hasher.update_both(digest, &self.chunk[span.clone()]),
                None => self.hasher.update(&self.chunk[span.clone()]),
            }
            sink(Span { chunk: Arc::clone(&self.chunk), range: span })?;
        }
        Ok(())
    }

    /// Passes over the next `bytes` bytes.
    pub(super) fn skip(&mut self, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let span = self.next(left)?;
            if span.is_empty() {
                return Err(self.truncated(left, bytes));
            }
            left -= span.len() as u64;
            self.keep(span)?;
        }
        Ok(())
    }

    fn truncated(&self, left: u64, bytes: u64) -> Fault {
        let reason = format!("the tar is truncated: {left} of {bytes} bytes of contents are missing");
        Fault::bad(b"", self.offset, reason)
    }

    /// The next `bytes` bytes, which the caller has bounded.
    pub(super) fn take(&mut self, bytes: u64) -> Result<Vec<u8>> {
        let mut taken = vec![0; bytes as usize];
        let left = bytes - self.fill(&mut taken)? as u64;
        if left > 0 { Err(self.truncated(left, bytes)) } else { Ok(taken) }
    }

    /// Passes over what is left of the block that holds the last of `bytes` bytes of contents. The end of the
    /// stream is no error here: some writers leave out the last padding.
    pub(super) fn pad(&mut self, bytes: u64) -> Result<()> {
        let padding = bytes.next_multiple_of(BLOCK as u64) - bytes;
        let mut buffer = [0; BLOCK];
        self.fill(&mut buffer[..padding as usize])?;
        Ok(())
    }

    /// Passes over everything to the end.
    pub(super) fn drain(&mut self) -> Result<()> {
        loop {
            let span = self.next(u64::MAX)?;
            if span.is_empty() {
                return Ok(());
            }
            self.keep(span)?;
        }
    }
}
