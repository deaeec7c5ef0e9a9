//! Directories of a tree: finding a name and listing.
//!
//! A directory is a sequence of blocks, each complete in itself: entries of 12 bytes, then the names. Names
//! ascend bytewise over the whole directory, `.` and `..` among them.

use super::format::{BLOCK, DIRENT_SIZE, dirent_kind, u16_at, u64_at};
use super::read::{Inode, Tree};
use super::{FileKind, NAME_MAX, Nid};
use crate::error::Result;

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name, without `/` or NUL.
    pub name: &'a [u8],
    /// The inode it leads to.
    pub nid: Nid,
    /// The kind of that inode.
    pub kind: FileKind,
    /// Given to [`Tree::entries`], continues the listing behind this entry; never 0.
    pub cookie: u64,
}

/// One block of a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirectoryBlock<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> DirectoryBlock<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let names = bytes.get(..DIRENT_SIZE).map_or(0, |first| usize::from(u16_at(first, 8)));
        if names == 0 || !names.is_multiple_of(DIRENT_SIZE) || names > bytes.len() {
            return Err("a directory block is malformed");
        }
        Ok(Self { bytes, count: names / DIRENT_SIZE })
    }

    fn name_start(&self, index: usize) -> usize {
        usize::from(u16_at(self.bytes, index * DIRENT_SIZE + 8))
    }

    /// The name of entry `index`, which must be below `count`; `None` when it is malformed.
    fn name(&self, index: usize) -> Option<&'a [u8]> {
        let name = if index + 1 < self.count {
            self.bytes.get(self.name_start(index)..self.name_start(index + 1))?
        } else {
            let rest = self.bytes.get(self.name_start(index)..)?;
            rest.split(|&byte| byte == 0).next()?
        };
        (1..=NAME_MAX).contains(&name.len()).then_some(name)
    }

    fn target(&self, index: usize) -> Option<(Nid, FileKind)> {
        let entry = &self.bytes[index * DIRENT_SIZE..(index + 1) * DIRENT_SIZE];
        Some((Nid(u64_at(entry, 0)), dirent_kind(entry[10])?))
    }
}

const MALFORMED: &str = "a directory entry is malformed";

impl Tree {
    /// Finds a name in a directory by binary search; `.` and `..` are not found.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Entry<'_>>> {
        self.expect_directory(dir)?;
        let malformed = || self.corrupt(dir.nid, MALFORMED);
        if matches!(name, b"." | b"..") {
            return Ok(None);
        }
        // The last block whose first name is not behind the one sought.
        let (mut low, mut high) = (0, dir.size.div_ceil(BLOCK as u64));
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.directory_block(dir, middle)?;
            if block.name(0).ok_or_else(malformed)? <= name {
                found = Some((middle, block));
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some((number, block)) = found else { return Ok(None) };
        let (mut low, mut high) = (0, block.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let here = block.name(middle).ok_or_else(malformed)?;
            match here.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    let (nid, kind) = block.target(middle).ok_or_else(malformed)?;
                    return Ok(Some(Entry { name: here, nid, kind, cookie: cookie(number, middle) }));
                }
            }
        }
        Ok(None)
    }

    /// Lists a directory in ascending order of names, without `.` and `..`, from behind the entry whose cookie
    /// is `after`; 0 is the beginning.
    pub fn entries(&self, dir: &Inode, after: u64) -> Result<Entries<'_>> {
        self.expect_directory(dir)?;
        let (number, offset) = (after / BLOCK as u64, (after % BLOCK as u64) as usize);
        Ok(Entries { tree: self, dir: *dir, number, index: offset.div_ceil(DIRENT_SIZE), block: None })
    }
}

fn cookie(block: u64, index: usize) -> u64 {
    block * BLOCK as u64 + ((index + 1) * DIRENT_SIZE) as u64
}

/// A listing in progress, see [`Tree::entries`]. After an error it is over.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    tree: &'a Tree,
    dir: Inode,
    number: u64,
    index: usize,
    block: Option<DirectoryBlock<'a>>,
}

impl<'a> Entries<'a> {
    fn step(&mut self) -> Result<Option<Entry<'a>>> {
        let malformed = || self.tree.corrupt(self.dir.nid, MALFORMED);
        while self.number < self.dir.size.div_ceil(BLOCK as u64) {
            let block = match self.block {
                Some(block) => block,
                None => self.tree.directory_block(&self.dir, self.number)?,
            };
            self.block = Some(block);
            if self.index >= block.count {
                (self.number, self.index, self.block) = (self.number + 1, 0, None);
                continue;
            }
            let index = self.index;
            self.index += 1;
            let name = block.name(index).ok_or_else(malformed)?;
            if matches!(name, b"." | b"..") {
                continue;
            }
            if name.iter().any(|byte| matches!(byte, b'/' | 0)) {
                return Err(malformed());
            }
            let (nid, kind) = block.target(index).ok_or_else(malformed)?;
            return Ok(Some(Entry { name, nid, kind, cookie: cookie(self.number, index) }));
        }
        Ok(None)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.step().transpose();
        if matches!(item, Some(Err(_))) {
            (self.number, self.block) = (u64::MAX, None);
        }
        item
    }
}
