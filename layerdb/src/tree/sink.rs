//! Bytes of a tree on their way to the file, hashed as they pass.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::Written;
use super::format::{BLOCK, Superblock};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// More than a block, so that the first one is complete when it leaves the buffer.
const BUFFER: usize = 1 << 20;

/// Takes the bytes of a tree in order, and completes its superblock.
pub(super) struct Sink<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    hashing: Option<Hashing>,
    flushed: u64,
}

impl<'a> Sink<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, buffer: Vec::with_capacity(BUFFER + BLOCK), hashing: None, flushed: 0 }
    }

    /// Number of bytes taken.
    pub(super) fn offset(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Takes zeros up to `offset`, which must not lie before the present one.
    pub(super) fn pad_to(&mut self, offset: u64) -> Result<()> {
        debug_assert!(self.offset() <= offset, "the plan and the writer disagree");
        let padded = self.buffer.len() + (offset - self.offset()) as usize;
        self.buffer.resize(padded, 0);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes the buffer and leaves its hashing, which takes as long, to a thread.
    fn flush(&mut self) -> Result<()> {
        self.write()?;
        let hashing = match self.hashing.take() {
            Some(hashing) => hashing,
            None => Hashing::start()?,
        };
        let hashing = self.hashing.insert(hashing);
        self.buffer = hashing.exchange(std::mem::take(&mut self.buffer));
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        if self.flushed == 0 {
            Superblock::seal(&mut self.buffer[..BLOCK]);
        }
        self.flushed += self.buffer.len() as u64;
        self.out.write_all(&self.buffer).map_err(Error::io("cannot write a tree"))
    }

    /// Writes what is left; `inodes` is for the result.
    pub(super) fn finish(mut self, inodes: u64) -> Result<Written> {
        self.write()?;
        let digest = match self.hashing {
            Some(hashing) => hashing.finish(self.buffer),
            None => Digest::of(&self.buffer),
        };
        Ok(Written { digest, bytes: self.flushed, inodes })
    }
}

/// A thread that hashes buffers and gives them back. It ends when its sender is dropped.
struct Hashing {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<Digest>,
}

impl Hashing {
    /// Buffers on their way, at most.
    const QUEUE: usize = 4;

    fn start() -> Result<Self> {
        let (full, incoming) = sync_channel::<Vec<u8>>(Self::QUEUE);
        let (done, empty) = sync_channel(2 * Self::QUEUE);
        let hash = move || {
            let mut hasher = Hasher::new();
            for mut buffer in incoming {
                hasher.update(&buffer);
                buffer.clear();
                // Nobody waits for buffers any more when the tree is at its end.
                drop(done.try_send(buffer));
            }
            hasher.finish()
        };
        let thread = thread::Builder::new().name("tree-digest".into()).spawn(hash);
        Ok(Self { full, empty, thread: thread.map_err(Error::io("cannot start a thread"))? })
    }

    /// Hands over a full buffer and gets an empty one.
    fn exchange(&self, buffer: Vec<u8>) -> Vec<u8> {
        self.send(buffer);
        self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(BUFFER + BLOCK))
    }

    fn send(&self, buffer: Vec<u8>) {
        assert!(self.full.send(buffer).is_ok(), "the hashing thread ends only after its sender");
    }

    fn finish(self, last: Vec<u8>) -> Digest {
        self.send(last);
        drop(self.full);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
