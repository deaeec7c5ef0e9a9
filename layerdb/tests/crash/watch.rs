//! RocksDB's part of the record: the system calls it makes below a directory.
//!
//! RocksDB is linked into this program, and a program's own function takes the place of the C library's of the same
//! name, for all of the program. So the functions below stand between RocksDB and the kernel: they record each change
//! below a watched directory, or let it fail, and make the call. The store's own disk is not seen here, it doesn't
//! use the C library.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use libc::{c_char, c_int, c_long, c_uint, c_void, off_t, size_t, ssize_t};
use mica_layerdb::disk::crash::{Change, Recorder};
use parking_lot::{Mutex, RwLock};

/// A directory whose changes are seen, until dropped.
#[derive(Debug)]
pub struct Watch {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    recorder: Option<Arc<Recorder>>,
    faults: Mutex<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    count: u64,
    first: u64,
    many: u64,
    errno: c_int,
    failed: Option<&'static str>,
}

#[derive(Default)]
struct Table {
    watches: Vec<Arc<Inner>>,
    /// By descriptor. The C library may close one without us, hence the inode number.
    open: HashMap<c_int, (u64, Arc<Inner>, Option<PathBuf>)>,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static TABLE: LazyLock<RwLock<Table>> = LazyLock::new(RwLock::default);

thread_local! {
    /// What the functions below call themselves is nobody's change.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Watch {
    /// Sees the changes below `root`, an absolute path without symbolic links, and tells the recorder.
    pub fn new(root: &Path, recorder: Option<Arc<Recorder>>) -> Watch {
        let inner = Arc::new(Inner { root: root.to_path_buf(), recorder, faults: Mutex::default() });
        TABLE.write().watches.push(Arc::clone(&inner));
        ARMED.store(true, Ordering::Release);
        Watch { inner }
    }

    /// Lets the `first`-th change from now on, counted from 0, and the `many - 1` behind it fail.
    pub fn fail_at(&self, first: u64, many: u64, errno: rustix::io::Errno) {
        *self.inner.faults.lock() = Faults { count: 0, first, many, errno: errno.raw_os_error(), failed: None };
    }

    /// Changes since the last [`Watch::fail_at`], or the beginning.
    pub fn count(&self) -> u64 {
        self.inner.faults.lock().count
    }

    /// Lets everything succeed. Returns the first function that failed, if one did.
    pub fn heal(&self) -> Option<&'static str> {
        std::mem::take(&mut *self.inner.faults.lock()).failed
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut table = TABLE.write();
        table.watches.retain(|watch| !Arc::ptr_eq(watch, &self.inner));
        table.open.retain(|_, (_, watch, _)| !Arc::ptr_eq(watch, &self.inner));
    }
}

impl Inner {
    fn pass(&self, function: &'static str) -> Result<(), c_int> {
        let mut faults = self.faults.lock();
        let at = faults.count;
        faults.count += 1;
        if at < faults.first || at - faults.first >= faults.many {
            return Ok(());
        }
        faults.failed.get_or_insert(function);
        Err(faults.errno)
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map(Path::to_path_buf).unwrap_or_default()
    }
}

fn outside<R>(call: impl FnOnce() -> R) -> R {
    INSIDE.with(|inside| {
        let before = inside.replace(true);
        let result = call();
        inside.set(before);
        result
    })
}

fn armed() -> bool {
    ARMED.load(Ordering::Acquire) && !INSIDE.with(Cell::get)
}

/// The watch of a path.
///
/// SAFETY: `path` is NULL or a C string.
unsafe fn watch_of(path: *const c_char) -> Option<(Arc<Inner>, PathBuf)> {
    if !armed() || path.is_null() {
        return None;
    }
    // SAFETY: as this function's.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let table = TABLE.read();
    let watch = table.watches.iter().find(|watch| path.starts_with(&watch.root))?;
    Some((Arc::clone(watch), watch.relative(path)))
}

fn watch_of_file(fd: c_int) -> Option<(Arc<Inner>, Option<PathBuf>)> {
    if !armed() {
        return None;
    }
    let (inode, watch, path) = TABLE.read().open.get(&fd).cloned()?;
    (inode_of(fd) == Some(inode)).then_some((watch, path))
}

fn inode_of(fd: c_int) -> Option<u64> {
    // SAFETY: if nobody has it open, that is an error like any other.
    rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd) }).ok().map(|stat| stat.st_ino)
}

fn set_errno(errno: c_int) {
    // SAFETY: the C library's own place for this thread's errno.
    unsafe { *libc::__errno_location() = errno };
}

/// A system call's result as `io::Result`.
fn checked(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An `io::Result` as a C function's result.
fn answer(result: io::Result<c_long>) -> c_long {
    result.unwrap_or_else(|error| {
        set_errno(error.raw_os_error().unwrap_or(libc::EIO));
        -1
    })
}

/// Makes a change that has a path, if it may succeed.
fn change(watch: &Inner, function: &'static str, make: impl FnOnce() -> c_long, what: Change) -> c_long {
    outside(|| {
        if let Err(errno) = watch.pass(function) {
            return answer(Err(io::Error::from_raw_os_error(errno)));
        }
        answer(match &watch.recorder {
            Some(recorder) => recorder.observe(|| Ok((checked(make())?, what))),
            None => checked(make()),
        })
    })
}

/// Makes a change to an open file, if it may succeed.
fn change_file(
    watch: &Inner,
    fd: c_int,
    function: &'static str,
    make: impl FnOnce() -> io::Result<(c_long, Option<Recorded>)>,
) -> c_long {
    outside(|| {
        if let Err(errno) = watch.pass(function) {
            return answer(Err(io::Error::from_raw_os_error(errno)));
        }
        let Some(recorder) = &watch.recorder else { return answer(make().map(|(result, _)| result)) };
        // SAFETY: the caller of the C function has the file open.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        answer(recorder.observe_file(file, |number| {
            let (result, recorded) = make()?;
            let change = number.zip(recorded).map(|(file, recorded)| match recorded {
                Recorded::Write { at, bytes } => Change::Write { file, at, bytes },
                Recorded::Truncate { length } => Change::Truncate { file, length },
                Recorded::Sync => Change::Sync { file },
            });
            Ok((result, change))
        }))
    })
}

enum Recorded {
    Write { at: u64, bytes: Vec<u8> },
    Truncate { length: u64 },
    Sync,
}

/// open(2)
///
/// SAFETY: as the C library's. It is variadic there; `mode` comes the same way on the platforms Mica supports.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments, unchanged but for a flag.
    let call = |flags: c_int| unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) };
    // SAFETY: as this function's.
    let Some((watch, relative)) = (unsafe { watch_of(path) }) else { return call(flags) as c_int };
    outside(|| {
        let there = std::fs::symlink_metadata(watch.root.join(&relative));
        let creates = flags & libc::O_CREAT != 0 && there.is_err();
        if creates && let Err(errno) = watch.pass("open") {
            return answer(Err(io::Error::from_raw_os_error(errno))) as c_int;
        }
        let fd = match &watch.recorder {
            Some(recorder) if creates => answer(recorder.observe_new(&relative, || {
                let fd = checked(call(flags))?;
                // SAFETY: just opened.
                let stat = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd as c_int) })?;
                Ok((fd, stat))
            })),
            _ => call(flags & !libc::O_TRUNC),
        } as c_int;
        if fd >= 0 {
            let directory = there.is_ok_and(|there| there.is_dir());
            let inode = inode_of(fd).unwrap_or_default();
            TABLE.write().open.insert(fd, (inode, Arc::clone(&watch), directory.then_some(relative)));
            if flags & libc::O_TRUNC != 0 && !creates {
                INSIDE.with(|inside| inside.set(false));
                // SAFETY: just opened.
                unsafe { ftruncate(fd, 0) };
                INSIDE.with(|inside| inside.set(true));
            }
        }
        fd
    })
}

/// close(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    if armed() && TABLE.read().open.contains_key(&fd) {
        TABLE.write().open.remove(&fd);
    }
    // SAFETY: the caller's argument.
    (unsafe { libc::syscall(libc::SYS_close, fd) }) as c_int
}

/// write(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: the caller's arguments, at most as many bytes.
    let call = |count: size_t| unsafe { libc::syscall(libc::SYS_write, fd, bytes, count) };
    let Some((watch, _)) = watch_of_file(fd) else { return call(count) as ssize_t };
    let position = || {
        // SAFETY: calls without pointers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        let whence = if flags & libc::O_APPEND != 0 { libc::SEEK_END } else { libc::SEEK_CUR };
        // SAFETY: the same.
        checked(unsafe { libc::lseek(fd, 0, whence) })
    };
    if watch.faults.lock().will_fail() {
        call(count / 2);
    }
    change_file(&watch, fd, "write", || {
        let at = position()?;
        let written = checked(call(count))?;
        // SAFETY: the caller's buffer.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), written as usize) }.to_vec();
        Ok((written, Some(Recorded::Write { at: at as u64, bytes })))
    }) as ssize_t
}

/// pwrite(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, count: size_t, at: off_t) -> ssize_t {
    // SAFETY: the caller's arguments.
    let call = || unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes, count, at) };
    let Some((watch, _)) = watch_of_file(fd) else { return call() as ssize_t };
    change_file(&watch, fd, "pwrite", || {
        let written = checked(call())?;
        // SAFETY: the caller's buffer.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), written as usize) }.to_vec();
        Ok((written, Some(Recorded::Write { at: at as u64, bytes })))
    }) as ssize_t
}

/// ftruncate(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
    // SAFETY: the caller's arguments.
    let call = || unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) };
    let Some((watch, _)) = watch_of_file(fd) else { return call() as c_int };
    let recorded = Recorded::Truncate { length: length as u64 };
    change_file(&watch, fd, "ftruncate", || Ok((checked(call())?, Some(recorded)))) as c_int
}

/// fallocate(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, at: off_t, length: off_t) -> c_int {
    // SAFETY: the caller's arguments.
    let call = || unsafe { libc::syscall(libc::SYS_fallocate, fd, mode, at, length) };
    let Some((watch, _)) = watch_of_file(fd) else { return call() as c_int };
    assert!(mode & libc::FALLOC_FL_KEEP_SIZE != 0, "fallocate of another kind must be recorded");
    change_file(&watch, fd, "fallocate", || Ok((checked(call())?, None))) as c_int
}

fn synced(fd: c_int, function: &'static str, call: impl FnOnce() -> c_long) -> c_int {
    match watch_of_file(fd) {
        None => call() as c_int,
        Some((watch, Some(path))) => change(&watch, function, call, Change::SyncDir { path }) as c_int,
        Some((watch, None)) => {
            change_file(&watch, fd, function, || Ok((checked(call())?, Some(Recorded::Sync)))) as c_int
        }
    }
}

/// fsync(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the caller's argument.
    synced(fd, "fsync", || unsafe { libc::syscall(libc::SYS_fsync, fd) })
}

/// fdatasync(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: the caller's argument.
    synced(fd, "fdatasync", || unsafe { libc::syscall(libc::SYS_fdatasync, fd) })
}

/// rename(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(old: *const c_char, new: *const c_char) -> c_int {
    // SAFETY: the caller's arguments.
    let call = || unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, old, libc::AT_FDCWD, new, 0) };
    // SAFETY: as this function's.
    match unsafe { (watch_of(old), watch_of(new)) } {
        (Some((watch, from)), Some((_, to))) => change(&watch, "rename", call, Change::Rename { from, to }) as c_int,
        _ => call() as c_int,
    }
}

/// unlink(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's argument.
    let call = || unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) };
    // SAFETY: as this function's.
    match unsafe { watch_of(path) } {
        Some((watch, path)) => change(&watch, "unlink", call, Change::Remove { path }) as c_int,
        None => call() as c_int,
    }
}

/// link(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn link(old: *const c_char, new: *const c_char) -> c_int {
    // SAFETY: as this function's.
    assert!(unsafe { watch_of(old) }.is_none(), "a hard link must be recorded");
    // SAFETY: the caller's arguments.
    (unsafe { libc::syscall(libc::SYS_linkat, libc::AT_FDCWD, old, libc::AT_FDCWD, new, 0) }) as c_int
}

/// mkdir(2)
///
/// SAFETY: as the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments.
    let call = || unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) };
    // SAFETY: as this function's.
    match unsafe { watch_of(path) } {
        Some((watch, path)) => outside(|| {
            if let Err(errno) = watch.pass("mkdir") {
                return answer(Err(io::Error::from_raw_os_error(errno))) as c_int;
            }
            let made = match &watch.recorder {
                Some(recorder) => recorder.observe_dir(&path, || checked(call()).map(drop)),
                None => checked(call()).map(drop),
            };
            answer(made.map(|()| 0)) as c_int
        }),
        None => call() as c_int,
    }
}

impl Faults {
    fn will_fail(&self) -> bool {
        self.count >= self.first && self.count - self.first < self.many
    }
}
