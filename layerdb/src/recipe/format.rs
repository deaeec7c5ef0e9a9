//! The bytes of a recipe.

use std::io::{self, BufRead, Write};

use crate::digest::{DiffId, Digest, ObjectId};

/// The version this program writes, and the only one it reads.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"micarecp";

/// Length of the header.
pub(super) const HEADER_BYTES: u64 = 72;

/// Length of an object's row.
pub(super) const OBJECT_BYTES: u64 = 40;

/// Logarithm of the largest window that a reader allows the compressed parts.
pub(super) const WINDOW_LOG_MAX: u32 = 23;

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) diff_id: DiffId,
    pub(super) tar_bytes: u64,
    /// Rows of the list of objects.
    pub(super) objects: u64,
    /// Length of the compressed literals.
    pub(super) literals_bytes: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..48].copy_from_slice(self.diff_id.0.as_bytes());
        bytes[48..56].copy_from_slice(&self.tar_bytes.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.objects.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.literals_bytes.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> Result<Header, String> {
        if &bytes[..8] != MAGIC {
            return Err("it has no recipe's mark".into());
        }
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if version != VERSION {
            return Err(format!("it has version {version}; this program reads version {VERSION}"));
        }
        if bytes[12..16] != [0; 4] {
            return Err("its header has unknown bits".into());
        }
        let mut diff_id = [0; 32];
        diff_id.copy_from_slice(&bytes[16..48]);
        Ok(Header {
            diff_id: DiffId(Digest::from_bytes(diff_id)),
            tar_bytes: u64_at(bytes, 48),
            objects: u64_at(bytes, 56),
            literals_bytes: u64_at(bytes, 64),
        })
    }
}

/// A row of the list of objects.
pub(super) fn encode_object(id: ObjectId, size: u64) -> [u8; OBJECT_BYTES as usize] {
    let mut row = [0; OBJECT_BYTES as usize];
    row[..32].copy_from_slice(id.0.as_bytes());
    row[32..].copy_from_slice(&size.to_le_bytes());
    row
}

/// The inverse of [`encode_object`].
pub(super) fn decode_object(row: &[u8; OBJECT_BYTES as usize]) -> (ObjectId, u64) {
    let mut id = [0; 32];
    id.copy_from_slice(&row[..32]);
    (ObjectId(Digest::from_bytes(id)), u64_at(row, 32))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// What a step does, in the low three bits of its first number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// So many bytes of the literals.
    Literal = 0,
    /// So many zeros.
    Zeros = 1,
    /// All bytes of a file of the tree.
    File = 2,
    /// A part of a file of the tree: two more numbers, offset and length.
    FilePart = 3,
    /// All bytes of an object of the list.
    Object = 4,
    /// A part of an object of the list: two more numbers, offset and length.
    ObjectPart = 5,
    /// So many bytes, which follow at once.
    Inline = 6,
}

impl Verb {
    fn of(bits: u64) -> Option<Verb> {
        const VERBS: [Verb; 7] =
            [Verb::Literal, Verb::Zeros, Verb::File, Verb::FilePart, Verb::Object, Verb::ObjectPart, Verb::Inline];
        VERBS.get(bits as usize).copied()
    }
}

/// Largest argument of a verb.
const ARGUMENT_MAX: u64 = u64::MAX >> 3;

/// Writes the first number of a step.
pub(super) fn put_verb(out: &mut impl Write, verb: Verb, argument: u64) -> io::Result<()> {
    if argument > ARGUMENT_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a number too large for a recipe"));
    }
    put_number(out, argument << 3 | verb as u64)
}

/// Reads the first number of a step. `None` at the end.
pub(super) fn take_verb(input: &mut impl BufRead) -> io::Result<Option<(Verb, u64)>> {
    if input.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let number = take_number(input)?;
    let verb = Verb::of(number & 7).ok_or_else(|| invalid("a step of an unknown kind"))?;
    Ok(Some((verb, number >> 3)))
}

/// Writes a number, seven bits to a byte, lowest first; all bytes but the last have the top bit.
pub(super) fn put_number(out: &mut impl Write, mut number: u64) -> io::Result<()> {
    let mut bytes = [0; 10];
    let mut used = 0;
    while number >= 0x80 {
        bytes[used] = number as u8 | 0x80;
        number >>= 7;
        used += 1;
    }
    bytes[used] = number as u8;
    out.write_all(&bytes[..=used])
}

/// The inverse of [`put_number`].
pub(super) fn take_number(input: &mut impl BufRead) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        let bits = u64::from(byte[0] & 0x7f);
        if bits << shift >> shift != bits {
            break;
        }
        number |= bits << shift;
        if byte[0] < 0x80 {
            return Ok(number);
        }
    }
    Err(invalid("a number of more than 64 bits"))
}

/// A difference of two numbers that are below 2^63, small if it is small in either direction.
pub(super) fn zigzag(from: u64, to: u64) -> u64 {
    if to >= from { (to - from) << 1 } else { (from - to) << 1 | 1 }
}

/// The inverse of [`zigzag`]. `None` if there is no such number.
pub(super) fn unzigzag(from: u64, difference: u64) -> Option<u64> {
    if difference & 1 == 0 { from.checked_add(difference >> 1) } else { from.checked_sub(difference >> 1) }
}

pub(super) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_survive_their_encoding() {
        for number in [0, 1, 127, 128, 16383, 16384, u64::from(u32::MAX), u64::MAX >> 3, u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number).unwrap();
            assert_eq!(take_number(&mut &bytes[..]).unwrap(), number);
        }
        assert!(take_number(&mut &[0xff; 10][..]).is_err());
        assert!(take_number(&mut &[0x80][..]).is_err());
    }

    #[test]
    fn differences_survive_their_encoding() {
        for (from, to) in [(0, 0), (36, 40), (40, 36), (0, u64::MAX >> 1), (u64::MAX >> 1, 0)] {
            assert_eq!(unzigzag(from, zigzag(from, to)), Some(to));
        }
        assert_eq!(unzigzag(1, 5), None);
    }

    #[test]
    fn header_survives_its_encoding_and_a_strange_one_is_refused() {
        let header = Header { diff_id: DiffId(Digest::of(b"x")), tar_bytes: 1 << 40, objects: 3, literals_bytes: 77 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes).unwrap(), header);
        for at in 0..16 {
            let mut strange = bytes;
            strange[at] ^= 1;
            assert!(Header::decode(&strange).is_err(), "byte {at}");
        }
    }
}
