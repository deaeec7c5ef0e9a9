//! Directories of any size and depth: names are read as they come, and only directories that are still to be read are
//! remembered.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

/// A path longer than this is not walked along from the root again: PATH_MAX is 4096.
const FAR: usize = 1024;

fn open(at: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(at, path, flags, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn stat(at: BorrowedFd<'_>, path: &Path) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(at, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The names in a directory, none if it is missing. Names that come or go meanwhile may be among them or not; who
/// reads them may remove them.
pub(crate) fn names(at: BorrowedFd<'_>, directory: &Path) -> io::Result<Names> {
    Ok(Names(open(at, directory)?.map(Dir::new).transpose()?))
}

/// See [`names`].
#[derive(Debug)]
pub(crate) struct Names(Option<Dir>);

impl Iterator for Names {
    type Item = io::Result<(OsString, FileType)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.as_mut()?.next()? {
                Err(error) => return Some(Err(error.into())),
                Ok(entry) => {
                    let name = entry.file_name().to_bytes();
                    if name != b"." && name != b".." {
                        return Some(Ok((OsString::from_vec(name.to_vec()), entry.file_type())));
                    }
                }
            }
        }
    }
}

/// The attributes of a file or directory and of all that is in it, other filesystems left out; none if it is missing.
pub(crate) fn files<'a>(at: BorrowedFd<'a>, top: &Path) -> io::Result<Files<'a>> {
    let first = stat(at, top)?;
    let mut files = Files { at, device: 0, first, pending: Vec::new(), reading: None };
    if let Some(first) = &first {
        files.device = first.st_dev;
        if FileType::from_raw_mode(first.st_mode).is_dir() {
            files.pending.push((None, top.to_path_buf()));
        }
    }
    Ok(files)
}

/// See [`files`].
pub(crate) struct Files<'a> {
    at: BorrowedFd<'a>,
    device: u64,
    first: Option<Stat>,
    /// Directories to be read, by their path from another one or from `at`.
    pending: Vec<(Option<Rc<OwnedFd>>, PathBuf)>,
    reading: Option<Reading>,
}

struct Reading {
    directory: Rc<OwnedFd>,
    names: Dir,
    base: Option<Rc<OwnedFd>>,
    path: PathBuf,
}

impl Files<'_> {
    fn next_file(&mut self) -> io::Result<Option<Stat>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            let Some(reading) = &mut self.reading else {
                let Some((base, path)) = self.pending.pop() else { return Ok(None) };
                let base_fd = base.as_ref().map_or(self.at, |base| base.as_fd());
                // It may have gone meanwhile.
                let Some(directory) = open(base_fd, &path)? else { continue };
                let names = Dir::read_from(&directory)?;
                self.reading = Some(Reading { directory: Rc::new(directory), names, base, path });
                continue;
            };
            let Some(entry) = reading.names.next() else {
                self.reading = None;
                continue;
            };
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let Some(found) = stat(reading.directory.as_fd(), Path::new(name))? else { continue };
            if found.st_dev != self.device {
                continue;
            }
            if FileType::from_raw_mode(found.st_mode).is_dir() {
                self.pending.push(if reading.path.as_os_str().len() > FAR {
                    (Some(Rc::clone(&reading.directory)), PathBuf::from(name))
                } else {
                    (reading.base.clone(), reading.path.join(name))
                });
            }
            return Ok(Some(found));
        }
    }
}

impl Iterator for Files<'_> {
    type Item = io::Result<Stat>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_file().transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_of_a_tree_deeper_than_any_path_are_all_seen() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(directory.path()).unwrap();
        let name = "d".repeat(200);
        let mut at = OwnedFd::from(root.try_clone().unwrap());
        for _ in 0..60 {
            rustix::fs::mkdirat(&at, &*name, Mode::RWXU).unwrap();
            at = open(at.as_fd(), Path::new(&name)).unwrap().unwrap();
        }
        let flags = OFlags::WRONLY | OFlags::CREATE;
        rustix::fs::openat(&at, "file", flags, Mode::RUSR).unwrap();
        let seen = files(root.as_fd(), Path::new(&name)).unwrap().map(Result::unwrap).count();
        assert_eq!(seen, 61);
        assert_eq!(files(root.as_fd(), Path::new("missing")).unwrap().count(), 0);
        // tempfile can't remove what it can't name.
        let removed = std::process::Command::new("rm").arg("-rf").arg(directory.path()).status().unwrap();
        assert!(removed.success());
    }
}
