//! The first thread of an ingest: reads the layer, decompresses it and hands it on in chunks.

use std::io::{self, BufReader, Read};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::stream::{Broken, CHUNK, Item};
use super::{Compression, Progress};
use crate::digest::{Digest, Hasher};
use crate::layer::BlobCompression;
use crate::limits::Limits;

/// Enough of a stream to recognise its compression.
const MAGIC_BYTES: usize = 6;

/// Bytes asked of the input at once.
const READ_BYTES: usize = 64 << 10;

/// What has become of the stream.
#[derive(Debug)]
pub(super) struct Pumped {
    /// Bytes read from the input.
    pub(super) read_bytes: u64,
    /// Digest of what was read, if it was asked for.
    pub(super) digest: Option<Digest>,
    /// Bytes handed on.
    pub(super) tar_bytes: u64,
    /// How the input was compressed. `None` if it broke.
    pub(super) compression: Option<BlobCompression>,
}

/// The chunks' way.
pub(super) struct Outlet {
    /// Every chunk goes to each of them.
    pub(super) readers: [Sender<Item>; 2],
    /// Memory of chunks that all have read.
    pub(super) spare: Receiver<Vec<u8>>,
}

impl Outlet {
    /// False if a reader has gone.
    fn send(&self, chunk: Vec<u8>) -> bool {
        let chunk = Arc::new(chunk);
        self.readers.iter().all(|reader| reader.send(Ok(Arc::clone(&chunk))).is_ok())
    }

    fn buffer(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_else(|_| vec![0; CHUNK])
    }
}

/// Reads the input to its end. Whatever is wrong with it reaches the readers as the stream's last item.
pub(super) fn pump(mut input: Counted<'_>, compression: Compression, limits: &Limits, outlet: &Outlet) -> Pumped {
    let mut tar_bytes = 0;
    let result = decompress(&mut input, compression, limits, outlet, &mut tar_bytes);
    let compression = result.as_ref().ok().copied();
    if let Err(broken) = result {
        // What the input said comes first: a decoder may have made something else of it.
        let (one, other) = match (input.failure.take(), broken) {
            (Some(error), _) | (None, Broken::Input(error)) => (Broken::Input(copy(&error)), Broken::Input(error)),
            (None, Broken::Bad(reason)) => (Broken::Bad(reason.clone()), Broken::Bad(reason)),
        };
        let [first, second] = &outlet.readers;
        // A reader that has gone has its own reason to report.
        drop(first.send(Err(one)));
        drop(second.send(Err(other)));
    }
    Pumped { read_bytes: input.bytes, digest: input.hasher.map(Hasher::finish), tar_bytes, compression }
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

fn decompress(
    input: &mut Counted<'_>,
    compression: Compression,
    limits: &Limits,
    outlet: &Outlet,
    tar_bytes: &mut u64,
) -> Result<BlobCompression, Broken> {
    let mut head = Vec::with_capacity(MAGIC_BYTES);
    input.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut head).map_err(Broken::Input)?;
    let compression = match compression {
        Compression::Detect => detect(&head)?,
        known => known,
    };
    let mut source = BufReader::with_capacity(READ_BYTES, io::Cursor::new(head).chain(input));
    let compression = match compression {
        Compression::Gzip => {
            let mut decoder = flate2::bufread::MultiGzDecoder::new(&mut source);
            let read = |buffer: &mut [u8]| Ok((decoder.read(buffer)?, decoder.get_ref().get_ref().get_ref().1.bytes));
            transfer(read, "gzip", limits, outlet, tar_bytes)?;
            BlobCompression::Gzip
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut source).map_err(Broken::Input)?;
            decoder.window_log_max(limits.zstd_window_log).map_err(Broken::Input)?;
            let read = |buffer: &mut [u8]| Ok((decoder.read(buffer)?, decoder.get_ref().get_ref().get_ref().1.bytes));
            transfer(read, "zstd", limits, outlet, tar_bytes)?;
            BlobCompression::Zstd
        }
        Compression::None | Compression::Detect => {
            let read = |buffer: &mut [u8]| Ok((source.read(buffer)?, source.get_ref().get_ref().1.bytes));
            transfer(read, "tar", limits, outlet, tar_bytes)?;
            BlobCompression::None
        }
    };
    // The blob's digest covers its last byte, whether the decoder wanted it or not.
    io::copy(&mut source, &mut io::sink()).map_err(Broken::Input)?;
    Ok(compression)
}

/// Recognises the compression by the first bytes. A stream shorter than that is a tar without entries.
fn detect(head: &[u8]) -> Result<Compression, Broken> {
    let unsupported = |name: &str| Err(Broken::Bad(format!("compression {name} is not supported")));
    match head {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => unsupported("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41] => unsupported("bzip2"),
        _ => Ok(Compression::None),
    }
}

/// Moves everything `read` gives to the outlet. `read` also says how many input bytes it has used so far.
fn transfer(
    mut read: impl FnMut(&mut [u8]) -> io::Result<(usize, u64)>,
    format: &str,
    limits: &Limits,
    outlet: &Outlet,
    tar_bytes: &mut u64,
) -> Result<(), Broken> {
    loop {
        let mut buffer = outlet.buffer();
        buffer.resize(CHUNK, 0);
        let mut filled = 0;
        let mut used = 0;
        while filled < CHUNK {
            match read(&mut buffer[filled..]) {
                Ok((0, _)) => break,
                Ok((some, bytes)) => {
                    filled += some;
                    used = bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::Bad(describe(format, &error))),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        buffer.truncate(filled);
        *tar_bytes += filled as u64;
        limits.check_expansion(used, *tar_bytes).map_err(Broken::Bad)?;
        if !outlet.send(buffer) {
            return Ok(());
        }
    }
}

fn describe(format: &str, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return format!("the {format} stream is truncated");
    }
    format!("the {format} stream is corrupt: {error}")
}

/// The input, counted, hashed and reported as it is read.
pub(super) struct Counted<'a> {
    input: &'a mut (dyn Read + Send),
    hasher: Option<Hasher>,
    bytes: u64,
    failure: Option<io::Error>,
    name: &'a str,
    progress: &'a dyn Progress,
}

impl<'a> Counted<'a> {
    pub(super) fn new(
        input: &'a mut (dyn Read + Send),
        hash: bool,
        name: &'a str,
        progress: &'a dyn Progress,
    ) -> Counted<'a> {
        Counted { input, hasher: hash.then(Hasher::new), bytes: 0, failure: None, name, progress }
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.input.read(buffer) {
            Ok(some) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&buffer[..some]);
                }
                self.bytes += some as u64;
                self.progress.read(self.name, some as u64);
                Ok(some)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.failure = Some(copy(&error));
                }
                Err(error)
            }
        }
    }
}
