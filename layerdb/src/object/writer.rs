//! One object on its way to the disk.
//!
//! Bytes are gathered in a buffer; an object that fits is written only if the store doesn't have it. Large ones go past
//! the page cache in whole blocks, where the filesystem can: see [`direct`].

use std::fs::File;
use std::io::{Seek as _, SeekFrom};

use memmap2::MmapMut;

use super::{Staged, Staging};
use crate::digest::ObjectId;
use crate::disk::direct;
use crate::error::{Error, Result};

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// Contents of at least this size go past the page cache: in images they are a tenth of the objects and five sixths
/// of their bytes.
pub(crate) const DIRECT_MIN: usize = 64 << 10;

/// Shorter holes are written as zeros.
const HOLE_MIN: u64 = 64 << 10;

/// An object being written.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Page-aligned, as direct writes need it.
    buffer: MmapMut,
    filled: usize,
    /// Bytes taken, those in the buffer included.
    size: u64,
    file: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    number: u64,
    /// Writes go past the page cache, in whole blocks.
    direct: bool,
    /// The file ends in a hole.
    hole: bool,
}

impl Staging {
    /// Begins an object.
    pub(crate) fn begin(&mut self) -> Result<Writer> {
        let buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => MmapMut::map_anon(BUFFER).map_err(Error::io("make a buffer"))?,
        };
        Ok(Writer { buffer, filled: 0, size: 0, file: None })
    }

    /// Appends to an object.
    pub(crate) fn write(&mut self, writer: &mut Writer, bytes: &[u8]) -> Result<()> {
        writer.size += bytes.len() as u64;
        self.gather(writer, bytes)
    }

    /// Appends zeros to an object. Those of a long hole get no blocks on the disk.
    pub(crate) fn skip(&mut self, writer: &mut Writer, bytes: u64) -> Result<()> {
        static ZEROS: [u8; HOLE_MIN as usize] = [0; HOLE_MIN as usize];
        const BLOCK: u64 = direct::BLOCK as u64;
        let mut written = bytes;
        if bytes >= HOLE_MIN {
            // Zeros to the next block, the hole, zeros behind its last whole block.
            let before = writer.size.next_multiple_of(BLOCK) - writer.size;
            let hole = (bytes - before) / BLOCK * BLOCK;
            self.gather(writer, &ZEROS[..before as usize])?;
            self.flush(writer)?;
            if let Some(open) = &mut writer.file {
                (&open.file).seek(SeekFrom::Current(hole as i64)).map_err(Error::io("write an object"))?;
                open.hole = true;
            }
            written = bytes - before - hole;
        }
        writer.size += bytes;
        self.gather(writer, &ZEROS[..written as usize])
    }

    /// Ends an object, whose bytes have this digest, and gives its size.
    pub(crate) fn finish(&mut self, mut writer: Writer, id: ObjectId) -> Result<u64> {
        let have = self.have(id, writer.size)?;
        if have {
            if let Some(open) = &writer.file {
                self.discard(open.number)?;
            }
        } else {
            let number = self.complete(&mut writer)?;
            self.adopt(Staged { id, size: writer.size, number })?;
        }
        self.buffer = Some(writer.buffer);
        Ok(writer.size)
    }

    /// Puts bytes into the buffer, and the buffer into the file when it is full.
    fn gather(&mut self, writer: &mut Writer, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if writer.filled == BUFFER {
                self.flush(writer)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - writer.filled));
            writer.buffer[writer.filled..][..now.len()].copy_from_slice(now);
            writer.filled += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Writes the buffer, which holds whole blocks.
    fn flush(&mut self, writer: &mut Writer) -> Result<()> {
        let open = match &mut writer.file {
            Some(open) => open,
            none => none.insert(self.open(true)?),
        };
        if writer.filled > 0 {
            self.write_out(&open.file, &writer.buffer[..writer.filled])?;
            writer.filled = 0;
            open.hole = false;
        }
        Ok(())
    }

    /// Writes what is left, to a file that needn't be there yet; returns its number.
    fn complete(&mut self, writer: &mut Writer) -> Result<u64> {
        let mut open = match writer.file.take() {
            Some(open) => open,
            None => self.open(writer.filled >= DIRECT_MIN)?,
        };
        let blocks = if open.direct { writer.filled / direct::BLOCK * direct::BLOCK } else { 0 };
        let (blocks, tail) = writer.buffer[..writer.filled].split_at(blocks);
        open.hole &= writer.filled == 0;
        if !blocks.is_empty() {
            self.write_out(&open.file, blocks)?;
        }
        if open.direct && (open.hole || !tail.is_empty()) {
            direct::set(&open.file, false).map_err(Error::io("write an object"))?;
        }
        if !tail.is_empty() {
            self.write_out(&open.file, tail)?;
        }
        if open.hole {
            // A hole at the end has no length of its own: its last byte is written.
            (&open.file).seek(SeekFrom::Start(writer.size - 1)).map_err(Error::io("write an object"))?;
            self.write_out(&open.file, &[0])?;
        }
        Ok(open.number)
    }

    fn open(&mut self, large: bool) -> Result<Open> {
        let number = self.next;
        let (_, file) = self.create_temporary()?;
        let direct = large && *self.direct.get_or_insert_with(|| direct::is_possible(&file));
        if direct {
            direct::set(&file, true).map_err(Error::io("write past the page cache"))?;
        }
        Ok(Open { file, number, direct, hole: false })
    }

    fn write_out(&self, file: &File, bytes: &[u8]) -> Result<()> {
        self.store.disk().write(file, bytes).map_err(Error::io("write an object"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::digest::Digest;
    use crate::store::Store;

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        store_in(&std::env::temp_dir())
    }

    fn store_in(place: &std::path::Path) -> (tempfile::TempDir, Arc<Store>) {
        let directory = tempfile::tempdir_in(place).unwrap();
        let store = Store::open(directory.path()).unwrap();
        (directory, store)
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*state >> 24) as u8
        };
        (0..bytes).map(|_| next(&mut state)).collect()
    }

    #[test]
    fn object_of_any_length_written_in_pieces_is_read_back() {
        read_back(store());
    }

    #[test]
    fn object_on_a_filesystem_without_direct_writes_is_read_back() {
        let (directory, store) = store_in(std::path::Path::new("/dev/shm"));
        assert!(!direct::is_possible(&File::create(directory.path().join("file")).unwrap()));
        read_back((directory, store));
    }

    fn read_back((_directory, store): (tempfile::TempDir, Arc<Store>)) {
        let mut staging = Staging::new(&store, store.claims.hold()).unwrap();
        let block = direct::BLOCK;
        let lengths = [0, 1, block, DIRECT_MIN - 1, DIRECT_MIN, DIRECT_MIN + 1, BUFFER - 1, BUFFER, BUFFER + 1];
        let mut written = Vec::new();
        for length in lengths.into_iter().chain([3 * BUFFER, 3 * BUFFER + block + 7]) {
            let bytes = noise(length);
            let mut writer = staging.begin().unwrap();
            bytes.chunks(100_003).for_each(|piece| staging.write(&mut writer, piece).unwrap());
            let id = ObjectId(Digest::of(&bytes));
            assert_eq!(staging.finish(writer, id).unwrap(), length as u64);
            written.push((id, bytes));
        }
        staging.publish().unwrap();
        for (id, bytes) in written {
            assert_eq!(std::fs::read(store.objects_path().join(id.relative_path())).unwrap(), bytes, "{}", bytes.len());
        }
    }

    #[test]
    fn object_with_holes_has_its_zeros_and_no_blocks_for_long_ones() {
        const MIB: u64 = 1 << 20;
        let (_directory, store) = store();
        let mut staging = Staging::new(&store, store.claims.hold()).unwrap();
        let data = noise(5000);
        // Lengths of data (at most those 5000 bytes) and holes in turn.
        let cases: [&[u64]; 7] = [
            &[0, 8 * MIB],
            &[5000, 8 * MIB],
            &[5000, 100, 5000],
            &[1, 8 * MIB + 4097, 5000, 8 * MIB, 1],
            &[0, 8 * MIB + 1, 4096, 8 * MIB - 1],
            &[4096, 64 << 10, 4096],
            &[4095, 8 * MIB, 0, 8 * MIB, 5000],
        ];
        for case in cases {
            let mut expected = Vec::new();
            let mut writer = staging.begin().unwrap();
            for (at, bytes) in case.iter().enumerate() {
                if at % 2 == 0 {
                    expected.extend_from_slice(&data[..*bytes as usize]);
                    staging.write(&mut writer, &data[..*bytes as usize]).unwrap();
                } else {
                    expected.resize(expected.len() + *bytes as usize, 0);
                    staging.skip(&mut writer, *bytes).unwrap();
                }
            }
            let id = ObjectId(Digest::of(&expected));
            assert_eq!(staging.finish(writer, id).unwrap(), expected.len() as u64, "{case:?}");
            staging.publish().unwrap();
            let path = store.objects_path().join(id.relative_path());
            assert_eq!(std::fs::read(&path).unwrap(), expected, "{case:?}");
            assert!(
                std::fs::metadata(&path).unwrap().blocks() * 512 <= 8 * direct::BLOCK as u64 + (64 << 10),
                "{case:?}"
            );
        }
    }

    #[test]
    fn object_that_is_there_already_leaves_no_second_file() {
        let (_directory, store) = store();
        let mut staging = Staging::new(&store, store.claims.hold()).unwrap();
        let bytes = noise(2 * BUFFER + 1);
        for _ in 0..2 {
            let mut writer = staging.begin().unwrap();
            staging.write(&mut writer, &bytes).unwrap();
            staging.finish(writer, ObjectId(Digest::of(&bytes))).unwrap();
        }
        assert_eq!(std::fs::read_dir(store.root().join(&staging.directory)).unwrap().count(), 1);
        assert_eq!(staging.new_bytes(), bytes.len() as u64);
    }
}
