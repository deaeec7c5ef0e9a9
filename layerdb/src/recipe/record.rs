//! Writing a recipe while its layer is taken in.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek as _, Write};

use zstd::stream::write::Encoder;

use super::RecipeRecord;
use super::format::{Header, Verb, encode_object, invalid, put_number, put_verb, take_number, take_verb, zigzag};
use crate::digest::{DiffId, Hasher, ObjectId};
use crate::disk::Appender;
use crate::error::{Error, Result};
use crate::tree::{Contents, NodeId, Placement};

/// Compression of literals and steps: see `docs/BENCHMARKS.md` for what others cost and save.
const LEVEL: i32 = 1;

/// Literals are handed to the compressor in pieces of this size.
const PIECE: usize = 64 << 10;

/// Notes what a tar consists of, in the order of its bytes.
pub(crate) struct Recorder {
    literals: BufWriter<Encoder<'static, Appender>>,
    /// Steps as in a recipe, but inodes go by [`NodeId::number`]; there are no objects and no inline bytes.
    steps: BufWriter<Appender>,
    run: Run,
}

/// Bytes that are noted but have no step yet.
#[derive(Clone, Copy)]
enum Run {
    None,
    Literal(u64),
    Zeros(u64),
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// `literals` and `steps` are empty files that nobody else writes to.
    pub(crate) fn new(literals: Appender, steps: Appender) -> Result<Recorder> {
        let encoder = Encoder::new(literals, LEVEL).map_err(failed())?;
        Ok(Recorder {
            literals: BufWriter::with_capacity(PIECE, encoder),
            steps: BufWriter::with_capacity(PIECE, steps),
            run: Run::None,
        })
    }

    /// The tar has these bytes next, and no file of the tree has them.
    pub(crate) fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        let count = bytes.len() as u64;
        if count == 0 {
            return Ok(());
        }
        let zeros = is_zero(bytes);
        self.run = match (self.run, zeros) {
            (Run::Literal(some), false) => Run::Literal(some + count),
            (Run::Zeros(some), true) => Run::Zeros(some + count),
            (_, zeros) => {
                self.end_run()?;
                if zeros { Run::Zeros(count) } else { Run::Literal(count) }
            }
        };
        if zeros { Ok(()) } else { self.literals.write_all(bytes).map_err(failed()) }
    }

    /// The tar has the contents of a regular file next, all of them. Empty ones need not be told.
    pub(crate) fn contents(&mut self, node: NodeId) -> Result<()> {
        self.end_run()?;
        put_verb(&mut self.steps, Verb::File, node.number() as u64).map_err(failed())
    }

    /// The tar has a part of a regular file's contents next, at least one byte.
    pub(crate) fn part(&mut self, node: NodeId, offset: u64, bytes: u64) -> Result<()> {
        self.end_run()?;
        put_verb(&mut self.steps, Verb::FilePart, node.number() as u64)
            .and_then(|()| put_number(&mut self.steps, offset))
            .and_then(|()| put_number(&mut self.steps, bytes))
            .map_err(failed())
    }

    /// Ends the tar.
    pub(crate) fn finish(mut self) -> Result<Recorded> {
        self.end_run()?;
        let finish = || -> io::Result<Recorded> {
            let encoder = self.literals.into_inner().map_err(io::IntoInnerError::into_error)?;
            let steps = self.steps.into_inner().map_err(io::IntoInnerError::into_error)?;
            Ok(Recorded { literals: encoder.finish()?.into_file(), steps: steps.into_file() })
        };
        finish().map_err(failed())
    }

    fn end_run(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.run, Run::None) {
            Run::None => Ok(()),
            Run::Literal(bytes) => put_verb(&mut self.steps, Verb::Literal, bytes).map_err(failed()),
            Run::Zeros(bytes) => put_verb(&mut self.steps, Verb::Zeros, bytes).map_err(failed()),
        }
    }
}

/// What a [`Recorder`] noted.
#[derive(Debug)]
pub(crate) struct Recorded {
    literals: File,
    steps: File,
}

impl Recorded {
    /// Writes the recipe of a layer whose tree has been written.
    pub(crate) fn write(
        mut self,
        placement: &Placement<'_>,
        diff_id: DiffId,
        tar_bytes: u64,
        out: &mut dyn Write,
    ) -> Result<RecipeRecord> {
        let mut write = || -> io::Result<RecipeRecord> {
            let objects = Objects::of(placement);
            self.literals.rewind()?;
            self.steps.rewind()?;
            let header = Header {
                diff_id,
                tar_bytes,
                objects: objects.rows.len() as u64,
                literals_bytes: self.literals.metadata()?.len(),
            };
            let mut sink = BufWriter::with_capacity(PIECE, Sink { out, hasher: Hasher::new(), bytes: 0 });
            sink.write_all(&header.encode())?;
            for (id, size) in &objects.rows {
                sink.write_all(&encode_object(*id, *size))?;
            }
            io::copy(&mut self.literals, &mut sink)?;
            let mut encoder = BufWriter::with_capacity(PIECE, Encoder::new(sink, LEVEL)?);
            translate(BufReader::with_capacity(PIECE, &self.steps), placement, &objects, &mut encoder)?;
            let sink = encoder.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
            let sink = sink.into_inner().map_err(io::IntoInnerError::into_error)?;
            Ok(RecipeRecord { bytes: sink.bytes, digest: sink.hasher.finish(), objects: header.objects })
        };
        write().map_err(failed())
    }
}

/// The objects that no inode of the tree names any more.
struct Objects {
    rows: Vec<(ObjectId, u64)>,
    index: HashMap<ObjectId, u64>,
}

impl Objects {
    fn of(placement: &Placement<'_>) -> Objects {
        let mut objects = Objects { rows: Vec::new(), index: HashMap::new() };
        for (id, size) in placement.left_objects() {
            let next = objects.rows.len() as u64;
            if *objects.index.entry(id).or_insert(next) == next {
                objects.rows.push((id, size));
            }
        }
        objects
    }
}

/// Copies steps, with what became of the inodes in their place.
fn translate(
    mut steps: BufReader<&File>,
    placement: &Placement<'_>,
    objects: &Objects,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut last = 0;
    while let Some((verb, argument)) = take_verb(&mut steps)? {
        let part = match verb {
            Verb::File => None,
            Verb::FilePart => Some((take_number(&mut steps)?, take_number(&mut steps)?)),
            verb => {
                put_verb(out, verb, argument)?;
                continue;
            }
        };
        let node = u32::try_from(argument).map_err(|_| invalid("a node beyond the tree"))?;
        let verb = |whole, part_of| if part.is_none() { whole } else { part_of };
        match placement.contents(NodeId::from_number(node)) {
            Some(Contents::Placed(nid)) => {
                put_verb(out, verb(Verb::File, Verb::FilePart), zigzag(last, nid.0))?;
                put_part(out, part)?;
                last = nid.0;
            }
            Some(Contents::LeftObject { id, .. }) => {
                let index = objects.index.get(&id).ok_or_else(|| invalid("an object that isn't listed"))?;
                put_verb(out, verb(Verb::Object, Verb::ObjectPart), *index)?;
                put_part(out, part)?;
            }
            Some(Contents::LeftInline(bytes)) => {
                let bytes = match part {
                    Some((offset, count)) => &bytes[offset as usize..][..count as usize],
                    None => bytes,
                };
                put_verb(out, Verb::Inline, bytes.len() as u64)?;
                out.write_all(bytes)?;
            }
            None => return Err(invalid("a node without contents")),
        }
    }
    Ok(())
}

fn put_part(out: &mut impl Write, part: Option<(u64, u64)>) -> io::Result<()> {
    let Some((offset, bytes)) = part else { return Ok(()) };
    put_number(out, offset)?;
    put_number(out, bytes)
}

fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|piece| piece == &ZEROS[..piece.len()])
}

fn failed() -> impl FnOnce(io::Error) -> Error {
    Error::io("write a recipe")
}

/// Counts and hashes what passes.
struct Sink<'a> {
    out: &'a mut dyn Write,
    hasher: Hasher,
    bytes: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
