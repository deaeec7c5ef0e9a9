//! The second thread of an ingest: decompresses the layer and hands it on in chunks.

use std::io::{self, BufRead as _, Read as _};

use crossbeam_channel::{Receiver, Sender};

use super::Compression;
use super::feed::Pieces;
use super::stream::{Broken, CHUNK, Item};
use crate::layer::BlobCompression;
use crate::limits::{Limits, undecodable};

/// What has become of the stream.
#[derive(Debug)]
pub(super) struct Pumped {
    /// Bytes handed on.
    pub(super) tar_bytes: u64,
    /// How the input was compressed. `None` if it broke.
    pub(super) compression: Option<BlobCompression>,
}

/// The chunks' way.
pub(super) struct Outlet {
    pub(super) to: Sender<Item>,
    /// Memory of chunks that are read.
    pub(super) spare: Receiver<Vec<u8>>,
}

/// Reads the input to its end. Whatever is wrong with it reaches the reader as the stream's last item.
pub(super) fn pump(mut input: Pieces, compression: Compression, limits: &Limits, outlet: &Outlet) -> Pumped {
    let mut tar_bytes = 0;
    let result = decompress(&mut input, compression, limits, outlet, &mut tar_bytes);
    let compression = result.as_ref().ok().copied();
    if let Err(broken) = result {
        // What the input said comes first: a decoder may have made something else of it.
        let broken = input.failure.take().map_or(broken, Broken::Input);
        // A reader that has gone has its own reason to report.
        drop(outlet.to.send(Err(broken)));
    }
    Pumped { tar_bytes, compression }
}

fn decompress(
    input: &mut Pieces,
    compression: Compression,
    limits: &Limits,
    outlet: &Outlet,
    tar_bytes: &mut u64,
) -> Result<BlobCompression, Broken> {
    let compression = match compression {
        Compression::Detect => detect(input.fill_buf().map_err(Broken::Input)?)?,
        known => known,
    };
    let compression = match compression {
        Compression::Gzip => {
            let mut decoder = flate2::bufread::MultiGzDecoder::new(&mut *input);
            let read = |buffer: &mut [u8]| Ok((decoder.read(buffer)?, decoder.get_ref().bytes));
            transfer(read, "gzip", limits, outlet, tar_bytes)?;
            BlobCompression::Gzip
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut *input).map_err(Broken::Input)?;
            decoder.window_log_max(limits.zstd_window_log).map_err(Broken::Input)?;
            let read = |buffer: &mut [u8]| Ok((decoder.read(buffer)?, decoder.get_ref().bytes));
            transfer(read, "zstd", limits, outlet, tar_bytes)?;
            BlobCompression::Zstd
        }
        Compression::None | Compression::Detect => {
            let read = |buffer: &mut [u8]| Ok((input.read(buffer)?, input.bytes));
            transfer(read, "tar", limits, outlet, tar_bytes)?;
            BlobCompression::None
        }
    };
    // The blob's digest covers its last byte, whether the decoder wanted it or not.
    io::copy(input, &mut io::sink()).map_err(Broken::Input)?;
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
        let mut buffer = outlet.spare.try_recv().unwrap_or_default();
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
                Err(error) => return Err(Broken::Bad(describe(format, &error, limits))),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        buffer.truncate(filled);
        *tar_bytes += filled as u64;
        limits.check_expansion(used, *tar_bytes).map_err(Broken::Bad)?;
        if outlet.to.send(Ok(buffer)).is_err() {
            return Ok(());
        }
    }
}

fn describe(format: &str, error: &io::Error, limits: &Limits) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return format!("the {format} stream is truncated");
    }
    undecodable(format, error, limits)
}
