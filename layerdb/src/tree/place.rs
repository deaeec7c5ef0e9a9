//! Where inodes go: a deterministic packing into blocks.
//!
//! An inode with its xattrs (the head) and its inline data (the tail) takes slots of 32 bytes. A tail must not
//! cross a block boundary. Inodes come in the canonical order; each takes the first gap that holds it, of the
//! [`OPEN_MAX`] gaps left most recently, else a new block. So inodes stay near their neighbours, the numbering
//! depends on nothing but the order and the sizes, and a heap of small files wastes little.

use std::collections::VecDeque;
use std::ops::Range;

use super::format::{BLOCK, INODE_SIZE, ROOT_NID, SLOT, align};

/// How many gaps are remembered.
const OPEN_MAX: usize = 32;

/// Gives out places. The numbering of inodes is part of the format: a change here is a new format version.
#[derive(Debug)]
pub(super) struct Placer {
    /// Free ranges, each within a block, starting at a slot; oldest first.
    gaps: VecDeque<Range<usize>>,
    /// Everything from here on is free; a multiple of the block size.
    end: usize,
}

/// A place for an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset of the inode in the file.
    pub offset: usize,
    /// Whether the tail follows the head; else it needs a block of its own.
    pub with_tail: bool,
}

impl Placer {
    /// Places the root, whose place never varies, and with it the superblock.
    pub(super) fn with_root(head: usize, tail: usize) -> (Self, Place) {
        let offset = ROOT_NID as usize * SLOT;
        let with_tail = tail > 0 && offset + head + tail <= BLOCK;
        let used = align(offset + head + if with_tail { tail } else { 0 }, SLOT);
        let mut placer = Self { gaps: VecDeque::new(), end: align(used, BLOCK) };
        placer.leave(used..placer.end);
        (placer, Place { offset, with_tail })
    }

    /// The first byte behind all places, a multiple of the block size.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Places an inode. `together` asks for head and tail in one block (the kernel wants that of links).
    pub(super) fn place(&mut self, head: usize, tail: usize, together: bool) -> Place {
        let whole = head + tail;
        if whole <= BLOCK {
            return Place { offset: self.within_a_block(whole), with_tail: tail > 0 };
        }
        if tail == 0 {
            return Place { offset: self.over_blocks(head), with_tail: false };
        }
        if together || head > BLOCK || head % SLOT + tail > BLOCK {
            return self.place(head, 0, together);
        }
        Place { offset: self.across_a_boundary(head, tail), with_tail: true }
    }

    fn within_a_block(&mut self, size: usize) -> usize {
        let fitting = self.gaps.iter().position(|gap| gap.len() >= size);
        let (at, gap) = match fitting.and_then(|at| Some((at, self.gaps.remove(at)?))) {
            Some(known) => known,
            None => (self.gaps.len(), self.new_block()),
        };
        self.leave_at(at, align(gap.start + size, SLOT)..gap.end);
        gap.start
    }

    fn new_block(&mut self) -> Range<usize> {
        let block = self.end..self.end + BLOCK;
        self.end = block.end;
        block
    }

    /// A head of more than a block starts at one.
    fn over_blocks(&mut self, head: usize) -> usize {
        let start = self.end;
        self.end = align(start + head, BLOCK);
        self.leave(align(start + head, SLOT)..self.end);
        start
    }

    /// The head ends where a block does, give or take a slot, and the tail lies in the next block.
    fn across_a_boundary(&mut self, head: usize, tail: usize) -> usize {
        let before = head - head % SLOT;
        let last = self.gaps.iter().position(|gap| gap.end == self.end && gap.len() >= before);
        let (front, boundary) = match last.and_then(|at| self.gaps.remove(at)) {
            Some(gap) => (gap.start, gap.end),
            None => (self.end, self.end + BLOCK),
        };
        let offset = boundary - before;
        self.end = boundary + BLOCK;
        self.leave(front..offset);
        self.leave(align(offset + head + tail, SLOT)..self.end);
        offset
    }

    fn leave(&mut self, gap: Range<usize>) {
        self.leave_at(self.gaps.len(), gap);
    }

    fn leave_at(&mut self, at: usize, gap: Range<usize>) {
        if gap.len() < INODE_SIZE {
            return;
        }
        self.gaps.insert(at, gap);
        if self.gaps.len() > OPEN_MAX {
            self.gaps.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places inodes and checks what the format demands of every place.
    fn check(sizes: &[(usize, usize, bool)]) -> usize {
        let (mut placer, root) = Placer::with_root(64, 100);
        let mut taken = vec![0..1152, root.offset..root.offset + 164];
        for &(head, tail, together) in sizes {
            let place = placer.place(head, tail, together);
            let tail = if place.with_tail { tail } else { 0 };
            let (start, middle, end) = (place.offset, place.offset + head, place.offset + head + tail);
            assert_eq!(start % SLOT, 0);
            assert!(start / BLOCK == (start + INODE_SIZE - 1) / BLOCK, "an inode crosses a boundary");
            assert!(tail == 0 || middle / BLOCK == (end - 1) / BLOCK, "a tail crosses a boundary");
            assert!(!together || tail == 0 || start / BLOCK == (end - 1) / BLOCK);
            assert!(end <= placer.end());
            taken.push(start..end);
        }
        taken.sort_by_key(|range| range.start);
        assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start), "two inodes overlap");
        placer.end()
    }

    #[test]
    fn places_never_overlap_or_cross_boundaries() {
        let mut seed = 1_u64;
        let mut random = |limit: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % limit
        };
        for _ in 0..200 {
            let sizes: Vec<_> = (0..200)
                .map(|_| {
                    let head = 64 + if random(20) == 0 { 4 * random(4000) } else { 4 * random(60) };
                    let tail = if random(2) == 0 { random(BLOCK) } else { random(300) };
                    (head, tail, random(3) == 0)
                })
                .collect();
            check(&sizes);
        }
    }

    #[test]
    fn root_keeps_its_place_whatever_its_size() {
        for (head, tail) in [(64, 0), (64, 2880), (64, 4095), (9000, 5), (2944, 0), (2944, 1)] {
            let (placer, root) = Placer::with_root(head, tail);
            assert_eq!(root.offset, 1152);
            assert_eq!(root.with_tail, tail > 0 && head + tail <= 2944);
            assert!(placer.end() >= 1152 + head);
        }
    }

    #[test]
    fn middling_files_pack_densely() {
        let sizes: Vec<_> = (0..1000).flat_map(|_| [(64, 2500, false), (100, 30, true), (180, 0, false)]).collect();
        let bytes: usize = sizes.iter().map(|(head, tail, _)| head + tail).sum();
        assert!(check(&sizes) < bytes * 3 / 2);
    }
}
