//! The first thread of an ingest: reads the layer as it comes, and hands it on in pieces.

use std::io::{self, BufRead, Read};

use crossbeam_channel::{Receiver, Sender};

use super::Progress;
use crate::digest::{Digest, Hasher};

/// Bytes of a piece.
const PIECE: usize = 128 << 10;

/// Pieces between two threads.
pub(super) const PIECES_QUEUED: usize = 8;

/// A part of the input, or why it can't be read.
pub(super) type Piece = io::Result<Vec<u8>>;

/// What was read.
#[derive(Debug)]
pub(super) struct Fed {
    pub(super) bytes: u64,
    /// Its digest, if that was asked for.
    pub(super) digest: Option<Digest>,
}

/// Reads the input to its end, or until nobody takes the pieces any more.
pub(super) fn feed(
    input: &mut (dyn Read + Send),
    hash: bool,
    name: &str,
    progress: &dyn Progress,
    to: &Sender<Piece>,
    spare: &Receiver<Vec<u8>>,
) -> Fed {
    let mut hasher = hash.then(Hasher::new);
    let mut bytes = 0;
    loop {
        let mut piece = spare.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let (filled, failure) = fill(input, &mut piece);
        piece.truncate(filled);
        bytes += filled as u64;
        progress.read(name, filled as u64);
        if let Some(hasher) = &mut hasher {
            hasher.update(&piece);
        }
        let goes_on = filled > 0 && to.send(Ok(piece)).is_ok() && failure.is_none();
        if let Some(error) = failure {
            // A reader that has gone has its own reason to report.
            drop(to.send(Err(error)));
        }
        if !goes_on {
            return Fed { bytes, digest: hasher.map(Hasher::finish) };
        }
    }
}

/// Reads until the buffer is full, the input ends or fails.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(some) => filled += some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}

/// The input as the second thread reads it.
pub(super) struct Pieces {
    from: Receiver<Piece>,
    spare: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    /// Bytes of all pieces so far.
    pub(super) bytes: u64,
    /// Why the input ended early: a decoder may make something else of it.
    pub(super) failure: Option<io::Error>,
}

impl Pieces {
    pub(super) fn new(from: Receiver<Piece>, spare: Sender<Vec<u8>>) -> Pieces {
        Pieces { from, spare, piece: Vec::new(), at: 0, bytes: 0, failure: None }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let some = self.fill_buf()?.read(buffer)?;
        self.consume(some);
        Ok(some)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len()
            && let Ok(next) = self.from.recv()
        {
            let next = next.inspect_err(|error| self.failure = Some(copy(error)))?;
            self.bytes += next.len() as u64;
            self.at = 0;
            // A full channel or no receiver means that nobody needs its memory.
            drop(self.spare.try_send(std::mem::replace(&mut self.piece, next)));
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

/// The same error once more.
pub(super) fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
