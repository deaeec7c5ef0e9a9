//! Reading through a mapping: one byte of a page, as often as is asked for.
#![allow(unsafe_code)]

use std::fs::File;
use std::hint::black_box;

use memmap2::Mmap;
use mica_tests::Result;

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// Maps the whole file anew and reads one byte of each of these pages.
pub fn touch(file: &File, pages: impl Iterator<Item = usize>) -> Result {
    // SAFETY: the file is the benchmark's own and nobody shortens it while it is mapped.
    let map = unsafe { Mmap::map(file) }?;
    let sum = pages.fold(0u8, |sum, page| sum.wrapping_add(map[page * PAGE]));
    black_box(sum);
    Ok(())
}
