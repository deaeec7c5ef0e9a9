//! Writing tar: POSIX ustar headers, and PAX extended headers for what they can't hold (pax(1)).
//!
//! The `tar` crate reads names as text and writes GNU's extensions for what is long; layers are read by tools that
//! want PAX, and names are bytes.

mod tree;

use std::io::{self, Write};

use rustix::fs::{major, minor};

use crate::tree::{FileKind, Timestamp};
pub use tree::{OpenObject, Told, write_tree};

const BLOCK: usize = 512;

/// The most that a field of eight octal digits, the last being NUL, holds.
const ID_MAX: u64 = 0o7_777_777;
/// The same for twelve.
const SIZE_MAX: u64 = 0o77_777_777_777;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file of its own.
    Inode(FileKind),
    /// One more name of an earlier entry.
    HardLink,
}

/// An entry but for its contents.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Its path; a directory's ends with a slash.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Target of a symbolic link, or path of an earlier entry.
    pub link: &'a [u8],
    /// Permissions; type bits are ignored.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Device number as Linux' `dev_t` has it.
    pub rdev: u64,
    /// Bytes of contents that follow.
    pub size: u64,
    /// Extended attributes by full name; no name may contain `=`.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Head<'a> {
    /// An empty file that says something by its name.
    pub fn mark(path: &'a [u8]) -> Head<'a> {
        Head {
            path,
            kind: Kind::Inode(FileKind::Regular),
            link: b"",
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            rdev: 0,
            size: 0,
            xattrs: &[],
        }
    }
}

/// A tar being written.
pub struct Writer<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Writer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl<'a> Writer<'a> {
    /// A tar that goes to `out`.
    pub fn new(out: &'a mut dyn Write) -> Writer<'a> {
        Writer { out, bytes: 0 }
    }

    /// Writes an entry's headers; its contents come next, [`Head::size`] bytes, and then [`Writer::pad`].
    pub fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        let records = records(head);
        if !records.is_empty() {
            let mut extended = Block::new(b"PaxHeaders.0/entry", b'x');
            extended.octal(100..108, 0o644);
            extended.octal(124..136, records.len() as u64);
            self.write(&extended.sealed())?;
            self.write(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.write(&header(head))
    }

    /// Writes contents.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Fills the last block of `size` bytes of contents.
    pub fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        self.write(&[0; BLOCK][..rest])
    }

    /// Ends the archive; returns its length.
    pub fn finish(mut self) -> io::Result<u64> {
        self.write(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.bytes)
    }
}

/// A header while its fields are filled in.
struct Block([u8; BLOCK]);

impl Block {
    fn new(name: &[u8], kind: u8) -> Block {
        let mut block = Block([0; BLOCK]);
        block.text(0..100, name);
        block.octal(100..108, 0);
        block.octal(108..116, 0);
        block.octal(116..124, 0);
        block.octal(124..136, 0);
        block.octal(136..148, 0);
        block.0[156] = kind;
        block.text(257..265, b"ustar\x0000");
        block.octal(329..337, 0);
        block.octal(337..345, 0);
        block
    }

    /// What doesn't fit is cut; a PAX record says it in full.
    fn text(&mut self, field: std::ops::Range<usize>, text: &[u8]) {
        let length = text.len().min(field.len());
        self.0[field.start..field.start + length].copy_from_slice(&text[..length]);
    }

    /// What doesn't fit is 0; a PAX record says it.
    fn octal(&mut self, field: std::ops::Range<usize>, number: u64) {
        let digits = field.len() - 1;
        let number = if number >> (3 * digits) == 0 { number } else { 0 };
        self.text(field, format!("{number:0digits$o}").as_bytes());
    }

    /// The block with its checksum: the sum of its bytes, the checksum's own field taken as spaces.
    fn sealed(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.text(148..156, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

fn header(head: &Head<'_>) -> [u8; BLOCK] {
    let kind = match head.kind {
        Kind::HardLink => b'1',
        // Sockets have no type in tar; the caller leaves them out.
        Kind::Inode(FileKind::Regular | FileKind::Socket) => b'0',
        Kind::Inode(FileKind::Symlink) => b'2',
        Kind::Inode(FileKind::CharDevice) => b'3',
        Kind::Inode(FileKind::BlockDevice) => b'4',
        Kind::Inode(FileKind::Directory) => b'5',
        Kind::Inode(FileKind::Fifo) => b'6',
    };
    let (prefix, name) = split(head.path).unwrap_or((b"", head.path));
    let mut block = Block::new(name, kind);
    block.text(345..500, prefix);
    block.text(157..257, head.link);
    block.octal(100..108, u64::from(head.mode & 0o7777));
    block.octal(108..116, u64::from(head.uid));
    block.octal(116..124, u64::from(head.gid));
    block.octal(124..136, head.size);
    block.octal(136..148, u64::try_from(head.mtime.secs).unwrap_or(0));
    if matches!(kind, b'3' | b'4') {
        block.octal(329..337, u64::from(major(head.rdev)));
        block.octal(337..345, u64::from(minor(head.rdev)));
    }
    block.sealed()
}

/// The path in the two fields of a header; `None` when it doesn't fit.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let at = slashes.into_iter().find(|at| (1..=155).contains(at) && (1..=100).contains(&(path.len() - at - 1)))?;
    Some((&path[..at], &path[at + 1..]))
}

/// The records of an entry's extended header, in a fixed order.
fn records(head: &Head<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let long_path = !head.path.is_ascii() || split(head.path).is_none();
    let long_link = !head.link.is_ascii() || head.link.len() > 100;
    if str::from_utf8(head.path).is_err() || str::from_utf8(head.link).is_err() {
        record(&mut records, b"hdrcharset", b"BINARY");
    }
    if long_path {
        record(&mut records, b"path", head.path);
    }
    if long_link {
        record(&mut records, b"linkpath", head.link);
    }
    if head.size > SIZE_MAX {
        record(&mut records, b"size", head.size.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", head.uid), (b"gid", head.gid)] {
        if u64::from(id) > ID_MAX {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    let Timestamp { secs, nanos } = head.mtime;
    if nanos != 0 || secs < 0 || secs as u64 > SIZE_MAX {
        record(&mut records, b"mtime", time(head.mtime).as_bytes());
    }
    for (name, value) in head.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    records
}

/// Appends `LENGTH KEY=VALUE\n`; the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A time in decimal seconds; those before 1970 are negative.
fn time(time: Timestamp) -> String {
    let Timestamp { secs, nanos } = time;
    let (sign, secs, nanos) = match (secs < 0, nanos) {
        (false, nanos) => ("", secs, nanos),
        (true, 0) => ("-", -secs, 0),
        (true, nanos) => ("-", -(secs + 1), 1_000_000_000 - nanos),
    };
    let decimal = format!("{sign}{secs}.{nanos:09}");
    decimal.trim_end_matches('0').trim_end_matches('.').into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn record_counts_its_own_length() {
        for length in 0..1200 {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; length]);
            let digits = records.iter().position(|byte| *byte == b' ').unwrap();
            assert_eq!(str::from_utf8(&records[..digits]).unwrap().parse(), Ok(records.len()));
        }
    }

    #[test]
    fn times_are_decimal_also_before_the_epoch() {
        for (secs, nanos, decimal) in [
            (0, 0, "0"),
            (10, 0, "10"),
            (1, 500_000_000, "1.5"),
            (1, 1, "1.000000001"),
            (-1, 0, "-1"),
            (-1, 500_000_000, "-0.5"),
            (-2, 750_000_000, "-1.25"),
        ] {
            assert_eq!(time(Timestamp { secs, nanos }), decimal);
        }
    }

    #[test]
    fn path_is_split_where_both_parts_fit() {
        let long = |length: usize| vec![b'a'; length];
        assert_eq!(split(b"short"), Some((&b""[..], &b"short"[..])));
        let path = [long(120), long(90)].join(&b'/');
        assert_eq!(split(&path), Some((&long(120)[..], &long(90)[..])));
        assert_eq!(split(&long(101)), None);
        assert_eq!(split(&[long(160), long(10)].join(&b'/')), None);
        let dir = [long(120), b"".to_vec()].join(&b'/');
        assert_eq!(split(&dir), None);
    }
}
