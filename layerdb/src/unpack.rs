//! Unpacking a tar that Mica wrote into a directory, by descriptors alone.
//!
//! Every entry is made new in a directory that was made or opened before it without following a symbolic link: whatever the
//! archive says, nothing outside the directory is touched, and nothing that is there is written to. Directories get their
//! attributes when they are complete.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::ingest::header::Header;
use crate::ingest::pax::Extensions;
use crate::tree::Timestamp;

const BLOCK: usize = 512;
const PIECE: usize = 256 << 10;
/// Longest extended header: the attributes of one entry and its names.
const EXTENSION_MAX: u64 = 1 << 20;
/// Bytes of a path that a system call is given at once.
const PATH_PIECE: usize = 2048;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What was unpacked, and what could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Entries whose owner is not the one of the archive.
    pub owners: u64,
    /// Devices that could not be made.
    pub devices: u64,
    /// Extended attributes that could not be set.
    pub xattrs: u64,
}

/// Unpacks a tar into an empty directory. With `owners`, files get their owners and all their permissions; else they are
/// the caller's, and without the bits that would let others run them as the caller. `stop` is asked before each entry.
pub fn unpack(input: &mut dyn Read, root: OwnedFd, owners: bool, stop: &dyn Fn() -> bool) -> Result<Unpacked> {
    let mut unpack = Unpack {
        input,
        at: 0,
        owners,
        dirs: vec![Dir { name: Vec::new(), fd: root, attributes: None }],
        closed: Vec::new(),
        buffer: vec![0; PIECE],
        done: Unpacked::default(),
    };
    while let Some(entry) = unpack.next()? {
        if stop() {
            return Err(Error::io("unpack")(io::ErrorKind::Interrupted.into()));
        }
        unpack.entry(&entry)?;
    }
    while let Some(dir) = unpack.dirs.pop() {
        unpack.complete(dir)?;
    }
    for (fd, mode) in std::mem::take(&mut unpack.closed).into_iter().rev() {
        rustix::fs::fchmod(&fd, mode).map_err(|errno| Error::io("set the mode of a directory")(errno.into()))?;
    }
    Ok(unpack.done)
}

struct Entry {
    kind: u8,
    /// Components.
    path: Vec<Vec<u8>>,
    link: Vec<u8>,
    size: u64,
    attributes: Attributes,
    device: u64,
}

struct Attributes {
    mode: Mode,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An open directory, in those before it.
struct Dir {
    name: Vec<u8>,
    fd: OwnedFd,
    attributes: Option<Attributes>,
}

struct Unpack<'a> {
    input: &'a mut dyn Read,
    at: u64,
    owners: bool,
    dirs: Vec<Dir>,
    /// Directories that their owner can't change any more, kept open until everything is there.
    closed: Vec<(OwnedFd, Mode)>,
    buffer: Vec<u8>,
    done: Unpacked,
}

impl Unpack<'_> {
    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadLayer { layer: "to unpack".into(), entry: String::new(), offset: self.at, reason: reason.into() }
    }

    fn read(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let mut read = vec![0; bytes];
        self.input.read_exact(&mut read).map_err(Error::io("read an archive"))?;
        self.at += bytes as u64;
        Ok(read)
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            let block: [u8; BLOCK] = self.read(BLOCK)?.try_into().map_err(|_| self.bad("a short header"))?;
            if block == [0; BLOCK] {
                // Whoever writes wants to be read to the end.
                io::copy(self.input, &mut io::sink()).map_err(Error::io("read an archive"))?;
                return Ok(None);
            }
            let header = Header::parse(&block).map_err(|reason| self.bad(reason))?;
            let own = header.size().map_err(|reason| self.bad(reason))?;
            let own = u64::try_from(own).map_err(|_| self.bad("a negative size"))?;
            if header.kind() != b'x' {
                return self.head(&header, extensions, own).map(Some);
            }
            if own > EXTENSION_MAX {
                return Err(self.bad(format!("an extended header of {own} bytes")));
            }
            let records = self.read(own.next_multiple_of(BLOCK as u64) as usize)?;
            extensions
                .read(&records[..own as usize], &crate::limits::Limits::default())
                .map_err(|reason| self.bad(reason))?;
        }
    }

    fn head(&self, header: &Header<'_>, extensions: Extensions, size: u64) -> Result<Entry> {
        let bad = |reason: String| self.bad(reason);
        let path = extensions.path.unwrap_or_else(|| header.path());
        let id = |told: Option<i64>, own: Result<i64, String>| {
            let id = told.map_or(own, Ok).map_err(bad)?;
            u32::try_from(id).map_err(|_| self.bad("an owner beyond 32 bits"))
        };
        let (major, minor) = header.device().map_err(bad)?;
        Ok(Entry {
            kind: header.kind(),
            path: components(&path).ok_or_else(|| self.bad("a path that leads out of the archive"))?,
            link: extensions.link.unwrap_or_else(|| header.link().to_vec()),
            size: extensions.size.unwrap_or(size),
            attributes: Attributes {
                mode: Mode::from_raw_mode(header.mode().map_err(bad)?),
                uid: id(extensions.uid, header.uid())?,
                gid: id(extensions.gid, header.gid())?,
                mtime: extensions.mtime.map_or_else(|| header.mtime(), Ok).map_err(bad)?,
                xattrs: extensions.xattrs,
            },
            device: rustix::fs::makedev(major as u32, minor as u32),
        })
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.done.entries += 1;
        let named = |errno: Errno| {
            let path = entry.path.join(&b'/');
            Error::io(format!("unpack {}", path.escape_ascii()))(errno.into())
        };
        let Some((name, parents)) = entry.path.split_last() else {
            if let Some(root) = self.dirs.first_mut() {
                root.attributes = Some(copy_of(&entry.attributes));
            }
            return Ok(());
        };
        self.go_to(parents)?;
        let dir = self.dirs.last().map(|dir| dir.fd.as_fd()).ok_or_else(|| named(Errno::NOENT))?;
        let name = name.as_slice();
        match entry.kind {
            b'5' => {
                rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(named)?;
                let fd = rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()).map_err(named)?;
                self.dirs.push(Dir { name: name.to_vec(), fd, attributes: Some(copy_of(&entry.attributes)) });
                return Ok(());
            }
            b'0' => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(named)?;
                let file = self.contents(File::from(file), entry.size)?;
                return self.set(file.as_fd(), &entry.attributes).map_err(named);
            }
            b'1' => {
                let path = components(&entry.link).ok_or_else(|| self.bad("a link that leads out of the archive"))?;
                let (last, parents) = path.split_last().ok_or_else(|| named(Errno::INVAL))?;
                let from = self.find(parents).map_err(named)?;
                return rustix::fs::linkat(from, last.as_slice(), dir, name, AtFlags::empty()).map_err(named);
            }
            b'2' => rustix::fs::symlinkat(entry.link.as_slice(), dir, name).map_err(named)?,
            b'3' | b'4' | b'6' => {
                let kind = match entry.kind {
                    b'3' => FileType::CharacterDevice,
                    b'4' => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                match rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, entry.device) {
                    Err(Errno::PERM) => {
                        self.done.devices += 1;
                        return Ok(());
                    }
                    made => made.map_err(named)?,
                }
            }
            kind => return Err(self.bad(format!("an entry of type {:?}", char::from(kind)))),
        }
        // What can't be opened is reached by its name in the directory, which is ours.
        let dir = dir.try_clone_to_owned().map_err(Error::io("hold a directory"))?;
        self.set_unopened(&dir, name, entry).map_err(named)
    }

    /// Opens the directory of these components; the directories that are left are complete.
    fn go_to(&mut self, path: &[Vec<u8>]) -> Result<()> {
        let same = self.dirs.iter().skip(1).zip(path).take_while(|(dir, name)| dir.name == **name).count();
        while self.dirs.len() > same + 1 {
            if let Some(dir) = self.dirs.pop() {
                self.complete(dir)?;
            }
        }
        for name in &path[same..] {
            let opened =
                self.dirs.last().map(|dir| rustix::fs::openat(&dir.fd, name.as_slice(), DIRECTORY, Mode::empty()));
            let fd = opened.unwrap_or(Err(Errno::NOENT));
            let fd = fd.map_err(|errno| Error::io(format!("open {}", name.escape_ascii()))(errno.into()))?;
            self.dirs.push(Dir { name: name.clone(), fd, attributes: None });
        }
        Ok(())
    }

    /// A directory by its path from the root, without following a link.
    fn find(&self, path: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = |from: BorrowedFd<'_>, path: &[u8]| {
            rustix::fs::openat2(from, OsStr::from_bytes(path), DIRECTORY, Mode::empty(), resolve)
        };
        let root = self.dirs.first().ok_or(Errno::NOENT)?;
        let mut fd = open(root.fd.as_fd(), b".")?;
        let mut piece: Vec<u8> = Vec::new();
        for name in path {
            piece.extend_from_slice(name);
            piece.push(b'/');
            if piece.len() > PATH_PIECE {
                fd = open(fd.as_fd(), &piece)?;
                piece.clear();
            }
        }
        if piece.is_empty() { Ok(fd) } else { open(fd.as_fd(), &piece) }
    }

    fn contents(&mut self, mut file: File, size: u64) -> Result<File> {
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            self.input.read_exact(&mut self.buffer[..wanted]).map_err(Error::io("read an archive"))?;
            file.write_all(&self.buffer[..wanted]).map_err(Error::io("write a file"))?;
            left -= wanted as u64;
        }
        self.at += size;
        self.done.bytes += size;
        self.read((size.next_multiple_of(BLOCK as u64) - size) as usize)?;
        Ok(file)
    }

    fn complete(&mut self, dir: Dir) -> Result<()> {
        let Some(mut attributes) = dir.attributes else { return Ok(()) };
        let mode = attributes.mode;
        let ours = mode | Mode::RWXU;
        if !self.owners && mode != ours {
            // Until the end, so that a half unpacked tree can be removed again.
            attributes.mode = ours;
        }
        let set = self.set(dir.fd.as_fd(), &attributes);
        set.map_err(|errno| Error::io(format!("complete {}", dir.name.escape_ascii()))(errno.into()))?;
        if attributes.mode != mode {
            self.closed.push((dir.fd, mode - Mode::SUID - Mode::SGID));
        }
        Ok(())
    }

    fn set(&mut self, file: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), Errno> {
        if self.owners {
            rustix::fs::fchown(file, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
        } else {
            self.done.owners += u64::from(!is_mine(attributes));
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.set_xattrs(&path, attributes, |path, name, value| {
            rustix::fs::setxattr(path, name, value, XattrFlags::empty())
        })?;
        let mode = if self.owners { attributes.mode } else { attributes.mode - Mode::SUID - Mode::SGID };
        rustix::fs::fchmod(file, mode)?;
        rustix::fs::futimens(file, &times(attributes.mtime))
    }

    fn set_unopened(&mut self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Errno> {
        let attributes = &entry.attributes;
        if self.owners {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        } else {
            self.done.owners += u64::from(!is_mine(attributes));
        }
        let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
        self.set_xattrs(&path, attributes, |path, name, value| {
            rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        })?;
        if entry.kind != b'2' {
            rustix::fs::chmodat(dir, name, attributes.mode, AtFlags::empty())?;
        }
        rustix::fs::utimensat(dir, name, &times(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn set_xattrs<P: rustix::path::Arg + Copy>(
        &mut self,
        path: P,
        attributes: &Attributes,
        set: impl Fn(P, &[u8], &[u8]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        for (name, value) in &attributes.xattrs {
            match set(path, name, value) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => self.done.xattrs += 1,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

fn copy_of(attributes: &Attributes) -> Attributes {
    Attributes { xattrs: attributes.xattrs.clone(), ..*attributes }
}

fn is_mine(attributes: &Attributes) -> bool {
    (attributes.uid, attributes.gid) == (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: i64::from(mtime.nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// The components of a path from the root; `None` if it leads elsewhere.
fn components(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    if path.starts_with(b"/") {
        return None;
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.map(|name| (name != b"..").then(|| name.to_vec())).collect()
}
