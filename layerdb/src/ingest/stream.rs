//! The uncompressed tar as a stream of shared chunks, in memory bounded by their number.

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::fault::{Fault, Result};

/// Bytes of a chunk: small enough for the second reader to find it in the cache.
pub(super) const CHUNK: usize = 256 << 10;

/// Chunks between two threads. With the ones being filled and read, about 10 MiB for each ingest.
pub(super) const CHUNKS_QUEUED: usize = 16;

/// Bytes of a tar block.
pub(super) const BLOCK: usize = 512;

/// A part of the stream, or why there are no more.
pub(super) type Item = Result<Arc<Vec<u8>>, Broken>;

/// Why a stream ended before its end.
#[derive(Debug)]
pub(super) enum Broken {
    /// The compressed bytes are to blame.
    Bad(String),
    /// The input couldn't be read.
    Input(io::Error),
}

/// Reads the stream block by block.
pub(super) struct Stream {
    input: Receiver<Item>,
    spare: Sender<Vec<u8>>,
    chunk: Arc<Vec<u8>>,
    at: usize,
    offset: u64,
}

/// Gives a chunk's memory back once its last reader has finished.
pub(super) fn recycle(chunk: Arc<Vec<u8>>, spare: &Sender<Vec<u8>>) {
    if let Some(buffer) = Arc::into_inner(chunk) {
        // A full channel or no receiver means that nobody needs it.
        drop(spare.try_send(buffer));
    }
}

impl Stream {
    pub(super) fn new(input: Receiver<Item>, spare: Sender<Vec<u8>>) -> Stream {
        Stream { input, spare, chunk: Arc::default(), at: 0, offset: 0 }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, at least one unless the stream is at its end.
    pub(super) fn peek(&mut self) -> Result<&[u8]> {
        while self.at == self.chunk.len() {
            match self.input.recv() {
                Ok(Ok(chunk)) => {
                    recycle(std::mem::replace(&mut self.chunk, chunk), &self.spare);
                    self.at = 0;
                }
                Ok(Err(Broken::Bad(reason))) => return Err(Fault::bad(b"", self.offset, reason)),
                Ok(Err(Broken::Input(error))) => {
                    return Err(Fault::Store(crate::error::Error::io("read the layer")(error)));
                }
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.chunk[self.at..])
    }

    /// Passes over bytes that [`Stream::peek`] gave.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.at += bytes;
        self.offset += bytes as u64;
    }

    /// Fills the buffer as far as the stream goes; returns how far.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let next = self.peek()?;
            let piece = next.len().min(buffer.len() - filled);
            if piece == 0 {
                break;
            }
            buffer[filled..filled + piece].copy_from_slice(&next[..piece]);
            filled += piece;
            self.consume(piece);
        }
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

    /// Hands the next `bytes` bytes to `sink`, piece by piece.
    pub(super) fn each(&mut self, bytes: u64, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let next = self.peek()?;
            let piece = (next.len() as u64).min(left) as usize;
            if piece == 0 {
                let reason = format!("the tar is truncated: {left} of {bytes} bytes of contents are missing");
                return Err(Fault::bad(b"", self.offset, reason));
            }
            sink(&next[..piece])?;
            self.consume(piece);
            left -= piece as u64;
        }
        Ok(())
    }

    /// The next `bytes` bytes, which the caller has bounded.
    pub(super) fn take(&mut self, bytes: u64) -> Result<Vec<u8>> {
        let mut taken = Vec::with_capacity(bytes as usize);
        self.each(bytes, |piece| {
            taken.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(taken)
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
            let left = self.peek()?.len();
            if left == 0 {
                return Ok(());
            }
            self.consume(left);
        }
    }
}
