//! A directory told as the tar of a layer: everything in it as it is, in the order of names.
//!
//! Everything is opened from its directory's descriptor and no symbolic link is followed, so that nobody who may change
//! the directory meanwhile can have another file told. Sockets and attributes that a tar can't hold are left out and
//! counted. What a layer would take for a deletion is refused.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::vec::IntoIter;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::tar::{Head, Kind, Told, Writer};
use crate::tree::{FileKind, TARGET_MAX, Timestamp};

const PIECE: usize = 256 << 10;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Longest list of attributes' names, and longest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 << 10;
/// Enough for the names of most files.
const XATTRS_USUAL: usize = 512;

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Writes what is in the directory at `path` as a tar.
pub(super) fn write_folder(path: &Path, out: &mut dyn Write) -> Result<Told> {
    let root = rustix::fs::openat(CWD, path, DIRECTORY - OFlags::NOFOLLOW, Mode::empty());
    let root = root.map_err(|errno| Error::io(format!("open {}", path.display()))(errno.into()))?;
    let mut walk = Walk {
        root: path,
        tar: Writer::new(out),
        linked: HashMap::new(),
        path: Vec::new(),
        frames: Vec::new(),
        buffer: vec![0; PIECE],
        told: Told::default(),
    };
    walk.begin(root)?;
    while let Some(frame) = walk.frames.last_mut() {
        let Some(name) = frame.names.next() else {
            walk.frames.pop();
            continue;
        };
        let dir = Arc::clone(&frame.dir);
        walk.path.truncate(frame.path_bytes);
        walk.path.extend_from_slice(&name);
        walk.entry(&dir, &name)?;
    }
    let mut told = walk.told;
    told.bytes = walk.tar.finish().map_err(Error::io("write a tar"))?;
    Ok(told)
}

struct Frame {
    dir: Arc<OwnedFd>,
    /// Length of the path with its last slash.
    path_bytes: usize,
    names: IntoIter<Vec<u8>>,
}

struct Walk<'a> {
    root: &'a Path,
    tar: Writer<'a>,
    /// First paths of files with several names, by device and number.
    linked: HashMap<(u64, u64), Box<[u8]>>,
    path: Vec<u8>,
    frames: Vec<Frame>,
    buffer: Vec<u8>,
    told: Told,
}

impl Walk<'_> {
    fn begin(&mut self, root: OwnedFd) -> Result<()> {
        let stat = rustix::fs::fstat(&root).map_err(|errno| self.io("stat", errno))?;
        let xattrs = self.xattrs(&root)?;
        self.head(b"./", FileKind::Directory, &stat, b"", 0, &xattrs)?;
        self.enter(root)
    }

    fn enter(&mut self, dir: OwnedFd) -> Result<()> {
        let list = rustix::fs::Dir::read_from(&dir).map_err(|errno| self.io("read", errno))?;
        let mut names = Vec::new();
        for entry in list {
            let name = entry.map_err(|errno| self.io("read", errno))?.file_name().to_bytes().to_vec();
            if !matches!(name.as_slice(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort_unstable();
        if !self.frames.is_empty() {
            self.path.push(b'/');
        }
        let path_bytes = self.path.len();
        self.frames.push(Frame { dir: Arc::new(dir), path_bytes, names: names.into_iter() });
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<()> {
        if name.starts_with(b".wh.") {
            return Err(self.bad("a layer takes a name that begins with .wh. for a deletion"));
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.io("stat", errno))?;
        let Some(kind) = FileKind::from_mode(stat.st_mode) else { return Err(self.bad("it is of no known type")) };
        match kind {
            FileKind::Directory => {
                let opened = self.open(dir, name, DIRECTORY)?;
                let stat = rustix::fs::fstat(&opened).map_err(|errno| self.io("stat", errno))?;
                let xattrs = self.xattrs(&opened)?;
                let path = [&self.path[..], b"/"].concat();
                self.head(&path, kind, &stat, b"", 0, &xattrs)?;
                self.enter(opened)
            }
            FileKind::Socket => {
                tracing::warn!(path = %self.path.escape_ascii(), "a socket is left out of a layer");
                self.told.left_out += 1;
                Ok(())
            }
            _ if self.is_link(&stat)? => Ok(()),
            FileKind::Regular => self.regular(dir, name),
            FileKind::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::with_capacity(TARGET_MAX + 1));
                let target = target.map_err(|errno| self.io("read the link", errno))?.into_bytes();
                let xattrs = self.xattrs_by_path(dir, name)?;
                self.named_head(kind, &stat, &target, 0, &xattrs)
            }
            FileKind::CharDevice if stat.st_rdev == 0 => {
                Err(self.bad("a layer takes a character device 0:0 for a deletion"))
            }
            _ => {
                let xattrs = self.xattrs_by_path(dir, name)?;
                self.named_head(kind, &stat, b"", 0, &xattrs)
            }
        }
    }

    /// Tells one more name of a file that was told before.
    fn is_link(&mut self, stat: &Stat) -> Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let identity = (stat.st_dev, stat.st_ino);
        let Some(first) = self.linked.get(&identity) else {
            self.linked.insert(identity, self.path.as_slice().into());
            return Ok(false);
        };
        let head = Head { kind: Kind::HardLink, link: first, ..Head::mark(&self.path) };
        self.told.entries += 1;
        self.tar.head(&head).map_err(Error::io("write a tar"))?;
        Ok(true)
    }

    fn regular(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<()> {
        let opened = self.open(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
        let stat = rustix::fs::fstat(&opened).map_err(|errno| self.io("stat", errno))?;
        if FileKind::from_mode(stat.st_mode) != Some(FileKind::Regular) {
            return Err(self.bad("it changed while it was read"));
        }
        let xattrs = self.xattrs(&opened)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.named_head(FileKind::Regular, &stat, b"", size, &xattrs)?;
        let mut file = File::from(opened);
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let read = file.read(&mut self.buffer[..wanted]).map_err(Error::io(self.action("read")))?;
            if read == 0 {
                return Err(self.bad("it became shorter while it was read"));
            }
            self.tar.write(&self.buffer[..read]).map_err(Error::io("write a tar"))?;
            left -= read as u64;
        }
        self.tar.pad(size).map_err(Error::io("write a tar"))
    }

    fn named_head(&mut self, kind: FileKind, stat: &Stat, link: &[u8], size: u64, xattrs: &Xattrs) -> Result<()> {
        let path = std::mem::take(&mut self.path);
        let told = self.head(&path, kind, stat, link, size, xattrs);
        self.path = path;
        told
    }

    fn head(
        &mut self,
        path: &[u8],
        kind: FileKind,
        stat: &Stat,
        link: &[u8],
        size: u64,
        xattrs: &Xattrs,
    ) -> Result<()> {
        self.told.entries += 1;
        let mtime = Timestamp { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
        let head = Head {
            path,
            kind: Kind::Inode(kind),
            link,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime,
            rdev: stat.st_rdev,
            size,
            xattrs,
        };
        self.tar.head(&head).map_err(Error::io("write a tar"))
    }

    fn open(&self, dir: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|errno| self.io("open", errno))
    }

    fn xattrs(&mut self, file: &OwnedFd) -> Result<Xattrs> {
        self.xattrs_of(&format!("/proc/self/fd/{}", file.as_raw_fd()))
    }

    /// Those of what can't be opened. Only privileged attributes are possible there.
    fn xattrs_by_path(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<Xattrs> {
        let file = self.open(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
        self.xattrs(&file)
    }

    fn xattrs_of(&mut self, path: &str) -> Result<Xattrs> {
        let mut list = vec![0_u8; XATTRS_USUAL];
        let mut listed = rustix::fs::listxattr(path, &mut list[..]);
        if listed == Err(Errno::RANGE) {
            list.resize(XATTR_MAX, 0);
            listed = rustix::fs::listxattr(path, &mut list[..]);
        }
        let length = match listed {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
            Err(errno) => return Err(self.io("list attributes of", errno)),
        };
        let mut xattrs = Vec::new();
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            // Labels that belong to the host are no part of a layer.
            if name.starts_with(b"security.") && name != b"security.capability" {
                continue;
            }
            if name.contains(&b'=') {
                tracing::warn!(path = %self.path.escape_ascii(), name = %name.escape_ascii(), "an attribute is left out");
                self.told.left_out += 1;
                continue;
            }
            let mut value = vec![0_u8; XATTR_MAX];
            match rustix::fs::getxattr(path, name, &mut value[..]) {
                Ok(length) => xattrs.push((name.to_vec(), value[..length].to_vec())),
                // It went meanwhile, or the kernel shows it without letting it be read.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(self.io("read attributes of", errno)),
            }
        }
        xattrs.sort();
        Ok(xattrs)
    }

    fn action(&self, verb: &str) -> String {
        format!("{verb} {}/{}", self.root.display(), self.path.escape_ascii())
    }

    fn io(&self, verb: &str, errno: Errno) -> Error {
        Error::io(self.action(verb))(errno.into())
    }

    fn bad(&self, reason: &str) -> Error {
        let reason = format!("{}: {reason}", self.path.escape_ascii());
        Error::BadImage { path: self.root.to_path_buf(), reason }
    }
}
