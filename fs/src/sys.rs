//! The system calls that no library wraps.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use fuser::{FileAttr, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};
use rustix::io::Errno;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const _: () = assert!(size_of::<MountAttr>() == 32);

const MOUNT_ATTR_RDONLY: u64 = 1;

/// Lets the allocator map blocks of a MiB and more one by one, and give them back one by one, for as long as the process lives.
///
/// glibc raises that limit to the size of the largest block that was ever given back. The buffers that `fuser` reads
/// requests into have 16 MiB each, of which the kernel hardly ever fills more than a page. Above the limit they are
/// mapped, and what is not touched takes no memory; below it they come from the heap, and what an earlier one has left
/// there is overwritten with zeros first: 26 MiB and several milliseconds for each mount.
pub(crate) fn map_large_buffers() {
    #[cfg(target_env = "gnu")]
    {
        use std::sync::Once;
        const LIMIT: libc::c_int = 1 << 20;
        static ONCE: Once = Once::new();
        // SAFETY: mallopt takes two numbers and locks what it changes. It can only refuse, and then all stays as it was.
        ONCE.call_once(|| unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LIMIT);
        });
    }
}

/// Makes the mount behind `mount` (a descriptor of `open_tree(2)`) read-only.
pub(crate) fn make_mount_read_only(mount: impl AsFd) -> Result<(), Errno> {
    let attributes = MountAttr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the descriptor is borrowed for the call, the path is a literal with its NUL, and the kernel reads
    // just the given number of bytes of a struct that lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Makes `place` a descriptor of what `new` is, as `dup3(2)`; what it was before is closed.
///
/// The number keeps its owner. The new descriptor is not passed on to programs that are started.
pub(crate) fn replace_descriptor(place: BorrowedFd<'_>, new: impl AsFd) -> Result<(), Errno> {
    // SAFETY: both descriptors are open for the duration of the call. The one that is replaced stays open, as another
    // file; whoever owns it goes on to own an open descriptor.
    let result = unsafe { libc::dup3(new.as_fd().as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) };
    if result >= 0 { Ok(()) } else { Err(last_errno()) }
}

/// `FUSE_DEV_IOC_BACKING_CLOSE`, `_IOW(229, 2, __u32)`.
const BACKING_CLOSE: libc::Ioctl = 0x4004_e502;

/// Closes a backing file by its number. A number that is not in use is ENOENT.
pub(crate) fn close_backing(device: impl AsFd, id: u32) -> Result<(), Errno> {
    // SAFETY: the ioctl reads one u32, which lives until the call returns.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BACKING_CLOSE, &raw const id) };
    if result >= 0 { Ok(()) } else { Err(last_errno()) }
}

/// Answers an OPEN with a backing file that stays open after the answer.
pub(crate) fn reply_opened(reply: ReplyOpen, fh: FileHandle, flags: FopenFlags, id: u32) {
    // SAFETY: the passthrough table opened the number on this connection and closes it with the last handle. It is
    // taken back from the wrapper below, which therefore never closes it.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(fh, flags, &backing);
    backing.into_raw();
}

/// Answers a CREATE in the same way.
pub(crate) fn reply_created(
    reply: ReplyCreate,
    ttl: Duration,
    attr: &FileAttr,
    (fh, flags, id): (FileHandle, FopenFlags, u32),
) {
    // SAFETY: as for `reply_opened`.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.created_passthrough(&ttl, attr, Generation(0), fh, flags, &backing);
    backing.into_raw();
}

/// `LOOP_CTL_GET_FREE` (<linux/loop.h>).
const LOOP_GET_FREE: libc::Ioctl = 0x4C82;
/// `LOOP_CONFIGURE`.
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
/// `LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR`.
const LOOP_READ_ONLY_AUTOCLEAR: u32 = 1 | 4;

/// `struct loop_info64`; only the flags say anything here.
#[repr(C)]
struct LoopInfo {
    before: [u64; 5],
    encryption: [u32; 3],
    flags: u32,
    names_and_key: [u8; 160],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// The number of a loop device that nobody uses, asked of `/dev/loop-control`.
pub(crate) fn free_loop(control: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: the ioctl takes no argument, and the descriptor is borrowed for the call.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_GET_FREE) };
    u32::try_from(number).map_err(|_| last_errno())
}

/// Makes a loop device a read-only one of the file `backing`, until the last who has the device open closes it. One that
/// is in use is EBUSY.
pub(crate) fn attach_loop(device: impl AsFd, backing: impl AsFd) -> Result<(), Errno> {
    let info = LoopInfo {
        before: [0; 5],
        encryption: [0; 3],
        flags: LOOP_READ_ONLY_AUTOCLEAR,
        names_and_key: [0; 160],
        init: [0; 2],
    };
    let fd = u32::try_from(backing.as_fd().as_raw_fd()).map_err(|_| Errno::BADF)?;
    let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the ioctl reads one `struct loop_config`, which lives until the call returns; both descriptors are borrowed
    // for the call.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result >= 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
