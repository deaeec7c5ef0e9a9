//! Entries of a tar: headers put together with the extensions before them.

use super::fault::{Fault, Result};
use super::header::{Header, is_header};
use super::pax::Extensions;
use super::sparse::{self, Segment};
use super::stream::{BLOCK, Span, Stream};
use crate::digest::{DiffId, Hasher};
use crate::limits::{Limits, over};
use crate::recipe::Recorder;
use crate::tree::{NodeId, Timestamp};

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// An entry. Its contents are what the stream has next.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where its header, the first if there are several, begins.
    pub(super) offset: u64,
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryKind,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file.
    pub(super) size: u64,
    /// Bytes of it in the stream.
    pub(super) stored: u64,
    /// Bytes to the next block behind them.
    sparse_map_bytes: u64,
    pub(super) sparse: Option<Vec<Segment>>,
}

/// A part of a file's contents.
pub(super) enum Piece {
    Data(Span),
    /// So many zeros.
    Hole(u64),
}

/// Reads entry after entry. Before the next is asked for, the contents of one are taken with [`Entries::contents`] and
/// [`Entries::placed`], or passed over with [`Entries::skip_contents`].
pub(super) struct Entries<'a> {
    stream: Stream,
    limits: &'a Limits,
    /// A block that was looked at and belongs to the next entry.
    ahead: Option<[u8; BLOCK]>,
    count: u64,
}

/// What stands before an entry's own header.
#[derive(Default)]
struct Preface {
    offset: Option<u64>,
    extensions: Option<Extensions>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Bytes of all of these so far.
    bytes: u64,
}

impl Preface {
    /// Whether there is anything that means nothing without an entry behind it.
    fn wants_entry(&self) -> bool {
        self.extensions.is_some() || self.long_path.is_some() || self.long_link.is_some()
    }
}

impl<'a> Entries<'a> {
    pub(super) fn new(stream: Stream, limits: &'a Limits) -> Entries<'a> {
        Entries { stream, limits, ahead: None, count: 0 }
    }

    /// Entries returned so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The next entry. `None` at the end of the archive: two zero blocks, or the end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut preface = Preface::default();
        loop {
            let offset = self.block_offset();
            let Some(block) = self.next_block(&preface)? else { return Ok(None) };
            let header = Header::parse(&block).map_err(|reason| Fault::bad(b"", offset, reason))?;
            preface.offset.get_or_insert(offset);
            if !self.read_preface(&header, offset, &mut preface)? {
                let entry = self.assemble(&header, offset, preface);
                return entry.map(Some).map_err(|fault| fault.within(&header.path()));
            }
        }
    }

    fn block_offset(&self) -> u64 {
        self.stream.offset() - if self.ahead.is_some() { BLOCK as u64 } else { 0 }
    }

    fn next_block(&mut self, preface: &Preface) -> Result<Option<[u8; BLOCK]>> {
        let block = match self.ahead.take() {
            Some(block) => Some(block),
            None => self.stream.block()?,
        };
        let end = match block {
            None => true,
            Some(block) if block == [0; BLOCK] => {
                let second = self.stream.block()?;
                if second.is_some_and(|second| second != [0; BLOCK]) {
                    return Err(Fault::bad(b"", self.stream.offset() - BLOCK as u64, "a lone zero block"));
                }
                true
            }
            Some(_) => false,
        };
        if !end {
            return Ok(block);
        }
        if let Some(offset) = preface.offset.filter(|_| preface.wants_entry()) {
            return Err(Fault::bad(b"", offset, "the tar is truncated: an extended header without its entry"));
        }
        Ok(None)
    }

    /// Takes in a header that only says something about a later one. False if this one is an entry's own.
    fn read_preface(&mut self, header: &Header<'_>, offset: u64, preface: &mut Preface) -> Result<bool> {
        let kind = header.kind();
        if !matches!(kind, b'x' | b'X' | b'g' | b'L' | b'K' | b'V') {
            return Ok(false);
        }
        let bad = |reason: String| Fault::bad(b"", offset, reason);
        let size = u64::try_from(header.size().map_err(bad)?).map_err(|_| bad("a negative size".into()))?;
        // One after the other before one entry, they add up.
        preface.bytes = preface.bytes.saturating_add(size);
        if preface.bytes > self.limits.extension_bytes {
            let limit = over("extension_bytes", self.limits.extension_bytes, "bytes of extended headers");
            return Err(bad(format!("an extended header of {size} bytes: {limit}")));
        }
        let mut bytes = self.stream.take(size)?;
        self.stream.pad(size)?;
        match kind {
            // Engines that unpack with Go's archive/tar, which is all of them, apply nothing of it.
            b'g' => Extensions::default().read(&bytes, self.limits).map_err(bad)?,
            b'x' | b'X' => preface.extensions.get_or_insert_default().read(&bytes, self.limits).map_err(bad)?,
            b'L' | b'K' => {
                bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
                let target = if kind == b'L' { &mut preface.long_path } else { &mut preface.long_link };
                *target = Some(bytes);
            }
            // A volume label.
            _ => {}
        }
        Ok(true)
    }

    fn assemble(&mut self, header: &Header<'_>, offset: u64, preface: Preface) -> Result<Entry> {
        self.count += 1;
        let offset = preface.offset.unwrap_or(offset);
        let extensions = preface.extensions.unwrap_or_default();
        let bad = |reason: String| Fault::bad(b"", offset, reason);
        let mut path = preface.long_path.or(extensions.path).unwrap_or_else(|| header.path());
        let id = |given: Option<i64>, own: Result<i64, String>| given.map_or(own, Ok).map(user_id).map_err(bad);
        let size = match extensions.size {
            Some(size) => size,
            None => u64::try_from(header.size().map_err(bad)?).map_err(|_| bad("the size is negative".into()))?,
        };
        let kind = kind(header.kind(), &path, size).map_err(|reason| Fault::bad(&path, offset, reason))?;
        let mut entry = Entry {
            offset,
            kind,
            link: preface.long_link.or(extensions.link).unwrap_or_else(|| header.link().to_vec()),
            mode: header.mode().map_err(bad)?,
            uid: id(extensions.uid, header.uid())?,
            gid: id(extensions.gid, header.gid())?,
            mtime: extensions.mtime.map_or_else(|| header.mtime(), Ok).map_err(bad)?,
            device: (0, 0),
            xattrs: extensions.xattrs,
            size,
            stored: size,
            sparse_map_bytes: 0,
            sparse: None,
            path: Vec::new(),
        };
        if matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
            let (major, minor) = header.device().map_err(bad)?;
            let number = |given: Option<i64>, own: i64| {
                u32::try_from(given.unwrap_or(own)).map_err(|_| bad("the device number is out of range".into()))
            };
            entry.device = (number(extensions.major, major)?, number(extensions.minor, minor)?);
        }
        if kind != EntryKind::File {
            self.skip_needless(&mut entry)?;
        } else if header.kind() == b'S' {
            let (map, real_size) = sparse::read_gnu(header, &mut self.stream, self.limits.segments)?;
            entry.size = real_size;
            entry.sparse = Some(map);
        } else if extensions.sparse.is_sparse() {
            if extensions.sparse.major.unwrap_or(0) >= 1 {
                let (map, bytes) = sparse::read_pax_1_0(&mut self.stream, size, self.limits.segments)?;
                entry.stored -= bytes;
                entry.sparse_map_bytes = bytes;
                entry.sparse = Some(map);
            } else {
                entry.sparse = extensions.sparse.map;
            }
            entry.size = extensions.sparse.real_size.unwrap_or(size);
            path = extensions.sparse.name.unwrap_or(path);
        }
        if let Some(map) = &entry.sparse {
            sparse::check(map, entry.size, entry.stored).map_err(bad)?;
        } else {
            entry.size = entry.stored;
        }
        entry.path = path;
        Ok(entry)
    }

    /// Only regular files have contents. Some writers give hard links their file's size, and most of those write no
    /// contents: they are there if what follows is no header.
    fn skip_needless(&mut self, entry: &mut Entry) -> Result<()> {
        let claimed = std::mem::take(&mut entry.stored);
        entry.size = 0;
        if claimed == 0 || entry.kind != EntryKind::HardLink {
            return Ok(());
        }
        let Some(block) = self.stream.block()? else { return Ok(()) };
        if block == [0; BLOCK] || is_header(&block) {
            self.ahead = Some(block);
            return Ok(());
        }
        self.stream.skip(claimed.saturating_sub(BLOCK as u64))?;
        if claimed > BLOCK as u64 { self.stream.pad(claimed) } else { Ok(()) }
    }

    /// Hands the contents of the entry that was returned last to `sink`, and to `digest`.
    pub(super) fn contents(
        &mut self,
        entry: &Entry,
        mut digest: Option<&mut Hasher>,
        mut sink: impl FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        let Some(segments) = &entry.sparse else {
            return self.stream.contents(entry.stored, digest, |span| sink(Piece::Data(span)));
        };
        let mut at = 0;
        let end = Segment { offset: entry.size, bytes: 0 };
        for segment in segments.iter().chain([&end]) {
            if segment.offset > at {
                let hole = segment.offset - at;
                if let Some(digest) = &mut digest {
                    digest.update_zeros(hole);
                }
                sink(Piece::Hole(hole))?;
            }
            self.stream.contents(segment.bytes, digest.as_deref_mut(), |span| sink(Piece::Data(span)))?;
            at = segment.offset + segment.bytes;
        }
        Ok(())
    }

    /// Says which inode has the contents that were taken, and passes over what is left of their last block.
    pub(super) fn placed(&mut self, entry: &Entry, node: NodeId) -> Result<()> {
        let recorder = self.stream.recorder();
        match &entry.sparse {
            None if entry.stored > 0 => recorder.contents(node)?,
            None => {}
            Some(segments) => {
                for segment in segments.iter().filter(|segment| segment.bytes > 0) {
                    recorder.part(node, segment.offset, segment.bytes)?;
                }
            }
        }
        self.stream.pad(entry.stored)
    }

    /// Passes over the contents of the entry that was returned last.
    pub(super) fn skip_contents(&mut self, entry: &Entry) -> Result<()> {
        self.stream.skip(entry.stored)?;
        self.stream.pad(entry.stored)
    }

    /// Reads what is behind the end of the archive, and gives the recipe and the digest of it all.
    pub(super) fn finish(mut self) -> Result<(Recorder, DiffId)> {
        self.stream.drain()?;
        Ok(self.stream.finish())
    }
}

/// An owner as chown(2) takes it from the engines: the low 32 bits, of which 2^32-1 means "as it is", and a new file is
/// root's.
fn user_id(id: i64) -> u32 {
    match id as u32 {
        u32::MAX => 0,
        id => id,
    }
}

fn kind(kind: u8, path: &[u8], size: u64) -> Result<EntryKind, String> {
    Ok(match kind {
        0 if path.ends_with(b"/") => EntryKind::Directory,
        b'0' | b'7' if size == 0 && path.ends_with(b"/") => EntryKind::Directory,
        b'0' | 0 | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => return Err(format!("unknown entry type '{}'", other.escape_ascii())),
    })
}
