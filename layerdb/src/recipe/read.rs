//! Reading a recipe. Nothing in it is trusted: any bytes give steps or an error.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use zstd::stream::read::Decoder;

use super::format::{
    HEADER_BYTES, Header, OBJECT_BYTES, Verb, WINDOW_LOG_MAX, decode_object, take_number, take_verb, unzigzag,
};
use crate::digest::{DiffId, ObjectId};
use crate::error::{Error, Result};
use crate::tree::Nid;

/// Bytes given at once.
const PIECE: usize = 64 << 10;

/// Bytes that can be read at any place.
pub trait Source {
    /// How many there are.
    fn size(&self) -> io::Result<u64>;

    /// Reads bytes from `offset` on; fewer than asked for, or none at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }
}

impl Source for &[u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// What a tar has next. None of them is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
    /// All contents of a regular file of the tree. The file may turn out to be empty, or not to be one: that is
    /// damage.
    File(Nid),
    /// A part of the contents of a regular file of the tree. It may turn out to lie beyond the file's end.
    FilePart {
        /// The file.
        nid: Nid,
        /// Where the part begins.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// All of an object.
    Object {
        /// The object.
        id: ObjectId,
        /// Its length.
        bytes: u64,
    },
    /// A part of an object, which lies within it.
    ObjectPart {
        /// The object.
        id: ObjectId,
        /// Length of the object.
        size: u64,
        /// Where the part begins.
        offset: u64,
        /// Length of the part.
        bytes: u64,
    },
}

/// Gives the steps of a recipe in order.
///
/// Memory: two windows of up to 8 MiB and buffers, whatever the recipe says. It gives at most one step for each byte of
/// the tar that it speaks of.
pub struct Reader<S: Source> {
    diff_id: DiffId,
    header: Header,
    source: Arc<S>,
    literals: Decoder<'static, BufReader<Section<S>>>,
    steps: BufReader<Decoder<'static, BufReader<Section<S>>>>,
    buffer: Vec<u8>,
    run: Run,
    last: u64,
    /// Bytes of the tar that the steps so far account for, at least.
    told_bytes: u64,
}

/// Bytes that are still to be given by a step that was begun.
#[derive(Clone, Copy)]
enum Run {
    None,
    Literal(u64),
    Inline(u64),
}

impl<S: Source> std::fmt::Debug for Reader<S> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reader").field("header", &self.header).finish_non_exhaustive()
    }
}

impl<S: Source> Reader<S> {
    /// Reads the header. `diff_id` is for errors; that it is the header's is for the caller to check.
    ///
    /// Errors, here and below: [`Error::CorruptRecipe`]; [`Error::Io`] if the source can't be read.
    pub fn new(source: S, diff_id: DiffId) -> Result<Reader<S>> {
        let source = Arc::new(source);
        let new = || -> io::Result<Reader<S>> {
            let size = source.size()?;
            let mut head = [0; HEADER_BYTES as usize];
            Section { source: Arc::clone(&source), at: 0, end: size }.read_exact(&mut head)?;
            let header = Header::decode(&head).map_err(super::format::invalid)?;
            let literals = header.objects.checked_mul(OBJECT_BYTES).and_then(|bytes| bytes.checked_add(HEADER_BYTES));
            let steps = literals.and_then(|at| at.checked_add(header.literals_bytes)).filter(|at| *at <= size);
            let (Some(literals), Some(steps)) = (literals, steps) else {
                return Err(super::format::invalid("it is shorter than its header says"));
            };
            let section = |at, end| decoder(Section { source: Arc::clone(&source), at, end });
            Ok(Reader {
                diff_id,
                header,
                literals: section(literals, steps)?,
                steps: BufReader::with_capacity(PIECE, section(steps, size)?),
                source: Arc::clone(&source),
                buffer: Vec::new(),
                run: Run::None,
                last: 0,
                told_bytes: 0,
            })
        };
        new().map_err(|error| blame(diff_id, error))
    }

    /// The layer whose recipe this says it is.
    pub fn diff_id(&self) -> DiffId {
        self.header.diff_id
    }

    /// Length of the tar.
    pub fn tar_bytes(&self) -> u64 {
        self.header.tar_bytes
    }

    /// How many objects it lists.
    pub fn objects(&self) -> u64 {
        self.header.objects
    }

    /// Calls `visit` with every listed object and its length.
    pub fn each_object(&self, mut visit: impl FnMut(ObjectId, u64)) -> Result<()> {
        let end = HEADER_BYTES + self.header.objects * OBJECT_BYTES;
        let section = Section { source: Arc::clone(&self.source), at: HEADER_BYTES, end };
        let mut rows = BufReader::with_capacity(PIECE, section);
        for _ in 0..self.header.objects {
            let mut row = [0; OBJECT_BYTES as usize];
            rows.read_exact(&mut row).map_err(|error| blame(self.diff_id, error))?;
            let (id, size) = decode_object(&row);
            visit(id, size);
        }
        Ok(())
    }

    /// The next step. `None` when the tar is complete as far as the recipe can tell: the lengths of files are known to
    /// their tree only.
    pub fn step(&mut self) -> Result<Option<Step<'_>>> {
        let diff_id = self.diff_id;
        self.next().map_err(|error| blame(diff_id, error))
    }

    fn next(&mut self) -> io::Result<Option<Step<'_>>> {
        if matches!(self.run, Run::None) {
            let Some((verb, argument)) = take_verb(&mut self.steps)? else {
                return self.end();
            };
            match verb {
                Verb::Literal => self.run = Run::Literal(self.tell(argument)?),
                Verb::Inline => self.run = Run::Inline(self.tell(argument)?),
                Verb::Zeros => return Ok(Some(Step::Zeros(self.tell(argument)?))),
                Verb::File | Verb::FilePart => return self.file(verb, argument).map(Some),
                Verb::Object | Verb::ObjectPart => return self.object(verb, argument).map(Some),
            }
        }
        let (Run::Literal(left) | Run::Inline(left)) = self.run else { return Ok(None) };
        let piece = left.min(PIECE as u64);
        self.buffer.resize(piece as usize, 0);
        if let Run::Inline(_) = self.run {
            self.steps.read_exact(&mut self.buffer)?;
            self.run = if left > piece { Run::Inline(left - piece) } else { Run::None };
        } else {
            self.literals.read_exact(&mut self.buffer)?;
            self.run = if left > piece { Run::Literal(left - piece) } else { Run::None };
        }
        Ok(Some(Step::Bytes(&self.buffer)))
    }

    /// Counts bytes of a step; it has at least one.
    fn tell(&mut self, bytes: u64) -> io::Result<u64> {
        let told = self.told_bytes.checked_add(bytes).filter(|told| bytes > 0 && *told <= self.header.tar_bytes);
        self.told_bytes = told.ok_or_else(|| super::format::invalid("its steps don't make the tar that it is for"))?;
        Ok(bytes)
    }

    fn file(&mut self, verb: Verb, difference: u64) -> io::Result<Step<'_>> {
        let bad = || super::format::invalid("a step of a file that can't be");
        let nid = unzigzag(self.last, difference).filter(|nid| u32::try_from(*nid).is_ok()).ok_or_else(bad)?;
        self.last = nid;
        let nid = Nid(nid);
        if verb == Verb::File {
            self.tell(1)?;
            return Ok(Step::File(nid));
        }
        let (offset, bytes) = (take_number(&mut self.steps)?, take_number(&mut self.steps)?);
        offset.checked_add(bytes).ok_or_else(bad)?;
        Ok(Step::FilePart { nid, offset, bytes: self.tell(bytes)? })
    }

    fn object(&mut self, verb: Verb, index: u64) -> io::Result<Step<'_>> {
        let bad = || super::format::invalid("a step of an object that can't be");
        if index >= self.header.objects {
            return Err(bad());
        }
        let mut row = [0; OBJECT_BYTES as usize];
        let at = HEADER_BYTES + index * OBJECT_BYTES;
        Section { source: Arc::clone(&self.source), at, end: at + OBJECT_BYTES }.read_exact(&mut row)?;
        let (id, size) = decode_object(&row);
        if verb == Verb::Object {
            return Ok(Step::Object { id, bytes: self.tell(size)? });
        }
        let (offset, bytes) = (take_number(&mut self.steps)?, take_number(&mut self.steps)?);
        offset.checked_add(bytes).filter(|end| *end <= size).ok_or_else(bad)?;
        Ok(Step::ObjectPart { id, size, offset, bytes: self.tell(bytes)? })
    }

    fn end(&mut self) -> io::Result<Option<Step<'_>>> {
        if self.literals.read(&mut [0])? > 0 {
            return Err(super::format::invalid("it has bytes that no step uses"));
        }
        Ok(None)
    }
}

fn decoder<S: Source>(section: Section<S>) -> io::Result<Decoder<'static, BufReader<Section<S>>>> {
    let mut decoder = Decoder::with_buffer(BufReader::with_capacity(PIECE, section))?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// What the system says is the system's; all else is the recipe's fault.
fn blame(diff_id: DiffId, error: io::Error) -> Error {
    if error.raw_os_error().is_some() {
        return Error::io(format!("read the recipe of layer {diff_id}"))(error);
    }
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it is truncated".to_owned(),
        _ => error.to_string(),
    };
    Error::CorruptRecipe { diff_id, reason }
}

/// A part of a source, read from its beginning.
struct Section<S> {
    source: Arc<S>,
    at: u64,
    end: u64,
}

impl<S: Source> Read for Section<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = (self.end - self.at).min(buffer.len() as u64) as usize;
        let count = self.source.read_at(&mut buffer[..piece], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
