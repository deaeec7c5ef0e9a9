//! What a mount can serve: the operations that the FUSE adapter calls.

use rustix::fs::{OFlags, RenameFlags, StatVfs};

use crate::branches::Branches;
use crate::error::Result;
use crate::inode::{Attr, Caller, DirEntry, Fh, Ino, SetAttr};
use crate::union::{Backing, Union};

/// The operations, each with the contract of [`Union`]'s of the same name; and [`Served`] for both that have them.
macro_rules! served {
    ($($(#[$doc:meta])* fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        /// A filesystem that can be mounted. All operations may be called from many threads.
        pub trait Served: std::fmt::Debug + Send + Sync {
            /// Whether names and attributes change by operations alone, so that the kernel may keep them for ever.
            fn is_constant(&self) -> bool;
            /// Makes whole what was copied in part.
            fn settle(&self) -> Result<()> {
                Ok(())
            }
            /// Ends what is done in the background, so that another process may serve the same.
            fn rest(&self) {}
            $($(#[$doc])* fn $name(&self $(, $argument: $type)*) $(-> $result)?;)*
        }

        impl Served for Union {
            fn is_constant(&self) -> bool {
                true
            }
            fn settle(&self) -> Result<()> {
                Union::settle(self)
            }
            fn rest(&self) {
                Union::rest(self);
            }
            $(fn $name(&self $(, $argument: $type)*) $(-> $result)? {
                Union::$name(self $(, $argument)*)
            })*
        }

        impl Served for Branches {
            fn is_constant(&self) -> bool {
                false
            }
            $(fn $name(&self $(, $argument: $type)*) $(-> $result)? {
                Branches::$name(self $(, $argument)*)
            })*
        }
    };
}

served! {
    /// For a mount that nobody used before.
    fn begin(&self) -> Result<()>;
    /// For a mount that an earlier process served.
    fn recover(&self) -> Result<()>;
    /// Whether every change is refused.
    fn is_read_only(&self) -> bool;
    /// statvfs(3).
    fn statfs(&self) -> Result<StatVfs>;
    /// The inode behind a name, which counts as one reference of the kernel.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>>;
    /// Gives references back.
    fn forget(&self, ino: Ino, lookups: u64);
    /// The attributes of an inode.
    fn getattr(&self, ino: Ino, fh: Option<Fh>) -> Result<Attr>;
    /// Changes attributes and returns them all.
    fn setattr(&self, ino: Ino, fh: Option<Fh>, set: &SetAttr) -> Result<Attr>;
    /// The target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;
    /// Makes a file of any type but directory and symbolic link.
    fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u64) -> Result<Attr>;
    /// Makes a directory.
    fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr>;
    /// Makes a symbolic link.
    fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr>;
    /// Makes a regular file and opens it.
    fn create(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, flags: OFlags) -> Result<(Attr, Fh)>;
    /// Gives an inode one more name.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr>;
    /// Removes a name that is no directory's.
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()>;
    /// Gives an inode another name; renameat2(2).
    fn rename(&self, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], flags: RenameFlags) -> Result<()>;
    /// Opens a regular file.
    fn open(&self, ino: Ino, flags: OFlags) -> Result<Fh>;
    /// Ends a handle.
    fn release(&self, fh: Fh);
    /// Reads; short only at the end of the file.
    fn read(&self, fh: Fh, offset: u64, buffer: &mut [u8]) -> Result<usize>;
    /// Writes; short only when the disk is.
    fn write(&self, fh: Fh, offset: u64, data: &[u8]) -> Result<usize>;
    /// What close(2) waits for.
    fn flush(&self, fh: Fh) -> Result<()>;
    /// Makes a file durable.
    fn fsync(&self, fh: Fh, data_only: bool) -> Result<()>;
    /// fallocate(2), with its mode bits.
    fn fallocate(&self, fh: Fh, mode: i32, offset: u64, length: u64) -> Result<()>;
    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    fn lseek(&self, fh: Fh, offset: i64, whence: i32) -> Result<u64>;
    /// copy_file_range(2).
    fn copy_file_range(&self, from: Fh, from_offset: u64, to: Fh, to_offset: u64, length: u64) -> Result<u64>;
    /// The file that the kernel may read and write itself; `None` if there is none.
    fn backing(&self, fh: Fh) -> Result<Option<Backing>>;
    /// Opens a directory for reading.
    fn opendir(&self, ino: Ino) -> Result<Fh>;
    /// Ends a directory's handle.
    fn releasedir(&self, fh: Fh);
    /// Reads a directory.
    fn readdir(&self, fh: Fh, after: u64, plus: bool, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()>;
    /// Makes a directory's entries durable.
    fn fsyncdir(&self, fh: Fh, data_only: bool) -> Result<()>;
    /// An extended attribute; ENODATA when there is none of this name.
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    /// The names of all extended attributes.
    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>>;
    /// Sets an extended attribute, with the flags of setxattr(2).
    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()>;
    /// Removes an extended attribute; ENODATA when there is none of this name.
    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()>;
}
