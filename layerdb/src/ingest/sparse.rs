//! Sparse files: which parts of a file are in the archive. The rest are holes.

use super::fault::{Fault, Result};
use super::header::{Header, number};
use super::stream::{BLOCK, Stream};
use crate::limits::over;

/// A part of a file that is in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// Where the old GNU format keeps its segments in a header and in the blocks behind it.
const GNU_HEADER: (usize, usize) = (386, 4);
const GNU_EXTENSION: (usize, usize) = (0, 21);
const GNU_HEADER_EXTENDED: usize = 482;
const GNU_EXTENSION_EXTENDED: usize = 504;

/// The segments of an old GNU sparse file (type `S`), and the file's size with its holes.
pub(super) fn read_gnu(header: &Header<'_>, stream: &mut Stream, most: u64) -> Result<(Vec<Segment>, u64)> {
    let start = stream.offset();
    let bad = |reason: String| Fault::bad(b"", start, format!("sparse map: {reason}"));
    let size = number(&header.block()[483..495]).map_err(bad)?;
    let size = u64::try_from(size).map_err(|_| bad("the size is negative".into()))?;
    let mut segments = Vec::new();
    collect(header.block(), GNU_HEADER, &mut segments, most).map_err(bad)?;
    let mut extended = header.block()[GNU_HEADER_EXTENDED] != 0;
    while extended {
        let block = stream.block()?.ok_or_else(|| bad("the tar is truncated".into()))?;
        collect(&block, GNU_EXTENSION, &mut segments, most).map_err(bad)?;
        extended = block[GNU_EXTENSION_EXTENDED] != 0;
    }
    Ok((segments, size))
}

fn collect(
    block: &[u8; BLOCK],
    (start, count): (usize, usize),
    segments: &mut Vec<Segment>,
    most: u64,
) -> Result<(), String> {
    for slot in block[start..start + 24 * count].chunks_exact(24) {
        if slot[0] == 0 || slot[12] == 0 {
            break;
        }
        let unsigned = |field| u64::try_from(number(field)?).map_err(|_| String::from("a number is negative"));
        if segments.len() as u64 >= most {
            return Err(over("segments", most, "parts of a sparse file"));
        }
        segments.push(Segment { offset: unsigned(&slot[..12])?, bytes: unsigned(&slot[12..])? });
    }
    Ok(())
}

/// The map of PAX format 1.0, which stands before the contents: decimal numbers on lines of their own, padded to a
/// block. Also returns the bytes it took.
pub(super) fn read_pax_1_0(stream: &mut Stream, stored: u64, most: u64) -> Result<(Vec<Segment>, u64)> {
    let start = stream.offset();
    let bad = |reason: String| Fault::bad(b"", start, format!("sparse map: {reason}"));
    let mut lines = Lines { stream, block: [0; BLOCK], at: BLOCK, used: 0, stored };
    let count = lines.number().map_err(|reason| reason.into_fault(start))?;
    if count > most {
        return Err(bad(over("segments", most, "parts of a sparse file")));
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        let offset = lines.number().map_err(|reason| reason.into_fault(start))?;
        let bytes = lines.number().map_err(|reason| reason.into_fault(start))?;
        segments.push(Segment { offset, bytes });
    }
    Ok((segments, lines.used))
}

struct Lines<'a> {
    stream: &'a mut Stream,
    block: [u8; BLOCK],
    at: usize,
    used: u64,
    stored: u64,
}

enum Trouble {
    Reason(&'static str),
    Fault(Fault),
}

impl Trouble {
    fn into_fault(self, offset: u64) -> Fault {
        match self {
            Trouble::Reason(reason) => Fault::bad(b"", offset, format!("sparse map: {reason}")),
            Trouble::Fault(fault) => fault,
        }
    }
}

impl Lines<'_> {
    fn number(&mut self) -> Result<u64, Trouble> {
        let mut value = 0_u64;
        let mut digits = 0;
        loop {
            match self.byte()? {
                b'\n' if digits > 0 => return Ok(value),
                digit @ b'0'..=b'9' if digits < 19 => {
                    // Up to 19 digits fit.
                    value = value * 10 + u64::from(digit - b'0');
                    digits += 1;
                }
                _ => return Err(Trouble::Reason("no decimal number")),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, Trouble> {
        if self.at == BLOCK {
            if self.used + BLOCK as u64 > self.stored {
                return Err(Trouble::Reason("longer than the entry's contents"));
            }
            let block = self.stream.block().map_err(Trouble::Fault)?;
            self.block = block.ok_or(Trouble::Reason("the tar is truncated"))?;
            self.used += BLOCK as u64;
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}

/// Checks that segments ascend without overlap, end within `size`, and hold `stored` bytes together.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), String> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for segment in segments {
        if segment.offset < end {
            return Err("sparse map: segments overlap or descend".into());
        }
        end = segment
            .offset
            .checked_add(segment.bytes)
            .filter(|end| *end <= size)
            .ok_or_else(|| format!("sparse map: a segment ends behind the file's {size} bytes"))?;
        sum += segment.bytes;
    }
    if sum != stored {
        return Err(format!("sparse map: segments of {sum} bytes, but {stored} bytes of contents"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_accepts_only_ordered_segments_that_fit() {
        let map = |pairs: &[(u64, u64)]| -> Vec<Segment> {
            pairs.iter().map(|(offset, bytes)| Segment { offset: *offset, bytes: *bytes }).collect()
        };
        assert!(check(&map(&[(0, 10), (20, 5), (30, 0)]), 30, 15).is_ok());
        assert!(check(&map(&[]), 30, 0).is_ok());
        assert!(check(&map(&[(0, 10), (5, 5)]), 30, 15).is_err());
        assert!(check(&map(&[(20, 5), (0, 5)]), 30, 10).is_err());
        assert!(check(&map(&[(0, 31)]), 30, 31).is_err());
        assert!(check(&map(&[(u64::MAX, 2)]), 30, 2).is_err());
        assert!(check(&map(&[(0, 10)]), 30, 11).is_err());
    }
}
