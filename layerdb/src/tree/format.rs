//! The bytes of a tree file: constants and fixed-size records. `docs/FORMAT.md` is the prose.
//!
//! Field names are those of the kernel documentation (*EROFS - Enhanced Read-Only File System*).
//! All numbers are little-endian.

use super::FileKind;

/// Version of the layout: subset of EROFS, conventions, order of inodes, inline limit.
pub(super) const VERSION: u32 = 1;
/// First bytes of the file, in the area that EROFS leaves to the boot loader.
pub(super) const MAGIC: &[u8; 8] = b"micatree";

pub(super) const BLOCK: usize = 4096;
pub(super) const BLOCK_BITS: u8 = 12;
pub(super) const SUPER_OFFSET: usize = 1024;
pub(super) const SUPER_SIZE: usize = 128;
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 0x1;
const COMPAT_MTIME: u32 = 0x2;
const COMPAT_XATTR_FILTER: u32 = 0x4;
const COMPAT: u32 = COMPAT_CHECKSUM | COMPAT_MTIME | COMPAT_XATTR_FILTER;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

/// An inode number counts slots of this many bytes from the start of the file.
pub(super) const SLOT: usize = 32;
/// The root follows the superblock.
pub(super) const ROOT_NID: u64 = ((SUPER_OFFSET + SUPER_SIZE) / SLOT) as u64;

pub(super) const INODE_SIZE: usize = 64;
pub(super) const DIRENT_SIZE: usize = 12;
pub(super) const XATTR_HEADER_SIZE: usize = 12;
pub(super) const XATTR_ENTRY_SIZE: usize = 4;
/// Largest xattr area of an inode: `i_xattr_icount` is 16 bits of 4-byte units behind the header.
pub(super) const XATTR_AREA_MAX: usize = XATTR_HEADER_SIZE + 4 * (u16::MAX as usize - 1);
/// `h_shared_count` is one byte.
pub(super) const XATTR_SHARED_MAX: usize = u8::MAX as usize;

/// A chunk without data.
pub(super) const NULL_CHUNK: u32 = u32::MAX;
pub(super) const CHUNK_SIZE: usize = 4;
/// Largest chunk: 2^31 blocks.
const CHUNK_BITS_MAX: u32 = 31;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// `size` rounded up to a multiple of `unit`, a power of two.
pub(super) const fn align(size: usize, unit: usize) -> usize {
    (size + unit - 1) & !(unit - 1)
}

/// What varies in the first block of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub inodes: u64,
    pub blocks: u32,
    /// Block of the shared xattrs; 0 when there are none.
    pub xattr_block: u32,
}

/// Why a first block is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    Damaged(&'static str),
    Version(u32),
}

impl Superblock {
    /// The bytes from the start of the file to the root inode, without the checksum.
    pub(super) fn encode(&self) -> [u8; SUPER_OFFSET + SUPER_SIZE] {
        let mut block = [0; SUPER_OFFSET + SUPER_SIZE];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(SUPER_OFFSET, &EROFS_MAGIC.to_le_bytes());
        put(SUPER_OFFSET + 8, &COMPAT.to_le_bytes());
        put(SUPER_OFFSET + 12, &[BLOCK_BITS]);
        put(SUPER_OFFSET + 14, &(ROOT_NID as u16).to_le_bytes());
        put(SUPER_OFFSET + 16, &self.inodes.to_le_bytes());
        put(SUPER_OFFSET + 36, &self.blocks.to_le_bytes());
        put(SUPER_OFFSET + 44, &self.xattr_block.to_le_bytes());
        put(SUPER_OFFSET + 80, &INCOMPAT_CHUNKED_FILE.to_le_bytes());
        block
    }

    /// Puts the checksum into a complete first block.
    pub(super) fn seal(block: &mut [u8]) {
        let sum = Self::checksum(block);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
    }

    /// CRC-32C of the first block from the superblock on, its own field taken as zero, without the final inversion.
    fn checksum(block: &[u8]) -> u32 {
        let sum = crc32c::crc32c(&block[SUPER_OFFSET..SUPER_OFFSET + 4]);
        let sum = crc32c::crc32c_append(sum, &[0; 4]);
        !crc32c::crc32c_append(sum, &block[SUPER_OFFSET + 8..BLOCK])
    }

    /// Reads and checks the first block of a file (`BLOCK` bytes at least).
    pub(super) fn decode(block: &[u8]) -> Result<Self, Rejected> {
        let sb = &block[SUPER_OFFSET..SUPER_OFFSET + SUPER_SIZE];
        if &block[..8] != MAGIC || u32_at(sb, 0) != EROFS_MAGIC {
            return Err(Rejected::Damaged("it does not begin like a tree"));
        }
        let version = u32_at(block, 8);
        if version != VERSION {
            return Err(Rejected::Version(version));
        }
        if u32_at(sb, 4) != Self::checksum(block) {
            return Err(Rejected::Damaged("the checksum of its superblock does not match"));
        }
        let found = Self { inodes: u64_at(sb, 16), blocks: u32_at(sb, 36), xattr_block: u32_at(sb, 44) };
        let expected = found.encode();
        if sb[..4] != expected[SUPER_OFFSET..SUPER_OFFSET + 4] || sb[8..] != expected[SUPER_OFFSET + 8..] {
            return Err(Rejected::Damaged("its superblock is outside the subset of EROFS that trees use"));
        }
        Ok(found)
    }
}

/// How the data of an inode is laid out (`EROFS_INODE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// All blocks lie at `i_u` (`FLAT_PLAIN`).
    Plain,
    /// As `Plain`, but the last, partial block follows the inode and its xattrs (`FLAT_INLINE`).
    Inline,
    /// Chunks; in trees none of them has data (`CHUNK_BASED`).
    Chunked,
}

impl Layout {
    const fn code(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Inline => 2,
            Self::Chunked => 4,
        }
    }
}

/// The 64-byte "extended" inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawInode {
    pub layout: Layout,
    /// `i_xattr_icount`
    pub xattr_units: u16,
    pub mode: u16,
    pub size: u64,
    /// `i_u`: first block, device number, or chunk format.
    pub union: u32,
    /// `i_ino`: by Mica's convention the directory that holds the inode's first name.
    pub parent: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_secs: i64,
    pub mtime_nanos: u32,
    pub nlink: u32,
}

impl RawInode {
    pub(super) fn encode(&self) -> [u8; INODE_SIZE] {
        let mut bytes = [0; INODE_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(1 | self.layout.code() << 1).to_le_bytes());
        put(2, &self.xattr_units.to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.union.to_le_bytes());
        put(20, &self.parent.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.mtime_secs.to_le_bytes());
        put(40, &self.mtime_nanos.to_le_bytes());
        put(44, &self.nlink.to_le_bytes());
        bytes
    }

    /// Reads an inode; `None` when it is not an extended one with a layout that trees use.
    pub(super) fn decode(bytes: &[u8; INODE_SIZE]) -> Option<Self> {
        let format = u16_at(bytes, 0);
        let layout = match format {
            0b0001 => Layout::Plain,
            0b0101 => Layout::Inline,
            0b1001 => Layout::Chunked,
            _ => return None,
        };
        Some(Self {
            layout,
            xattr_units: u16_at(bytes, 2),
            mode: u16_at(bytes, 4),
            size: u64_at(bytes, 8),
            union: u32_at(bytes, 16),
            parent: u32_at(bytes, 20),
            uid: u32_at(bytes, 24),
            gid: u32_at(bytes, 28),
            mtime_secs: u64_at(bytes, 32) as i64,
            mtime_nanos: u32_at(bytes, 40),
            nlink: u32_at(bytes, 44),
        })
    }

    /// Bytes of the xattr area behind the inode.
    pub(super) fn xattr_area(&self) -> usize {
        match usize::from(self.xattr_units) {
            0 => 0,
            units => XATTR_HEADER_SIZE + 4 * (units - 1),
        }
    }
}

/// `i_u` of a file of `size` bytes without data: the smallest chunk, as a power of two of blocks, that makes
/// one chunk of it, or the largest there is.
pub(super) fn chunk_format(size: u64) -> u32 {
    (0..CHUNK_BITS_MAX).find(|bits| size <= 1 << (bits + u32::from(BLOCK_BITS))).unwrap_or(CHUNK_BITS_MAX)
}

/// Number of chunks of a file of `size` bytes in the format that [`chunk_format`] gives.
pub(super) fn chunk_count(size: u64) -> u64 {
    size.div_ceil(1 << (chunk_format(size) + u32::from(BLOCK_BITS)))
}

/// `file_type` of a directory entry.
pub(super) const fn dirent_code(kind: FileKind) -> u8 {
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => 2,
        FileKind::CharDevice => 3,
        FileKind::BlockDevice => 4,
        FileKind::Fifo => 5,
        FileKind::Socket => 6,
        FileKind::Symlink => 7,
    }
}

/// The inverse of [`dirent_code`].
pub(super) const fn dirent_kind(code: u8) -> Option<FileKind> {
    Some(match code {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        3 => FileKind::CharDevice,
        4 => FileKind::BlockDevice,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::Symlink,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn root_follows_the_superblock() {
        assert_eq!(ROOT_NID, 36);
    }

    #[test]
    fn superblock_survives_and_its_checksum_guards_the_block() {
        let superblock = Superblock { inodes: 7, blocks: 3, xattr_block: 2 };
        let mut block = vec![0; BLOCK];
        block[..SUPER_OFFSET + SUPER_SIZE].copy_from_slice(&superblock.encode());
        Superblock::seal(&mut block);
        assert_eq!(Superblock::decode(&block), Ok(superblock));
        block[2000] ^= 1;
        assert!(matches!(Superblock::decode(&block), Err(Rejected::Damaged(_))));
    }

    #[test]
    fn superblock_of_another_version_is_told_by_its_number() {
        let mut block = vec![0; BLOCK];
        block[..SUPER_OFFSET + SUPER_SIZE]
            .copy_from_slice(&Superblock { inodes: 1, blocks: 1, xattr_block: 0 }.encode());
        block[8] = 9;
        assert_eq!(Superblock::decode(&block), Err(Rejected::Version(9)));
    }

    #[test]
    fn inode_survives() {
        let inode = RawInode {
            layout: Layout::Chunked,
            xattr_units: 5,
            mode: 0o100_644,
            size: u64::MAX >> 1,
            union: 31,
            parent: 36,
            uid: u32::MAX,
            gid: 1,
            mtime_secs: -2,
            mtime_nanos: 999_999_999,
            nlink: 70_000,
        };
        assert_eq!(RawInode::decode(&inode.encode()), Some(inode));
        assert_eq!(inode.xattr_area(), 28);
    }

    #[test]
    fn chunks_grow_with_the_file() {
        assert_eq!((chunk_format(1), chunk_count(1)), (0, 1));
        assert_eq!((chunk_format(4096), chunk_count(4096)), (0, 1));
        assert_eq!((chunk_format(4097), chunk_count(4097)), (1, 1));
        assert_eq!((chunk_format(1 << 43), chunk_count(1 << 43)), (31, 1));
        assert_eq!((chunk_format((1 << 43) + 1), chunk_count((1 << 43) + 1)), (31, 2));
    }

    #[test]
    fn dirent_codes_are_unique() {
        for code in 0..=u8::MAX {
            assert!(dirent_kind(code).is_none_or(|kind| dirent_code(kind) == code));
        }
    }
}
