//! Writing past the page cache (`O_DIRECT`), for bytes that nobody here will read soon: filling the page cache costs
//! more than anything else the kernel does for a large file.
//!
//! It changes how [`super::Disk::write`] reaches the disk, not what a caller may rely on: bytes are durable after a
//! sync and not before.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

/// Memory, offset and length of a direct write are multiples of this.
pub(crate) const BLOCK: usize = 4096;

/// True if the file takes direct writes of [`BLOCK`]s. A kernel before 6.1 doesn't tell and gets none.
pub(crate) fn is_possible(file: &File) -> bool {
    let Ok(stat) = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else { return false };
    let fits = |align: u32| align != 0 && BLOCK.is_multiple_of(align as usize);
    stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && fits(stat.stx_dio_mem_align) && fits(stat.stx_dio_offset_align)
}

/// Says how the next writes to the file go.
pub(crate) fn set(file: &File, direct: bool) -> io::Result<()> {
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}
