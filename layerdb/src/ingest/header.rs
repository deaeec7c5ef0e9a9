//! One 512-byte tar header: POSIX ustar (pax(1), "ustar Interchange Format"), GNU, star and v7.

use super::stream::BLOCK;
use crate::tree::Timestamp;

/// The fields of a header as they are, before extensions change them.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    block: &'a [u8; BLOCK],
    dialect: Dialect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// What is wrong with a header.
pub(crate) type Result<T, E = String> = std::result::Result<T, E>;

impl<'a> Header<'a> {
    /// Takes a block that is a header by its checksum.
    pub(crate) fn parse(block: &'a [u8; BLOCK]) -> Result<Header<'a>> {
        if !is_header(block) {
            return Err("the header's checksum doesn't match".into());
        }
        let dialect = match (&block[257..263], &block[263..265]) {
            (b"ustar ", b" \0") => Dialect::Gnu,
            (b"ustar\0", _) if &block[508..512] == b"tar\0" => Dialect::Star,
            (b"ustar\0", _) => Dialect::Ustar,
            _ => Dialect::V7,
        };
        Ok(Header { block, dialect })
    }

    pub(crate) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// The name with its prefix.
    pub(crate) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.dialect {
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            // GNU keeps times there; some writers of mixed headers keep a prefix.
            Dialect::Gnu if number(&self.block[345..357]).is_err() => text(&self.block[345..500]),
            Dialect::Gnu | Dialect::V7 => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(crate) fn mode(&self) -> Result<u32> {
        let mode = self.number("mode", 100..108)?;
        Ok((mode & 0o7777) as u32)
    }

    pub(crate) fn uid(&self) -> Result<i64> {
        self.number("uid", 108..116)
    }

    pub(crate) fn gid(&self) -> Result<i64> {
        self.number("gid", 116..124)
    }

    pub(crate) fn size(&self) -> Result<i64> {
        self.number("size", 124..136)
    }

    pub(crate) fn mtime(&self) -> Result<Timestamp> {
        Ok(Timestamp { secs: self.number("mtime", 136..148)?, nanos: 0 })
    }

    /// Major and minor number of a device.
    pub(crate) fn device(&self) -> Result<(i64, i64)> {
        if self.dialect == Dialect::V7 {
            return Ok((0, 0));
        }
        Ok((self.number("devmajor", 329..337)?, self.number("devminor", 337..345)?))
    }

    /// The block, for the fields of GNU's sparse files.
    pub(crate) fn block(&self) -> &'a [u8; BLOCK] {
        self.block
    }

    fn number(&self, field: &str, range: std::ops::Range<usize>) -> Result<i64> {
        number(&self.block[range]).map_err(|reason| format!("the header's {field} {reason}"))
    }
}

/// True if the block's checksum says that it is a header. Old writers summed signed bytes.
pub(crate) fn is_header(block: &[u8; BLOCK]) -> bool {
    let Ok(expected) = number(&block[148..156]) else { return false };
    let mut unsigned = 0_i64;
    let mut signed = 0_i64;
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    block[148..156].iter().any(u8::is_ascii_digit) && (expected == unsigned || expected == signed)
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number in octal digits, or in base 256 as GNU and star write what octal can't hold.
pub(crate) fn number(field: &[u8]) -> Result<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Result<i64> {
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Ok(0) };
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(blank).unwrap_or(digits.len())];
    let mut value = 0_i64;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return Err(format!("\"{}\" is no octal number", field.escape_ascii()));
        }
        // At most 12 digits of 3 bits.
        value = value << 3 | i64::from(digit - b'0');
    }
    Ok(value)
}

fn base_256(field: &[u8]) -> Result<i64> {
    // Two's complement in all bits but the first, which marks the encoding; the second is the sign.
    let negative = field[0] & 0x40 != 0;
    let fill = if negative { 0xff } else { 0 };
    let mut value = if negative { -1_i64 } else { 0 };
    for (at, byte) in field.iter().enumerate() {
        let byte = if at == 0 { if negative { byte | 0x80 } else { byte & 0x7f } } else { *byte };
        let rest = field.len() - at;
        if rest > 8 && byte != fill {
            return Err("is out of range".into());
        }
        if rest == 8 && (byte & 0x80 != 0) != negative {
            return Err("is out of range".into());
        }
        value = value << 8 | i64::from(byte);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn number_reads_octal_with_any_padding() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(b"77777777777\0").unwrap(), 0o777_7777_7777);
        assert_eq!(number(b"777777777777").unwrap(), 0o7777_7777_7777);
        assert_eq!(number(&[0; 8]).unwrap(), 0);
        assert_eq!(number(b"        ").unwrap(), 0);
        assert!(number(b"12x4567\0").unwrap_err().contains("12x4567"));
    }

    #[test]
    fn number_reads_base_256_of_both_signs() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0x20, 0, 0]).unwrap(), 1 << 21);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]).unwrap(), -2);
        assert_eq!(number(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]).unwrap(), i64::MAX);
        assert!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }
}
